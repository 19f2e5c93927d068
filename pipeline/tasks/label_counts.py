"""How often each label of a task occurs, and how often a model predicts it where it occurs.

Labels are indices into the label space, one an item, or (n, C) marks, one a label: both forms that kinds with a label
space have.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED, Examples, Ragged
from pipeline.tasks.task import Task


def label_counts(task: Task, labels: Ragged) -> NDArray[np.int64]:
    """(C,) occurrences of each label; empty where the task has no label space."""
    names, values = len(task.reading.labels), labels.values
    if not names:
        return np.empty(0, dtype=np.int64)
    if values.ndim == 2:
        return np.asarray((values == 1).sum(0), dtype=np.int64)
    return np.bincount(values[values != UNLABELLED], minlength=names)


def label_hits(task: Task, values: NDArray[np.floating], examples: Examples) -> NDArray[np.int64]:
    """(C,) occurrences of each label in `examples` that (M, C) `values` predict; empty without a label space."""
    names, labels = len(task.reading.labels), examples.labels.values
    if not names:
        return np.empty(0, dtype=np.int64)
    classified = task.scoring.classified(values, examples)
    if classified is not None:
        logits, gold = classified
        return np.bincount(gold[logits.argmax(1) == gold], minlength=names)
    counts = torch.from_numpy(task.reading.counts(examples.inputs))
    rows = task.head.rows(torch.from_numpy(values.astype(np.float32)), counts)  # one row of (no, yes) a label
    yes = rows.argmax(-1).numpy().reshape(labels.shape) == 1
    return np.asarray((yes & (labels == 1)).sum(0), dtype=np.int64)
