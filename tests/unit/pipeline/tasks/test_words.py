"""A word's vector is the mean over all tokens that cover it, whatever the tokenizer, sides and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from pipeline.batch import ABSENT, Encoded, TextWords
from pipeline.errors import TeacherError
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.spans import word_spans
from pipeline.tasks.task import Head
from pipeline.tasks.tensors import TensorBatch, TensorWords
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from pipeline.tasks.words import word_means
from tests.unit.pipeline.tasks.questions import TEXTS, TOKENIZERS, tokenizer_of

LENGTH = 24
CPU = torch.device("cpu")
TEXT = text_classification("mood", ("bad", "good"), LENGTH).head
PAIR = text_classification("same", ("no", "yes"), LENGTH, fields=("text", "text_pair")).head
TOKEN = token_classification("tags", ("O", "B-X"), LENGTH).head
SPAN = question_answering("answers", LENGTH).head


def touched(text: str, start: int, end: int) -> list[int]:
    """The words of which the characters ``[start, end)`` touch one, looked for character by character."""
    return [
        word
        for word, (first, last) in enumerate(word_spans(text).tolist())
        if any(first <= character < last for character in range(start, end))
    ]


def means_by_hand(tokenizer: Any, sides: Sequence[str], hidden: Tensor, **settings: Any) -> Tensor:
    """(W, H) of one example, token by token. hidden: (S, length, H)."""
    encoded = tokenizer(*([side] for side in sides), max_length=LENGTH, **settings)
    vectors: list[list[Tensor]] = [[] for side in sides for _ in word_spans(side)]
    for sequence, encoding in enumerate(encoded.encodings):
        for token, (part, span) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
            if part is not None:
                base = len(word_spans(sides[0])) if part else 0
                for word in touched(sides[part], *span):
                    vectors[base + word].append(hidden[sequence, token])
    absent = torch.full(hidden.shape[-1:], ABSENT)
    means = [torch.stack(some).mean(0) if some else absent for some in vectors]
    return torch.stack(means) if means else hidden.new_empty(0, hidden.shape[-1])


def means_of(encoded: Encoded, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The word means of all examples, and the hidden vectors, made up where not given."""
    batch = TensorBatch.of(encoded.pad(np.arange(len(encoded)), words=True), CPU)
    shape = *batch.inputs["input_ids"].shape, 3
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if hidden is None else hidden
    assert batch.words is not None
    return word_means(hidden, batch.words), hidden


def words_of(encoded: Encoded) -> TextWords:
    assert encoded.words is not None
    return encoded.words


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=10)
@given(text=TEXTS)
def test_a_text(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = TEXT.encode(tokenizer, {"text": [text]}, words=True)
    means, hidden = means_of(encoded)
    torch.testing.assert_close(means, means_by_hand(tokenizer, [text], hidden, truncation=True))
    assert words_of(encoded).counts.tolist() == [len(word_spans(text))]
    assert words_of(encoded).seen.tolist() == [int((means > ABSENT / 2).any(1).sum())]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=10)
@given(first=TEXTS, second=TEXTS)
def test_a_pair(name: str, first: str, second: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = PAIR.encode(tokenizer, {"text": [first], "text_pair": [second]}, words=True)
    means, hidden = means_of(encoded)
    torch.testing.assert_close(means, means_by_hand(tokenizer, [first, second], hidden, truncation=True))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_words_of_a_context_in_windows_are_means_over_all_windows(name: str) -> None:
    tokenizer = tokenizer_of(name)
    question, context = "Who?", "Ada wrote it in 1843. Grace wrote a compiler in 1952... " * 4
    encoded = SPAN.encode(tokenizer, {"question": [question], "context": [context]}, words=True)
    assert len(encoded.offsets) > 2, "the context must need several windows"
    means, hidden = means_of(encoded)
    settings = {"truncation": "only_second", "stride": LENGTH // 4, "return_overflowing_tokens": True}
    torch.testing.assert_close(means, means_by_hand(tokenizer, [question, context], hidden, **settings))
    assert words_of(encoded).seen.tolist() == words_of(encoded).counts.tolist()


@pytest.mark.parametrize("head", [TEXT, PAIR, TOKEN, SPAN], ids=lambda head: type(head).__name__)
def test_a_batch_is_its_examples_one_by_one(head: Head) -> None:
    tokenizer = tokenizer_of(TOKENIZERS[0])
    texts = ["a very good film", "", "awful...", "word " * 40, "naïve 東京"]
    pairs = [*texts[2:], *texts[:2]]
    columns: dict[str, Sequence[Any]] = {
        "text": texts,
        "text_pair": pairs,
        "words": [text.split() or ["\u200b"] for text in texts],
        "question": texts,
        "context": pairs,
    }
    inputs = {name: columns[name] for name in getattr(head, "fields", None) or _fields(head)}
    encoded = head.encode(tokenizer, inputs, words=True)
    together, hidden = means_of(encoded)
    starts = np.concatenate(([0], np.cumsum(words_of(encoded).counts)))
    for row in range(len(texts)):
        one = {name: [column[row]] for name, column in inputs.items()}
        alone = head.encode(tokenizer, one, words=True)
        first, last = encoded.sequences[row : row + 2]
        length = int(alone.pad(np.array([0])).inputs["input_ids"].shape[1])
        means, _ = means_of(alone, hidden[first:last, :length])
        torch.testing.assert_close(together[starts[row] : starts[row + 1]], means, rtol=0, atol=0)
    some = encoded.pad(np.array([4, 0]), words=True).words
    assert some is not None
    assert len(some.offsets) == 1 + int(words_of(encoded).counts[[4, 0]].sum())


def _fields(head: Head) -> tuple[str, ...]:
    return ("words",) if head is TOKEN else ("question", "context")


def test_words_do_not_depend_on_the_tokenizer() -> None:
    texts = {"text": ["naïve re-entry, U.S. 東京 ...", "don't", " "]}
    counts = [
        words_of(TEXT.encode(tokenizer_of(name), texts, words=True)).counts.tolist() for name in TOKENIZERS
    ]
    assert counts == [[14, 3, 0]] * len(TOKENIZERS)


def test_encoding_is_otherwise_the_same_with_words() -> None:
    tokenizer, inputs = tokenizer_of(TOKENIZERS[0]), {"text": ["a film", "a long " * 30]}
    plain, with_words = TEXT.encode(tokenizer, inputs), TEXT.encode(tokenizer, inputs, words=True)
    assert plain.words is None
    assert plain.truncated == with_words.truncated == 1
    np.testing.assert_array_equal(plain.columns["input_ids"], with_words.columns["input_ids"])
    with pytest.raises(ValueError, match="without their words"):
        plain.pad(np.array([0]), words=True)


def test_means_have_a_gradient_at_their_tokens_alone() -> None:
    hidden = torch.arange(8.0).reshape(1, 4, 2).requires_grad_()
    words = TensorWords(torch.tensor([1, 2]), torch.tensor([0, 2, 2]))
    means = word_means(hidden, words)
    assert means.tolist() == [[3.0, 4.0], [ABSENT, ABSENT]]
    means.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[[0, 0], [0.5, 0.5], [0.5, 0.5], [0, 0]]]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], **_: Any) -> Any:
            return type("Output", (dict,), {"encodings": None})(input_ids=[[1]] * len(texts))

        pad_token_id = pad_token_type_id = 0

    with pytest.raises(TeacherError, match="which characters a token covers"):
        TEXT.encode(Slow(), {"text": ["a"]}, words=True)
