"""Examples → token ids, from disk where this machine has encoded them before."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from pipeline.batch import Encoded, Examples
from pipeline.disk_cache import cached
from pipeline.models import vocabulary
from pipeline.tasks.encoding import AT_ONCE, encode_examples
from pipeline.tasks.hearing import SpeechHead
from pipeline.tasks.task import Head


def encoded(
    head: Head, tokenizer: Any, examples: Examples, max_length: int | None = None, words: bool = False
) -> Encoded:
    """As `Head.encode`. What takes long is kept on disk by the content of the examples and all that decides their token ids: later
    launches and other processes of the machine map it into their memory."""
    # recordings are read later; on disk would be where they were
    if len(examples) < AT_ONCE or isinstance(head, SpeechHead):
        return encode_examples(head, tokenizer, examples.inputs, max_length, words)
    settings = (repr(head), max_length, words)
    tokens = (
        vocabulary(tokenizer).fingerprint,
        repr(tokenizer.init_kwargs),
        repr(tokenizer.added_tokens_decoder),
        tokenizer("", "")["input_ids"],  # the marks around texts
    )
    facts = [*settings, *tokens, content_of(examples)]
    return cached(
        f"tokens-of-{examples.task}",
        facts,
        lambda: encode_examples(head, tokenizer, examples.inputs, max_length, words),
    )


def content_of(examples: Examples) -> str:
    """A hash of what is encoded: keys name inputs, labels targets where they are texts."""
    return blake2b(examples.keys.tobytes() + examples.labels.values.tobytes(), digest_size=16).hexdigest()
