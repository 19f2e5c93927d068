"""One file per task kind: reading, head, scores. The interfaces of a kind are in `pipeline.tasks.task`.

A kind is declared, by name, in `pipeline.config.kinds`; its file has the code. No other file of the project
names a kind. To add one, declare it, write its file and give it a line in `MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.config.kinds import Kind
from pipeline.tasks import (
    multi_label,
    question_answering,
    regression,
    sequence_to_sequence,
    speech_recognition,
    text_classification,
    text_generation,
    token_classification,
)
from pipeline.tasks.label_columns import Column
from pipeline.tasks.task import Head, Reading, Scoring, Task

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

__all__ = ["MAKERS", "Head", "Reading", "Scoring", "Task"]

MAKERS: dict[Kind, Callable[[str, TaskConfig, Mapping[str, Column]], Task]] = {
    module.KIND: module.from_train
    for module in (
        text_classification,
        multi_label,
        regression,
        token_classification,
        question_answering,
        sequence_to_sequence,
        text_generation,
        speech_recognition,
    )
}
"""By kind, the function (task name, its config, train's columns) → task. Raises `DataError`."""
