"""Soft targets: the teachers' predictions for examples, before temperature. NumPy and Arrow only.

Soft targets are `Dense` for a small space (one number per named column), `Sparse` for a tokenizer's vocabulary (a
few token ids, and all others as one event), and `Texts` where a model writes. All have m_i rows for example i in one flat
order, as `pipeline.batch.Ragged` has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.batch import Drawn, Ragged, offsets_of, rows_of
from pipeline.errors import TeacherError
from pipeline.text_arrays import text_array

NO_ID = -1
"""Pads the ids of a row that has fewer than the others; its log-probability is `ABSENT`."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's token ids 0 … size - 1; equal fingerprints mean equal tokens by id."""

    size: int
    fingerprint: str

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Layer:
    """The dimensions 0 … size - 1 of a model's hidden vectors after layer `index`, counted from 1."""

    size: int
    index: int

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Candidates:
    """The texts 0 … count - 1 that a model writes for an example, its best first."""

    count: int = 1

    def __len__(self) -> int:
        return self.count


Space = tuple[str, ...] | Vocabulary | Layer | Candidates
"""The meaning of the columns of soft targets: their names in order, a vocabulary, or candidate texts; of hidden targets: a
layer."""


def space_fields(space: Space) -> dict[str, Any]:
    """The space in JSON types, under a key that names the kind of space."""
    if isinstance(space, Vocabulary):
        return {"vocabulary": {"size": space.size, "fingerprint": space.fingerprint}}
    if isinstance(space, Layer):
        return {"layer": {"size": space.size, "index": space.index}}
    if isinstance(space, Candidates):
        return {"candidates": space.count}
    return {"labels": space}


def space_of(fields: Mapping[str, Any]) -> Space:
    """The inverse of `space_fields`; other keys are ignored. Raises KeyError, TypeError or ValueError."""
    if "vocabulary" in fields:
        vocabulary = fields["vocabulary"]
        return Vocabulary(int(vocabulary["size"]), str(vocabulary["fingerprint"]))
    if "layer" in fields:
        return Layer(int(fields["layer"]["size"]), int(fields["layer"]["index"]))
    if "candidates" in fields:
        return Candidates(int(fields["candidates"]))
    return tuple(fields["labels"])


class _Rows(ABC):
    """m_i rows for example i, end to end, in one array or several."""

    @property
    @abstractmethod
    def offsets(self) -> NDArray[np.int64]:
        """(n + 1,): example i owns the rows ``[offsets[i], offsets[i + 1])``."""

    @property
    @abstractmethod
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays that hold the M rows, each (M, …)."""

    @property
    @abstractmethod
    def numbers(self) -> NDArray[np.floating]:
        """(M, …) the numbers among them, which must be finite."""

    @abstractmethod
    def with_rows(self, arrays: Sequence[NDArray[Any]], offsets: NDArray[np.int64]) -> Self:
        """Other rows over the same space; `arrays` as the property has them."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n,) rows an example."""
        return np.diff(self.offsets)

    def take(self, examples: NDArray[np.int64]) -> Self:
        """The rows of `examples` (m,), in that order."""
        rows, offsets = rows_of(self.offsets, examples)
        return self.with_rows([array[rows] for array in self.arrays], offsets)

    def half(self) -> Self:
        """A copy with numbers in float16, as in the store; numbers too large for float16 become Inf."""
        with np.errstate(over="ignore"):
            halves = [a.astype(np.float16) if a.dtype.kind == "f" else a for a in self.arrays]
        return self.with_rows(halves, self.offsets)


@dataclass(frozen=True, eq=False)
class Dense(_Rows):
    """A number for each named column: logits, or the number itself where a task predicts one. Hidden targets: a number
    for each dimension of a layer, a row a word.

    logits: values (M, C) float16 or float32; column c belongs to ``space[c]``, or is dimension c of a layer. Raises
    ValueError for another shape.
    """

    logits: Ragged
    space: tuple[str, ...] | Layer

    def __post_init__(self) -> None:
        if self.values.shape[1:] != (len(self.space),):
            raise ValueError(f"{len(self.space)} columns do not fit logits of shape {self.values.shape}")

    @property
    def values(self) -> NDArray[np.floating]:
        """(M, C), every example's rows end to end."""
        return self.logits.values

    @property
    def numbers(self) -> NDArray[np.floating]:
        return self.values

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self.logits.offsets

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return (self.values,)

    def with_rows(self, arrays: Sequence[NDArray[Any]], offsets: NDArray[np.int64]) -> Self:
        return type(self)(Ragged(arrays[0], offsets), self.space)

    def half(self) -> Self:
        """As `_Rows.half`, but the one number of a regression stays in float32: its unit may be dollars, or years."""
        if isinstance(self.space, tuple) and len(self.space) == 1:
            return self.with_rows([self.values.astype(np.float32)], self.offsets)
        return super().half()

    def event(self, row: int, column: int) -> str:
        """A name for the number ``values[row, column]``, for messages."""
        if isinstance(self.space, Layer):
            return f"dimension {column} of layer {self.space.index}"
        return f"label {self.space[column]!r}"

    def to_arrow(self) -> dict[str, pa.Array]:
        """Arrow columns of n examples: fixed-size lists where each has one row, else lists of all its numbers."""
        width, flat = len(self.space), pa.array(self.values.ravel())
        if (self.counts == 1).all():
            return {"logits": pa.FixedSizeListArray.from_arrays(flat, width)}
        column = pa.LargeListArray.from_arrays(pa.array(self.offsets * width), flat)
        return {"logits": column.cast(pa.list_(flat.type)) if len(flat) < 2**31 else column}

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch, space: tuple[str, ...] | Layer) -> Dense:
        """The inverse of `to_arrow`, without a copy."""
        column, width = batch.column("logits"), len(space)
        values = column.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
        single = pa.types.is_fixed_size_list(column.type)
        offsets = np.arange(len(batch) + 1) if single else column.offsets.to_numpy().astype(np.int64) // width
        return cls(Ragged(values, offsets), space)


@dataclass(frozen=True, eq=False)
class Sparse(_Rows):
    """Distributions over a vocabulary: k token ids a row, and all the other ids together as one event.

    ids: values (M, k) int32, distinct within a row, the real ones first and then `NO_ID` where a row has fewer ·
    log_probabilities: (M, k) float16 or float32 at temperature 1, finite (`ABSENT` for probability 0) · rest: (M,)
    the log of the other ids' mass, likewise. Raises ValueError where these do not fit.
    """

    ids: Ragged
    log_probabilities: NDArray[np.floating]
    rest: NDArray[np.floating]
    space: Vocabulary

    def __post_init__(self) -> None:
        ids = self.ids.values
        shapes = ids.shape, self.log_probabilities.shape, self.rest.shape
        if ids.ndim != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:1]:
            raise ValueError(f"ids, log-probabilities and rest of shapes {shapes} do not fit each other")
        if len(ids) and not (ids[:, 0].min() >= 0 and ids.max() < self.space.size):
            raise ValueError(f"ids outside [0, {self.space.size}), or a row without any")

    @property
    def values(self) -> NDArray[np.floating]:
        """(M, k + 1) log-probabilities of the ids and, last, of the rest."""
        return np.concatenate((self.log_probabilities, self.rest[:, None]), axis=1)

    @property
    def numbers(self) -> NDArray[np.floating]:
        return self.values

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self.ids.offsets

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.ids.values, self.log_probabilities, self.rest

    def with_rows(self, arrays: Sequence[NDArray[Any]], offsets: NDArray[np.int64]) -> Self:
        ids, log_probabilities, rest = arrays
        return type(self)(Ragged(ids, offsets), log_probabilities, rest, self.space)

    def event(self, row: int, column: int) -> str:
        """A name for the number ``values[row, column]``, for messages."""
        ids = self.ids.values[row]
        return f"token id {ids[column]}" if column < len(ids) else "the other token ids"

    def to_arrow(self) -> dict[str, pa.Array]:
        """Arrow columns of n examples: lists of rows, each row's ids and log-probabilities a fixed-size list."""
        offsets, k = pa.array(self.offsets), self.log_probabilities.shape[1]

        def rows(values: NDArray[Any]) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), k)

        columns = {
            "ids": rows(self.ids.values),
            "log_probabilities": rows(self.log_probabilities),
            "rest": pa.array(self.rest),
        }
        return {name: pa.LargeListArray.from_arrays(offsets, column) for name, column in columns.items()}

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch, space: Vocabulary) -> Sparse:
        """The inverse of `to_arrow`, without a copy."""

        def rows(name: str) -> NDArray[Any]:
            values = batch.column(name).values
            flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=True)
            return flat.reshape(-1, values.type.list_size)

        rest = batch.column("rest")
        ids = Ragged(rows("ids"), rest.offsets.to_numpy())
        return cls(ids, rows("log_probabilities"), rest.values.to_numpy(), space)


@dataclass(frozen=True, eq=False)
class Texts(_Rows):
    """What a model wrote: C candidate texts for each example, the one that it finds best first.

    values: (n, C) texts (`pipeline.text_arrays.TEXT`) · scores: (n, C) float16 or float32, each text's log-probability,
    the sum over its tokens, in nats · lengths: (n, C) int32 tokens. Raises ValueError where these do not fit.
    """

    values: NDArray[Any]
    scores: NDArray[np.floating]
    lengths: NDArray[np.int32]

    def __post_init__(self) -> None:
        shapes = self.values.shape, self.scores.shape, self.lengths.shape
        if self.values.ndim != 2 or len(set(shapes)) > 1:
            raise ValueError(f"texts, scores and lengths of shapes {shapes} do not fit each other")

    @property
    def space(self) -> Candidates:
        return Candidates(self.values.shape[1])

    @property
    def numbers(self) -> NDArray[np.floating]:
        return self.scores

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.arange(len(self.values) + 1)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.values, self.scores, self.lengths

    def with_rows(self, arrays: Sequence[NDArray[Any]], offsets: NDArray[np.int64]) -> Self:
        values, scores, lengths = arrays
        return type(self)(values, scores, lengths)

    def event(self, row: int, column: int) -> str:
        """A name for the number ``scores[row, column]``, for messages."""
        return f"the score of text {column + 1}"

    def to_arrow(self) -> dict[str, pa.Array]:
        """Arrow columns of n examples, each a fixed-size list of C entries."""
        columns = {
            "texts": pa.array(self.values.ravel().tolist(), pa.large_string()),
            "scores": pa.array(self.scores.ravel()),
            "lengths": pa.array(self.lengths.ravel()),
        }
        width = len(self.space)
        return {name: pa.FixedSizeListArray.from_arrays(flat, width) for name, flat in columns.items()}

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch, space: Candidates) -> Texts:
        """The inverse of `to_arrow`."""

        def flat(name: str) -> pa.Array:
            return batch.column(name).flatten()

        shape = (len(batch), len(space))
        return cls(
            text_array(flat("texts").to_pylist()).reshape(shape),
            flat("scores").to_numpy().reshape(shape),
            flat("lengths").to_numpy().reshape(shape),
        )


Soft = Dense | Sparse | Texts


def join_soft(parts: Sequence[Soft]) -> Soft:
    """`parts` one after another, at least one. Raises ValueError where their spaces, or numbers of ids, differ."""
    if any(part.space != parts[0].space for part in parts):
        raise ValueError("soft targets over different spaces cannot be joined")
    arrays = [np.concatenate(columns) for columns in zip(*(part.arrays for part in parts), strict=True)]
    return parts[0].with_rows(arrays, offsets_of(np.concatenate([part.counts for part in parts])))


def soft_from_arrow(batch: pa.RecordBatch, space: Space) -> Soft:
    """The inverse of every `to_arrow`; the type of `space` decides which one."""
    if isinstance(space, Vocabulary):
        return Sparse.from_arrow(batch, space)
    if isinstance(space, Candidates):
        return Texts.from_arrow(batch, space)
    return Dense.from_arrow(batch, space)


@dataclass(frozen=True)
class SoftTargets:
    """One teacher's soft targets for n examples; entry i belongs to the example with key ``keys[i]`` ((n,) uint64).

    Each entry has its example's key, so that it cannot be read for another example. Raises ValueError where the
    number of keys differs from the number of entries.
    """

    keys: NDArray[np.uint64]
    soft: Soft

    def __post_init__(self) -> None:
        if len(self.soft) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys do not fit soft targets of {len(self.soft)} examples")

    def __len__(self) -> int:
        return len(self.keys)


class TargetSource(Protocol):
    """Soft or hidden targets of one teacher: read from the store (`teachers.store.Stored`), or computed as they are
    needed."""

    def targets(self, batch: Drawn) -> Soft:
        """The targets of the batch's m examples, in the batch's order."""
        ...


def check_space(teacher: str, stored: Space, wanted: Space) -> None:
    """Raises `TeacherError` unless both are the same: the same names in the same order, or the same vocabulary."""
    if stored == wanted:
        return
    if isinstance(stored, Vocabulary) or isinstance(wanted, Vocabulary):
        raise TeacherError(
            f"the stored targets of teacher {teacher} are over {_shown(stored)}, not {_shown(wanted)}",
            "Targets by token id need one tokenizer for teacher and student; a teacher's fingerprint must change"
            " with its tokenizer.",
        )
    if not isinstance(stored, tuple) or not isinstance(wanted, tuple):
        raise TeacherError(
            f"the stored targets of teacher {teacher} are over {_shown(stored)}, not {_shown(wanted)}",
            f"Remove {teacher} from the store and label again.",
        )
    column, (here, there) = next(
        (c, pair) for c, pair in enumerate(zip_longest(stored, wanted)) if pair[0] != pair[1]
    )
    raise TeacherError(
        f"other labels are stored for teacher {teacher}: column {column} is {here!r}, not {there!r}",
        "Align the teacher by label name before storing; its fingerprint must change with the label map.",
    )


def _shown(space: Space) -> str:
    if isinstance(space, Vocabulary):
        return f"vocabulary {space.fingerprint} of {space.size} tokens"
    if isinstance(space, Layer):
        return f"{space.size} dimensions of layer {space.index}"
    if isinstance(space, Candidates):
        return f"{space.count} texts an example"
    return f"{len(space)} named columns"
