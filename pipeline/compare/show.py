"""A comparison as a terminal's tables, as Markdown, as CSV and as an HTML page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.table import Table
from rich.text import Text

from pipeline.compare.columns import columns
from pipeline.compare.rows import Row, Teacher
from pipeline.shown import NOTHING, markdown_table, measured, millions, p_value, plus_minus, points
from pipeline.significance import ALPHA, Outcome, Spread, floor, pairs_needed

TEMPLATE = Path(__file__).with_name("page.html.jinja")
TEACHERS = ("task", "teacher", "score", "parameters", "ms an example", "in")


def table(rows: Sequence[Row]) -> Table:
    """The students, for a terminal; what to mind when comparing them is its caption.

    Where all are trials of one search, its name and its student's stand above: their columns are needed for values.
    """
    shown = columns(rows)
    above = [column for column in shown if column.name in ("run", "student") and _is_one_search(rows)]
    body = [[column.show(row) for column in shown if column not in above] for row in rows]
    return _table(
        [column.title for column in shown if column not in above],
        body,
        [column.words for column in shown if column not in above],
        title=", ".join(f"{column.title} {column.show(rows[0])}" for column in above),
        caption="\n".join(cautions(rows)),
    )


def _is_one_search(rows: Sequence[Row]) -> bool:
    return all(row.trial for row in rows) and len({(row.run, row.student) for row in rows}) == 1


def tables(rows: Sequence[Row]) -> list[Table]:
    """The students of runs, those of trials and, where there are any, teachers, for a terminal."""
    teachers = teacher_cells(rows)
    words = [True, True, False, False, False, True]
    students = [table(part) for part in _parts(rows)]
    return [*students, *([_table(TEACHERS, teachers, words)] if teachers else [])]


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs and trials apart: they have hardly a column in common."""
    parts = [[row for row in rows if row.trial is None], [row for row in rows if row.trial is not None]]
    return [part for part in parts if part]


def _table(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    words: Sequence[bool],
    title: str = "",
    caption: str = "",
) -> Table:
    shown = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        title=Text(title) if title else None,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
    )
    for name, left in zip(head, words, strict=True):
        folded = Text(re.sub(r"[/ ._]", "\n", name), overflow="fold")
        shown.add_column(folded, justify="left" if left else "right", vertical="bottom")
    for line in body:  # Text: names are no markup; a number is cut visibly or not at all
        shown.add_row(
            *(
                Text(cell, overflow="fold") if left else Text(cell, no_wrap=True, overflow="ellipsis")
                for cell, left in zip(line, words, strict=True)
            )
        )
    return shown


def to_markdown(rows: Sequence[Row]) -> str:
    """Markdown tables of students and teachers, in points and percent."""
    blocks = [*map(_students, _parts(rows)), *cautions(rows)]
    if teachers := teacher_cells(rows):
        blocks.append(_markdown(TEACHERS, teachers))
    return "\n\n".join(blocks) + "\n"


def _students(rows: Sequence[Row]) -> str:
    shown = columns(rows)
    return _markdown(
        [column.title for column in shown], [[column.show(row) for column in shown] for row in rows]
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, [[cell.replace("|", r"\|") for cell in row] for row in rows], words=2)


def to_csv(rows: Sequence[Row]) -> str:
    """Students as CSV with every digit; scores as shares, empty where there is none."""
    known = columns(rows, csv=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in known])
    writer.writerows([column.value(row) for column in known] for row in rows)
    return text.getvalue()


def cautions(rows: Sequence[Row]) -> list[str]:
    """What to mind when comparing these rows, a sentence each."""
    found = []
    if len({frozenset(row.tasks) for row in rows if row.tasks}) > 1:  # a trial that failed has no scores
        found.append("Runs differ in tasks or metrics: compare task by task, not by macro.")
    if any(row.trial for row in rows):
        found.append("A search's trials are scored on validation, runs on test.")
    seeds = [row.seeds for row in rows if row.seeds > 1]
    if seeds:
        found.append("±: standard deviation over seeds. p: of Δ, two-sided sign-flip test over paired seeds.")
    if seeds and min(seeds) < pairs_needed():
        found.append(
            f"With {min(seeds)} seeds p cannot fall below {p_value(floor(min(seeds)))}; p < {ALPHA} needs "
            f"{pairs_needed()}, and 8 if one may disagree."
        )
    return found


def teacher_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line a teacher and a task, and one for the task's ensemble; those that several runs share stand once."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    runs: dict[tuple[str, str, str, str], dict[str, None]] = {}  # in the order in which they come
    latencies: dict[tuple[str, str, str, str], str] = {}
    for row in rows:
        for one in _teachers_of(row):
            key = (one.task, one.name, points(one.score), _millions(one.parameters))
            runs.setdefault(key, {})[row.run] = None
            latencies.setdefault(key, _milliseconds(one.latency_ms))
    everywhere = {row.run for row in rows if row.teachers}  # a search has none
    return [
        [*key, latencies[key], "all" if set(runs[key]) == everywhere else ", ".join(runs[key])]
        for key in sorted(runs, key=lambda key: tasks.index(key[0]))
    ]


def _teachers_of(row: Row) -> list[Teacher]:
    """A row's teachers, each task's followed by its ensemble."""
    found = []
    for task, outcome in row.tasks.items():
        found += [teacher for teacher in row.teachers if teacher.task == task]
        if outcome.ensemble is not None:
            found.append(Teacher(task, "ensemble", outcome.ensemble.mean, None, None))
    return found


def _millions(parameters: int | None) -> str:
    return NOTHING if parameters is None else millions(parameters)


def _milliseconds(latency: float | None) -> str:
    return NOTHING if latency is None else f"{latency:.2f}"


# ---------------------------------------------------------------- the HTML page


def to_html(rows: Sequence[Row]) -> str:
    """One page on its own: no script, nothing fetched; bars are boxes with a width. Names are escaped."""
    shown = columns(rows)
    tasks = dict.fromkeys(task for row in rows for task in row.tasks)
    charts = [_chart(task, [(row, row.tasks.get(task)) for row in rows]) for task in tasks]
    if len(tasks) > 1:
        charts.insert(0, _chart("All tasks", [(row, row.macro) for row in rows]))
    page = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        cautions=cautions(rows),
        columns=shown,
        rows=rows,
        charts=charts,
        teachers_head=TEACHERS,
        teachers=teacher_cells(rows),
    )


@dataclass(frozen=True)
class Bar:
    """who: `student`, `supervised` or `ensemble` · width: percent of the whole · text: beside it."""

    who: str
    width: float
    text: str


def _chart(title: str, outcomes: Sequence[tuple[Row, Outcome | None]]) -> dict[str, Any]:
    """A task's bars, those of a row together; rows without the task are left out."""
    lines = []
    for row, outcome in outcomes:
        if outcome is not None:
            name = row.run if row.trial is None else f"{row.run} #{row.trial.number}"
            spreads = {
                "student": outcome.score,
                "supervised": outcome.supervised,
                "ensemble": outcome.ensemble,
            }
            bars = [_bar(title, who, spread) for who, spread in spreads.items() if spread is not None]
            lines.append(
                {
                    "run": name,
                    "student": row.student,
                    "bars": bars,
                    "p": "" if outcome.p is None else p_value(outcome.p),
                }
            )
    return {"title": title, "lines": lines}


def _bar(metric: str, who: str, spread: Spread) -> Bar:
    width = 100 * min(1.0, max(0.0, spread.mean))  # a correlation may be negative
    return Bar(who, round(width, 2), plus_minus(spread, partial(measured, metric)))
