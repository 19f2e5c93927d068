"""Places in the drawings of the HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compare.pictures import LEFT, RIGHT, WIDTH, gains, pareto
from pipeline.compare.rows import Row, load
from pipeline.significance import Outcome
from tests.unit.pipeline.hand_results import save_study, some_study


def row(run: str, score: float, latency: float | None, parameters: int | None = None) -> Row:
    outcome = Outcome.of([score], [score - 0.05], [0.9])
    tasks = {"movies/accuracy": outcome}
    return Row(run, "half", outcome, tasks, latency_ms=latency, parameters=parameters, delta_error=0.01)


def test_gains_stand_on_one_axis_with_zero() -> None:
    drawn = gains([row("first", 0.8, 1.0), replace(row("second", 0.7, 1.0), delta_error=0.04)])
    assert drawn is not None
    first, second = drawn.lines
    for line in drawn.lines:
        assert LEFT <= line.low < line.mean < line.high <= WIDTH - RIGHT
    assert (drawn.zero < first.low, second.low < drawn.zero < second.high) == (True, True)
    assert first.text == "+5.0 [+3.0, +7.0]"
    assert any(tick.text == "0.0" and tick.at == drawn.zero for tick in drawn.ticks)
    assert first.y < second.y < drawn.height


def test_the_pareto_front_has_the_students_that_none_beats_in_both() -> None:
    rows = [
        row("small", 0.70, 1.0, 4),
        row("worse", 0.75, 4.0, 9),
        row("large", 0.80, 3.0, 8),
        row("same", 0.80, 3.0, 8),
    ]
    by_time, by_size = pareto(rows)
    assert [dot.front for dot in by_time.dots] == [True, False, True, True]
    small, worse, large, _ = by_time.dots
    assert small.x < large.x < worse.x
    assert large.y < worse.y < small.y  # SVG counts from above
    assert by_time.front.split()[0] == f"{small.x:.1f},{small.y:.1f}"
    assert [tick.text for tick in by_time.x_ticks] == ["1", "3"]  # 4 is too near
    assert [dot.front for dot in by_size.dots] == [True, False, True, True]
    scores = [float(tick.text) for tick in by_time.y_ticks]
    assert len(scores) >= 3
    assert all(70 <= score <= 80 for score in scores)


@pytest.mark.parametrize(
    "rows",
    [
        [row("one", 0.8, 1.0)],
        [row("one", 0.8, 2.0), row("two", 0.7, 2.0)],
        [row("one", 0.8, None), row("two", 0.7, 2.0)],
    ],
)
def test_costs_that_do_not_differ_or_are_not_known_are_not_drawn(rows: list[Row]) -> None:
    assert pareto(rows) == []


def test_other_tasks_and_trials_are_not_drawn(tmp_path: Path) -> None:
    other = replace(row("two", 0.7, 2.0), tasks={"tweets/accuracy": Outcome.of([0.7], [0.6], [0.9])})
    assert pareto([row("one", 0.8, 1.0), other]) == []
    trials = load([save_study(tmp_path / "search", some_study())])
    assert (gains(trials), pareto(trials)) == (None, [])
