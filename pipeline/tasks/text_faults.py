"""Texts that no student should learn to write: empty, looping, or of a hopeless length. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray

from pipeline.tasks.spans import word_spans

LOOP_WORDS, LOOP_SHARE, LOOP_TIMES = 3, 0.5, 3
"""A text loops where one sequence of so many words makes up so large a share of its words, and stands so many times."""
STUTTER = regex.compile(r"([\p{L}\p{M}]{1,8}?)\1{7,}")
"""Within a word, a few letters that stand eight times in a row: a loop of parts of words."""
STUTTER_LENGTH = 16
"""Letters from which such a word is a loop: `aaaaaaaah` is none."""
LENGTH_RATIO, SHORT = 4.0, 20
"""A text is too long, or too short, where it has more than so many times the characters that references have for a source
of its length, or fewer than one part of so many; differences of up to so many characters do not count."""

SMALLEST = 1e-3
"""Smallest size of a source, in characters or seconds, that a text's length is compared with."""


def loops(text: str) -> bool:
    """Whether a text is mostly one short sequence of words, or of letters, again and again. Signs count where there is nothing else: a list
    repeats its brackets and commas."""
    if sum(len(match[0]) for match in STUTTER.finditer(text)) >= max(STUTTER_LENGTH, LOOP_SHARE * len(text)):
        return True
    every = [text[start:end] for start, end in word_spans(text)]
    words = [word for word in every if any(map(str.isalnum, word))] or every
    if len(words) < LOOP_TIMES * LOOP_WORDS:
        return False
    grams = Counter(tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1))
    _, most = grams.most_common(1)[0]
    return most >= LOOP_TIMES and most * LOOP_WORDS >= LOOP_SHARE * len(words)


def text_faults(
    texts: Sequence[str],
    sizes: NDArray[np.float64],
    sample: tuple[NDArray[np.float64], Sequence[str]] | None,
) -> dict[str, NDArray[np.bool_]]:
    """By fault, (n,) whether each text has it; at most one fault a text.

    sizes: (n,) of their sources, in any unit · sample: sizes of sources and their references, from which the usual length of a text is
    known; None where a text's length does not follow that of its source.
    """
    lengths = _characters(texts)
    usual = lengths
    if sample is not None:
        usual = np.median(_characters(sample[1]) / np.maximum(sample[0], SMALLEST)) * sizes
    apart = np.abs(lengths - usual) > SHORT
    faults = {
        "empty": np.array([not text.strip() for text in texts], dtype=bool),
        "repeating the same few words": np.array([loops(text) for text in texts], dtype=bool),
        "too long": apart & (lengths > LENGTH_RATIO * usual),
        "too short": apart & (lengths * LENGTH_RATIO < usual),
    }
    taken = np.zeros(len(texts), dtype=bool)
    for name, has in faults.items():
        faults[name] = has & ~taken
        taken |= has
    return faults


def _characters(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([len(text) for text in texts], dtype=np.float64)
