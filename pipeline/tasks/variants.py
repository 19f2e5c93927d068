"""Variants of a text: its words, which of them may be altered, and the text with some replaced or left out.

A word may be altered where it has letters alone, and is no part of a larger expression: no apostrophe, hyphen, full
stop, slash, underscore or at sign joins it to another word (don't, U.S., e-mail).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from pipeline.tasks.spans import WORD

LETTERS = regex.compile(r"[\p{L}\p{M}]+")
JOINT = r"['’.\-‐_@/&]"
JOINED = regex.compile(
    rf"(?<=[\p{{L}}\p{{N}}]{JOINT})[\p{{L}}\p{{M}}]+|[\p{{L}}\p{{M}}]+(?={JOINT}[\p{{L}}\p{{N}}])"
)

Changes = Mapping[int, str | None]
"""By index of a word: what replaces it; None: it is left out."""

Place = tuple[int, int]
"""The side of an example, and the word of that side."""


@dataclass(frozen=True)
class Side:
    """A text, or one of a pair. words: (W, 2) int64 characters ``[start, end)`` of each word, in order · free: (W,)
    bool, whether a word may be replaced · droppable: (W,) bool, whether it may be left out."""

    text: str
    words: NDArray[np.int64]
    free: NDArray[np.bool_]
    droppable: NDArray[np.bool_]


@dataclass(frozen=True)
class Variant:
    """What is changed of an example. row: of the example · sides, changes: one for each of `Reading.fields`."""

    row: int
    sides: tuple[Side, ...]
    changes: tuple[Changes, ...]


def side_of(text: str, kept: Sequence[tuple[int, int]] = ()) -> Side:
    """The words of a text by the rule of `pipeline.tasks.spans`; those that touch a character of `kept`, ``[start, end)``
    each, may not be altered."""
    words = np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
    joined = {match.start() for match in JOINED.finditer(text)}
    free = np.array(
        [start not in joined and LETTERS.fullmatch(text, start, end) is not None for start, end in words],
        dtype=bool,
    )
    for start, end in kept:
        free &= (words[:, 1] <= start) | (words[:, 0] >= end)
    return Side(text, words, free, free)


def side_of_words(words: Sequence[str], outside: NDArray[np.bool_] | None) -> Side:
    """A sentence that is given as words, joined with spaces. outside: (W,) which words are of no entity: only these are
    free, and one before an entity may not be left out, since it may divide two of them; None: there are no entities."""
    ends = np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1
    starts = ends - np.array([len(word) for word in words], dtype=np.int64)
    free = np.array([LETTERS.fullmatch(word) is not None for word in words], dtype=bool)
    droppable = free
    if outside is not None:
        free = free & outside
        droppable = free & np.append(outside[1:], True)[: len(free)]
    return Side(" ".join(words), np.stack((starts, ends), axis=1), free, droppable)


def altered_words(words: Sequence[str], changes: Changes) -> tuple[list[str], NDArray[np.int64]]:
    """The words with `changes`, and the indices of those that are left, replaced or not."""
    left = [i for i in range(len(words)) if changes.get(i, "") is not None]
    return [changes.get(i) or words[i] for i in left], np.array(left, dtype=np.int64)


def one_word(side: Side) -> Side:
    """The text of `side` as if it were a single word, which may be replaced."""
    free = np.ones(1, dtype=bool)
    return Side(side.text, np.array([[0, len(side.text)]], dtype=np.int64), free, free)


def frozen(side: Side) -> Side:
    """`side`, of which no word may be altered."""
    none = np.zeros(len(side.words), dtype=bool)
    return Side(side.text, side.words, none, none)


def altered(side: Side, changes: Changes) -> str:
    """The text with `changes`."""
    parts, end = [], 0
    for start, stop, new in _edits(side, changes):
        parts += [side.text[end:start], new]
        end = stop
    return "".join([*parts, side.text[end:]])


def moved(side: Side, changes: Changes, position: int) -> int:
    """Where a character that `changes` leave as it is stands in the altered text."""
    return position + sum(
        len(new) - (stop - start) for start, stop, new in _edits(side, changes) if stop <= position
    )


def _edits(side: Side, changes: Changes) -> Iterator[tuple[int, int, str]]:
    """(start, end, new text) of each change, in order, without overlaps. With a word that is left out goes the whitespace
    character before it, or, where there is none left, the one after it."""
    text, end = side.text, 0
    for word in sorted(changes):
        start, stop = map(int, side.words[word])
        new = changes[word]
        if new is None and start > end and text[start - 1].isspace():
            start -= 1
        elif new is None and text[stop : stop + 1].isspace():
            stop += 1
        yield start, stop, new or ""
        end = stop


def word_of(side: Side, word: int | np.integer[Any]) -> str:
    """One of its words."""
    start, end = side.words[word]
    return side.text[start:end]


def in_case_of(word: str, new: str) -> str:
    """`new` written as `word` is: in capitals, with a capital first, or as it stands."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new
