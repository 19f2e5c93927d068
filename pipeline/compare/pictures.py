"""The drawings of the HTML page as numbers for inline SVG: gains with their intervals, and score against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.compare.rows import Row
from pipeline.compare.verdict import Gain, gain_of
from pipeline.shown import millions, points, signed

WIDTH, LEFT, RIGHT = 600.0, 200.0, 110.0  # of the gains, in SVG units: all, the names, the numbers
LINE = 26.0
PARETO_WIDTH, PARETO_HEIGHT, MARGIN = 600.0, 320.0, 56.0
LONGEST = 30  # letters of a name in a drawing


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class GainLine:
    """One student's gain. low, mean, high: places from the left · y: place from above."""

    name: str
    text: str
    low: float
    mean: float
    high: float
    y: float


@dataclass(frozen=True)
class Gains:
    """All gains over one axis, whose zero is at `zero`."""

    lines: tuple[GainLine, ...]
    zero: float
    ticks: tuple[Tick, ...]
    height: float


def gains(rows: Sequence[Row]) -> Gains | None:
    """The gains of the students that have one, on one axis with 0; None where there are none."""
    known = [(row, gain) for row in rows if row.trial is None and (gain := gain_of(row)) is not None]
    if not known:
        return None
    low = min(0.0, *(gain.low for _, gain in known))
    high = max(0.0, *(gain.high for _, gain in known))
    scale = _scale(low, high, LEFT, WIDTH - RIGHT)

    def line(place: int, row: Row, gain: Gain) -> GainLine:
        ends = scale(gain.low), scale(gain.mean), scale(gain.high)
        text = f"{signed(gain.mean)} [{signed(gain.low)}, {signed(gain.high)}]"
        return GainLine(_short(f"{row.student}, {row.run}"), text, *ends, LINE * (place + 0.5))

    return Gains(
        tuple(line(place, row, gain) for place, (row, gain) in enumerate(known)),
        scale(0.0),
        tuple(Tick(scale(value), signed(value)) for value in _round_numbers(low, high, 5)),
        LINE * len(known),
    )


@dataclass(frozen=True)
class Dot:
    """A model. end: whether its name stands to the left of it · front: whether no other student is both cheaper and
    better."""

    name: str
    who: str
    x: float
    y: float
    end: bool
    front: bool


@dataclass(frozen=True)
class Pareto:
    """Score against a cost. front: the corners of the line through the students on the Pareto front."""

    title: str
    dots: tuple[Dot, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def pareto(rows: Sequence[Row]) -> list[Pareto]:
    """Score against latency, and against size: each where students of the same tasks differ in it."""
    students = [row for row in rows if row.trial is None and row.macro is not None]
    if len({frozenset(row.tasks) for row in students}) != 1:
        return []  # means over other tasks cannot be compared
    drawn = (
        _pareto("milliseconds an example", students, lambda row: row.latency_ms, "{:.3g}".format),
        _pareto("parameters", students, lambda row: row.parameters, lambda value: millions(round(value))),
    )
    return [one for one in drawn if one is not None]


def _pareto(
    cost_name: str,
    rows: Sequence[Row],
    cost_of: Callable[[Row], float | None],
    show: Callable[[float], str],
) -> Pareto | None:
    known = [
        (row, cost, row.macro.score.mean)
        for row in rows
        if row.macro is not None and (cost := cost_of(row)) is not None and cost > 0
    ]
    if len({cost for _, cost, _ in known}) < 2:
        return None
    costs, scores = [math.log(cost) for _, cost, _ in known], [score for *_, score in known]
    x = _scale(min(costs), max(costs), MARGIN + 20, PARETO_WIDTH - MARGIN)
    y = _scale(min(scores), max(scores), PARETO_HEIGHT - MARGIN, 24)
    best = _front([(cost, score) for _, cost, score in known])
    dots = tuple(
        Dot(
            _short(f"{row.student}, {row.run}"),
            "front" if index in best else "behind",
            x(math.log(cost)),
            y(score),
            x(math.log(cost)) > PARETO_WIDTH / 2,
            index in best,
        )
        for index, (row, cost, score) in enumerate(known)
    )
    corners = sorted((dots[index].x, dots[index].y) for index in best)
    return Pareto(
        f"Test score, mean of the tasks, by {cost_name}",
        dots,
        " ".join(f"{across:.1f},{down:.1f}" for across, down in _stairs(corners)),
        tuple(Tick(x(math.log(cost)), show(cost)) for cost in _spaced({cost for _, cost, _ in known})),
        tuple(Tick(y(value), points(value)) for value in _round_numbers(min(scores), max(scores), 4)),
    )


def _front(models: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of those (cost, score) that no other one beats in one of both without losing in the other."""
    return {
        index
        for index, (cost, score) in enumerate(models)
        if not any(
            other <= cost and better >= score and (other < cost or better > score) for other, better in models
        )
    }


def _stairs(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Through the corners from left to right, level up to the next one."""
    steps = list(corners[:1])
    for across, down in corners[1:]:
        steps += [(across, steps[-1][1]), (across, down)]
    return steps


def _spaced(costs: Iterable[float], least: float = 1.35) -> list[float]:
    """Costs that are far enough apart for their texts: each at least `least` times the one before."""
    kept: list[float] = []
    for cost in sorted(costs):
        if not kept or cost >= least * kept[-1]:
            kept.append(cost)
    return kept


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """From values between `low` and `high` to places between `first` and `last`; a single value stands in the middle."""
    if high - low < 1e-12:
        return lambda value: (first + last) / 2
    return lambda value: round(first + (value - low) / (high - low) * (last - first), 1)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers between `low` and `high`, that is multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** (math.floor(math.log10(max(high - low, 1e-3))) - 1)
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50, 100)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [step * number for number in range(first, last + 1)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
