"""Many examples → token ids, in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.batch import Encoded
from pipeline.tasks.task import Head

AT_ONCE = 10_000
"""Examples: what a tokenizer gives is lists of Python's and its own records, many times the size of the token ids."""


def encode_examples(
    head: Head,
    tokenizer: Any,
    inputs: Mapping[str, Sequence[Any]],
    max_length: int | None = None,
    words: bool = False,
) -> Encoded:
    """As `Head.encode`, in parts, so that the memory that it takes does not grow with the examples but by their token ids."""
    size = len(next(iter(inputs.values())))
    parts = [
        head.encode(
            tokenizer,
            {name: column[start : start + AT_ONCE] for name, column in inputs.items()},
            max_length,
            words=words,
        )
        for start in range(0, max(1, size), AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else Encoded.join(parts)
