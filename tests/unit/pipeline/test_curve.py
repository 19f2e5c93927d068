"""A curve counts as rising only where more epochs would help."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.curve import Curve


def points_of(
    scores: list[float], losses: list[float] | None = None, epochs: int = 0
) -> list[dict[str, Any]]:
    """A metrics.jsonl of ten steps an epoch, with a point of training losses after each validation."""
    lines: list[dict[str, Any]] = []
    total = 10 * (epochs or len(scores))
    for epoch, score in enumerate(scores, start=1):
        metrics = {"macro/score": score, "movies/accuracy": score}
        if losses is not None:
            metrics |= {"movies/nll": losses[epoch - 1], "tweets/nll": losses[epoch - 1] + 1}
        lines.append({"step": 10 * epoch, "total": total, "epoch": epoch, "metrics": metrics})
        lines.append({"step": 10 * epoch + 1, "total": total, "epoch": epoch, "metrics": {"loss/total": 0.1}})
    return lines


def test_a_curve_is_read_from_the_points_with_a_score() -> None:
    curve = Curve.of(points_of([0.5, 0.6], losses=[1.0, 0.8], epochs=4))
    assert curve.scores == (0.5, 0.6)
    assert curve.losses == pytest.approx((1.5, 1.3))
    assert curve.epochs == 4
    assert Curve.of([]) == Curve()
    assert Curve.of(points_of([0.5, 0.6])).losses == ()


@pytest.mark.parametrize(
    ("scores", "losses", "epochs", "rise"),
    [
        ([0.4, 0.5, 0.6], None, 3, 0.1),
        ([0.4, 0.5, 0.6], [1.0, 0.9, 0.8], 3, 0.1),
        ([0.4, 0.5, 0.6, 0.7, 0.72, 0.74, 0.75, 0.76], None, 8, 0.02),  # over the last two of eight epochs
        ([0.4, 0.6, 0.55], None, 3, 0.0),  # the best epoch is an earlier one
        ([0.4, 0.5, 0.6], [1.0, 0.8, 0.9], 3, 0.0),  # it overfits
        ([0.4, 0.5, 0.6], None, 9, 0.0),  # stopped early
        ([0.9], None, 1, 0.0),  # one epoch shows no direction
        ([], None, 0, 0.0),
    ],
)
def test_rise(scores: list[float], losses: list[float] | None, epochs: int, rise: float) -> None:
    curve = Curve.of(points_of(scores, losses, epochs))
    assert curve.rise() == pytest.approx(rise)
    assert curve.rising(error=0.015) == (rise > 0)
    assert not curve.rising(error=0.2)
