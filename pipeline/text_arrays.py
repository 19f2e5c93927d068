"""Arrays of texts: what a model writes, beside the arrays of numbers that other models predict. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import offsets_of

TEXT = np.dtypes.StringDType()
"""NumPy's own type of texts of any length."""


def text_array(rows: Sequence[str] | Sequence[Sequence[str]]) -> NDArray[Any]:
    """The texts in the rows' shape, of dtype `TEXT`."""
    return np.array(rows, dtype=TEXT)


def is_text(values: NDArray[Any]) -> bool:
    """Whether an array has texts."""
    return values.dtype == TEXT


def packed(texts: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts of any shape as numbers, for files that have numbers only: their UTF-8 bytes end to end, and the offsets
    (size + 1,) of each text in them."""
    encoded = [text.encode() for text in texts.ravel().tolist()]
    flat = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return flat, offsets_of(np.array([len(one) for one in encoded], dtype=np.int64))


def unpacked(flat: NDArray[np.uint8], offsets: NDArray[np.int64], shape: Sequence[int]) -> NDArray[Any]:
    """The inverse of `packed`. shape: of the texts."""
    data, ends = flat.tobytes(), offsets.tolist()
    texts = [data[a:b].decode() for a, b in pairwise(ends)]
    return text_array(texts).reshape(shape)


_SUFFIXES = ("utf8", "offsets", "shape")


def numbers_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays by name, each of texts as three of numbers (`packed`), for safetensors."""
    numbers: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if is_text(array):
            parts: tuple[NDArray[Any], ...] = (*packed(array), np.array(array.shape))
            numbers |= {f"{name}.{suffix}": part for suffix, part in zip(_SUFFIXES, parts, strict=True)}
        else:
            numbers[name] = np.ascontiguousarray(array).reshape(array.shape)  # which makes one number a row
    return numbers


def arrays_of(numbers: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inverse of `numbers_of`. Raises KeyError or ValueError where a part is missing or does not fit."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in numbers.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == _SUFFIXES[0] and f"{stem}.{_SUFFIXES[1]}" in numbers:
            offsets, shape = (numbers[f"{stem}.{part}"] for part in _SUFFIXES[1:])
            arrays[stem] = unpacked(array, offsets, shape.tolist())
        elif suffix not in _SUFFIXES[1:] or f"{stem}.{_SUFFIXES[0]}" not in numbers:
            arrays[name] = array
    return arrays
