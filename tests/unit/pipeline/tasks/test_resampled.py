"""Scores on examples drawn anew, and the interval of a difference. What a sample is: tests/unit/tune/test_choice.py."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks.resampled import Difference, Sample, difference


def test_a_difference_is_paired_by_draw() -> None:
    draws = np.random.default_rng(0).normal(size=500)
    shared = difference(Sample(0.8, draws + 0.1), Sample(0.7, draws))
    assert shared.mean == pytest.approx(0.1)
    assert shared.error == pytest.approx(0, abs=1e-12)


def test_the_interval_is_that_of_a_normal_distribution() -> None:
    assert Difference(0.02, 0.01).interval == pytest.approx((0.02 - 0.016449, 0.02 + 0.016449), abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "measurable"), [(0.017, True), (0.016, False), (-0.017, True), (0.0, False)]
)
def test_a_difference_is_measurable_where_its_interval_leaves_0_out(mean: float, measurable: bool) -> None:
    assert Difference(mean, 0.01).measurable == measurable
    assert not Difference(0.0, 0.0).measurable
