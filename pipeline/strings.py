"""A column of texts in Arrow's memory. Of a data set on disk it is a view of the file; sent to another process of the machine by Ray, of
shared memory. A Python string takes fifty bytes more than its text, in each process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

AT_ONCE = 8192
"""Texts that become Python strings together where a column is iterated over."""


class Strings(Sequence[str]):
    """n texts, none of them missing; equal to any sequence of the same texts.

    column: of strings. Raises ValueError where one is null.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        if column.null_count:
            raise ValueError("a text is missing")
        # offsets of 64 bits: `take` cannot give more than 2 GB with others
        self._column = column.cast(pa.large_string())

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """A copy of some texts."""
        return cls(pa.chunked_array([pa.array(texts, type=pa.large_string())]))

    @classmethod
    def join(cls, parts: Sequence[Strings]) -> Strings:
        """The texts of `parts`, one part after another; at least one part."""
        return cls(
            pa.chunked_array([chunk for part in parts for chunk in part._column.chunks], pa.large_string())
        )

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            texts: list[str] = self.take(np.arange(len(self))[place])._column.to_pylist()
            return texts
        text: str = self._column[int(place)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            for start in range(0, len(chunk), AT_ONCE):
                yield from chunk.slice(start, AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return len(self) == len(other) and bool(self._column.equals(other._column))
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = ", …" if len(self) > 3 else ""
        return f"Strings({', '.join(map(repr, self[:3]))}{more})"

    def take(self, rows: NDArray[np.int64]) -> Strings:
        """The texts at `rows` (m,), in that order."""
        return Strings(pa.chunked_array(_taken(self._column, rows), pa.large_string()))

    @property
    def characters(self) -> NDArray[np.int64]:
        """(n,) int64 lengths in characters."""
        return np.asarray(pc.utf8_length(self._column), dtype=np.int64)


def _taken(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> list[pa.Array]:
    """The entries at `rows` (m,), chunk by chunk: Arrow would join all chunks before it takes one row."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)
    owners = np.searchsorted(ends, rows, side="right")
    order = np.argsort(owners, kind="stable")
    parts = []
    for chunk, places in zip(*_groups(owners[order], order), strict=True):
        start = ends[chunk] - len(column.chunk(chunk))
        parts.append(column.chunk(chunk).take(pa.array(rows[places] - start)))
    if len(parts) < 2 or (order[:-1] < order[1:]).all():
        return parts
    return [pa.concat_arrays(parts).take(pa.array(np.argsort(order)))]


def _groups(
    owners: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[list[int], list[NDArray[np.int64]]]:
    """The distinct `owners`, which are sorted, and the places of each."""
    distinct, firsts = np.unique(owners, return_index=True)
    return distinct.tolist(), np.split(places, firsts[1:]) if len(places) else []


def joined(columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The entries of columns, one column after another: texts in Arrow where the first column is."""
    if isinstance(columns[0], Strings):
        return Strings.join([one if isinstance(one, Strings) else Strings.of(one) for one in columns])
    return [entry for column in columns for entry in column]
