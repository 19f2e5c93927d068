"""A student's own texts and predictions of the round before, as what it learns from in this one. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.config.resolved import StudentSettings, TaskAggregation
from pipeline.data.splits import TaskData
from pipeline.training.written import WrittenTexts
from teachers.ensemble import stored_predictions
from teachers.store import Store

OWN = "the student of the round before"
"""Its name among the teachers of its task: no name in a config has blanks."""
EMPTY = "empty, of its own"
"""The fault of an own text that is not learnt. Others are: what is wrong with them is what its teachers tell it."""


@dataclass(frozen=True)
class Before:
    """One student in the round before.

    starts: its models by task, where this round goes on with its weights, one that writes first; none where it begins anew · keys: name in the
    store of what it wrote for the train split, or predicted, by task · share: see `rounds.share`.
    """

    starts: Mapping[str, str]
    share: float
    keys: Mapping[str, str] = field(default_factory=dict)


def goes_on(settings: StudentSettings, before: Before | None) -> StudentSettings:
    """The settings of a student that starts from its model of the round before, where it goes on with its weights."""
    if before is None or not before.starts:
        return settings
    first = next(iter(before.starts.values()))
    return replace(settings, init_from=None, model=first, revision=None, layers=None)


def with_own_texts(
    written: WrittenTexts, data: TaskData, key: str, share: float, store: Store
) -> WrittenTexts:
    """The texts with the student's own, which `share` of the examples learn in place of the others. key: their name in the store.

    An empty text has no token to learn and is left out.
    """
    own = stored_predictions(data.task, data.splits["train"], {OWN: key}, store)[OWN][:, 0]
    empty = np.array([not text.strip() for text in own.tolist()], dtype=bool)
    return WrittenTexts(
        (*written.texts, np.where(empty, "", own)),
        (*(one * (1 - share) for one in written.shares), share),
        {**written.left_out, EMPTY: int(empty.sum())},
        own=True,
    )


def with_own_teacher(together: TaskAggregation, share: float) -> TaskAggregation:
    """The aggregation of a task's teachers and, last, the student of the round before, which has the weight `share` of 1."""
    weights = {teacher: weight * (1 - share) for teacher, weight in together.weights.items()}
    return replace(together, weights={**weights, OWN: share})
