"""What crosses borders: content keys, soft targets in their rows, padding, token budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import UNLABELLED, Encoded, Examples, SoftTargets, content_keys, token_budget_batches

PROPERTY = settings(deadline=None, max_examples=60)  # no deadline: the machine may be busy
TEXTS = st.lists(st.text(max_size=12), max_size=8)
KIND = "text-classification"


def keys_of(*texts: str) -> list[int]:
    return [int(key) for key in content_keys(KIND, {"text": texts})]


# ---------------------------------------------------------------- content keys


def test_keys_are_the_same_in_every_process_and_version() -> None:
    # stores on disk are found by these: a change of the hash makes every store in the world miss
    assert keys_of("a film", "") == [0xB5D1D4683883BFD3, 0x1FD06242C062A723]


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


def test_a_lone_surrogate_has_a_key() -> None:
    assert len(set(keys_of("\ud800", "\ud801", "?"))) == 3


def test_no_examples_have_no_keys() -> None:
    keys = content_keys(KIND, {"text": []})
    assert keys.shape == (0,)
    assert keys.dtype == np.uint64


# ---------------------------------------------------------------- examples and soft targets


def test_take_keeps_rows_together() -> None:
    texts = ["a", "b", "c"]
    examples = Examples(
        "mood", content_keys(KIND, {"text": texts}), {"text": texts}, np.array([0, 1, UNLABELLED])
    )
    taken = examples.take(np.array([2, 0]))
    assert list(taken.inputs["text"]) == ["c", "a"]
    assert taken.labels.tolist() == [UNLABELLED, 0]
    assert taken.keys.tolist() == keys_of("c", "a")
    assert (len(examples), len(taken)) == (3, 2)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (6,)])
def test_soft_targets_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit logits"):
        SoftTargets(np.arange(3, dtype=np.uint64), np.zeros(shape, np.float16), ("x", "y", "z"))


# ---------------------------------------------------------------- padding


def ragged(*rows: list[int]) -> Encoded:
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Encoded(
        {"input_ids": flat, "token_type_ids": flat % 2}, offsets, {"input_ids": 99, "token_type_ids": 7}, 0
    )


def test_padding_fills_the_right_with_each_columns_own_value() -> None:
    batch = ragged([1, 2, 3], [4], [5, 6]).pad(np.array([2, 0]))
    assert batch["input_ids"].tolist() == [[5, 6, 99], [1, 2, 3]]
    assert batch["token_type_ids"].tolist() == [[1, 0, 7], [1, 0, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_padding_is_as_wide_as_the_longest_of_these_rows() -> None:
    encoded = ragged([1, 2, 3], [4], [5, 6])
    assert encoded.pad(np.array([1, 2]))["input_ids"].shape == (2, 2)
    assert encoded.lengths.tolist() == [3, 1, 2]
    assert len(encoded) == 3


@PROPERTY
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=8))
def test_padding_keeps_every_token_in_its_place(rows: list[list[int]]) -> None:
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    batch = ragged(*rows).pad(order)
    for place, row in enumerate(order):
        kept = batch["input_ids"][place][batch["attention_mask"][place] == 1]
        assert kept.tolist() == rows[row]


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
