"""The report's figures, as PNG bytes. Not used: pyplot, whose windows and state would outlive the report.

One colour a student in every figure; its supervised baseline is the same colour, paler and (as a line) dashed; the
ensemble is near-black. Bars start at zero. Error bars are one standard error of the test sample to either side.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.report.schema import Report, Section
from pipeline.tasks.scores import confusion, reliability, softmax

if TYPE_CHECKING:
    from pipeline.report.types import RunFacts, TaskResults

DPI = 150
WIDTH = 8.0  # inches: 1200 pixels, twice a README's column
INK, SOFT, GRID = "#1f2933", "#64707d", "#e4e7eb"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b3558b", "#8a6a00", "#6b5b95")  # after Okabe and Ito
DASHED = (0, (4, 2))
FEW = 5  # a bin of confidence with fewer examples is not drawn
READABLE = 12  # a confusion matrix with more classes has no room for numbers
LARGEST = 25  # the labels of a larger matrix cannot be read; the most confused pairs are shown instead
PAIRS = 18
ENSEMBLE_LINE: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": (0, (1, 1.5))}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "text.parse_math": False,  # a label such as "$5 to $10" is not a formula
}


def draw(report: Report, tasks: Mapping[str, TaskResults], facts: RunFacts) -> dict[str, bytes]:
    """Every figure of a run, by file name.

    retention.png · curves.png (where there are curves) · of tasks that choose one label out of C
    reliability-<task>.png and confusion-<student>@<task>.png · of regressions scatter-<student>@<task>.png.
    """
    students = list(report.macro.students)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(students)}
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        figures["retention.png"] = _retention(report, colours)
        if curves := _curves(tasks, facts, colours):
            figures["curves.png"] = curves
        learnt = {task: results for task, results in tasks.items() if results.students}
        for task, results in learnt.items():
            if results.task.scoring.classified(results.ensemble, results.test) is not None:
                figures[f"reliability-{task}.png"] = _reliability(task, results, report, colours)
                for name in results.students:
                    figures[f"confusion-{name}@{task}.png"] = _confusion(task, results, name, colours[name])
            if results.task.kind.continuous:
                for name in results.students:
                    figures[f"scatter-{name}@{task}.png"] = _scatter(task, results, name, colours[name])
        return {name: png(figure) for name, figure in figures.items()}


def blank(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def short(text: str, width: int = 20) -> str:
    """`text`, or its two ends where it is longer than `width`: names often differ in the last word only."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def pale(colour: str) -> tuple[float, ...]:
    """(red, green, blue) of the colour mixed with white, each in [0, 1]."""
    return tuple(1 - 0.42 * (1 - channel) for channel in to_rgb(colour))


# ---------------------------------------------------------------- retention


def _retention(report: Report, colours: Mapping[str, str]) -> Figure:
    """Bars: score ÷ the ensemble's, all tasks and each task; a student above its supervised baseline."""
    groups: dict[str, Section] = dict(report.tasks)
    if len(groups) > 1:
        groups = {"all tasks": report.macro, **groups}
    bars = [(name, distilled) for name in colours for distilled in (True, False)]
    bars = [bar for bar in bars if any(_score(section, *bar) is not None for section in groups.values())]
    pitch = len(bars) + 1.1
    figure = blank(WIDTH, 0.9 + 0.21 * pitch * len(groups))
    axes = figure.add_subplot()
    right = 1.0
    for index, group in enumerate(groups.values()):
        first, last = index * pitch, index * pitch + len(bars) - 1
        widest, errors = 1.0, group.standard_errors
        for rank, (name, distilled) in enumerate(bars):
            value = _score(group, name, distilled)
            if value is not None and group.ensemble:
                share = value / group.ensemble
                error = (errors.students if distilled else errors.supervised)[name] / group.ensemble
                _bar(axes, first + rank, share, error, value, name, distilled, colours[name])
                widest = max(widest, share + error)
        if group.ensemble:
            band = errors.ensemble / group.ensemble
            axes.fill_betweenx(
                [first - 0.5, last + 0.5], 1 - band, 1 + band, color=INK, alpha=0.16, linewidth=0
            )
            widest = max(widest, 1 + band)
        centre = (first + last) / 2
        text = f"ensemble\n{100 * group.ensemble:.1f}"
        axes.text(widest + 0.008, centre, text, va="center", fontsize=8)
        right = max(right, widest)
    axes.axvline(1, color=INK, linewidth=1.4)
    centres = [index * pitch + (len(bars) - 1) / 2 for index in range(len(groups))]
    axes.set_yticks(centres, [short(name) for name in groups])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(pitch * len(groups) - 1.1, -1)
    axes.set_xlim(0, right + 0.1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_title("Share of the ensemble's test score (in brackets: the score, in points)")
    axes.set_xlabel("error bars and the ensemble's band: ± one standard error of the test sample", fontsize=8)
    return figure


def _score(section: Section, student: str, distilled: bool) -> float | None:
    """The student's score, or its supervised baseline's; None where it learns another task, or has no baseline."""
    row = section.students.get(student)
    return None if row is None else row.score if distilled else row.supervised


def _bar(
    axes: Axes, y: float, share: float, error: float, value: float, name: str, distilled: bool, colour: str
) -> None:
    """One model's bar with its error and its text."""
    axes.barh(y, share, height=0.86, color=colour if distilled else pale(colour))
    axes.errorbar(share, y, xerr=error, color=INK, linewidth=1.1, capsize=2.5, zorder=3)
    who = short(name, 24) if distilled else f"{short(name, 24)}, supervised"
    result = f"{100 * share:.1f}%  ({100 * value:.1f})"
    style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": "white" if distilled else INK}
    if share > 0.6:  # room inside the bar for both
        axes.text(0.012, y + 0.03, who, **style)
        axes.text(min(share - error, 1) - 0.012, y + 0.03, result, ha="right", **style)
    else:
        axes.text(share + error + 0.012, y + 0.03, f"{who}  {result}", **{**style, "color": INK})


# ---------------------------------------------------------------- learning curves


def _curves(tasks: Mapping[str, TaskResults], facts: RunFacts, colours: Mapping[str, str]) -> Figure | None:
    """Validation score by epoch (by step, where epochs are missing): all tasks, then one panel a task."""
    panels = {"all tasks": "macro/score"} if len(tasks) > 1 else {}
    panels |= {task: f"{task}/{results.metric}" for task, results in tasks.items()}
    jobs = {job: _owner(job, colours) for job in facts.curves}
    unit = "epoch" if all("epoch" in row for rows in facts.curves.values() for row in rows) else "step"
    lines: dict[str, dict[str, NDArray[np.float64]]] = {}
    for title, key in panels.items():
        for job, rows in facts.curves.items():
            line = [(row[unit], 100 * row["metrics"][key]) for row in rows if key in row["metrics"]]
            if line and jobs[job]:
                lines.setdefault(title, {})[job] = np.array(line, dtype=np.float64)
    if not lines:
        return None
    columns = min(3, len(lines))
    height = math.ceil(len(lines) / columns)
    figure = blank(WIDTH if columns > 1 else 5.5, 0.5 + 2.5 * height)
    for index, (title, curves) in enumerate(lines.items()):
        axes = figure.add_subplot(height, columns, index + 1)
        if panels[title] in facts.ensemble_validation:
            axes.axhline(100 * facts.ensemble_validation[panels[title]], **ENSEMBLE_LINE)
        for job, curve in curves.items():
            axes.plot(curve[:, 0], curve[:, 1], markersize=3.5, **_line(job, jobs[job], colours))
        axes.set_title(short(title, 24))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel(unit)
        if index % columns == 0:
            axes.set_ylabel("validation score, points")
    shown = dict.fromkeys(job for curves in lines.values() for job in curves)
    handles = {job: _line(job, jobs[job], colours) for job in shown}
    if any(panels[title] in facts.ensemble_validation for title in lines):
        handles["ensemble"] = ENSEMBLE_LINE
    _legend(figure, handles)
    return figure


def _owner(job: str, students: Mapping[str, str]) -> str:
    """The student that a job trained: the longest student name that the job's name starts with, or ""."""
    return max((name for name in students if job == name or job.startswith(name)), key=len, default="")


def _line(job: str, student: str, colours: Mapping[str, str]) -> dict[str, Any]:
    if job == student:
        return {"color": colours[student], "linewidth": 2.0, "marker": "o"}
    return {"color": pale(colours[student]), "linewidth": 1.6, "marker": "o", "linestyle": DASHED}


def _legend(figure: Figure, lines: Mapping[str, Mapping[str, Any]]) -> None:
    names = {job: short(job, 30) for job in lines}
    handles = [Line2D([], [], label=names[job], markersize=4, **style) for job, style in lines.items()]
    room = (
        figure.get_figwidth() * 14 / (max(map(len, names.values())) + 8)
    )  # 14 letters per inch; the line takes the room of 8
    columns = max(1, min(len(handles), int(room)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.6)


# ---------------------------------------------------------------- reliability


def _reliability(task: str, results: TaskResults, report: Report, colours: Mapping[str, str]) -> Figure:
    """Accuracy by confidence: one panel a student, with its baseline and the ensemble."""
    columns = min(3, len(results.students))
    rows = math.ceil(len(results.students) / columns)
    figure = blank(WIDTH if columns > 1 else 5.5, 0.5 + (3.1 if columns == 3 else 3.7) * rows)
    metrics = report.tasks[task].metrics
    for index, (name, values) in enumerate(results.students.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        _dots(axes, results, results.ensemble, "ensemble", metrics.ensemble, color=INK)
        if name in results.supervised:
            its = metrics.supervised[name]
            style: dict[str, Any] = {"color": pale(colours[name]), "linestyle": DASHED}
            _dots(axes, results, results.supervised[name], "supervised", its, **style)
        _dots(axes, results, values, short(name), metrics.students[name], color=colours[name])
        axes.set(xlim=(max(0, 1 / len(results.task.reading.labels) - 0.04), 1.03), ylim=(-0.02, 1.05))
        axes.set_title(short(name, 24))
        axes.set_xlabel("confidence")
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=8, handlelength=1.6, frameon=True, framealpha=0.85, edgecolor="none")
        if index % columns == 0:
            axes.set_ylabel("accuracy")
    title = f"{short(task, 30)}: share that is right, by how sure the model is"
    about = f"Dotted: ideal. Dot area: share of examples; bins of fewer than {FEW} are left out.\nBars: ± one standard error."
    figure.suptitle(f"{title}\n{about}", x=0.01, ha="left", fontsize=8.5, color=SOFT)
    return figure


def _dots(
    axes: Axes,
    results: TaskResults,
    values: NDArray[np.floating],
    name: str,
    metrics: Mapping[str, float],
    **style: Any,
) -> None:
    """Draws one model's curve, its bins as dots."""
    logits, gold = _classified(results, values)
    bins = reliability(softmax(logits), gold)
    full = bins.count >= FEW
    x, y = bins.confidence[full], bins.accuracy[full]
    axes.plot(x, y, linewidth=1.4, label=f"{name}, ECE {metrics['ece']:.3f}", **style)
    error = np.sqrt(y * (1 - y) / bins.count[full])  # standard error of a share of that many examples
    axes.errorbar(x, y, yerr=error, fmt="none", ecolor=style["color"], elinewidth=0.9, alpha=0.6)
    area = 4 + 180 * bins.count[full] / len(gold)
    axes.scatter(x, y, s=area, color=style["color"], linewidths=0, zorder=3)


def _classified(
    results: TaskResults, values: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    classified = results.task.scoring.classified(values, results.test)
    assert classified is not None, "`draw` calls this for no other kinds"
    return classified


# ---------------------------------------------------------------- scatter


def _scatter(task: str, results: TaskResults, student: str, colour: str) -> Figure:
    """A regression's predictions by gold value."""
    gold, predicted = results.test.labels.values, results.students[student][:, 0]
    low, high = float(min(gold.min(), predicted.min())), float(max(gold.max(), predicted.max()))
    figure = blank(4.6, 4.2)
    axes = figure.add_subplot()
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=":")
    alpha = float(np.clip(300 / len(gold), 0.08, 0.8))
    axes.scatter(gold, predicted, s=9, color=colour, alpha=alpha, linewidths=0)
    axes.grid()
    axes.set_xlabel("gold")
    axes.set_ylabel("predicted")
    axes.set_title(f"{short(student)} on {short(task)}")
    return figure


# ---------------------------------------------------------------- confusion


@dataclass(frozen=True)
class Confusions:
    """A model's confusion matrix. counts: (C, C), row = gold, column = predicted · totals: (C,) gold examples.

    background: the label that marks no entity (O), or None where there is none. `labels` and `counts` leave it out
    because nearly every example has it; examples for which it was predicted still count in `totals`.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    background: str | None = None

    @classmethod
    def of(cls, results: TaskResults, values: NDArray[np.floating]) -> Confusions:
        """The confusions of one model's (M, C) predictions."""
        labels, background = results.task.reading.labels, results.task.reading.background
        counts = confusion(*_classified(results, values))
        kept = [index for index, label in enumerate(labels) if label != background]
        names = tuple(labels[index] for index in kept)
        return cls(names, counts[np.ix_(kept, kept)], counts[kept].sum(axis=1), background)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(C, C) shares of the gold label's examples; 0 where there are none."""
        return np.asarray(self.counts / np.maximum(self.totals, 1)[:, None])

    def pairs(self) -> list[tuple[int, int]]:
        """(gold, predicted) label indices of every confusion; most frequent first, then by share, then by label."""
        off = self.counts * ~np.eye(len(self.counts), dtype=bool)
        shares = self.shares
        pairs = [(int(gold), int(predicted)) for gold, predicted in np.argwhere(off)]
        return sorted(pairs, key=lambda pair: (-self.counts[pair], -shares[pair], pair))


def _confusion(task: str, results: TaskResults, student: str, colour: str) -> Figure:
    """A confusion matrix; with more than `LARGEST` labels, which could not be read, the most confused pairs."""
    confusions = Confusions.of(results, results.students[student])
    title = f"{short(student)} on {short(task)}"
    if confusions.background is not None:
        title += f"\nentities only, without {confusions.background}"
    draw_one = _matrix if len(confusions.labels) <= LARGEST else _most_confused
    return draw_one(confusions, title, colour)


def _matrix(confusions: Confusions, title: str, colour: str) -> Figure:
    """Rows: gold labels, columns: predicted; colour: share of the row; numbers up to `READABLE` labels."""
    shares, labels = confusions.shares, [short(label) for label in confusions.labels]
    side = float(np.clip(0.62 * len(labels), 2.0, 6.5))
    figure = blank(side + 2.0, side + 1.2)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("student", ["white", colour]), vmin=0, vmax=1)
    if len(labels) <= READABLE:
        for row, column in np.argwhere(confusions.counts):
            text = f"{100 * shares[row, column]:.0f}%\n{confusions.counts[row, column]:,}"
            ink = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    small = 8 if len(labels) <= READABLE else 7
    turned: dict[str, Any] = {}
    if max(map(len, labels)) > 7:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(labels)), labels, fontsize=small, color=INK, **turned)
    axes.set_yticks(range(len(labels)), labels, fontsize=small, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=GRID)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    if confusions.background is not None:
        for row, share in enumerate(1 - shares.sum(axis=1)):
            axes.text(len(labels) - 0.3, row, f"{100 * share:.0f}%", va="center", fontsize=small, color=SOFT)
        axes.text(len(labels) - 0.3, -0.6, f"as {confusions.background}", fontsize=small, color=SOFT)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _most_confused(confusions: Confusions, title: str, colour: str) -> Figure:
    """One bar for each of the `PAIRS` most confused pairs of labels, and their share of all confusions."""
    pairs = confusions.pairs()
    counts = np.array([confusions.counts[pair] for pair in pairs], dtype=np.int64)
    shown = pairs[:PAIRS]
    figure = blank(WIDTH, 1.2 + 0.24 * len(shown))
    axes = figure.add_subplot()
    axes.barh(range(len(shown)), counts[:PAIRS], height=0.72, color=colour)
    for y, (gold, predicted) in enumerate(shown):
        text = (
            f" {counts[y]:,} of {confusions.totals[gold]:,} ({100 * confusions.shares[gold, predicted]:.0f}%)"
        )
        axes.text(counts[y], y, text, va="center", fontsize=8)
    names = [
        f"{short(confusions.labels[gold], 34)} → {short(confusions.labels[predicted], 34)}"
        for gold, predicted in shown
    ]
    axes.set_yticks(range(len(shown)), names, fontsize=7.5, color=INK)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * max(counts, default=1))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("count")
    about = "no two labels are confused"
    if pairs:
        about = (
            f"the {len(shown)} most confused pairs of labels, gold → predicted: {counts[:PAIRS].sum():,} of "
        )
        about += f"{counts.sum():,} confusions"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    axes.set_title(about, loc="right", fontsize=8.5, fontweight="normal", color=SOFT)
    return figure
