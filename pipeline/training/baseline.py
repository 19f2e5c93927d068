"""The schedules of a supervised baseline: a baseline must not lose to its student because of a bad schedule.

Labels alone may teach faster than soft targets: in the student's time a baseline may learn its examples by heart. So
it is trained over a third of the epochs as well. Where some training text is unlabelled, the student takes its epochs
over all examples, the baseline over the labelled ones alone, which may be too few steps. So it is also trained over as
many epochs as the student's steps allow. The schedule with the best validation score is kept. None has more steps
than the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.recipe import StudentRecipe
from pipeline.shown import counted

PLAIN, SHORTER, LONGER = "plain", "shorter", "longer"
SHORTER_BY = 3


def baseline_schedules(train: StudentRecipe, labelled: int, every: int) -> dict[str, StudentRecipe]:
    """The schedules to choose from, by name: `train` itself, a third of it, and a longer one where that is possible.

    labelled, every: optimiser steps of one pass over the labelled examples and over all examples. The longer schedule
    has as many epochs of the labelled examples as fit into the steps of `train` over every example. Its early stopping
    waits as many steps as the student's; with the same number of epochs it would stop within the warm-up.
    """
    schedules = {PLAIN: train}
    shorter = max(1, round(train.epochs / SHORTER_BY))
    if shorter < train.epochs:
        schedules[SHORTER] = train.model_copy(update={"epochs": shorter})
    longer = train.epochs * every // labelled
    if longer > train.epochs:
        changes: dict[str, object] = {"epochs": longer}
        if train.early_stopping is not None:
            patience = round(train.early_stopping.patience * longer / train.epochs)
            changes["early_stopping"] = train.early_stopping.model_copy(update={"patience": patience})
        schedules[LONGER] = train.model_copy(update=changes)
    return schedules


def best_schedule(scores: Mapping[str, float]) -> str:
    """The name with the highest validation score, the first of equals."""
    return max(scores, key=lambda name: scores[name])


def schedule_note(job: str, kept: str, schedules: Sequence[Mapping[str, Any]]) -> str:
    """One line for the report. schedules: `name`, `epochs` and `score` (a share) of each that was tried."""
    tried = " · ".join(
        f"{one['name']}, {counted(one['epochs'], 'epoch')}: {100 * one['score']:.1f}" for one in schedules
    )
    return f"{job}: the {kept} schedule over the labelled examples is kept by validation score ({tried})"
