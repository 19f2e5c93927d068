"""A model's score on some examples and on sets of as many drawn anew; the difference of two models, with its interval.

All models of the same examples are scored on the same draws (`pipeline.tasks.scores.bootstrap`), so that what two models
share is no noise of their difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples
from pipeline.tasks.scores import bootstrap
from pipeline.tasks.skill import skill
from pipeline.tasks.task import Task

LEVEL = 0.9
"""Of the two-sided interval of a difference."""


@dataclass(frozen=True)
class Sample:
    """A model's score on some examples, and (RESAMPLES,) scores on sets of examples drawn anew, as shares."""

    score: float
    draws: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The score of one model minus that of another, and its standard error, paired by example."""

    mean: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval of `LEVEL`, as of a normal distribution."""
        half = NormalDist().inv_cdf((1 + LEVEL) / 2) * self.error
        return self.mean - half, self.mean + half

    @property
    def measurable(self) -> bool:
        """Whether the interval is on one side of 0."""
        low, high = self.interval
        return low > 0 or high < 0


def score_sample(task: Task, values: NDArray[np.floating], examples: Examples) -> Sample:
    """The task's metric of (M, C) values on `examples`."""
    statistics = task.scoring.statistics(values, examples)
    (draws,) = bootstrap([statistics], task.scoring.score_of)
    return Sample(float(task.scoring.score_of(statistics.sum(axis=0))), draws)


def skill_sample(losses: NDArray[np.float64]) -> Sample:
    """The skill of (n,) `relative_losses`."""
    count = len(losses)
    (draws,) = bootstrap([losses[:, None]], lambda sums: 1 - sums[..., 0] / count)
    return Sample(skill(losses), draws)


def difference(a: Sample, b: Sample) -> Difference:
    """`a` minus `b`, two models on the same examples."""
    return Difference(a.score - b.score, float((a.draws - b.draws).std(ddof=1)))
