"""Texts that a model learns to write → token ids under its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipeline.batch import TargetTokens, offsets_of

AT_ONCE = 10_000
"""Texts that are given to the tokenizer at once, for its memory."""


def target_tokens(
    tokenizer: Any, texts: Sequence[str], max_length: int, end: int | None = None
) -> TargetTokens:
    """Token ids of n texts, cut to `max_length`, each with an end mark; none of an empty text.

    end: the id that ends a text, which one that is cut does not have; None for the special tokens that the tokenizer has for
    targets. How many texts lost tokens is counted.
    """
    if len(texts) > AT_ONCE:
        parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        return TargetTokens.join([target_tokens(tokenizer, part, max_length, end) for part in parts])
    given = [row for row, text in enumerate(texts) if text]
    some = [texts[row] for row in given]
    counts = np.zeros(len(texts), dtype=np.int64)
    if not some:
        return TargetTokens(np.empty(0, dtype=np.int32), offsets_of(counts)[:-1], counts)
    if end is None:
        encoded = tokenizer(text_target=some, truncation=True, max_length=max_length)["input_ids"]
        # only these can have lost any
        full = [row for row, ids in enumerate(encoded) if len(ids) == max_length]
        whole = tokenizer(text_target=[some[row] for row in full], verbose=False)["input_ids"] if full else []
        truncated = sum(len(one) > max_length for one in whole)
    else:
        whole = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        encoded = [[*ids, end][:max_length] for ids in whole]
        truncated = sum(len(one) >= max_length for one in whole)
    counts[given] = [len(ids) for ids in encoded]
    ids = np.fromiter(chain.from_iterable(encoded), dtype=np.int32, count=int(counts.sum()))
    return TargetTokens(ids, offsets_of(counts)[:-1], counts, truncated)
