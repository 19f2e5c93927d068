"""Which trial wins: the config's own values stay unless another trial is better by more than chance.

The best of many trials on a few hundred validation examples is the luckiest as well as the best. So the best few and the
config's own values, the default, are trained again under every seed, each is compared with the default on the same
examples, and the default is replaced only where the lower end of the interval of the gain is above 0. The interval is
corrected for the number of trials that one could have picked.

Everything here is a pure function of validation predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.config.kinds import SKILL
from pipeline.data.splits import TaskData
from pipeline.tasks.resampled import LEVEL, Sample, score_sample, skill_sample
from pipeline.tasks.skill import relative_losses
from tune.study import Trial, best

FINALISTS = 3
"""Trials that are trained again under every seed, beside the default."""


@dataclass(frozen=True)
class Gain:
    """How much a trial is better than the default on validation.

    mean: over seeds · error: standard error, over examples and, with several, over seeds · looks: trials that could have
    been picked.
    """

    mean: float
    error: float
    looks: int

    @property
    def lowest(self) -> float:
        """The lower end of the interval of `LEVEL`, corrected for the looks (Bonferroni)."""
        return self.mean - float(norm.isf((1 - LEVEL) / 2 / self.looks)) * self.error

    @property
    def by_chance(self) -> float:
        """What the best of as many trials, all as good as the default, would be expected to show (Blom 1958)."""
        return (
            float(norm.ppf((self.looks - 0.375) / (self.looks + 0.25))) * self.error
            if self.looks > 1
            else 0.0
        )


def sample(
    metric: str, data: Mapping[str, TaskData], predictions: Mapping[str, NDArray[Any]]
) -> Sample | None:
    """A model's score in `metric` on validation; None for a metric that is no function of sums over examples.

    metric: ``macro/skill``, ``macro/score``, ``<task>/skill`` or ``<task>/<its metric>`` · predictions: (M, C), by task.
    """
    name, _, kind = metric.rpartition("/")
    tasks = list(data) if name == "macro" else [name]
    samples = [_task_sample(kind, data[task], predictions[task], name == "macro") for task in tasks]
    known = [one for one in samples if one is not None]
    if len(known) < len(samples):
        return None
    return Sample(
        score=float(np.mean([one.score for one in known])),
        draws=np.mean([one.draws for one in known], axis=0),
    )


def _task_sample(metric: str, data: TaskData, predictions: NDArray[Any], macro: bool) -> Sample | None:
    task, examples = data.task, data.splits["validation"]
    if metric == SKILL:
        return skill_sample(relative_losses(task, predictions, examples))
    if metric != task.scoring.metric and not macro:
        return None
    return score_sample(task, predictions, examples)


def gain(own: Sequence[Sample], default: Sequence[Sample], looks: int, sign: int = 1) -> Gain:
    """The gain of a trial over the default. own, default: by seed, the same ones · sign: −1 where lower is better.

    The variance is that of the mean over seeds between draws of examples, plus that of the seeds' gains ÷ their number.
    """
    pairs = list(zip(own, default, strict=True))
    by_seed = np.array([sign * (a.score - b.score) for a, b in pairs])
    draws = np.mean([sign * (a.draws - b.draws) for a, b in pairs], axis=0)
    variance = float(draws.var(ddof=1))
    if len(by_seed) > 1:
        variance += float(by_seed.var(ddof=1)) / len(by_seed)
    return Gain(float(by_seed.mean()), float(np.sqrt(variance)), looks)


def default_trial(trials: Sequence[Trial], own: Mapping[str, object] | None) -> Trial | None:
    """The finished trial with the config's own values, or None. own: those values; None outside the space."""
    return next((one for one in trials if one.status == "finished" and one.values == own), None)


def finalists(
    trials: Sequence[Trial], metrics: Sequence[str], modes: Sequence[str], default: Trial | None
) -> list[Trial]:
    """The best few trials that ran to their end, without the default, in descending order of their score."""
    rest = [one for one in trials if one.status == "finished" and one is not default]
    chosen: list[Trial] = []
    while len(chosen) < FINALISTS:
        top = best([one for one in rest if one not in chosen], metrics, modes)
        if top is None:
            break
        chosen.append(top)
    return chosen


def winner_of(gains: Mapping[int, Gain], default: int) -> int:
    """The number of the trial with the largest gain among those above chance; the default where there is none."""
    proven = {number: one for number, one in gains.items() if one.lowest > 0}
    return max(proven, key=lambda number: proven[number].mean, default=default)
