"""Which of the stored texts of a task's teachers a student learns: one of each source, or one of each teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.resolved import TaskAggregation
from pipeline.data.splits import TaskData
from pipeline.tasks.consensus import consensus_texts, nearest_texts
from pipeline.tasks.text_faults import text_faults
from pipeline.tasks.word_errors import word_error
from pipeline.tasks.writing import writing_reading, writing_scoring
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
    """The texts for train by the task's strategy, without hopeless ones (`pipeline.tasks.text_faults`, `far_texts`).

    keys: name in the store by teacher · share: of the examples that learn them; 0 for none. Raises ValueError for a strategy
    that is not made for texts.
    """
    if not share:
        return WrittenTexts()
    train = data.splits["train"]
    predictions = stored_predictions(data.task, train, keys, store)
    used = [(own, together.weights[name]) for name, own in predictions.items() if together.weights[name]]
    candidates, weights = [own for own, _ in used], [weight for _, weight in used]
    likeness = writing_scoring(data.task).likeness
    match together.strategy:
        case "consensus":
            chosen = [(consensus_texts(candidates, weights, likeness)[:, 0], share)]
        case "best":
            chosen = [(nearest_texts(candidates, train.inputs["target"], likeness)[:, 0], share)]
        case "mean":
            chosen = [(own[:, 0], share * weight) for own, weight in used]
        case other:
            raise ValueError(f"strategy {other!r} is not made for texts")
    return _without_faults(data, chosen, candidates, together.max_word_error)


def _without_faults(
    data: TaskData,
    chosen: list[tuple[NDArray[Any], float]],
    candidates: Sequence[NDArray[Any]],
    limit: float | None,
) -> WrittenTexts:
    train, labelled = data.splits["train"], data.labelled_train()
    sizes = writing_reading(data.task).sizes
    sample = (sizes(labelled.inputs["source"]), labelled.inputs["target"])
    usual = sample if data.task.kind.proportional else None
    texts, left_out = [], dict[str, int]()
    for own, _ in chosen:
        faults = text_faults(own.tolist(), sizes(train.inputs["source"]), usual)
        if limit is not None:
            sound = ~np.any(list(faults.values()), axis=0)
            firsts = [teacher[:, 0].tolist() for teacher in candidates]
            far = far_texts(own.tolist(), train.inputs["target"], firsts, limit)
            faults |= {name: has & sound for name, has in far.items()}
        for name, has in faults.items():
            left_out[name] = left_out.get(name, 0) + int(has.sum())
        texts.append(np.where(np.any(list(faults.values()), axis=0), "", own))
    return WrittenTexts(tuple(texts), tuple(share for _, share in chosen), left_out)


def far_texts(
    texts: Sequence[str], references: Sequence[str], teachers: Sequence[Sequence[str]], limit: float
) -> dict[str, NDArray[np.bool_]]:
    """By fault, (n,) whether each text's word error rate is above `limit`: to its reference, or where that is not known (an empty one) its mean to
    the texts of the teachers, but for the one that is nearest, which may have written it; nothing is known of the text of a single teacher.

    Distil-Whisper (arXiv:2311.00430) leaves out texts so, by their references.
    """
    of = f"with a word error rate above {limit:.0%}"
    names = (f"{of} to the reference", f"{of} to the other teachers")
    faults = {name: np.zeros(len(texts), dtype=bool) for name in names}
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        if reference:
            faults[names[0]][row] = word_error(text, reference) > limit
        elif len(teachers) > 1:
            errors = sorted(word_error(text, own[row]) for own in teachers)[1:]
            faults[names[1]][row] = sum(errors) / len(errors) > limit
    return faults
