"""A comparison as a terminal's tables, as Markdown, as CSV and as an HTML page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipeline.compare.columns import KEY, Column, columns
from pipeline.compare.pictures import gains, pareto
from pipeline.compare.rows import Row, Teacher
from pipeline.compare.verdict import verdict
from pipeline.display.wide_table import Field, WideTable
from pipeline.shown import NOTHING, markdown_table, measured, millions, p_value, plus_minus, points
from pipeline.significance import ALPHA, Outcome, Spread, floor, pairs_needed

TEMPLATE = Path(__file__).with_name("page.html.jinja")
COLUMNS_A_TABLE = 6  # beside those that identify the row
TEACHERS = ("task", "teacher", "score", "parameters", "ms an example", "in")


def tables(rows: Sequence[Row]) -> list[WideTable]:
    """Tables for a terminal: students of runs, students of trials and teachers; empty ones are omitted."""
    teachers = teacher_cells(rows)
    return [*map(students, by_split(rows)), *([_teachers(teachers)] if teachers else [])]


def by_split(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows scored on test, then rows scored on validation: they are not comparable, so they need separate tables."""
    parts = ([row for row in rows if row.split == split] for split in ("test", "validation"))
    return [part for part in parts if part]


def students(rows: Sequence[Row]) -> WideTable:
    """Students scored on one split, for a terminal; the caption has the cautions of the comparison.

    Where all rows are trials of one search, the title has the names of search and student instead of two columns.
    """
    above = ("run", "student") if _is_one_search(rows) else ()
    fields = [
        Field(
            column.title,
            [column.show(row) for row in rows],
            words=column.words,
            key=column.about == KEY,
            group=column.about,
        )
        for column in columns(rows)
        if column.name not in above
    ]
    return WideTable(fields, _title(rows), "\n".join(cautions(rows)))


def _is_one_search(rows: Sequence[Row]) -> bool:
    return all(row.trial for row in rows) and len({(row.run, row.student) for row in rows}) == 1


def _title(rows: Sequence[Row]) -> str:
    """The title of a table: what its rows are, and their split."""
    if rows[0].trial is None:
        return "Students, scored on test"
    whose = f" of {rows[0].run}, student {rows[0].student}" if _is_one_search(rows) else ""
    return f"Trials{whose}, scored on validation"


def _teachers(cells: Sequence[Sequence[str]]) -> WideTable:
    words, keys = ("task", "teacher", "in"), ("task", "teacher")
    return WideTable(
        [
            Field(head, [line[place] for line in cells], words=head in words, key=head in keys)
            for place, head in enumerate(TEACHERS)
        ],
        "Teachers, scored on test",
    )


def to_markdown(rows: Sequence[Row]) -> str:
    """Markdown tables of students and teachers, in points and percent."""
    blocks = []
    for part in by_split(rows):
        shown = columns(part)
        cells = [[column.show(row) for column in shown] for row in part]
        blocks += [f"**{_escaped(_title(part))}**", _markdown([column.title for column in shown], cells)]
    blocks += cautions(rows)
    if teachers := teacher_cells(rows):
        blocks += ["**Teachers, scored on test**", _markdown(TEACHERS, teachers)]
    return "\n\n".join(blocks) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([*map(_escaped, head)], [[*map(_escaped, row)] for row in rows], words=2)


def _escaped(text: str) -> str:
    """`text` with the characters escaped that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def to_csv(rows: Sequence[Row]) -> str:
    """Students as CSV with every digit; scores as shares, empty where there is none."""
    known = columns(rows, csv=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in known])
    writer.writerows([column.value(row) for column in known] for row in rows)
    return text.getvalue()


def cautions(rows: Sequence[Row]) -> list[str]:
    """Reasons why these rows are not fully comparable, one sentence each."""
    sentences = []
    kinds = [{frozenset(row.tasks) for row in part if row.tasks} for part in by_split(rows)]
    if any(len(one) > 1 for one in kinds):  # a trial that failed has no scores
        sentences.append("Students differ in tasks or metrics: compare task by task, not by macro.")
    if len({row.split for row in rows}) > 1:
        sentences.append(
            "Trials are scored on validation, runs on test: a score of one says nothing beside the other."
        )
    seeds = [row.seeds for row in rows if row.seeds > 1]
    if seeds:
        sentences.append(
            "±: standard deviation over seeds. p: of Δ, two-sided sign-flip test over paired seeds."
        )
    if seeds and min(seeds) < pairs_needed():
        sentences.append(
            f"With {min(seeds)} seeds p cannot fall below {p_value(floor(min(seeds)))}; p < {ALPHA} needs "
            f"{pairs_needed()}, and 8 if one may disagree."
        )
    if busy := dict.fromkeys(row.run for row in rows if row.busy):
        sentences.append(
            f"Latencies of {', '.join(busy)} were measured on a busy machine: they may be far too high."
        )
    return sentences


def teacher_cells(rows: Sequence[Row]) -> list[list[str]]:
    """One row of cells per teacher and task, and one per task's ensemble; runs with equal cells share a row."""
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
    teachers = []
    for task, outcome in row.tasks.items():
        teachers += [teacher for teacher in row.teachers if teacher.task == task]
        if outcome.ensemble is not None:
            teachers.append(Teacher(task, "ensemble", outcome.ensemble.mean, None, None))
    return teachers


def _millions(parameters: int | None) -> str:
    return NOTHING if parameters is None else millions(parameters)


def _milliseconds(latency: float | None) -> str:
    return NOTHING if latency is None else f"{latency:.2f}"


# ---------------------------------------------------------------- the HTML page


def to_html(rows: Sequence[Row]) -> str:
    """One self-contained page, without scripts and links to other files; bars are boxes. Names are escaped."""
    page = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=verdict(rows),
        gains=gains(rows),
        pareto=pareto(rows),
        cautions=cautions(rows),
        parts=[_part(part) for part in by_split(rows)],
        teachers_head=TEACHERS,
        teachers=teacher_cells(rows),
    )


def _part(rows: Sequence[Row]) -> dict[str, Any]:
    """The table and the bars of rows of one split, for the HTML template."""
    tasks = dict.fromkeys(task for row in rows for task in row.tasks)
    charts = [_chart(task, [(row, row.tasks.get(task)) for row in rows]) for task in tasks]
    if len(tasks) > 1:
        charts.insert(0, _chart("All tasks", [(row, row.macro) for row in rows]))
    return {
        "title": _title(rows),
        "tables": _tables(rows),
        "rows": rows,
        "charts": charts,
        "seeds": any(row.seeds > 1 for row in rows),
    }


def _tables(rows: Sequence[Row]) -> list[list[Column]]:
    """The columns, in as many tables as a page of 1,280 pixels needs; each begins with those that identify the row."""
    known = columns(rows)
    keys = [column for column in known if column.about == KEY]
    groups: dict[str, list[Column]] = {}
    for column in known:
        if column.about != KEY:
            groups.setdefault(column.about, []).append(column)
    tables: list[list[Column]] = [[]]
    for group in groups.values():
        for start in range(0, len(group), COLUMNS_A_TABLE):
            piece = group[start : start + COLUMNS_A_TABLE]
            if tables[-1] and len(tables[-1]) + len(piece) > COLUMNS_A_TABLE:
                tables.append([])
            tables[-1] += piece
    return [[*keys, *table] for table in tables]


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    who: `student`, `supervised` or `ensemble` · width: in percent of the track · text: beside the bar · left, span:
    start and width of the error bar (mean ± standard deviation over seeds), in percent; span is 0 for one seed.
    """

    who: str
    width: float
    text: str
    left: float
    span: float


def _chart(title: str, outcomes: Sequence[tuple[Row, Outcome | None]]) -> dict[str, Any]:
    """A task's bars, grouped by row; rows without the task are omitted."""
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
    def percent_of_track(share: float) -> float:  # a correlation may be negative
        return round(100 * min(1.0, max(0.0, share)), 2)

    sd = spread.sd or 0.0
    low, high = percent_of_track(spread.mean - sd), percent_of_track(spread.mean + sd)
    text = plus_minus(spread, partial(measured, metric))
    return Bar(who, percent_of_track(spread.mean), text, low, round(high - low, 2))
