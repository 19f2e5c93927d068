"""Which of the stored texts of a task's teachers a student learns: one of each source, or one of each teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.resolved import TaskAggregation
from pipeline.data.splits import TaskData
from pipeline.tasks.consensus import consensus_texts, nearest_texts
from pipeline.tasks.text_faults import text_faults
from teachers.ensemble import stored_predictions
from teachers.store import Store


@dataclass(frozen=True)
class WrittenTexts:
    """The teachers' texts that a student may learn.

    texts: each (n,), empty where there is none to learn · shares: the chance of each to be learnt in place of the reference,
    whose sum is at most 1 · left_out: how many texts no student learns, by their fault · own: whether the last ones are the student's
    own, of the round before.
    """

    texts: tuple[NDArray[Any], ...] = ()
    shares: tuple[float, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    own: bool = False


def written_texts(
    data: TaskData, keys: Mapping[str, str], together: TaskAggregation, share: float, store: Store
) -> WrittenTexts:
    """The texts for train by the task's strategy, without hopeless ones (`pipeline.tasks.text_faults`).

    keys: name in the store by teacher · share: of the examples that learn them; 0 for none. Raises ValueError for a strategy
    that is not made for texts.
    """
    if not share:
        return WrittenTexts()
    train = data.splits["train"]
    predictions = stored_predictions(data.task, train, keys, store)
    used = [(own, together.weights[name]) for name, own in predictions.items() if together.weights[name]]
    candidates, weights = [own for own, _ in used], [weight for _, weight in used]
    match together.strategy:
        case "consensus":
            return _without_faults(data, [(consensus_texts(candidates, weights)[:, 0], share)])
        case "best":
            return _without_faults(data, [(nearest_texts(candidates, train.inputs["target"])[:, 0], share)])
        case "mean":
            return _without_faults(data, [(own[:, 0], share * weight) for own, weight in used])
        case other:
            raise ValueError(f"strategy {other!r} is not made for texts")


def _without_faults(data: TaskData, chosen: list[tuple[NDArray[Any], float]]) -> WrittenTexts:
    train, labelled = data.splits["train"], data.labelled_train()
    sample = (labelled.inputs["source"], labelled.inputs["target"]) if data.task.kind.proportional else None
    texts, left_out = [], dict[str, int]()
    for own, _ in chosen:
        faults = text_faults(own.tolist(), train.inputs["source"], sample)
        for name, has in faults.items():
            left_out[name] = left_out.get(name, 0) + int(has.sum())
        texts.append(np.where(np.any(list(faults.values()), axis=0), "", own))
    return WrittenTexts(tuple(texts), tuple(share for _, share in chosen), left_out)
