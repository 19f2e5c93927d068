"""The columns of a comparison, and the selection and order of its rows.

A column's name is its header in `--to csv`. `--sort` and `--filter` also take the title in the table, and the name
without ``macro/``. Scores are shares (0.862), as in csv, even where the table shows points.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.compare.rows import Row, Trial
from pipeline.errors import ConfigError, DataError
from pipeline.shown import (
    NOTHING,
    measured,
    millions,
    p_value,
    percent,
    plus_minus,
    points,
    recovered,
    signed,
)
from pipeline.significance import Outcome, Spread

Value = str | int | float | None
ORDERS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FILTER = re.compile(r"\s*([^=<>~!]+?)\s*(>=|<=|!=|=|>|<|~)\s*(.*?)\s*")
KEY = "row"
HOW = "Write for instance 'student=half', 'retention>=0.95', 'tweets/accuracy>0.7' or 'run~quick'."


@dataclass(frozen=True)
class Column:
    """One column.

    value: the value for sort, filter and csv · show: the text in the table · words: whether it is text, aligned left ·
    ascending: whether small values come first when rows are sorted by it · optional: omitted where no row has a value ·
    csv: in csv only · about: columns with the same `about` stay side by side where the terminal has room; columns of
    `KEY` identify the row.
    """

    name: str
    title: str
    value: Callable[[Row], Value]
    show: Callable[[Row], str]
    words: bool = False
    ascending: bool = False
    optional: bool = False
    csv: bool = False
    about: str = ""


def columns(rows: Sequence[Row], csv: bool = False) -> list[Column]:
    """The columns of `rows`, in order; with `csv` also those that only csv has."""
    which, became = _of_trials() if any(row.trial for row in rows) else ([], [])
    if csv or len({row.split for row in rows}) > 1:
        which = [_words("split", lambda row: row.split), *which]
    only_trials = all(row.trial for row in rows)
    tasks = dict.fromkeys(task for row in rows for task in row.tasks)
    paths = dict.fromkeys(path for row in rows if row.trial for path in row.trial.values)
    every: dict[str, list[Column]] = {
        KEY: [
            _words("run", lambda row: row.run),
            _words("student", lambda row: row.student),
            *which,
            _number("seeds", "seeds", lambda row: row.seeds if row.seeds > 1 else None, str, optional=True),
        ],
        "macro": _of_outcomes("macro", lambda row: row.macro, optional=only_trials),
        "tasks": [column for task in tasks for column in _of_outcomes(task, partial(_on_task, task=task))],
        "cost": [
            _number("parameters", "parameters", lambda row: row.parameters, millions, True, only_trials),
            _number(
                "latency_ms", "ms an example", lambda row: row.latency_ms, "{:.2f}".format, True, only_trials
            ),
        ],
        "trial": became,
        "settings": [_setting(path) for path in paths],
    }
    return [
        replace(column, about=about)
        for about, some in every.items()
        for column in some
        if (csv or not column.csv)
        and not (column.optional and all(column.value(row) is None for row in rows))
    ]


def _words(name: str, value: Callable[[Row], str | None], optional: bool = False) -> Column:
    def shown(row: Row) -> str:
        return value(row) or NOTHING

    return Column(name, name, value, shown, words=True, ascending=True, optional=optional)


def _number(
    name: str,
    title: str,
    value: Callable[[Row], Value],
    show: Callable[[Any], str],
    ascending: bool = False,
    optional: bool = False,
    csv: bool = False,
) -> Column:
    """A column of numbers; `show` is never called for a missing one."""

    def shown(row: Row) -> str:
        return NOTHING if (known := value(row)) is None else show(known)

    return Column(name, title, value, shown, ascending=ascending, optional=optional, csv=csv)


def _of_trial(row: Row, read: Callable[[Trial], Any]) -> Any:
    return None if row.trial is None else read(row.trial)


def _of_trials() -> tuple[list[Column], list[Column]]:
    """The columns that identify a trial, and the columns with its result."""
    front = partial(_of_trial, read=lambda trial: "yes" if trial.pareto else None)
    which = [
        _number("trial", "trial", partial(_of_trial, read=lambda trial: trial.number), str, ascending=True),
        _words("best", partial(_of_trial, read=lambda trial: "yes" if trial.best else None)),
        _words("pareto", front, optional=True),
    ]
    became = [
        _words("status", partial(_of_trial, read=lambda trial: trial.status)),
        _number("epochs", "epochs", partial(_of_trial, read=lambda trial: trial.epochs), str, ascending=True),
        _number(
            "seconds",
            "seconds",
            partial(_of_trial, read=lambda trial: trial.seconds),
            "{:.0f}".format,
            True,
            csv=True,
        ),
    ]
    return which, became


def _on_task(row: Row, task: str) -> Outcome | None:
    return row.tasks.get(task)


def _of_outcomes(name: str, get: Callable[[Row], Outcome | None], optional: bool = False) -> list[Column]:
    """The columns of a task or of macro, the mean over tasks. The table shows all of macro's and a task's score only."""
    macro, value = name == "macro", partial(measured, name)

    def of_row(read: Callable[[Outcome], Any], row: Row) -> Any:
        return None if (outcome := get(row)) is None else read(outcome)

    def spread(key: str, title: str, read: Callable[[Outcome], Spread | None], **more: Any) -> Column:
        show = signed if title == "Δ points" else value
        return Column(
            key,
            title,
            lambda row: None if (one := of_row(read, row)) is None else one.mean,
            lambda row: plus_minus(of_row(read, row), show),
            **more,
        )

    rest: dict[str, Any] = {"optional": optional, "csv": not macro}
    p = _number(f"{name}/p", "p", partial(of_row, lambda one: one.p), p_value, True, True, not macro)
    both = [
        spread("macro/score" if macro else name, name, lambda one: one.score),
        _number(
            f"{name}/sd", f"{name} sd", partial(of_row, lambda one: one.score.sd), points, True, True, True
        ),
        spread(f"{name}/ensemble", "ensemble", lambda one: one.ensemble, optional=optional, csv=True),
        spread(f"{name}/supervised", "supervised", lambda one: one.supervised, **rest),
    ]
    if not macro:
        return [*both, p]
    return [
        *both,
        spread("macro/delta", "Δ points", lambda one: one.delta, **rest),
        p,
        _number("macro/retention", "retention", partial(of_row, lambda one: one.retention), percent, **rest),
        _number(
            "macro/gap_recovered",
            "gap recovered",
            partial(of_row, lambda one: one.gap_recovered),
            recovered,
            **rest,
        ),
    ]


def _setting(path: str) -> Column:
    """The column of a config key that a search varied."""

    def value(row: Row) -> Value:
        setting = row.trial.values.get(path) if row.trial else None
        plain = setting is None or (isinstance(setting, str | int | float) and not isinstance(setting, bool))
        return setting if plain else json.dumps(setting)

    def show(setting: Value) -> str:
        return f"{setting:.4g}" if isinstance(setting, float) else str(setting)

    return _number(path, path, value, show, ascending=True)


# ---------------------------------------------------------------- --filter, --sort


def select(rows: Sequence[Row], filters: Sequence[str] = (), sort: str | None = None) -> list[Row]:
    """The rows that pass every filter, sorted by `sort`, or in their own order without it.

    Rows scored on test always come first: their scores are not comparable with validation scores.

    Raises `ConfigError` for a filter or a column that does not exist, `DataError` where no row is left.
    """
    known = columns(rows, csv=True)
    tests = [_filter(text, known, rows) for text in filters]
    kept = [row for row in rows if all(test(row) for test in tests)]
    if not kept:
        raise DataError(
            f"none of {len(rows)} students passes {' and '.join(repr(text) for text in filters)}",
            "Loosen a filter. Scores are shares there: 0.86, not 86.",
        )
    ordered = kept if sort is None else _sorted(kept, sort, known)
    return sorted(ordered, key=lambda row: row.split != "test")


def _filter(text: str, known: Sequence[Column], rows: Sequence[Row]) -> Callable[[Row], bool]:
    """The predicate of a filter `COLUMN OP VALUE`; a row without a value in that column does not pass."""
    if (parts := FILTER.fullmatch(text)) is None:
        raise ConfigError(f"filter {text!r} is not COLUMN, one of = != >= <= > < ~, and a value", HOW)
    name, sign, wanted = parts.groups()
    column = _find(name, known)
    number = _as_number(wanted)
    if sign in ORDERS and (number is None or any(isinstance(column.value(row), str) for row in rows)):
        what = f"{wanted!r} is no number" if number is None else f"{column.name} holds words"
        raise ConfigError(f"filter {text!r}: {what}, {sign} compares numbers", HOW)

    def passes(row: Row) -> bool:
        value = column.value(row)
        if value is None:
            return False
        if sign == "~":
            return wanted.casefold() in str(value).casefold()
        if sign in ORDERS:
            assert number is not None
            assert not isinstance(value, str)
            return ORDERS[sign](value, number)
        same = str(value) == wanted
        if not isinstance(value, str) and number is not None:
            same = math.isclose(value, number)
        return same == (sign == "=")

    return passes


def _sorted(rows: Sequence[Row], sort: str, known: Sequence[Column]) -> list[Row]:
    """Best first: high scores, low latencies; names and settings ascend. `-` reverses. Missing values come last."""
    column = _find(sort.removeprefix("-"), known)

    def key(row: Row) -> tuple[bool, float, str]:
        value = column.value(row)
        return (True, 0.0, value.casefold()) if isinstance(value, str) else (False, float(value or 0), "")

    turned = column.ascending == sort.startswith("-")
    there = [row for row in rows if column.value(row) is not None]
    missing = [row for row in rows if column.value(row) is None]
    return [*sorted(there, key=key, reverse=turned), *missing]


def _find(name: str, known: Sequence[Column]) -> Column:
    """The column called `name`. Raises `ConfigError` with the nearest name."""
    by_name: dict[str, Column] = {}
    for column in known:
        for one in (column.name, column.title, column.name.removeprefix("macro/")):
            by_name.setdefault(one.casefold(), column)
    if (match := by_name.get(name.strip().casefold())) is not None:
        return match
    near = difflib.get_close_matches(name.casefold(), by_name, n=1, cutoff=0.5)
    hint = (
        f"Did you mean {by_name[near[0]].name!r}?"
        if near
        else f"There are {', '.join(column.name for column in known)}."
    )
    raise ConfigError(f"these rows have no column {name!r}", hint)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
