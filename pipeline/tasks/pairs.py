"""Pairs of a source and a text: the examples of which teachers give token targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.batch import UNLABELLED, Examples, Ragged, content_keys
from pipeline.tasks.recording import content
from pipeline.tasks.task import Task

FORCED_FIELDS = ("source", "text")
"""The inputs of a pair."""


def pairs(task: Task, sources: Sequence[str], texts: Sequence[str]) -> Examples:
    """n pairs as examples without labels, keyed by both sides."""
    inputs = {"source": list(sources), "text": list(texts)}
    keys = content_keys(f"{task.kind.name}/forced", content(inputs, task.kind.audio))
    return Examples(task.name, keys, inputs, Ragged.single(np.full(len(keys), UNLABELLED, dtype=np.int64)))
