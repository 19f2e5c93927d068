"""A study's figures, as PNG bytes, in the style of the report's figures."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.config.search import Distribution, TuneConfig
from pipeline.report.figures import GRID, INK, PALETTE, SOFT, STYLE, WIDTH, blank, pale, png, short
from pipeline.shown import in_points, measured, points
from tune.study import Trial, pareto_front

COLOURS = {
    "finished": PALETTE[0],
    "early-stopped": pale(PALETTE[0]),
    "interrupted": SOFT,
    "running": SOFT,
    "failed": PALETTE[1],
}
BEST = PALETTE[1]


def draw(
    *,
    tune: TuneConfig,
    mode: str,
    trials: Sequence[Trial],
    winner: Trial | None,
    importance: Mapping[str, float],
    curves: Mapping[int, Sequence[Mapping[str, Any]]],
    task_metrics: Sequence[str],
) -> dict[str, bytes]:
    """PNG bytes by file name; a figure without data is left out.

    mode: ``max`` or ``min`` of the first metric · curves: by trial, validation lines of metrics.jsonl · task_metrics:
    ``<task>/<metric>`` of each task.
    """
    scored = [trial for trial in trials if tune.metrics[0] in trial.scores]
    if not scored:
        return {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        figures = {"parallel.png": _parallel(tune, mode, scored, winner), "cost.png": _cost(trials, winner)}
        if importance:
            figures["importance.png"] = _importance(importance, tune.metrics[0])
        if len(task_metrics) > 1:
            figures["pareto.png"] = _pareto(scored, winner, task_metrics)
        if any(curves.values()):
            figures["curves.png"] = _curves(tune.metrics[0], trials, winner, curves)
        return {name: png(figure) for name, figure in figures.items()}


def _is(trial: Trial, winner: Trial | None) -> bool:
    return winner is not None and trial.number == winner.number


# ---------------------------------------------------------------- parallel coordinates


def _parallel(tune: TuneConfig, mode: str, trials: Sequence[Trial], winner: Trial | None) -> Figure:
    """One line a trial, through its values to its score. A better score is darker; the winner has its own colour."""
    metric = tune.metrics[0]
    names = [*tune.space, metric]
    scores = np.array([trial.scores[metric] for trial in trials])
    low, span = scores.min(), (scores.max() - scores.min()) or 1.0
    heights = np.array(
        [
            [*(_height(one, trial.values[path]) for path, one in tune.space.items()), (score - low) / span]
            for trial, score in zip(trials, scores, strict=True)
        ]
    )
    figure = blank(max(WIDTH, 1.5 * len(names)), 4.2)
    axes = figure.add_subplot()
    goodness = heights[:, -1] if mode == "max" else 1 - heights[:, -1]
    shades = matplotlib.colormaps["Blues"](0.25 + 0.75 * goodness)
    x = np.arange(len(names))
    order = np.argsort(goodness)
    axes.add_collection(
        LineCollection(
            [np.column_stack((x, heights[row])) for row in order], colors=shades[order], linewidths=1.4
        )
    )
    for trial, row in zip(trials, heights, strict=True):
        if _is(trial, winner):
            axes.plot(x, row, color=BEST, linewidth=2.4, label=f"trial {trial.number}, the winner")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0))
    for position, name in enumerate(names):
        axes.axvline(position, color=GRID, zorder=0)
        marks = _marks(tune.space[name]) if name in tune.space else _score_marks(metric, scores)
        for text, height in marks:
            axes.text(position + 0.03, height, text, fontsize=7, color=SOFT, va="center")
    labels = [".\n".join(short(part, 24) for part in name.split(".")) for name in names]
    axes.set_xticks(x, labels, fontsize=7.5)
    axes.set_xlim(-0.2, len(names) - 0.5)
    axes.set_ylim(-0.05, 1.05)
    axes.yaxis.set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _height(distribution: Distribution, value: Any) -> float:
    """The position of a value between the ends of its distribution, 0 to 1, on the distribution's scale."""
    if distribution.choice is not None:
        return distribution.choice.index(value) / max(1, len(distribution.choice) - 1)
    low, high = distribution.arguments[:2]
    if distribution.kind.startswith("log"):
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _marks(distribution: Distribution) -> list[tuple[str, float]]:
    if distribution.choice is not None:
        return [(short(str(one), 14), _height(distribution, one)) for one in distribution.choice]
    return [(f"{end:g}", _height(distribution, end)) for end in distribution.arguments[:2]]


def _score_marks(metric: str, scores: np.ndarray[Any, np.dtype[np.float64]]) -> list[tuple[str, float]]:
    return [(measured(metric, scores.min()), 0.0), (measured(metric, scores.max()), 1.0)]


# ---------------------------------------------------------------- the others


def _importance(importance: Mapping[str, float], metric: str) -> Figure:
    names = list(importance)[::-1]
    figure = blank(WIDTH, 0.9 + 0.32 * len(names))
    axes = figure.add_subplot()
    bars = axes.barh(
        [short(name, 40) for name in names], [100 * importance[name] for name in names], height=0.6
    )
    axes.bar_label(bars, fmt="%.0f%%", padding=3, color=SOFT)
    for bar in bars:
        bar.set_color(PALETTE[0])
    axes.set_xlim(0, 108)
    axes.set_xlabel(f"share of the variance of {metric} (fANOVA)")
    return figure


def _pareto(trials: Sequence[Trial], winner: Trial | None, metrics: Sequence[str]) -> Figure:
    """For every pair of tasks: one dot a trial, and a line through the Pareto front."""
    pairs = list(itertools.combinations(metrics, 2))
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = blank(WIDTH if columns > 1 else 5.0, 0.4 + 2.7 * rows)
    for index, (a, b) in enumerate(pairs):
        axes = figure.add_subplot(rows, columns, index + 1)
        scored = [trial for trial in trials if a in trial.scores and b in trial.scores]
        for trial in scored:
            _dot(axes, trial, winner, 100 * trial.scores[a], 100 * trial.scores[b])
        front = sorted(pareto_front(scored, (a, b), ("max", "max")), key=lambda trial: trial.scores[a])
        axes.plot(
            [100 * trial.scores[a] for trial in front],
            [100 * trial.scores[b] for trial in front],
            color=INK,
            linewidth=1.2,
            zorder=1,
        )
        axes.set_xlabel(short(a, 26))
        axes.set_ylabel(short(b, 26))
        axes.grid()
    return figure


def _dot(axes: Axes, trial: Trial, winner: Trial | None, x: float, y: float) -> None:
    own = _is(trial, winner)
    axes.scatter(
        x, y, s=44 if own else 22, color=BEST if own else COLOURS[trial.status], zorder=3 if own else 2
    )
    axes.annotate(str(trial.number), (x, y), (3, 3), textcoords="offset points", fontsize=7, color=SOFT)


def _curves(
    metric: str,
    trials: Sequence[Trial],
    winner: Trial | None,
    curves: Mapping[int, Sequence[Mapping[str, Any]]],
) -> Figure:
    """Validation score by epoch, one line a trial; a trial that was ended early has a shorter line."""
    figure = blank(WIDTH, 3.6)
    axes = figure.add_subplot()
    factor, unit = (100, ", points") if in_points(metric) else (1, "")
    for trial in trials:
        curve = [(one["epoch"], factor * one["metrics"][metric]) for one in curves.get(trial.number, ())]
        if not curve:
            continue
        own = _is(trial, winner)
        x, y = zip(*curve, strict=True)
        axes.plot(
            x,
            y,
            marker="o",
            markersize=3.5,
            color=BEST if own else COLOURS[trial.status],
            linewidth=2.2 if own else 1.3,
            zorder=3 if own else 2,
        )
        axes.annotate(
            str(trial.number), (x[-1], y[-1]), (4, 0), textcoords="offset points", fontsize=7, color=SOFT
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{metric} on validation{unit}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    return figure


def _cost(trials: Sequence[Trial], winner: Trial | None) -> Figure:
    """One bar a trial: its seconds, in the colour of its status."""
    figure = blank(WIDTH, max(1.6, 0.7 + 0.2 * len(trials)))
    axes = figure.add_subplot()
    shown: set[str] = set()
    for trial in trials:
        label = None if trial.status in shown else trial.status
        shown.add(trial.status)
        axes.barh(trial.number, trial.seconds, color=COLOURS[trial.status], height=0.7, label=label)
        score = trial.scores.get("macro/score")
        note = f"  {trial.epochs} epochs" + ("" if score is None else f", {points(score)}")
        bold = "bold" if _is(trial, winner) else "normal"
        axes.text(trial.seconds, trial.number, note, va="center", fontsize=7, color=SOFT, fontweight=bold)
    axes.set_ylim(max((trial.number for trial in trials), default=0) + 0.6, -0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, 1.22 * max((trial.seconds for trial in trials), default=1.0) or 1.0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("trial")
    axes.legend(loc="lower right", fontsize=7.5)
    return figure
