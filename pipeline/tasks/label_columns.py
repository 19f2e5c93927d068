"""Label columns of a data set → a label space, and indices into it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED
from pipeline.errors import DataError

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
    task: str, declared: Sequence[str] | None, names: Sequence[str] | None, found: Sequence[Any]
) -> tuple[str, ...]:
    """The label space: as declared, else the data set's own class names, else the sorted values found in train.

    Raises `DataError` for a label that stands twice, or fewer than two labels.
    """
    labels = tuple(
        declared
        if declared is not None
        else names
        if names is not None
        else (str(value) for value in sorted({value for value in found if value is not None}))
    )
    if len(set(labels)) != len(labels):
        raise DataError(
            f"tasks.{task}: a label stands twice in {list(labels)}", "Every label needs a name of its own."
        )
    if len(labels) < 2:
        raise DataError(
            f"tasks.{task}: one label only: {list(labels)}", "A classification task needs two or more."
        )
    return labels


def label_index(
    labels: Sequence[str], names: Sequence[str] | None, values: Sequence[Any]
) -> Mapping[Any, int]:
    """What a value of the column stands for, as an index into `labels`: its name, or its number."""
    index: dict[Any, int] = {label: i for i, label in enumerate(labels)}
    if names is not None:  # ClassLabel: numbers are positions in its own names
        index.update({number: index[label] for number, label in enumerate(names) if label in index})
    elif all(isinstance(v, int) for v in values if v is not None) and not any(map(NUMERAL.fullmatch, labels)):
        index.update((number, number) for number in range(len(labels)))  # positions among names
    return index


def label_ids(index: Mapping[Any, int], values: Sequence[Any]) -> NDArray[np.int64]:
    """(n,) indices of `values`, `UNLABELLED` for one that is None, -2 for one that is no label."""
    ids = [UNLABELLED if v is None else index.get(v, index.get(str(v), -2)) for v in values]
    return np.array(ids, dtype=np.int64)


def refuse_label(task: str, row: int, split: str, value: Any, labels: Sequence[str]) -> DataError:
    """The error for a label outside the space."""
    return DataError(
        f"tasks.{task}: row {row} of {split}: label {value!r} is not one of {list(labels)}",
        "Mend the row, or list every label in data.labels.",
    )
