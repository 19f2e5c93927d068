"""One student's scores under one or several seeds: mean, spread, ratios, and whether it differs from its baseline.

Values and pure functions. Seeds are paired: the student and its supervised baseline of one seed share head, data
order and dropout, so what is tested is their difference, seed by seed. Scores are shares (0.862), not points.

Not covered: the choice of test examples (report.md has its standard error), and corrections for testing several
students and tasks at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.config.kinds import Better

ALPHA = 0.05
CLEAR_GAP = (
    0.005  # the ensemble must be this far above a supervised baseline for "gap recovered" to mean anything
)
EXACT_PAIRS = 16  # 65,536 sign flips: all of them up to here, as many drawn at random beyond
DIGITS = 12  # decimals of a score that count


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of a paired sign-flip permutation test: is the mean of `differences`, one a seed, other than 0?

    If student and baseline did not differ, each difference would have either sign with equal probability. p is the
    share of all 2ⁿ choices of signs whose mean is at least as far from 0. Exact up to 16 pairs; more pairs are
    sampled. A single pair gives 1. Raises `ValueError` without any.

    >>> sign_flip_p([0.01, 0.02, 0.01, 0.03, 0.01])  # five of the same sign: the lowest p of five pairs
    0.0625
    """
    if not len(differences):
        raise ValueError("no differences to test")
    if len(differences) == 1:
        return 1.0
    from scipy.stats import permutation_test  # takes a second to import, and most comparisons have one seed

    # integers, so that sums which are equal compare as equal
    whole = np.round(np.asarray(differences, dtype=np.float64) * 10**DIGITS).astype(np.int64)
    test = permutation_test(
        (whole,), np.sum, permutation_type="samples", n_resamples=2**EXACT_PAIRS, vectorized=True, rng=0
    )
    return float(test.pvalue)


def floor(pairs: int) -> float:
    """The lowest possible p of that many pairs: all differences have the same sign."""
    return min(1.0, 2.0 ** (1 - pairs))


def pairs_needed(alpha: float = ALPHA) -> int:
    """The lowest number of pairs that can give a p below `alpha`: 6 for 0.05."""
    return next(pairs for pairs in range(1, 1000) if floor(pairs) < alpha)


def retention(score: float, ensemble: float, better: Better = "higher") -> float | None:
    """score ÷ ensemble; None where the ensemble's score is 0 or below.

    Where lower is `better`, of an error bounded by 1, such as a word error rate: (1 − score) ÷ (1 − ensemble).
    """
    if better == "lower":
        score, ensemble = 1 - score, 1 - ensemble
    return score / ensemble if ensemble > 0 else None


def gap_recovered(
    score: float, supervised: float | None, ensemble: float, better: Better = "higher"
) -> float | None:
    """(score − supervised) ÷ (ensemble − supervised); None without a baseline or with no clear gap to recover.

    Where lower is `better`, of 1 − error, as for `retention`.
    """
    if supervised is None:
        return None
    if better == "lower":
        score, supervised, ensemble = 1 - score, 1 - supervised, 1 - ensemble
    if ensemble - supervised < CLEAR_GAP:
        return None
    return (score - supervised) / (ensemble - supervised)


@dataclass(frozen=True)
class Spread:
    """One number under n ≥ 1 seeds, in the seeds' order."""

    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.by_seed)

    @property
    def sd(self) -> float | None:
        """Standard deviation of the sample (n − 1); None for one seed."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """A student's score on one task, or its mean over tasks; beside it its baseline's and the ensemble's.

    All under the same seeds. None where there is no baseline, or (a trial's) no ensemble.
    """

    score: Spread
    supervised: Spread | None = None
    ensemble: Spread | None = None

    @classmethod
    def of(
        cls, scores: Iterable[float], supervised: Iterable[float | None], ensembles: Iterable[float]
    ) -> Outcome:
        """From one score of each a seed. Without a baseline where it is missing for any seed."""
        baselines = [score for score in supervised if score is not None]
        outcome = cls(Spread(tuple(scores)), ensemble=Spread(tuple(ensembles)))
        complete = len(baselines) == len(outcome.score.by_seed)
        return replace(outcome, supervised=Spread(tuple(baselines))) if complete else outcome

    @cached_property
    def delta(self) -> Spread | None:
        """score − supervised, by seed; None without a baseline."""
        if self.supervised is None:
            return None
        pairs = zip(self.score.by_seed, self.supervised.by_seed, strict=True)
        return Spread(tuple(score - supervised for score, supervised in pairs))

    @cached_property
    def p(self) -> float | None:
        """p of the sign-flip test of `delta`; None without a baseline, and for a single seed."""
        if self.delta is None or len(self.delta.by_seed) < 2:
            return None
        return sign_flip_p(self.delta.by_seed)

    @property
    def retention(self) -> float | None:
        """Mean score ÷ mean ensemble score; None without an ensemble."""
        return None if self.ensemble is None else retention(self.score.mean, self.ensemble.mean)

    @property
    def gap_recovered(self) -> float | None:
        """`gap_recovered` of the mean scores; None without a baseline or an ensemble."""
        if self.supervised is None or self.ensemble is None:
            return None
        return gap_recovered(self.score.mean, self.supervised.mean, self.ensemble.mean)
