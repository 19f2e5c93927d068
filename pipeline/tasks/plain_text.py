"""Plain text between task kinds: words → text, text → sentences.

A sentence ends
- after ``.``, ``!``, ``?`` or ``…``, with the quotes and brackets that close there, where whitespace and no lower-case
  letter follows ("e.g. this" goes on, "Dr. Who" does not: there is no list of abbreviations);
- after ``。``, ``！``, ``？`` or ``｡``, with the same, whatever follows;
- at an empty line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import regex

from pipeline.tasks.spans import UNSPACED

CLOSING = r"""["'”’»›)\]}」』】）》]"""
SENTENCE_END = regex.compile(
    rf"(?<![.!?…])[.!?…]++{CLOSING}*+(?=\s++(?!\p{{Ll}}))|[。！？｡]++{CLOSING}*+|\n[^\S\n]*+\n"
)
"""No part of the text is read more than twice, so that any text takes linear time."""
BESIDE_UNSPACED = regex.compile(
    rf"(?<=[{UNSPACED}\u3000-\u303f\uff00-\uffef]) | (?=[{UNSPACED}\u3000-\u303f\uff00-\uffef])"
)
"""A space beside a character of a script without spaces, or beside its punctuation."""
LETTER_OR_DIGIT = regex.compile(r"[\p{L}\p{N}]")


def joined(words: Sequence[str]) -> str:
    """The words as a text: with a space between two words, unless one of them is of a script without spaces there."""
    return str(BESIDE_UNSPACED.sub("", " ".join(words)))


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the whitespace around them; whitespace alone is no sentence."""
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(ends))
    return [part for part in parts if part]


def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return LETTER_OR_DIGIT.search(text) is not None
