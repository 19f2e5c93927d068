"""The teachers that a run trains on: which examples of theirs are stored, and where they are at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.batch import Examples
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.files import read_object
from pipeline.prepare import Inputs
from pipeline.run_folder import live_teacher_folder
from pipeline.training.fine_tune import FACTS, TEACHER, is_finished


def at_the_end(config: RunConfig, inputs: Inputs) -> Inputs:
    """`inputs` with the teachers that the run has trained on as they are after it, from which the report is made."""
    ends = {
        name: live_teacher_folder(config.run_dir.absolute(), name) / TEACHER for name in config.co_trained
    }
    return replace(inputs, teachers={**inputs.teachers, **ends})


def have_ended(config: RunConfig) -> bool:
    """Whether all teachers that the run trains on are there as they are after it."""
    return all(is_finished(live_teacher_folder(config.run_dir, name)) for name in config.co_trained)


def stored_examples(config: RunConfig, data: TaskData) -> Sequence[Examples]:
    """The examples for which the store has a task's targets: where its teachers are trained on, those of validation and test, of the
    teachers as they are at the end."""
    if data.task.name in config.co_trained_tasks:
        return [data.splits["validation"], data.splits["test"]]
    return data.all_examples()


def stored_count(config: RunConfig, data: TaskData) -> int:
    """How many different examples these are."""
    return len(np.unique(np.concatenate([one.keys for one in stored_examples(config, data)])))


def notes(config: RunConfig) -> list[str]:
    """What the report says of each teacher that was trained on."""
    lines, own = [], config.co_train
    for name in config.co_trained:
        facts: dict[str, Any] = read_object(
            live_teacher_folder(config.run_dir, name) / FACTS, "Train the run again."
        )
        assert own is not None, "teachers are trained on"
        how = "synchronously" if own.max_age == 0 else f"with targets at most {own.max_age} steps old"
        lines.append(
            f"{name} was trained on beside the student, {how}, over {facts['batches']:,} batches of its task: "
            "its scores, its ensemble's, and what is compared with them, are those at the end"
        )
    return lines
