"""The sign-flip test against numbers worked out by hand and against a plain enumeration; spreads and ratios."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from pipeline.significance import (
    CLEAR_GAP,
    Outcome,
    Spread,
    floor,
    gap_recovered,
    pairs_needed,
    retention,
    sign_flip_p,
)

# ---------------------------------------------------------------- the test


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.3], 1.0),
        ([0.01, 0.02], 0.5),  # both signs alike: 2 of 4
        ([0.01, -0.02], 1.0),
        ([0.018, 0.017, 0.015], 0.25),
        ([0.01, 0.02, 0.03, 0.04, 0.05], 0.0625),  # 2 of 32: five pairs cannot pass 0.05
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], 0.03125),
        ([-0.01] * 8, 2 / 256),
        ([-0.001, *[0.01] * 7], 4 / 256),  # the small one may have either sign
        ([0.0] * 8, 1.0),
        ([0.0, 0.0, 0.01, 0.01, 0.01], 0.25),  # pairs without a difference tell nothing: as three pairs
        ([1.0, 2.0, 3.0, -4.0], 0.875),  # |sum| ≥ 2 in 14 of 16
    ],
)
def test_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


def test_neither_sign_nor_order_nor_scale_matters() -> None:
    differences = [0.021, -0.004, 0.013, 0.009, -0.001, 0.017]
    p = sign_flip_p(differences)
    assert 0.03125 < p < 1
    for other in ([-d for d in differences], differences[::-1], [0.25 * d for d in differences]):
        assert sign_flip_p(other) == p


@pytest.mark.parametrize("seed", range(12))
def test_against_plain_enumeration(seed: int) -> None:
    """Differences of accuracies, so that many sums tie, and in floats do so only nearly."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(-6, 10, int(rng.integers(2, 11)))
    seen = abs(int(counts.sum()))
    signs = itertools.product((-1, 1), repeat=len(counts))
    as_far = [abs(sum(s * int(c) for s, c in zip(sign, counts, strict=True))) >= seen for sign in signs]
    shares = [(700 + int(count)) / 1000 - 0.7 for count in counts]
    assert sign_flip_p(shares) == statistics.fmean(as_far)


def test_many_pairs_are_drawn_and_drawn_alike() -> None:
    differences = [*[0.01] * 12, *[-0.01] * 6]
    exact = 2 * sum(math.comb(18, k) for k in range(7)) / 2**18  # 12 against 6 or further
    p = sign_flip_p(differences)
    assert p == pytest.approx(exact, rel=0.03)
    assert p == sign_flip_p(differences)


def test_nothing_to_test() -> None:
    with pytest.raises(ValueError, match="no differences"):
        sign_flip_p([])


def test_the_floor() -> None:
    assert [floor(pairs) for pairs in (1, 2, 5, 6, 8)] == [1.0, 0.5, 0.0625, 0.03125, 0.0078125]
    assert all(floor(pairs) == sign_flip_p([0.1 * (k + 1) for k in range(pairs)]) for pairs in range(1, 9))
    assert (pairs_needed(), pairs_needed(0.01)) == (6, 8)


# ---------------------------------------------------------------- ratios


def test_retention_and_gap() -> None:
    assert retention(0.8, 0.9) == 0.8 / 0.9
    assert retention(0.1, 0.0) is None
    assert retention(0.1, -0.2) is None  # a correlation may be negative
    assert gap_recovered(0.8, 0.7, 0.9) == pytest.approx(0.5)
    assert gap_recovered(0.8, None, 0.9) is None
    assert gap_recovered(0.8, 0.9, 0.9 + CLEAR_GAP / 2) is None
    assert gap_recovered(0.8, 0.9, 0.8) is None


# ---------------------------------------------------------------- outcomes


def test_spread() -> None:
    spread = Spread((0.8, 0.7, 0.9))
    assert spread.mean == pytest.approx(0.8)
    assert spread.sd == pytest.approx(0.1)
    assert Spread((0.8,)).sd is None


def test_an_outcome_pairs_by_seed() -> None:
    outcome = Outcome.of([0.80, 0.82, 0.78], [0.70, 0.74, 0.75], [0.9] * 3)
    assert outcome.delta is not None
    assert outcome.delta.by_seed == pytest.approx((0.10, 0.08, 0.03))
    assert outcome.p == 0.25
    assert outcome.retention == pytest.approx(0.8 / 0.9)
    assert outcome.gap_recovered == pytest.approx(0.07 / 0.17)
    assert outcome.delta.mean == pytest.approx(0.07)


def test_one_seed_has_ratios_but_no_p() -> None:
    outcome = Outcome.of([0.8], [0.7], [0.9])
    assert (outcome.p, outcome.retention) == (None, 0.8 / 0.9)
    assert outcome.gap_recovered == pytest.approx(0.5)


def test_a_baseline_that_is_missing_once_is_missing() -> None:
    outcome = Outcome.of([0.8, 0.8], [0.7, None], [0.9, 0.9])
    assert (outcome.supervised, outcome.delta, outcome.p, outcome.gap_recovered) == (None,) * 4


def test_a_score_alone() -> None:
    outcome = Outcome(Spread((0.7,)))
    assert (outcome.delta, outcome.p, outcome.retention, outcome.gap_recovered) == (None,) * 4


def test_ratios_of_an_error_are_of_one_minus_it() -> None:
    assert retention(0.2, 0.1, "lower") == pytest.approx(0.8 / 0.9)
    assert retention(0.2, 1.0, "lower") is None
    assert gap_recovered(0.2, 0.3, 0.1, "lower") == pytest.approx(0.5)
    assert gap_recovered(0.2, 0.1, 0.3, "lower") is None  # the ensemble errs more than the baseline
    assert gap_recovered(0.2, None, 0.1, "lower") is None
