"""Plain text between task kinds: words → text, text → sentences.

A sentence ends
- after ``.``, ``!``, ``?`` or ``…``, with the quotes and brackets that close there, where whitespace follows, and then no
  lower-case letter. A ``.`` after a single letter ends none. So "e.g. this", "U.S. Army" and "J. R. Smith" stay whole;
  "Dr. Who" does not: there is no list of abbreviations;
- after ``。``, ``！``, ``？`` or ``｡``, with the same, whatever follows;
- at an empty line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import regex

from pipeline.tasks.spans import UNSPACED

CLOSING = r"""["'”’»›)\]}」』】）》]*+"""
SENTENCE_END = regex.compile(
    rf"(?<![.!?…])(?:(?<!\b\p{{L}})\.|[!?…])[.!?…]*+{CLOSING}(?=\s++(?!\p{{Ll}}))"
    rf"|[。！？｡]++{CLOSING}"
    r"|\n[^\S\n]*+\n"
)
"""It never goes back over what it has read, so that any text takes linear time."""
PUNCTUATION = r"\u3000-\u303f\uff00-\uffef"
BESIDE_UNSPACED = regex.compile(rf"(?<=[{UNSPACED}{PUNCTUATION}]) | (?=[{UNSPACED}{PUNCTUATION}])")
"""A space beside a character of a script without spaces, or beside the punctuation of one."""
LETTER_OR_DIGIT = regex.compile(r"[\p{L}\p{N}]")


def joined(words: Sequence[str]) -> str:
    """The words as a text: with a space between two words, unless one of them is of a script without spaces there."""
    return str(BESIDE_UNSPACED.sub("", " ".join(words)))


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the whitespace around them; what has no letter and no digit is none."""
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(ends))
    return [part for part in parts if has_words(part)]


def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return LETTER_OR_DIGIT.search(text) is not None
