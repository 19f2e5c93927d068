"""Texts in Arrow behave as a list of strings does."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from pipeline import strings
from pipeline.batch import Examples, Ragged
from pipeline.strings import Strings, joined

TEXTS = ["a", "", "çç", "日本語", "a", "🙂 b"]
CHUNKED = Strings(pa.chunked_array([TEXTS[:2], [], TEXTS[2:]]))


@pytest.mark.parametrize("column", [Strings.of(TEXTS), CHUNKED], ids=["one chunk", "several"])
def test_it_reads_as_a_list(column: Strings) -> None:
    assert len(column) == len(TEXTS)
    assert list(column) == TEXTS
    assert [column[i] for i in range(-len(TEXTS), len(TEXTS))] == TEXTS + TEXTS
    assert column[1:4] == TEXTS[1:4]
    assert column[::-2] == TEXTS[::-2]
    assert "çç" in column
    assert column.index("日本語") == 3
    with pytest.raises(IndexError):
        column[len(TEXTS)]


def test_a_long_column_is_iterated_over_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "AT_ONCE", 2)
    assert list(CHUNKED) == TEXTS


def test_it_equals_the_same_texts_and_no_others() -> None:
    assert Strings.of(TEXTS) == CHUNKED == TEXTS
    assert TEXTS == CHUNKED
    assert TEXTS[:-1] != CHUNKED
    assert [*TEXTS[:-1], "c"] != CHUNKED
    assert Strings.of(["ab"]) != "ab"


def test_rows_are_taken_in_their_order() -> None:
    rows = np.array([3, 0, 0, 5])
    assert CHUNKED.take(rows) == [TEXTS[i] for i in rows]
    assert CHUNKED.take(np.empty(0, dtype=np.int64)) == []
    np.testing.assert_array_equal(CHUNKED.characters, [len(text) for text in TEXTS])


def test_columns_are_joined() -> None:
    assert isinstance(joined((CHUNKED, ["x"])), Strings)
    assert joined((CHUNKED, ["x"], CHUNKED)) == [*TEXTS, "x", *TEXTS]
    assert joined(([["a"]], [["b", "c"]])) == [["a"], ["b", "c"]]


def test_a_missing_text_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        Strings(pa.chunked_array([["a", None]]))


def test_a_copy_in_another_process_shares_the_bytes() -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(CHUNKED, protocol=5, buffer_callback=buffers.append)
    assert "日本語".encode() not in data
    assert pickle.loads(data, buffers=buffers) == CHUNKED  # noqa: S301 - its own
    assert pickle.loads(pickle.dumps(CHUNKED)) == CHUNKED  # noqa: S301


def test_examples_are_taken_whole_without_a_copy() -> None:
    keys = np.arange(len(TEXTS), dtype=np.uint64)
    examples = Examples("t", keys, {"text": CHUNKED}, Ragged.single(np.zeros(len(TEXTS), dtype=np.int64)))
    assert examples.take(np.arange(len(TEXTS))) is examples
    assert examples.take(np.array([2, 1])).inputs == {"text": ["çç", ""]}


@pytest.mark.parametrize("rows", [[], [2], [0, 1, 2, 3, 4, 5], [5, 0, 3, 3, 1], [4, 4, 2], [1, 0]])
def test_rows_are_taken_across_chunks(rows: list[int]) -> None:
    taken = CHUNKED.take(np.array(rows, dtype=np.int64))
    assert list(taken) == [TEXTS[row] for row in rows]
    again = taken.take(np.arange(len(rows))[::-1])
    assert list(again) == [TEXTS[row] for row in reversed(rows)]


def test_a_row_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        CHUNKED.take(np.array([6]))
