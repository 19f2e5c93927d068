"""Text classification: labels by name, truncation counted to the text, ids as the tokenizer has them."""

from __future__ import annotations

import itertools
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax
from transformers import AutoModelForSequenceClassification

from pipeline.batch import UNLABELLED
from pipeline.errors import TeacherError
from pipeline.models import open_config, open_model, open_tokenizer
from pipeline.tasks import KINDS, Task
from pipeline.tasks.text_classification import TextClassification
from tests.conftest import Architecture, TinyModel, texts_of

LABELS = ("negative", "neutral", "positive")
ARCHITECTURES: tuple[Architecture, ...] = ("bert", "distilbert", "mpnet", "modernbert")


def task_of(labels: tuple[str, ...] = LABELS, max_length: int = 16) -> TextClassification:
    return TextClassification("movies", labels, max_length, "accuracy")


def test_it_is_a_task() -> None:
    task: Task = task_of()
    assert KINDS[task.kind] is TextClassification
    assert task.fields == ("text",)
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert task.model_class() is AutoModelForSequenceClassification


# ---------------------------------------------------------------- label spaces


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_labels_are_aligned_by_name(order: tuple[int, ...]) -> None:
    theirs = [LABELS[i] for i in order]
    columns = task_of().columns_of(dict(enumerate(theirs)), "teacher")
    assert columns.dtype == np.int64
    assert [theirs[column] for column in columns] == list(LABELS)


def test_a_permuted_teacher_says_the_same(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", ("positive", "negative", "neutral"))
    task, names = task_of(), open_config(folder).id2label
    logits = torch.arange(6.0).reshape(2, 3)
    aligned = logits[:, torch.from_numpy(task.columns_of(names or {}, "teacher"))]
    assert aligned.tolist() == [[1, 2, 0], [4, 5, 3]]
    assert task.columns_of({"2": "negative", "0": "positive", "1": "neutral"}, "teacher").tolist() == [
        2,
        1,
        0,
    ]


@pytest.mark.parametrize("theirs", [("NEGATIVE", "Neutral", "positive"), ("Negative", "NEUTRAL", "Positive")])
def test_case_does_not_part_labels(theirs: tuple[str, ...]) -> None:
    assert task_of().columns_of(dict(enumerate(theirs)), "teacher").tolist() == [0, 1, 2]


def test_labels_that_differ_in_case_alone_are_kept_apart() -> None:
    task = task_of(("us", "US", "Us"))
    assert task.columns_of({0: "US", 1: "Us", 2: "us"}, "teacher").tolist() == [2, 0, 1]
    with pytest.raises(TeacherError):
        task.columns_of({0: "US", 1: "uS", 2: "us"}, "teacher")


@pytest.mark.parametrize(
    "theirs",
    [
        ("negative", "positive"),
        ("negative", "neutral", "positive", "mixed"),
        ("negative", "neutral", "good"),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("negative", "neutral", "neutral"),
        ("negative", "neutral", "positive", "Positive"),
        (),
    ],
)
def test_a_mismatch_is_refused_and_lists_both(theirs: tuple[str, ...]) -> None:
    with pytest.raises(TeacherError) as caught:
        task_of().columns_of(dict(enumerate(theirs)), "teachers.big")
    assert caught.value.exit_code == 2
    assert caught.value.cause == (
        f"teachers.big: its labels {list(theirs)} are not those of task movies: {list(LABELS)}"
    )
    assert "id2label" in caught.value.remedy


def test_a_head_answers_in_the_tasks_order(tiny_model: TinyModel) -> None:
    task = task_of()
    config = open_config(tiny_model("bert"))
    config.update(task.head_settings())
    model = AutoModelForSequenceClassification.from_config(config)
    assert model.num_labels == 3
    assert task.columns_of(model.config.id2label, "student").tolist() == [0, 1, 2]
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}


# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_and_pad_give_the_tokenizers_own_ids(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    tokenizer = open_tokenizer(tiny_model(architecture))
    texts = [*texts_of(0, 12), "", "Ünknown ☃ words", "x" * 90, "so-so, really!"]
    encoded = task_of().encode(tokenizer, {"text": texts})
    rows = np.array([3, 0, 12, 14, 15, 7, 13])
    expected = tokenizer(
        [texts[i] for i in rows], truncation=True, max_length=16, padding=True, return_tensors="np"
    )
    batch = encoded.pad(rows)
    assert batch.keys() == expected.keys()
    for name, column in batch.items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
    assert len(encoded) == len(texts)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("abc .é☃\n", max_size=40), min_size=1, max_size=6), st.integers(4, 20))
def test_any_texts_encode_as_the_tokenizer_does(
    tiny_model: TinyModel, texts: list[str], max_length: int
) -> None:
    tokenizer = opened(tiny_model("bert"))
    encoded = task_of(max_length=max_length).encode(tokenizer, {"text": texts})
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    expected = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    np.testing.assert_array_equal(encoded.pad(np.arange(len(texts)))["input_ids"], expected["input_ids"])
    assert encoded.lengths.tolist() == [min(length, max_length) for length in whole]
    assert encoded.truncated == sum(length > max_length for length in whole)


@cache
def opened(folder: Path) -> Any:
    return open_tokenizer(folder)


def test_truncated_texts_are_counted_to_the_text(tiny_model: TinyModel) -> None:
    tokenizer = open_tokenizer(tiny_model("bert"))
    texts = [" ".join(["good"] * words) for words in (5, 6, 7, 100)]  # 7, 8, 9 and 102 tokens
    encoded = task_of(max_length=8).encode(tokenizer, {"text": texts})
    assert encoded.lengths.tolist() == [7, 8, 8, 8]
    assert encoded.truncated == 2
    assert task_of(max_length=64).encode(tokenizer, {"text": texts[:3]}).truncated == 0


def test_two_models_read_the_same_text_each_in_its_own_ids(tiny_model: TinyModel) -> None:
    text = {"text": ["a good film"]}
    bert, mpnet = (task_of().encode(open_tokenizer(tiny_model(a)), text) for a in ("bert", "mpnet"))
    assert bert.columns["input_ids"].tolist() != mpnet.columns["input_ids"].tolist()
    assert bert.lengths.tolist() == mpnet.lengths.tolist()
    assert (bert.pads["input_ids"], mpnet.pads["input_ids"]) == (0, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_does_not_change_what_a_model_says(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS)
    model = open_model(AutoModelForSequenceClassification, folder)
    encoded = task_of().encode(open_tokenizer(folder), {"text": texts_of(1, 6)})

    def answers(rows: list[int]) -> Tensor:
        with torch.no_grad():
            inputs = {name: torch.from_numpy(column) for name, column in encoded.pad(np.array(rows)).items()}
            logits: Tensor = model(**inputs).logits
        return logits

    together = answers([0, 1, 2, 3, 4, 5])
    alone = torch.cat([answers([i]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_loss_is_zero_where_student_is_teacher(temperature: float) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = task_of().soft_loss(logits, softmax(logits / temperature, -1), temperature)
    assert loss.shape == (5,)
    assert loss.abs().max() < 1e-5


def test_losses_do_not_depend_on_the_order_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    labels, order = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 0, 1])
    task, places = task_of(), order.argsort()
    soft = task.soft_loss(logits, softmax(teacher / 2, -1), 2.0)
    torch.testing.assert_close(
        task.soft_loss(logits[:, order], softmax(teacher[:, order] / 2, -1), 2.0), soft
    )
    torch.testing.assert_close(
        task.hard_loss(logits[:, order], places[labels]), task.hard_loss(logits, labels)
    )


def test_hard_loss_is_cross_entropy_and_zero_without_a_label() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss = task_of().hard_loss(logits, torch.tensor([2, UNLABELLED, 0]))
    expected = cross_entropy(logits[[0, 2]], torch.tensor([2, 0]), reduction="none")
    torch.testing.assert_close(loss[[0, 2]], expected)
    assert loss[1] == 0
