"""What crosses borders: content keys, ragged rows, soft targets in their rows, padding, token budgets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import (
    ABSENT,
    UNLABELLED,
    Encoded,
    Examples,
    Ragged,
    content_keys,
    flat_index,
    is_present,
    token_budget_batches,
)

PROPERTY = settings(deadline=None, max_examples=60)  # no deadline: the machine may be busy
TEXTS = st.lists(st.text(max_size=12), max_size=8)
KIND = "text-classification"


def keys_of(*texts: str) -> list[int]:
    return [int(key) for key in content_keys(KIND, {"text": texts})]


# ---------------------------------------------------------------- content keys


def test_keys_are_the_same_in_every_process_and_version() -> None:
    # stores on disk are found by these: a change of the hash makes every store in the world miss
    assert keys_of("a film", "") == [0xB5D1D4683883BFD3, 0x1FD06242C062A723]
    pairs = content_keys(KIND, {"text": ["a film", "x"], "text_pair": ["another", "ü"]})
    assert pairs.tolist() == [0x01963BB0FF4FB0AB, 0x8239EC21C3483589]
    asked = content_keys("question-answering", {"question": ["who?"], "context": ["me"]})
    assert asked.tolist() == [0x824DBB5151FB74A9]


@PROPERTY
@given(TEXTS)
def test_a_key_is_the_texts_alone(texts: list[str]) -> None:
    together = keys_of(*texts)
    assert together == [keys_of(text)[0] for text in texts]
    assert len(set(together)) == len(set(texts))


def test_kind_and_fields_are_part_of_the_key() -> None:
    texts = ["same"]
    keys = [
        content_keys(KIND, {"text": texts}),
        content_keys("token-classification", {"text": texts}),
        content_keys(KIND, {"question": texts}),
    ]
    assert len({int(key[0]) for key in keys}) == 3


def test_fields_do_not_run_into_each_other() -> None:
    first = content_keys(KIND, {"a": ["xy"], "b": ["z"]})
    second = content_keys(KIND, {"a": ["x"], "b": ["yz"]})
    assert first[0] != second[0]


def test_order_of_the_columns_does_not_matter() -> None:
    first = content_keys(KIND, {"a": ["x"], "b": ["y"]})
    second = content_keys(KIND, {"b": ["y"], "a": ["x"]})
    assert first[0] == second[0]


def test_a_key_of_words_is_the_words_and_where_they_part() -> None:
    sentences = [["a b"], ["a", "b"], ["a", "b", ""], ["", "a", "b"], ["ab"], [], [""]]
    keys = content_keys("token-classification", {"words": sentences})
    assert len(set(keys.tolist())) == len(sentences)
    again = content_keys("token-classification", {"words": [tuple(words) for words in sentences]})
    assert again.tolist() == keys.tolist()


def test_a_word_alone_is_not_a_text() -> None:
    assert content_keys(KIND, {"text": [["a"]]})[0] != content_keys(KIND, {"text": ["a"]})[0]


def test_lists_do_not_run_into_each_other() -> None:
    first = content_keys(KIND, {"a": [["x", "y"]], "b": [["z"]]})
    second = content_keys(KIND, {"a": [["x"]], "b": [["y", "z"]]})
    assert first[0] != second[0]


def test_a_lone_surrogate_has_a_key() -> None:
    assert len(set(keys_of("\ud800", "\ud801", "?"))) == 3


def test_no_examples_have_no_keys() -> None:
    keys = content_keys(KIND, {"text": []})
    assert keys.shape == (0,)
    assert keys.dtype == np.uint64


# ---------------------------------------------------------------- ragged rows

ROWS = st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=1, max_size=7)


def ragged_of(rows: list[list[int]]) -> Ragged:
    return Ragged.of([np.array(row, dtype=np.int64) for row in rows])


def lists_of(ragged: Ragged) -> list[list[int]]:
    """Each example's own rows."""
    return [ragged.values[a:b].tolist() for a, b in pairwise(ragged.offsets)]


@PROPERTY
@given(ROWS, st.data())
def test_ragged_is_a_list_of_arrays(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = ragged_of(rows)
    assert lists_of(ragged) == rows
    assert len(ragged) == len(rows)
    assert ragged.counts.tolist() == list(map(len, rows))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))
    taken = ragged.take(np.array(chosen, dtype=np.int64))
    assert lists_of(taken) == [rows[i] for i in chosen]
    assert taken.offsets.dtype == np.int64
    cut = data.draw(st.integers(1, len(rows)))
    joined = Ragged.join([ragged_of(part) for part in (rows[:cut], rows[cut:]) if part])
    assert lists_of(joined) == rows
    assert joined.offsets.dtype == np.int64


def test_ragged_keeps_columns_and_type() -> None:
    values = np.arange(12, dtype=np.float16).reshape(4, 3)
    single = Ragged.single(values)
    assert single.counts.tolist() == [1, 1, 1, 1]
    assert single.take(np.array([3, 0])).values.tolist() == values[[3, 0]].tolist()
    several = Ragged.of([values[:3], values[:0], values[3:]])
    taken = several.take(np.array([2, 1, 0]))
    assert taken.values.dtype == np.float16
    assert taken.values.tolist() == values[[3, 0, 1, 2]].tolist()
    assert taken.counts.tolist() == [1, 0, 3]


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=9))
def test_flat_index_is_the_ranges_end_to_end(spans: list[tuple[int, int]]) -> None:
    starts, counts = (np.array([span[i] for span in spans], dtype=np.int64) for i in (0, 1))
    expected = [i for start, count in spans for i in range(start, start + count)]
    assert flat_index(starts, counts).tolist() == expected


def test_absent_is_finite_in_half_precision_and_no_probability() -> None:
    logits = np.array([ABSENT, -30.0, ABSENT, 65000.0], dtype=np.float16)
    assert np.isfinite(logits).all()
    assert is_present(logits).tolist() == [False, True, False, True]
    assert np.exp(np.float32(logits[0] + 100)) == 0


# ---------------------------------------------------------------- examples


def test_take_keeps_rows_together() -> None:
    texts = ["a", "b", "c"]
    labels = Ragged.single(np.array([0, 1, UNLABELLED]))
    examples = Examples("mood", content_keys(KIND, {"text": texts}), {"text": texts}, labels)
    taken = examples.take(np.array([2, 0]))
    assert list(taken.inputs["text"]) == ["c", "a"]
    assert taken.labels.values.tolist() == [UNLABELLED, 0]
    assert taken.keys.tolist() == keys_of("c", "a")
    assert (len(examples), len(taken)) == (3, 2)


# ---------------------------------------------------------------- padding


def encoded_of(*rows: list[int]) -> Encoded:
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Encoded(
        {"input_ids": flat, "token_type_ids": flat % 2}, offsets, {"input_ids": 99, "token_type_ids": 7}, 0
    )


def test_padding_fills_the_right_with_each_columns_own_value() -> None:
    batch = encoded_of([1, 2, 3], [4], [5, 6]).pad(np.array([2, 0])).inputs
    assert batch["input_ids"].tolist() == [[5, 6, 99], [1, 2, 3]]
    assert batch["token_type_ids"].tolist() == [[1, 0, 7], [1, 0, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_padding_is_as_wide_as_the_longest_of_these_rows() -> None:
    encoded = encoded_of([1, 2, 3], [4], [5, 6])
    assert encoded.pad(np.array([1, 2])).inputs["input_ids"].shape == (2, 2)
    assert encoded.lengths.tolist() == [3, 1, 2]
    assert len(encoded) == 3


@PROPERTY
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=8))
def test_padding_keeps_every_token_in_its_place(rows: list[list[int]]) -> None:
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    batch = encoded_of(*rows).pad(order).inputs
    for place, row in enumerate(order):
        kept = batch["input_ids"][place][batch["attention_mask"][place] == 1]
        assert kept.tolist() == rows[row]


def windows() -> Encoded:
    """Three examples of two, one and three sequences."""
    rows = [[1, 2, 3], [4], [5, 6], [7, 8], [9], [10, 11, 12, 13]]
    ids = np.array([token for row in rows for token in row], dtype=np.int32)
    return Encoded(
        {"input_ids": ids},
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
        {"input_ids": 0},
        truncated=0,
        spots={"cell": ids - 1},
        sequences=np.array([0, 2, 3, 6]),
        counts=np.array([4, 2, 7]),
    )


def test_an_example_of_several_sequences_is_padded_with_all_of_them() -> None:
    encoded = windows()
    assert len(encoded) == 3
    assert encoded.lengths.tolist() == [4, 2, 7]
    batch = encoded.pad(np.array([2, 0]))
    assert batch.owners.tolist() == [0, 0, 0, 1, 1]
    assert batch.inputs["input_ids"].tolist() == [
        [7, 8, 0, 0],
        [9, 0, 0, 0],
        [10, 11, 12, 13],
        [1, 2, 3, 0],
        [4, 0, 0, 0],
    ]
    assert batch.inputs["attention_mask"].sum(axis=1).tolist() == [2, 1, 4, 3, 1]
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}  # a model is not shown the spots
    assert batch.spots["cell"][0].tolist() == [6, 7, -1, -1]
    assert batch.counts.tolist() == [7, 4]


def test_an_example_has_one_sequence_and_one_item_where_nothing_is_said() -> None:
    encoded = encoded_of([1, 2], [3])
    assert encoded.sequences.tolist() == [0, 1, 2]
    assert encoded.counts.tolist() == encoded.units.tolist() == [1, 1]
    batch = encoded.pad(np.array([1]))
    assert (batch.owners.tolist(), batch.counts.tolist(), batch.spots) == ([0], [1], {})


# ---------------------------------------------------------------- token budget


@PROPERTY
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 120), st.booleans())
def test_batches_hold_every_row_once_in_order_within_the_budget(
    sizes: list[int], tokens: int, by_length: bool
) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(lengths))
    batches = token_budget_batches(lengths, order, tokens)
    assert [int(row) for batch in batches for row in batch] == order.tolist()
    for batch in batches:
        assert len(batch) > 0
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    lengths = np.array([3, 50, 3], dtype=np.int64)
    batches = token_budget_batches(lengths, np.arange(3), 10)
    assert [batch.tolist() for batch in batches] == [[0], [1], [2]]


def test_batches_are_as_full_as_they_go() -> None:
    batches = token_budget_batches(np.full(10, 4, dtype=np.int64), np.arange(10), 12)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
