"""Soft targets over named columns and over a vocabulary: taken, joined, written to Arrow and read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.batch import Ragged
from pipeline.errors import TeacherError
from pipeline.soft import (
    NO_ID,
    Dense,
    Soft,
    SoftTargets,
    Space,
    Sparse,
    Vocabulary,
    check_space,
    join_soft,
    soft_from_arrow,
    space_fields,
    space_of,
)

NAMES = ("bad", "süß", "plain")
WORDS = Vocabulary(50, "0a1b")
PROPERTY = settings(max_examples=25, deadline=None)


def dense_of(counts: Sequence[int], seed: int = 0) -> Dense:
    rng = np.random.default_rng(seed)
    return Dense(Ragged.of([rng.normal(size=(n, 3)).astype(np.float16) for n in counts]), NAMES)


def sparse_of(counts: Sequence[int], seed: int = 0, k: int = 4) -> Sparse:
    """Rows of `k` ids, every third with one id fewer."""
    rng, rows = np.random.default_rng(seed), sum(counts)
    ids = rng.permuted(np.tile(np.arange(WORDS.size, dtype=np.int32), (rows, 1)), axis=1)[:, :k]
    ids[::3, -1] = NO_ID
    logs = np.log(rng.dirichlet(np.ones(k + 1), size=rows)).astype(np.float16)
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    return Sparse(Ragged(ids, offsets), logs[:, :k], logs[:, k], WORDS)


FORMS = pytest.mark.parametrize("make", [dense_of, sparse_of])


def lists_of(soft: Soft) -> list[list[Any]]:
    """Each example's own rows, all that is held of them."""
    return [[array[a:b].tolist() for array in soft.arrays] for a, b in pairwise(soft.offsets)]


def through_arrow(soft: Soft) -> Soft:
    """Written as an IPC stream and read back."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(soft.to_arrow())
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return soft_from_arrow(pa.ipc.open_stream(sink.getvalue()).read_next_batch(), soft.space)


@FORMS
@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 0, 1, 3], [0, 0], []])
def test_arrow_gives_back_what_it_was_given(make: Any, counts: list[int]) -> None:
    soft = make(counts or [1])
    if not counts:
        soft = soft.take(np.empty(0, dtype=np.int64))
    back = through_arrow(soft)
    assert (type(back), back.space, len(back)) == (type(soft), soft.space, len(counts))
    assert lists_of(back) == lists_of(soft)
    assert [array.dtype for array in back.arrays] == [array.dtype for array in soft.arrays]
    assert back.offsets.dtype == np.int64


def test_arrow_columns_say_what_they_hold() -> None:
    sparse = sparse_of([2, 1])
    columns = {name: column.to_pylist() for name, column in sparse.to_arrow().items()}
    assert columns["ids"] == [sparse.ids.values[:2].tolist(), sparse.ids.values[2:].tolist()]
    assert [len(rows) for rows in columns["rest"]] == [2, 1]
    assert str(sparse.to_arrow()["ids"].type) == "large_list<item: fixed_size_list<item: int32>[4]>"
    assert str(dense_of([1, 1]).to_arrow()["logits"].type) == "fixed_size_list<item: halffloat>[3]"


@FORMS
@PROPERTY
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=6), data=st.data())
def test_taken_and_joined_rows_stay_with_their_examples(
    make: Any, counts: list[int], data: st.DataObject
) -> None:
    soft = make(counts)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=9))
    taken = soft.take(np.array(chosen, dtype=np.int64))
    assert lists_of(taken) == [lists_of(soft)[i] for i in chosen]
    assert taken.space == soft.space
    assert taken.counts.tolist() == [counts[i] for i in chosen]
    cut = data.draw(st.integers(0, len(counts)))
    joined = join_soft([soft.take(np.arange(cut)), soft.take(np.arange(cut, len(counts)))])
    assert lists_of(joined) == lists_of(soft)


def test_different_spaces_are_not_joined() -> None:
    for other in (replace(sparse_of([1]), space=Vocabulary(50, "ff")), dense_of([1])):
        with pytest.raises(ValueError, match="different spaces"):
            join_soft([sparse_of([1]), other])


def test_half_precision_keeps_ids_and_shows_overflow() -> None:
    sparse = sparse_of([2])
    wide = sparse.with_rows(
        [sparse.ids.values, np.full((2, 4), -1.5, np.float32), np.array([-2.0, -1e6], np.float32)],
        sparse.offsets,
    )
    half = wide.half()
    assert half.ids.values.dtype == np.int32
    assert half.values.dtype == np.float16
    assert half.rest.tolist() == [-2.0, -np.inf]
    with np.errstate(over="raise"):
        assert np.isinf(Dense(Ragged.single(np.full((1, 3), 7e4, np.float32)), NAMES).half().values).all()


def test_events_are_named() -> None:
    sparse = sparse_of([2])
    assert sparse.event(1, 2) == f"token id {sparse.ids.values[1, 2]}"
    assert sparse.event(1, 4) == "the other token ids"
    assert dense_of([2]).event(1, 1) == "label 'süß'"


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("shape", [(3, 2), (6,)])
def test_dense_targets_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3 columns do not fit logits"):
        Dense(Ragged.single(np.zeros(shape, np.float16)), NAMES)


@pytest.mark.parametrize(
    ("ids", "log_probabilities", "rest", "reason"),
    [
        ([[1, 2]], [[-1.0]], [-1.0], "do not fit each other"),
        ([[1, 2]], [[-1.0, -2.0]], [-1.0, -1.0], "do not fit each other"),
        ([1, 2], [-1.0, -2.0], [-1.0, -1.0], "do not fit each other"),
        ([[1, 50]], [[-1.0, -2.0]], [-1.0], "outside"),
        ([[NO_ID, NO_ID]], [[-1.0, -2.0]], [-1.0], "a row without any"),
    ],
)
def test_sparse_targets_that_do_not_fit_are_refused(
    ids: list[Any], log_probabilities: list[Any], rest: list[float], reason: str
) -> None:
    def floats(values: list[Any]) -> NDArray[np.float32]:
        return np.array(values, dtype=np.float32)

    with pytest.raises(ValueError, match=reason):
        Sparse(Ragged.single(np.array(ids, dtype=np.int32)), floats(log_probabilities), floats(rest), WORDS)


def test_as_many_keys_as_examples() -> None:
    keys = np.arange(3, dtype=np.uint64)
    assert len(SoftTargets(keys, dense_of([2, 0, 1]))) == 3
    with pytest.raises(ValueError, match="3 keys do not fit soft targets of 2 examples"):
        SoftTargets(keys, dense_of([1, 2]))


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize("space", [NAMES, WORDS])
def test_a_space_in_json_types_and_back(space: Space) -> None:
    fields = {"rows": 3, **space_fields(space)}
    assert space_of(fields) == space
    assert set(fields) - {"rows"} == ({"labels"} if space is NAMES else {"vocabulary"})


@pytest.mark.parametrize(
    ("stored", "wanted", "cause"),
    [
        (NAMES, NAMES[::-1], "other labels are stored for teacher aa: column 0 is 'bad', not 'plain'"),
        (NAMES, NAMES[:2], "column 2 is 'plain', not None"),
        (WORDS, Vocabulary(50, "ff"), "over vocabulary 0a1b of 50 tokens, not vocabulary ff of 50 tokens"),
        (WORDS, Vocabulary(49, "0a1b"), "of 50 tokens, not vocabulary 0a1b of 49 tokens"),
        (NAMES, WORDS, "over 3 named columns, not vocabulary 0a1b"),
        (WORDS, NAMES, "over vocabulary 0a1b of 50 tokens, not 3 named columns"),
    ],
)
def test_another_space_is_refused(stored: Space, wanted: Space, cause: str) -> None:
    check_space("aa", stored, stored)
    with pytest.raises(TeacherError) as caught:
        check_space("aa", stored, wanted)
    assert cause in caught.value.cause
