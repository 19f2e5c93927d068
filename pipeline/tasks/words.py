"""The words of texts, which tokens cover them, and a model's hidden vector of a word: the mean over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.batch import ABSENT, TextWords, flat_index
from pipeline.errors import TeacherError
from pipeline.tasks.spans import first_covered, last_covered, word_spans
from pipeline.tasks.tensors import TensorWords

VERSION = 1
"""Of how words are separated and their vectors computed; part of the key of stored hidden targets. Increase it when
either gives other values for the same model and text; stored targets of the older version are then not used."""

words_of = lru_cache(maxsize=64)(word_spans)
"""`word_spans` with a cache: questions about the same context usually follow each other."""


@dataclass(frozen=True)
class Words:
    """The words of n texts in one flat order.

    spans: (W, 2) character positions; a text's positions start at its base · bases: (n,) · firsts: (n,) index of
    each text's first word · counts: (n,) words per text.
    """

    spans: NDArray[np.int64]
    bases: NDArray[np.int64]
    firsts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """The words of `texts` (n,)."""
        words = [words_of(text) for text in texts]
        counts = np.array([len(one) for one in words], dtype=np.int64)
        sizes = np.array([len(text) for text in texts], dtype=np.int64)
        bases = np.cumsum(sizes) - sizes
        spans = np.concatenate([np.empty((0, 2), dtype=np.int64), *words])
        return cls(spans + np.repeat(bases, counts)[:, None], bases, np.cumsum(counts) - counts, counts)

    def characters(self, examples: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.int64]:
        """(t, 2) characters ``[start, end)`` from the first to the last of `words` (t, 2), of `examples` (t,)."""
        at = self.firsts[examples, None] + words
        ends = np.stack((self.spans[at[:, 0], 0], self.spans[at[:, 1], 1]), axis=1)
        return np.asarray(ends - self.bases[examples, None])

    def covered(self, examples: NDArray[np.int64], spans: NDArray[np.int64]) -> NDArray[np.int64]:
        """(t, 2) first and last word, counted from 0 in its text, that characters `spans` (t, 2) of `examples` (t,)
        touch; -1 where they touch none."""
        starts, ends = (spans + self.bases[examples, None]).T
        both = (first_covered(starts, ends, self.spans), last_covered(starts, ends, self.spans))
        return np.stack([np.where(word < 0, -1, word - self.firsts[examples]) for word in both], axis=1)


def text_words(
    tokenizer: Any, encodings: Sequence[Any], sides: Sequence[Sequence[str]], owners: NDArray[np.int64]
) -> TextWords:
    """Which words the tokens of S sequences cover. The words of an example are those of its first side, then of its second.

    encodings: the `tokenizers.Encoding` of each sequence · sides: one column of n texts, or two · owners: (S,) each
    sequence's example. Raises `TeacherError` for a tokenizer that has no encodings.
    """
    if not tokenizer.is_fast:
        raise TeacherError(
            f"hidden states by word: {type(tokenizer).__name__} does not say which characters a token covers",
            "Use a model with a fast tokenizer (tokenizer.json), or give the loss no weight on hidden.",
        )
    n, words = len(sides[0]), Words.of(list(chain.from_iterable(sides)))
    before = np.concatenate([np.zeros(n, dtype=np.int64), words.counts[:n]])[: len(words.counts)]
    lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
    total = int(lengths.sum())
    parts = chain.from_iterable(one.sequence_ids for one in encodings)
    part = np.fromiter(parts, dtype=np.float64, count=total)  # NaN: a special token
    ends = chain.from_iterable(chain.from_iterable(one.offsets for one in encodings))
    spans = np.fromiter(ends, dtype=np.int64, count=2 * total).reshape(-1, 2)
    inside = np.flatnonzero(~np.isnan(part))
    text = part[inside].astype(np.int64) * n + np.repeat(owners, lengths)[inside]
    first_last = words.covered(text, spans[inside])
    covered = np.full((total, 2), -1, dtype=np.int32)
    covered[inside] = np.where(first_last < 0, -1, first_last + before[text][:, None])
    counts = words.counts.reshape(len(sides), n).sum(axis=0)
    return TextWords(
        covered[:, 0].copy(), covered[:, 1].copy(), counts, _seen(covered, owners, lengths, counts)
    )


def _seen(
    covered: NDArray[np.int32],
    owners: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(n,) words of each example that some token covers. covered: (total, 2) first and last word of each token."""
    some = covered[:, 0] >= 0
    first, last = covered[some].astype(np.int64).T
    starts = (np.cumsum(counts) - counts)[np.repeat(owners, lengths)[some]]
    seen = np.zeros(int(counts.sum()), dtype=np.int64)
    seen[flat_index(starts + first, last - first + 1)] = 1
    sums = np.concatenate(([0], np.cumsum(seen)))
    return np.diff(sums[np.concatenate(([0], np.cumsum(counts)))])


def word_means(hidden: Tensor, words: TensorWords) -> Tensor:
    """(W, H) the mean of hidden vectors (S, length, H) over each word's tokens; `ABSENT` for a word without token."""
    means = embedding_bag(
        words.tokens, hidden.flatten(end_dim=1), words.offsets, mode="mean", include_last_offset=True
    )
    return means.masked_fill((words.offsets.diff() == 0).unsqueeze(-1), ABSENT)
