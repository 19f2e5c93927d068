"""A task's teachers on some labelled examples, and the ensembles that they make under any weights. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, is_present
from pipeline.config.schema import Strategy, needs_labels
from pipeline.tasks.scores import score_of
from pipeline.tasks.task import Task
from teachers.ensemble import ensemble_values

ROUNDS = 2
"""Rounds of the search over weights, times the number of teachers: no weight is then finer than this allows."""


@dataclass(frozen=True)
class TaskTeachers:
    """The teachers of one task.

    validation: labelled examples · predictions: by teacher, its (M, C) predictions on them · weights: by teacher, in the
    same order, of the configured ensemble, sum 1 · strategy: the configured one.
    """

    task: Task
    validation: Examples
    predictions: Mapping[str, NDArray[Any]]
    weights: Mapping[str, float]
    strategy: Strategy = "mean"

    def combine(self, weights: Mapping[str, float]) -> NDArray[Any]:
        """(M, C) predictions of the ensemble under other weights, sum 1."""
        counts = self.task.reading.counts(self.validation.inputs)
        return ensemble_values(self.task, list(self.predictions.values()), counts, self.strategy, weights)

    def score(self, values: NDArray[Any]) -> float:
        """The task's metric of (M, C) values on `validation`."""
        return score_of(self.task, values, self.validation)

    def without(self, teacher: str) -> dict[str, float] | None:
        """The weights of the ensemble without a teacher, sum 1; None where no other teacher has any weight."""
        others = {**self.weights, teacher: 0.0}
        total = sum(others.values())
        return {one: weight / total for one, weight in others.items()} if total else None

    def lacking(self, weights: Mapping[str, float]) -> NDArray[np.int64]:
        """The columns that no teacher with weight has, though a teacher has them; ascending. Texts have none."""
        if self.task.kind.writes:
            return np.empty(0, dtype=np.int64)
        known = {name: is_present(values).any(axis=0) for name, values in self.predictions.items()}
        chosen = np.any([known[name] for name, weight in weights.items() if weight], axis=0)
        return np.flatnonzero(np.any(list(known.values()), axis=0) & ~chosen)


def ensemble_notes(strategy: Strategy, teachers: int) -> list[str]:
    """How the ensemble of that many teachers is scored, where it is not by its own strategy."""
    if not needs_labels(strategy) or teachers < 2:
        return []
    return [f"{strategy} needs labels, so the ensemble is scored by its weighted mean"]


def best_weights(teachers: TaskTeachers) -> tuple[dict[str, float], NDArray[Any]]:
    """Weights that score best on validation, and the ensemble's predictions under them.

    Greedy selection with replacement (Caruana et al., ICML 2004): each round adds the teacher that helps most, starting
    from none, and the best round is kept. So the weights are never behind the best single teacher. Weights under which
    a label would have no teacher are left out.
    """
    names = list(teachers.predictions)
    counts = dict.fromkeys(names, 0)
    best: tuple[float, dict[str, float], NDArray[Any]] | None = None
    for _ in range(ROUNDS * len(names)):
        tried = []
        for name in names:
            more = {**counts, name: counts[name] + 1}
            total = sum(more.values())
            weights = {one: round(count / total, 2) for one, count in more.items()}
            values = teachers.combine({one: count / total for one, count in more.items()})
            tried.append((teachers.score(values), name, weights, values))
        score, chosen, weights, values = max(tried, key=lambda one: one[0])
        counts[chosen] += 1
        if (best is None or score > best[0]) and not len(teachers.lacking(weights)):
            best = score, weights, values
    if best is None:  # each selection lacks a label
        return dict(teachers.weights), teachers.combine(teachers.weights)
    return best[1], best[2]
