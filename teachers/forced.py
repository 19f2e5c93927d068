"""Which texts a task's teachers are forced along: the references of train, and all that any of them, or a student, wrote for train."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.batch import Examples
from pipeline.data.splits import TaskData
from pipeline.tasks.ctc import frame_pairs
from pipeline.tasks.pairs import pairs
from teachers.ensemble import stored_predictions
from teachers.store import Store


def forced_pairs(data: TaskData, keys: Mapping[str, str], store: Store, frames: bool = False) -> Examples:
    """The pairs of source and text, each once. keys: name in the store by the model that wrote · frames: whether the teachers label frames, so
    that there is one pair for each source.

    All candidates, not only those that one strategy would choose, so that strategies can be compared and searched without a
    teacher. Raises `CorruptError` where the store lacks what a teacher wrote.
    """
    train = data.splits["train"]
    if frames:
        return _each_once(frame_pairs(data.task, train.inputs["source"]))
    candidates = stored_predictions(data.task, train, keys, store).values()
    columns = [train.inputs["target"], *(column for own in candidates for column in own.T.tolist())]
    rows = [
        (source, text)
        for column in columns
        for source, text in zip(train.inputs["source"], column, strict=True)
        if text
    ]
    return _each_once(pairs(data.task, *map(list, zip(*rows, strict=True))))


def _each_once(every: Examples) -> Examples:
    return every.take(np.sort(np.unique(every.keys, return_index=True)[1]))
