"""Texts as arrays, and as numbers in files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from pipeline.text_arrays import arrays_of, is_text, numbers_of, packed, text_array, unpacked


@given(st.lists(st.text(max_size=8), max_size=8))
def test_texts_come_back_from_their_bytes(texts: list[str]) -> None:
    array = text_array(texts)
    flat, offsets = packed(array)
    assert flat.dtype == np.uint8
    assert unpacked(flat, offsets, array.shape).tolist() == texts


def test_arrays_of_texts_and_numbers_share_a_file() -> None:
    arrays = {
        "translate": text_array([["ein Haus", "好的"], ["", "é"]]),
        "movies": np.eye(2, dtype=np.float32),
    }
    read = arrays_of(load(save(numbers_of(arrays))))
    assert read.keys() == arrays.keys()
    assert is_text(read["translate"])
    assert read["translate"].tolist() == arrays["translate"].tolist()
    assert np.array_equal(read["movies"], arrays["movies"])


def test_a_missing_part_of_texts_is_refused() -> None:
    numbers = numbers_of({"task": text_array(["a"])})
    del numbers["task.shape"]
    with pytest.raises(KeyError):
        arrays_of(numbers)
