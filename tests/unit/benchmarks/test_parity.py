"""benchmarks/parity.py: transformers' Trainer gets exactly our encoded examples, each once an epoch, rightly labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import parity
from benchmarks.common import mean_and_error
from benchmarks.parity import Collator, Setting, passage
from pipeline.batch import Examples
from pipeline.config.recipe import Recipe
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.token_classification import token_classification
from pipeline.training.feed import TaskSet
from pipeline.training.step import MicroBatch, WithLoss, accumulate
from students.student import MultiTaskStudent, build_student
from tests.conftest import TinyModel
from tests.unit.pipeline.small_training import largest_difference, student_of, task_set, weights_of

HARD = LossWeights({"hard": 1.0}, 1.0)
SETTING = Setting("csv", 16, train=9, epochs=2, learning_rate=1e-2, batch_size=4)


def set_of(task: Task, folder: Path, **columns: Sequence[Any]) -> TaskSet:
    """The task's train split, encoded by the tokenizer in `folder`."""
    inputs, labels = task.reading.read({name: Column(list(some)) for name, some in columns.items()}, "train")
    gold = Examples(task.name, np.arange(len(labels), dtype=np.uint64), inputs, labels)
    encoded = task.head.encode(open_tokenizer(folder), inputs)
    return TaskSet(task, encoded, gold, encoded, gold)


def our_loss(student: MultiTaskStudent, data: TaskSet, rows: Sequence[int], normaliser: float) -> float:
    """The hard loss of one step of ours on these rows, without dropout."""
    chosen = np.array(rows)
    tokens = TensorBatch.of(data.train.pad(chosen), torch.device("cpu"))
    batch = MicroBatch(tokens, torch.from_numpy(data.examples.labels.take(chosen).values), None)
    autocast = torch.autocast("cpu", enabled=False)
    sums = accumulate(WithLoss(student), data.task, [batch], HARD, None, normaliser, autocast)
    return float(sums["total"])


def own_loss(student: MultiTaskStudent, data: TaskSet, rows: Sequence[int]) -> float:
    """The loss that the Hugging Face model computes from what the collator gives it."""
    with torch.no_grad():
        return float(student.model(data.task.name)(**Collator(data)(rows)).loss)


def test_one_label_a_text_has_the_same_inputs_and_the_same_loss() -> None:
    data, rows = task_set(), [5, 0, 17]
    batch, padded = Collator(data)(rows), data.train.pad(np.array(rows))
    assert {name: batch[name].tolist() for name in padded.inputs} == {
        name: array.tolist() for name, array in padded.inputs.items()
    }
    assert set(batch) == {*padded.inputs, "labels"}
    student = student_of([data], dropout=0.0)
    assert own_loss(student, data, rows) == pytest.approx(our_loss(student, data, rows, 3), rel=1e-6)


def test_a_label_a_word_is_at_the_words_first_token(tiny_model: TinyModel) -> None:
    task = token_classification("ner", ("O", "B-PER", "I-PER"), 12)
    words = [["good", "unheard", "film"], ["bad"], ["lovely"] * 20]  # the last is cut
    labels = [["O", "B-PER", "I-PER"], ["B-PER"], ["O", "I-PER"] * 10]
    data = set_of(task, tiny_model(), words=words, labels=labels)
    tokens = Collator(data)([1, 0])["labels"]
    pieces = open_tokenizer(tiny_model()).tokenize("unheard")
    assert len(pieces) > 1
    expected = [-100, 0, 1, *[-100] * (len(pieces) - 1), 2, -100]
    assert tokens.tolist() == [[-100, 1, *[-100] * (len(expected) - 2)], expected]
    student = build_student(tiny_model(), [task], dropout=0.0)
    for rows in ([1, 0], [2, 1]):
        seen = float(data.train.units[rows].sum())
        assert own_loss(student, data, rows) == pytest.approx(our_loss(student, data, rows, seen), rel=1e-6)


def test_an_answer_is_pointed_at_in_every_window_that_holds_it(tiny_model: TinyModel) -> None:
    filler = " ".join(["the story was plain"] * 8)
    contexts = [f"{filler} superb actor {filler}", "the film was long", "a warm scene"]
    task = question_answering("qa", 24, unanswerable=True)
    answers = [["superb actor"], [], ["warm"]]
    data = set_of(task, tiny_model(), question=["was it good"] * 3, context=contexts, answers=answers)
    batch, tokenizer = Collator(data)([0, 1, 2]), open_tokenizer(tiny_model())
    owners = data.train.pad(np.arange(3)).owners.tolist()
    assert owners.count(0) > 2  # windows
    spans = list(zip(batch["start_positions"].tolist(), batch["end_positions"].tolist(), strict=True))
    texts = [tokenizer.decode(batch["input_ids"][i, s : e + 1]) for i, (s, e) in enumerate(spans)]
    answer = "superb actor"
    for i, owner in enumerate(owners):
        window = tokenizer.decode(batch["input_ids"][i])
        expected = answer if owner == 0 and answer in window else "warm" if owner == 2 else "[CLS]"
        assert texts[i] == expected
    assert answer in texts
    assert texts.count("[CLS]") > 2


def test_trainer_sees_each_example_once_an_epoch_in_random_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []

    class Recorder(Collator):
        def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
            drawn.append(list(rows))
            return super().__call__(rows)

    monkeypatch.setattr(parity, "Collator", Recorder)
    data = task_set(count=9)
    student = student_of([data])
    before = weights_of(student)
    parity.train_with_transformers(student, data, SETTING, seed=0)
    assert [len(rows) for rows in drawn] == [4, 4, 1, 4, 4, 1]
    epochs = [*chain(*drawn[:3])], [*chain(*drawn[3:])]
    assert [sorted(rows) for rows in epochs] == [list(range(9))] * 2
    assert epochs[0] != epochs[1]
    assert all(
        not torch.equal(before[name], now) for name, now in weights_of(student).items() if now.ndim > 1
    )


def test_both_sides_take_the_same_steps_where_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole train splits as batches, no dropout, no warm-up (its first step differs): the same weights in the end."""
    monkeypatch.setattr(parity, "Recipe", partial(Recipe, warmup=0.0))
    data = task_set(count=24)
    trained = []
    for train in (parity.train_with_tutelage, parity.train_with_transformers):
        student = student_of([data], dropout=0.0)
        start = weights_of(student)
        train(student, data, replace(SETTING, batch_size=24, epochs=4), 0)
        trained.append(weights_of(student))
    assert largest_difference(trained[0], start) > 1e-2
    assert largest_difference(*trained) < 1e-4


def test_the_error_is_of_the_mean() -> None:
    assert list(mean_and_error([1.0, 2.0, 3.0])) == pytest.approx([2.0, 1 / 3**0.5])
    assert np.isnan(mean_and_error([1.0])[1])


@pytest.mark.parametrize("words", [1, 2, 3, 5, 9])
def test_a_passage_holds_the_first_answer_whole_and_knows_where_every_answer_in_it_is(words: int) -> None:
    context = "one two three four five six seven eight"
    row = {"context": context, "answers": ["four five", "one"], "answer_starts": [14, 0], "id": "a"}
    lows = set()
    for seed in range(40):
        short = passage(row, words, np.random.default_rng(seed))
        assert short["answers"][0] == "four five"
        assert short["id"] == "a"
        assert len(short["context"].split()) == min(8, max(2, words))
        for text, start in zip(short["answers"], short["answer_starts"], strict=True):
            assert short["context"][start : start + len(text)] == text
        lows.add(context.index(short["context"]))
    assert len(lows) == {1: 1, 2: 1, 3: 2, 5: 4, 9: 1}[words]
