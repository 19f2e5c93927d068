"""The schedules of a supervised baseline where some training text is unlabelled.

A baseline must not lose to its student because of a bad schedule.

The distilled student takes `train.epochs` passes over all examples, the baseline learns from the labelled ones alone.
The same number of passes over fewer examples may be too few steps. The same number of steps may be too many passes.
So the baseline is trained by both schedules, and the one with the better validation score is kept. Neither schedule
has more steps than the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import TrainConfig
from pipeline.training.schedule import Schedule

PLAIN, LONGER = "plain", "longer"
Lengths = Mapping[str, NDArray[np.int64]]


def baseline_schedules(
    train: TrainConfig, labelled: Lengths, every: Lengths, seed: int
) -> dict[str, TrainConfig]:
    """The schedules to choose from, by name: `train` itself, and a longer one where that is possible.

    The longer schedule has as many epochs of the labelled examples as fit into the steps of `train` over every
    example. labelled, every: tokens of each example by task. Early stopping of the longer schedule waits as many
    steps as the student's; with the same number of epochs it would stop within the warm-up.
    """

    def steps_of_an_epoch(lengths: Lengths) -> int:
        return Schedule(lengths, train.batch_size, train.task_sampling, seed).steps_per_epoch

    epochs = train.epochs * steps_of_an_epoch(every) // steps_of_an_epoch(labelled)
    if epochs <= train.epochs:
        return {PLAIN: train}
    changes: dict[str, object] = {"epochs": epochs}
    if train.early_stopping is not None:
        patience = round(train.early_stopping.patience * epochs / train.epochs)
        changes["early_stopping"] = train.early_stopping.model_copy(update={"patience": patience})
    return {PLAIN: train, LONGER: train.model_copy(update=changes)}


def best_schedule(scores: Mapping[str, float]) -> str:
    """The name with the highest validation score, the first of equals."""
    return max(scores, key=lambda name: scores[name])


def schedule_note(job: str, kept: str, schedules: Sequence[Mapping[str, Any]]) -> str:
    """One line for the report. schedules: `name`, `epochs` and `score` (a share) of each that was tried."""
    tried = " · ".join(
        f"{one['name']}, {one['epochs']} epochs: {100 * one['score']:.1f}" for one in schedules
    )
    return f"{job}: the {kept} schedule over the labelled examples is kept by validation score ({tried})"
