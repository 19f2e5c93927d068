"""Which words a token covers, by character positions."""

from __future__ import annotations

import numpy as np
import regex
from numpy.typing import NDArray

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
"""Of a regular expression's set: the characters of scripts without spaces."""
WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[\p{{L}}\p{{M}}\p{{N}}_]++|[^\s\p{{L}}\p{{M}}\p{{N}}_]")
"""A word: letters and digits with their marks, or one character of a script without spaces, or one other character."""


def word_spans(text: str) -> NDArray[np.int64]:
    """(W, 2) int64 character positions ``[start, end)`` of the text's words, in order; whitespace is in no word.

    Words depend on Unicode classes only, so they are the same for every tokenizer.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def first_covered(
    starts: NDArray[np.int64], ends: NDArray[np.int64], words: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(t,) for each token ``[start, end)`` the index of the first word of which it covers a character, -1 for none.

    words: (W, 2), in order, without overlaps. A token may also cover whitespace, which is in no word.
    """
    at = np.searchsorted(words[:, 1], starts, side="right")
    safe = np.minimum(at, max(len(words) - 1, 0))
    covers = (at < len(words)) & (ends > starts)
    covers[covers] &= words[safe[covers], 0] < ends[covers]
    return np.where(covers, at, -1)


def last_covered(
    starts: NDArray[np.int64], ends: NDArray[np.int64], words: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(t,) for each token the index of the last word of which it covers a character, -1 for none; see `first_covered`."""
    at = np.searchsorted(words[:, 0], ends, side="left") - 1
    covers = (at >= 0) & (ends > starts)
    covers[covers] &= words[at[covers], 1] > starts[covers]
    return np.where(covers, at, -1)
