"""Numbers and tables as people read them."""

from __future__ import annotations

import pytest

from pipeline.shown import (
    markdown_table,
    measured,
    millions,
    p_value,
    percent,
    plus_minus,
    points,
    recovered,
    signed,
)
from pipeline.significance import Spread


def test_points_and_percent() -> None:
    assert (points(0.8619), percent(0.979), percent(-0.031), percent(None)) == ("86.2", "97.9%", "−3.1%", "–")
    assert millions(22_713_216) == "22.7M"


@pytest.mark.parametrize(
    ("gap", "text"),
    [(0.52, "52.0%"), (0.0, "0.0%"), (1.0, "100.0%"), (None, "–"), (-18.143, "below baseline"), (8.3, "above ensemble")],
)  # fmt: skip
def test_gap_recovered_is_a_share_or_words(gap: float | None, text: str) -> None:
    assert recovered(gap) == text


@pytest.mark.parametrize(
    ("metric", "text"),
    [("macro/score", "71.3"), ("movies/accuracy", "71.3"), ("movies/nll", "0.713"), ("mse", "0.713")],
)
def test_errors_are_no_points_of_a_hundred(metric: str, text: str) -> None:
    assert measured(metric, 0.7129) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0229, "+2.3"), (-0.0041, "−0.4"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.0, "0.0")]
)
def test_signed(share: float, text: str) -> None:
    assert signed(share) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.81,), "81.0"),
        ((0.81, 0.81), "81.0"),
        ((0.80, 0.82), "81.0 ± 1.4"),
        ((0.8100, 0.8101), "81.0 ± 0.0"),  # they do differ
    ],
)
def test_plus_minus(values: tuple[float, ...], text: str) -> None:
    assert plus_minus(Spread(values)) == text


def test_plus_minus_of_a_difference_and_of_nothing() -> None:
    assert plus_minus(Spread((-0.02, -0.04)), signed) == "−3.0 ± 1.4"
    assert plus_minus(None) == "–"


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "1"), (0.25, "0.25"), (0.0625, "0.062"), (0.0078125, "0.0078"), (0.0004, "<0.001"), (None, "–")],
)
def test_p_value(p: float | None, text: str) -> None:
    assert p_value(p) == text


def test_markdown_table() -> None:
    assert markdown_table(["a", "b", "c"], [["x", "y", "1"]], words=2).splitlines() == [
        "| a | b | c |",
        "| --- | --- | ---: |",
        "| x | y | 1 |",
    ]
