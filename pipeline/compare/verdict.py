"""What a comparison says in words, and how sure it is: the best student, and each student's gain from its teachers.

A gain is Δ, student − supervised baseline, mean over the tasks. Its 95% interval covers the choice of test examples
where there is one seed (its standard error in report.json, a bootstrap paired by example), and the choice of the seed
where there are several (Student's t over the paired seeds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compare.rows import Row
from pipeline.shown import percent, plus_minus, points, signed

CONFIDENCE = 0.95
NORMAL = 1.959964  # two-sided quantile of the normal distribution at CONFIDENCE


@dataclass(frozen=True)
class Gain:
    """A student's Δ with its interval, as shares. seeds: number of seeds; 1: the interval is of the test sample."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def judgement(self) -> str:
        """What the interval says about the teachers."""
        if self.low > 0:
            return "the teachers helped"
        return "the teachers did harm" if self.high < 0 else "not yet evidence either way"


def gain_of(row: Row) -> Gain | None:
    """The gain of a student of runs; None without a baseline, or where its error is not known."""
    delta = None if row.macro is None else row.macro.delta
    if delta is None:
        return None
    if delta.sd is not None:
        from scipy.stats import t  # takes a second to import, and most comparisons have one seed

        seeds = len(delta.by_seed)
        reach = float(t.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * delta.sd / math.sqrt(seeds)
    elif row.delta_error is not None:
        reach = NORMAL * row.delta_error
    else:
        return None
    return Gain(delta.mean, delta.mean - reach, delta.mean + reach, len(delta.by_seed))


def verdict(rows: Sequence[Row]) -> list[str]:
    """Sentences on the students of runs, best first where they have the same tasks; none for trials.

    Students with other tasks or metrics are not ranked against each other.
    """
    scored = [row for row in rows if row.trial is None and row.macro is not None]
    ranked = sorted(scored, key=lambda row: -row.macro.score.mean if row.macro else 0.0)
    if not ranked:
        return []
    comparable = len({frozenset(row.tasks) for row in ranked}) == 1
    sentences = []
    for place, row in enumerate(ranked):
        assert row.macro is not None, "`scored` has no other rows"
        best = "the highest score, " if comparable and place == 0 and len(ranked) > 1 else ""
        text = f"{row.student} of {row.run}: {best}{plus_minus(row.macro.score, points)} points"
        if (kept := row.macro.retention) is not None:
            text += f", {percent(kept)} of its ensemble"
        sentences.append(f"{text}. {_gained(row)}")
    return sentences


def _gained(row: Row) -> str:
    gain = gain_of(row)
    if gain is None:
        return "Nothing here says what its teachers were worth: it has no supervised baseline."
    what = f"over {gain.seeds} seeds" if gain.seeds > 1 else "of the test sample, one seed"
    return (
        f"Δ {signed(gain.mean)} points over its supervised baseline, 95% interval {what}: {signed(gain.low)} to "
        f"{signed(gain.high)}: {gain.judgement}."
    )
