"""A task's teachers together on some examples, from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import ABSENT, Examples, is_present
from pipeline.config.schema import Strategy
from pipeline.tasks.consensus import consensus_texts
from pipeline.tasks.task import Task
from pipeline.tasks.writing import writing_scoring
from teachers.aggregation import ensemble
from teachers.store import Store


def stored_predictions(
    task: Task, examples: Examples, keys: Mapping[str, str], store: Store
) -> dict[str, NDArray[Any]]:
    """(M, C) predictions of each teacher on `examples`, from the store: numbers, or texts of which each teacher may have
    another number. keys: name in the store by teacher."""
    counts = task.reading.counts(examples.inputs)
    space = None if task.kind.writes else task.head.columns
    values = {
        teacher: store.view(key, examples.keys, space, counts).gather(examples.keys).values
        for teacher, key in keys.items()
    }
    return values if task.kind.writes else {name: own.astype(np.float32) for name, own in values.items()}


def ensemble_values(
    task: Task,
    teachers: Sequence[NDArray[Any]],
    counts: NDArray[np.int64],
    strategy: Strategy,
    weights: Mapping[str, float],
) -> NDArray[Any]:
    """(M, C) predictions of the ensemble of the teachers, each (M, C), for examples with `counts` items.

    Of texts (n, 1) the teachers' consensus, whatever the strategy: `best` needs references, and a mean is none.
    """
    if task.kind.writes:
        return consensus_texts(teachers, list(weights.values()), writing_scoring(task).likeness)
    stacked, items = torch.from_numpy(np.stack(teachers)).float(), torch.from_numpy(counts)
    share = torch.tensor(list(weights.values()))
    rows = task.head.rows(stacked, items)
    together = ensemble(rows, strategy=strategy, weights=share, continuous=task.kind.continuous)
    if not task.kind.continuous:
        present = (
            is_present(rows).any(dim=-1).any(dim=0)
        )  # where no teacher has a value, the ensemble has none
        together = (together * present.unsqueeze(-1)).log().clamp(min=ABSENT)
    return task.head.flat(together, items).numpy()
