"""What each teacher is worth to its ensemble: alone, and the ensemble with it and without it. Pure functions.

Scores are the task's metric and the skill (`pipeline.tasks.skill`), which tells more on few examples, since it sees how
sure the teachers are. All differences are paired by example. The skills of a task are shares of one constant
prediction's loss, so that they can be subtracted.

Not covered: what a student makes of a teacher; and intervals corrected for looking at several teachers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.ensembles import TaskTeachers, best_weights
from pipeline.tasks.resampled import Difference, Sample, difference, score_sample, skill_sample
from pipeline.tasks.skill import example_losses, relative


@dataclass(frozen=True)
class Scores:
    """A model on validation. skill: None where the model lacks a label, whose log-loss would be infinite."""

    metric: Sample
    skill: Sample | None


@dataclass(frozen=True)
class Worth:
    """One teacher. weight: in the ensemble, of 1 · alone: its own scores · without: those of the ensemble without it, None
    where no other teacher has any weight · metric, skill: the ensemble minus the ensemble without it, None where either
    has no such score · lacks: labels that the teacher lacks · orphans: labels that no other teacher with weight has."""

    weight: float
    alone: Scores
    without: Scores | None
    metric: Difference | None
    skill: Difference | None
    lacks: tuple[str, ...]
    orphans: tuple[str, ...]


@dataclass(frozen=True)
class Reweighted:
    """The weights that score best on validation. scores: of the ensemble under them · gain: over the configured one; it is
    chosen on the examples that it is measured on, so it is too high."""

    weights: Mapping[str, float]
    scores: Scores
    gain: Difference


@dataclass(frozen=True)
class TaskWorth:
    """The teachers of one task, by name. ensemble: as configured · best: None with a single teacher."""

    ensemble: Scores
    teachers: Mapping[str, Worth]
    best: Reweighted | None


def task_worth(teachers: TaskTeachers) -> TaskWorth:
    """See `TaskWorth`."""
    together = teachers.combine(teachers.weights)
    constant = example_losses(teachers.task, together, teachers.validation)[1]
    ensemble = _scores(teachers, together, constant, teachers.weights)
    worths = {name: _worth(teachers, name, ensemble, constant) for name in teachers.predictions}
    if len(worths) < 2:
        return TaskWorth(ensemble, worths, None)
    weights, values = best_weights(teachers)
    scores = _scores(teachers, values, constant, weights)
    return TaskWorth(
        ensemble, worths, Reweighted(weights, scores, difference(scores.metric, ensemble.metric))
    )


def _worth(teachers: TaskTeachers, name: str, ensemble: Scores, constant: float) -> Worth:
    others = teachers.without(name)
    own = {one: float(one == name) for one in teachers.weights}
    without = None
    if others is not None:
        without = _scores(teachers, teachers.combine(others), constant, others)
    skills = (ensemble.skill, None if without is None else without.skill)
    return Worth(
        weight=teachers.weights[name],
        alone=_scores(teachers, teachers.predictions[name], constant, own),
        without=without,
        metric=None if without is None else difference(ensemble.metric, without.metric),
        skill=None if skills[0] is None or skills[1] is None else difference(skills[0], skills[1]),
        lacks=_labels(teachers, own),
        orphans=() if others is None else _labels(teachers, others),
    )


def _scores(
    teachers: TaskTeachers, values: NDArray[np.floating], constant: float, weights: Mapping[str, float]
) -> Scores:
    """The scores of (M, C) values, the predictions under `weights`. constant: as `relative` takes it."""
    task, examples = teachers.task, teachers.validation
    skill = None
    if not len(teachers.lacking(weights)):
        skill = skill_sample(relative(example_losses(task, values, examples)[0], constant))
    return Scores(score_sample(task, values, examples), skill)


def _labels(teachers: TaskTeachers, weights: Mapping[str, float]) -> tuple[str, ...]:
    """The labels that no teacher with weight has."""
    return tuple(teachers.task.head.columns[column] for column in teachers.lacking(weights))
