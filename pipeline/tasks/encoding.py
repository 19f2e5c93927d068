"""Many examples → token ids, in parts, and from disk where this machine has encoded them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from pipeline.batch import Encoded, Examples
from pipeline.disk_cache import cached
from pipeline.models import vocabulary
from pipeline.tasks.task import Head

AT_ONCE = 10_000
"""Examples: what a tokenizer gives is lists of Python's and its own records, many times the size of the token ids."""


def encoded(
    head: Head, tokenizer: Any, examples: Examples, max_length: int | None = None, words: bool = False
) -> Encoded:
    """As `Head.encode`. What takes long is kept on disk by the content of the examples and all that decides their token ids: later
    launches and other processes of the machine map it into their memory."""
    if len(examples) < AT_ONCE:
        return encode_examples(head, tokenizer, examples.inputs, max_length, words)
    facts = {
        "head": repr(head),
        "vocabulary": vocabulary(tokenizer).fingerprint,
        "tokenizer": repr(tokenizer.init_kwargs) + repr(tokenizer.added_tokens_decoder),
        "examples": content_of(examples),
        "max_length": max_length,
        "words": words,
    }
    return cached(
        f"tokens-of-{examples.task}",
        facts,
        lambda: encode_examples(head, tokenizer, examples.inputs, max_length, words),
    )


def content_of(examples: Examples) -> str:
    """A hash of what is encoded: keys name inputs, labels targets where they are texts."""
    return blake2b(examples.keys.tobytes() + examples.labels.values.tobytes(), digest_size=16).hexdigest()


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
