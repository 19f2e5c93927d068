"""Label columns of a data set → a label space, and indices into it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED
from pipeline.errors import DataError

SHOWN_LABELS = 20
RARE = 5
"""Examples below which a class may be noted as rare; see `check_inferred`."""
NUMERAL = re.compile(r"[+-]?\d+|True|False")


@dataclass(frozen=True)
class Column:
    """One column of a split: its values, and the class names that the data set declares for them, if any."""

    values: Sequence[Any]
    names: tuple[str, ...] | None = None


def names_of(feature: Any) -> tuple[str, ...] | None:
    """The class names that a column's `datasets` feature declares, also inside a list; None where it has none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    names = getattr(feature, "names", None)
    return None if names is None else tuple(names)


def label_space(
    task: str, declared: Sequence[str] | None, names: Sequence[str] | None, values: Sequence[Any]
) -> tuple[str, ...]:
    """The label space: `declared`, else the data set's class `names`, else the sorted distinct `values` of train.

    Raises `DataError` for a label that stands twice, or fewer than two labels.
    """
    labels = tuple(
        declared
        if declared is not None
        else names
        if names is not None
        else (str(value) for value in sorted(_distinct(task, values)))
    )
    if len(set(labels)) != len(labels):
        raise DataError(
            f"tasks.{task}: a label stands twice in {list(labels)}", "Every label needs a name of its own."
        )
    if len(labels) < 2:
        what = f"one label only: {list(labels)}" if labels else "no label at all"
        raise DataError(f"tasks.{task}: {what}", "A classification task needs two or more.")
    return labels


def _distinct(task: str, values: Sequence[Any]) -> set[Any]:
    """The distinct values except None; all as strings where names and numbers are mixed.

    Raises `DataError` for a value that is neither a string nor a number.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float | None):
            raise DataError(
                f"tasks.{task}: label {row} of train is {value!r:.200}, neither text nor a number",
                "Give each row one label, or set problem: multi_label where it has a list.",
            )
    distinct = {whole(value) for value in values if value is not None}
    if len({isinstance(value, str) for value in distinct}) > 1:
        distinct = {str(value) for value in distinct}
    return distinct


def whole(value: Any) -> Any:
    """`value`, as an integer where it is a whole float: a column of integers has floats where it once had an empty cell."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_inferred(task: str, split: str, values: Sequence[Any]) -> list[str]:
    """Checks a label column whose values make up the label space: raises for clear mistakes, returns notes on others.

    values: one label, or a list of labels, per row. Raises `DataError`, with the rows, for an empty label and for
    labels that differ only by case or blanks. Returns a note with the names of the rare classes: those with fewer
    than `RARE` examples and fewer than a tenth of the median class's.
    """
    counts = Counter(label for value in values for label in _labels_of(value))

    def rows_of(labels: Sequence[str]) -> list[int]:
        return [row for row, value in enumerate(values) if not set(labels).isdisjoint(_labels_of(value))]

    spellings: dict[str, list[str]] = {}
    for label, _ in counts.most_common():
        spellings.setdefault(" ".join(label.split()).casefold(), []).append(label)
    if "" in spellings:
        where = rows_of(spellings[""])
        raise DataError(
            f"tasks.{task}: an empty label in {show_rows(where)} of {split}",
            "Correct those rows; in csv a cell without any character, in JSON null, is a row without a label.",
        )
    for usual, *others in spellings.values():
        if others:
            often = ", ".join(f"{label!r} {counts[label]} times" for label in (usual, *others))
            wrong = rows_of(others)
            raise DataError(
                f"tasks.{task}: labels of {split} that differ by case or blanks alone: {often}; see {show_rows(wrong)}",
                "Correct those rows, or list every label in data.labels if all of them are meant.",
            )
    median = float(np.median(list(counts.values())))
    rare = [label for label, count in counts.items() if count < min(RARE, median / 10)]
    shown = ", ".join(f"{label!r} {counts[label]}" for label in rare[:10])
    more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
    return (
        [f"classes with very few examples in {split}: {shown}{more}; check that they are not typing errors"]
        if rare
        else []
    )


def _labels_of(value: Any) -> list[str]:
    """The labels in a cell: one, several, or none."""
    labels = value if isinstance(value, list | tuple) else (value,)
    return [str(whole(label)) for label in labels if label is not None]


def show_rows(rows: Sequence[int]) -> str:
    """``row 3``, or ``rows 3, 5, 8 and 12 more``; counted from 0."""
    distinct = sorted(set(rows))
    more = f" and {len(distinct) - 10} more" if len(distinct) > 10 else ""
    return f"row{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct[:10]))}{more}"


def label_index(
    labels: Sequence[str], names: Sequence[str] | None, values: Sequence[Any]
) -> Mapping[Any, int]:
    """Index into `labels` by value of the column. A value is a label's name, or its number."""
    index: dict[Any, int] = {label: i for i, label in enumerate(labels)}
    if names is not None:  # ClassLabel: numbers are positions in its own names, and -1 is no label
        index.update({number: index[label] for number, label in enumerate(names) if label in index})
        index[UNLABELLED] = UNLABELLED
    elif all(isinstance(whole(v), int) for v in values if v is not None) and not any(
        map(NUMERAL.fullmatch, labels)
    ):
        index.update((number, number) for number in range(len(labels)))  # positions among names
    return index


def label_ids(index: Mapping[Any, int], values: Sequence[Any]) -> NDArray[np.int64]:
    """(n,) int64 indices of `values`: `UNLABELLED` for None, -2 for a value that is not a label."""
    ids = [
        UNLABELLED
        if v is None
        else index.get(v, index.get(str(v), -2))
        if isinstance(v, str | int | float)
        else -2
        for v in map(whole, values)
    ]
    return np.array(ids, dtype=np.int64)


def refuse_label(task: str, row: int, split: str, value: Any, labels: Sequence[str]) -> DataError:
    """The error for a label outside the space."""
    shown = f"{list(labels[:SHOWN_LABELS])}{f' and {more} more' if (more := len(labels) - SHOWN_LABELS) > 0 else ''}"
    remedy = "Mend the row, or list every label in data.labels."
    if isinstance(whole(value), int) and not any(map(NUMERAL.fullmatch, labels)):
        remedy = "A number is the position of its label in data.labels, from 0: write names, or count from 0."
    return DataError(
        f"tasks.{task}: row {row} of {split}: label {value!r:.200} is not one of {shown}", remedy
    )
