"""What the demo's data sets share: comparing texts, removing copies, splitting and ordering by hash, writing.

Hashes depend on the texts alone, so everybody gets the same rows in the same split and order, in any Python, and a
row keeps its split when other rows are added or removed. Standard library only; the corpora's formats are in
corpora_texts.py and corpora_spans.py.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SALT = "tutelage"  # of the hashes that split and shuffle; another salt gives other splits
OPENING = 40  # characters; texts that agree on this many stay in one split
SPLITS = ("train", "validation", "test")

RowT = TypeVar("RowT", bound=tuple[Any, ...])  # a NamedTuple: its fields are the columns


class Row(NamedTuple):
    """One labelled text."""

    text: str
    label: str


# ---- comparing -----------------------------------------------------------------------------------


def fingerprint(text: str) -> str:
    """A text for comparison: without links, @names, `RT`, case and punctuation."""
    words = re.sub(r"https?\S*|@\w+|\bRT\b", " ", text)
    return re.sub(r"[\W_]+", " ", words.casefold()).strip()


def opening(text: str) -> str:
    """The first `OPENING` characters of a text's fingerprint: copies of one headline with other endings share it."""
    return fingerprint(text)[:OPENING]


def one_line(text: str) -> str:
    """The text with each run of white space replaced by one blank."""
    return " ".join(text.split())


def deduplicate(
    rows: Iterable[RowT], *, key: Callable[[RowT], str], answer: Callable[[RowT], Hashable]
) -> list[RowT]:
    """The first row of each key, in order. Rows with an empty key, or whose copies have different answers, are dropped."""
    copies: defaultdict[str, list[RowT]] = defaultdict(list)
    for row in rows:
        copies[key(row)].append(row)
    return [same[0] for text, same in copies.items() if text and len({answer(row) for row in same}) == 1]


def unique_texts(rows: Iterable[Row]) -> list[Row]:
    """Labelled texts without copies: see `deduplicate`; texts with one fingerprint are copies."""
    return deduplicate(rows, key=lambda row: fingerprint(row.text), answer=lambda row: row.label)


# ---- splitting and ordering ----------------------------------------------------------------------


def _digest(key: str) -> str:
    return hashlib.sha256(f"{SALT}:{key}".encode()).hexdigest()


def shuffled(rows: Iterable[RowT], key: Callable[[RowT], str]) -> list[RowT]:
    """The rows in an order that depends on their keys alone, so that the first N are a random sample."""
    return sorted(rows, key=lambda row: _digest(key(row)))


def split_texts(rows: Sequence[Row], *, validation: int, test: int = 0) -> dict[str, list[Row]]:
    """Splits of exactly `test` and `validation` rows; the rest is train. Texts with one opening are in one split.

    Openings are taken in hash order, and each goes to the first split with room for it. The result does not depend
    on the order of `rows`.

    Raises:
        ValueError: there are too few rows, or an opening is so common that a split cannot be filled exactly.
    """
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[opening(row.text)].append(row)
    room = {"test": test, "validation": validation, "train": len(rows) - test - validation}
    drawn: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for start in sorted(groups, key=_digest):
        group = groups[start]
        name = next((name for name, free in room.items() if len(group) <= free), None)
        if name is None or room["train"] < 0:
            raise ValueError(
                f"cannot split {len(rows)} rows into {test} test and {validation} validation rows"
            )
        drawn[name] += group
        room[name] -= len(group)
    return {name: shuffled(part, lambda row: fingerprint(row.text)) for name, part in drawn.items()}


def draw(group: str, *, validation: float, test: float = 0.0) -> str:
    """The split of a group of rows, by the group's hash. validation, test: shares of all groups."""
    share = int(_digest(group)[:12], 16) / 16**12
    return "test" if share < test else "validation" if share < test + validation else "train"


def split_groups(
    rows: Iterable[RowT],
    *,
    key: Callable[[RowT], str],
    split: Callable[[RowT], str],
) -> dict[str, list[RowT]]:
    """Each row in the split that `split` returns for it, in the order of its key's hash."""
    drawn: dict[str, list[RowT]] = {name: [] for name in SPLITS}
    for row in rows:
        drawn[split(row)].append(row)
    return {name: shuffled(part, key) for name, part in drawn.items()}


# ---- writing -------------------------------------------------------------------------------------


def _counts(splits: Mapping[str, Sequence[object]]) -> str:
    return " / ".join(f"{len(rows):,} {name}" for name, rows in splits.items())


def write_csv(splits: Mapping[str, Sequence[RowT]], folder: Path) -> str:
    """One csv file a split, for rows of flat text; the columns are the rows' fields. Returns the counts."""
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_columns(rows[0]))
            writer.writerows(rows)
    return _counts(splits)


def write_json_lines(splits: Mapping[str, Sequence[RowT]], folder: Path) -> str:
    """One JSON-lines file a split, for rows that hold lists or long texts. Returns the counts."""
    for name, rows in splits.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                content = dict(zip(_columns(row), row, strict=True))
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
    return _counts(splits)


def _columns(row: tuple[Any, ...]) -> tuple[str, ...]:
    fields: tuple[str, ...] = row._fields  # type: ignore[attr-defined] # every row is a NamedTuple
    return fields
