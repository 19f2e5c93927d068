"""Windows: tokens stand for the words that they cover, whatever the tokenizer; nothing of a context is lost."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.batch import ABSENT, Encoded
from pipeline.errors import ConfigError, TeacherError
from pipeline.losses import LossWeights, task_loss
from pipeline.models import open_tokenizer
from pipeline.tasks.question_answering import best_spans
from pipeline.tasks.spans import word_spans
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.windows import cell_logits
from pipeline.training.step import Aggregation, MicroBatch, loss_inputs
from tests.conftest import TinyModel
from tests.unit.pipeline.tasks.questions import (
    CONTEXT,
    PAIRS,
    TOKENIZERS,
    batch_of,
    inputs_of,
    long_context,
    noise,
    read,
    task_of,
    tokenizer_of,
)


def cell_by_characters(context: str, start: int, end: int, side: str) -> int:
    """The cell that a token ``[start, end)`` of the context stands for, looked for character by character."""
    touched = [
        i + 1
        for i, (first, last) in enumerate(word_spans(context).tolist())
        if any(first <= character < last for character in range(start, end))
    ]
    return -1 if not touched else touched[0] if side == "start" else touched[-1]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=25)
@given(pairs=PAIRS, max_length=st.integers(17, 40))
def test_every_token_stands_for_its_words(name: str, pairs: list[tuple[str, str]], max_length: int) -> None:
    tokenizer = tokenizer_of(name)
    inputs = inputs_of(pairs)
    encoded = task_of().head.encode(tokenizer, inputs, max_length)
    assert np.diff(encoded.offsets).max() <= max_length
    assert encoded.counts.tolist() == [1 + len(word_spans(context)) for _, context in pairs]
    tokens = [len(ids) for ids in tokenizer(inputs["question"], add_special_tokens=False)["input_ids"]]
    assert encoded.truncated == sum(count > max_length // 2 for count in tokens)
    for i, (question, context) in enumerate(pairs):
        ids, spots = example_tokens(encoded, i)
        assert ids[0] == tokenizer.cls_token_id
        if tokens[i] <= max_length // 2:
            whole = tokenizer(question, context, return_offsets_mapping=True)
            inside = [
                (int(start), int(end))
                for part, (start, end) in zip(whole.sequence_ids(0), whole["offset_mapping"], strict=True)
                if part == 1
            ]
            for side in ("start", "end"):
                expected = {cell_by_characters(context, start, end, side) for start, end in inside}
                assert set(spots[side].tolist()) | {-1} == expected | {0, -1}, side
            if len(whole["input_ids"]) <= max_length:
                assert ids.tolist() == whole["input_ids"]


def example_tokens(encoded: Encoded, example: int) -> tuple[NDArray[np.int32], dict[str, NDArray[np.int32]]]:
    """Ids and spots of all windows of one example."""
    first, last = encoded.offsets[encoded.sequences[[example, example + 1]]]
    spots = {side: column[first:last] for side, column in encoded.spots.items()}
    return encoded.columns["input_ids"][first:last], spots


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=25)
@given(pairs=PAIRS, max_length=st.integers(17, 40))
def test_probabilities_of_all_cells_sum_to_one(
    name: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    task, inputs = task_of(), inputs_of(pairs)
    batch = batch_of(task.head.encode(tokenizer_of(name), inputs, max_length))
    said = task.head.read_out(noise(batch), batch)
    assert said.shape == (int(task.reading.counts(inputs).sum()), 2)
    assert said.dtype == torch.float32
    rows = task.head.rows(said, batch.counts)
    probabilities = rows.softmax(-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2 * len(pairs)))
    longest = torch.arange(rows.shape[-1])
    assert (probabilities * (longest >= batch.counts.repeat_interleave(2)[:, None])).sum() == 0
    assert torch.equal(task.head.flat(rows, batch.counts), said)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=20)
@given(
    pairs=PAIRS,
    max_length=st.integers(17, 40),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    labels=st.integers(0, 10_000),
)
def test_a_student_that_is_its_teacher_has_no_soft_loss(
    name: str, pairs: list[tuple[str, str]], max_length: int, temperature: float, labels: int
) -> None:
    """And the hard loss of parts adds up to that of the whole."""
    task, inputs = task_of(), inputs_of(pairs)
    encoded = task.head.encode(tokenizer_of(name), inputs, max_length)
    batch = batch_of(encoded)
    said = task.head.read_out(noise(batch), batch)
    gold = torch.from_numpy(
        np.random.default_rng(labels).integers(-1, encoded.counts[:, None], (len(pairs), 2))
    )
    weights = LossWeights({"hard": 0.5, "soft": 0.5}, temperature)
    parts = said.split(encoded.counts.tolist())

    def losses(rows: list[int]) -> dict[str, Tensor]:
        part = torch.cat([parts[row] for row in rows])
        micro = MicroBatch(batch_of(encoded, rows), gold[rows], torch.stack((part, part)))
        aggregation = Aggregation("mean", torch.tensor([0.25, 0.75]))
        inputs = loss_inputs(task, part, micro, weights, aggregation)
        return task_loss(inputs, weights, len(pairs))[1]

    whole = losses(list(range(len(pairs))))
    assert whole["soft"].abs() < 1e-4 * temperature**2
    apart = [losses([row]) for row in reversed(range(len(pairs)))]
    torch.testing.assert_close(sum(part["hard"] for part in apart), whole["hard"], rtol=1e-4, atol=1e-3)
    assert sum(float(part["soft"].abs()) for part in apart) < 1e-4 * temperature**2 * len(pairs)


def test_models_with_other_tokenizers_and_windows_speak_of_the_same_cells() -> None:
    inputs = {
        "question": ["Qui?", "東京?"],
        "context": ["e\u0301te\u0301 中国 3.14 don't " * 40, "Paris 😀 שלום."],
    }
    counts = []
    for name, length in (
        ("wordpiece-cased", 17),
        ("byte-bpe", 24),
        ("unigram", 40),
        ("wordpiece-uncased", 1024),
    ):
        encoded = task_of().head.encode(tokenizer_of(name), inputs, length)
        batch = batch_of(encoded)
        said = task_of().head.read_out(noise(batch), batch)
        counts.append(encoded.counts.tolist())
        assert len(said) == sum(counts[0])
        assert (np.diff(encoded.sequences)[0] > 1) == (length < 1024)
    assert counts == [counts[0]] * 4


@pytest.mark.parametrize("max_length", [13, 17, 32, 64])
def test_every_word_of_a_long_context_is_seen(tiny_model: TinyModel, max_length: int) -> None:
    tokenizer, context = open_tokenizer(tiny_model()), long_context(500)
    encoded = task_of().head.encode(
        tokenizer, {"question": ["is it good ?"], "context": [context]}, max_length
    )
    assert encoded.truncated == 0
    for side in ("start", "end"):
        assert set(encoded.spots[side].tolist()) == set(range(-1, 501))
    for window in range(1, len(encoded.offsets) - 1):  # windows share a quarter of max_length
        before, here = (
            set(encoded.spots["start"][slice(*encoded.offsets[[w, w + 1]])].tolist()) - {0, -1}
            for w in (window - 1, window)
        )
        assert len(before & here) >= max_length // 4
    assert (np.diff(encoded.offsets) <= max_length).all()


def test_a_context_of_a_hundred_thousand_characters_fits(tiny_model: TinyModel) -> None:
    context = long_context(20_000)
    assert len(context) > 90_000
    encoded = task_of().head.encode(
        open_tokenizer(tiny_model()), {"question": ["good ?", "bad ?"], "context": [context, "short"]}, 64
    )
    assert set(encoded.spots["start"].tolist()) == set(range(-1, 20_001))
    batch = batch_of(encoded)
    said = task_of().head.read_out(noise(batch), batch)
    assert len(said) == 20_001 + 2
    assert (said > ABSENT).all()
    assert best_spans(said.numpy(), encoded.counts, no_answer=True).shape == (2, 2)


def test_chunks_are_one_whole(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = open_tokenizer(tiny_model())
    rows = [(long_context(5 + 7 * i, i), [] if i % 3 else ["good"]) for i in range(12)]
    rows = [(f"{context} good", answers) for context, answers in rows]
    whole = read(rows)
    inputs = {"question": ["good " * (1 + 3 * i) for i in range(12)], "context": whole.inputs["context"]}
    encoded = task_of().head.encode(tokenizer, inputs, 24)
    monkeypatch.setattr("pipeline.tasks.windows.CHUNK", 100)
    in_parts = task_of().head.encode(tokenizer, inputs, 24)
    assert encoded.truncated == in_parts.truncated == 8
    for name in ("offsets", "sequences", "counts"):
        np.testing.assert_array_equal(getattr(encoded, name), getattr(in_parts, name))
    for ours, theirs in ((encoded.columns, in_parts.columns), (encoded.spots, in_parts.spots)):
        assert {name: column.tolist() for name, column in ours.items()} == {
            name: column.tolist() for name, column in theirs.items()
        }
    assert read(rows).labels.values.tolist() == whole.labels.values.tolist()


def test_long_questions_are_cut_and_counted(tiny_model: TinyModel) -> None:
    tokenizer = open_tokenizer(tiny_model())
    questions = [" ".join(["good"] * words) for words in (3, 16, 17, 400)]
    encoded = task_of().head.encode(tokenizer, {"question": questions, "context": ["a dull plot"] * 4}, 32)
    assert encoded.truncated == 2
    assert encoded.lengths.tolist() == [9, 22, 22, 22]
    assert questions[3].count("good") == 400
    emoji = tokenizer_of("byte-bpe")  # several tokens a character
    encoded = task_of().head.encode(emoji, {"question": ["😀" * 90], "context": ["Paris"]}, 24)
    assert encoded.truncated == 1
    assert encoded.lengths[0] <= 24


class TestRefusals:
    inputs = {"question": ["Who?"], "context": [CONTEXT]}  # noqa: RUF012

    def test_without_room_for_windows(self) -> None:
        for name, least in (("wordpiece-cased", 13), ("byte-bpe", 17)):
            with pytest.raises(ConfigError, match=f"to {least} or more"):
                task_of().head.encode(tokenizer_of(name), self.inputs, least - 1)
            long = {"question": ["Who? " * 40], "context": [CONTEXT * 20]}
            encoded = task_of().head.encode(tokenizer_of(name), long, least)
            cells = set(encoded.spots["start"].tolist())
            assert cells == set(range(-1, 1 + len(word_spans(CONTEXT * 20))))

    def test_a_slow_tokenizer(self) -> None:
        slow = SimpleNamespace(is_fast=False, cls_token_id=1, name_or_path="slow")
        with pytest.raises(TeacherError, match="slow has no offsets"):
            task_of().head.encode(slow, self.inputs)

    def test_without_a_cls_token(self) -> None:
        from transformers import PreTrainedTokenizerFast

        backend = tokenizer_of("byte-bpe").backend_tokenizer
        bare = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
        with pytest.raises(TeacherError, match="no CLS token to say"):
            task_of().head.encode(bare, self.inputs)

    def test_without_a_template_for_it(self) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer.from_str(tokenizer_of("byte-bpe").backend_tokenizer.to_str())
        state = json.loads(backend.to_str()) | {"post_processor": None}
        plain = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(state)), pad_token="[PAD]", cls_token="[CLS]"
        )
        with pytest.raises(TeacherError, match="puts no CLS token"):
            task_of().head.encode(plain, self.inputs)


# ---------------------------------------------------------------- logits


@settings(deadline=None, max_examples=50)
@given(
    examples=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4
    ),  # words, windows
    seed=st.integers(0, 10_000),
)
def test_values_pool_tokens_and_windows(examples: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    owners = np.concatenate([[i] * windows for i, (_, windows) in enumerate(examples)])
    counts = np.array([words + 1 for words, _ in examples])
    spots = np.array([[0, *rng.integers(-1, counts[owner], 7)] for owner in owners])
    spots[:, 1:][spots[:, 1:] == 0] = -1
    logits = 5 * rng.normal(size=spots.shape)
    expected = np.full(counts.sum(), ABSENT)
    for example, start in enumerate(np.cumsum(counts) - counts):
        for cell in range(counts[example]):
            seen = [
                np.logaddexp.reduce(logits[window][spots[window] == cell])
                for window in np.flatnonzero(owners == example)
                if (spots[window] == cell).any()
            ]
            if seen:
                expected[start + cell] = max(seen) if cell else min(seen)
    batch = TensorBatch({}, {}, torch.from_numpy(owners), torch.from_numpy(counts))
    said = cell_logits(torch.from_numpy(logits).float(), torch.from_numpy(spots), batch)
    np.testing.assert_allclose(said.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_values_have_gradients() -> None:
    batch = TensorBatch({}, {}, torch.tensor([0, 0, 1]), torch.tensor([4, 2]))
    spots = torch.tensor([[0, -1, 1, 1, 2], [0, 1, 2, -1, -1], [0, -1, -1, 1, 1]])
    logits = torch.randn(
        3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: cell_logits(x, spots, batch), (logits,))
    said = cell_logits(logits, spots, batch)
    assert said.tolist()[3] == ABSENT
    said.sum().backward()
    assert logits.grad is not None
    assert logits.grad[spots < 0].abs().sum() == 0


class Recorder(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_tokens_of_a_word_are_added_in_a_fixed_order() -> None:
    """On CUDA these add in the order in which threads arrive, so that equal inputs give other bits each time."""
    batch = TensorBatch({}, {}, torch.tensor([0]), torch.tensor([3]))
    with Recorder() as recorder:
        cell_logits(torch.randn(1, 8), torch.tensor([[0, 1, 1, 1, 1, 2, 2, 2]]), batch)
    assert "segment_reduce" in recorder.names
    assert not {"index_add", "index_add_", "scatter_add", "scatter_add_", "bincount"} & recorder.names
