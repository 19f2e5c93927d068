"""Text classification: labels by name, truncation counted to the text, ids as the tokenizer has them; pairs of texts."""

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
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from pipeline.batch import UNLABELLED, Examples, Ragged
from pipeline.config.kinds import TEXT_CLASSIFICATION
from pipeline.errors import TeacherError
from pipeline.models import open_config, open_model, open_tokenizer
from pipeline.tasks import MAKERS, Task
from pipeline.tasks.heads import model_class
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text_classification import from_train, text_classification
from tests.conftest import Architecture, TinyModel, texts_of

LABELS = ("negative", "neutral", "positive")
ARCHITECTURES: tuple[Architecture, ...] = ("bert", "distilbert", "mpnet", "modernbert")


def task_of(labels: tuple[str, ...] = LABELS, max_length: int = 16) -> Task:
    return text_classification("movies", labels, max_length, "accuracy")


def columns_of(task: Task, theirs: dict[int, str]) -> list[int]:
    """The teacher's column of each label, where each has one."""
    groups = task.head.groups(theirs, None, "teacher")
    assert groups is not None
    return [column for (column,) in groups]


def test_it_is_a_task() -> None:
    task: Task = task_of()
    assert MAKERS[TEXT_CLASSIFICATION] is from_train
    assert task.reading.fields == ("text",)
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert model_class(task.kind) is AutoModelForSequenceClassification


# ---------------------------------------------------------------- label spaces


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_labels_are_aligned_by_name(order: tuple[int, ...]) -> None:
    theirs = [LABELS[i] for i in order]
    columns = columns_of(task_of(), dict(enumerate(theirs)))
    assert [theirs[column] for column in columns] == list(LABELS)


def test_a_permuted_teacher_says_the_same(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", ("positive", "negative", "neutral"))
    task, names = task_of(), open_config(folder).id2label
    groups = task.head.groups({int(column): name for column, name in (names or {}).items()}, None, "teacher")
    assert groups is not None
    aligned = task.head.marginalise(torch.arange(6.0).reshape(2, 3), groups)
    assert aligned.tolist() == [[1, 2, 0], [4, 5, 3]]
    assert columns_of(task, {2: "negative", 0: "positive", 1: "neutral"}) == [2, 1, 0]


@pytest.mark.parametrize("theirs", [("NEGATIVE", "Neutral", "positive"), ("Negative", "NEUTRAL", "Positive")])
def test_case_does_not_part_labels(theirs: tuple[str, ...]) -> None:
    assert columns_of(task_of(), dict(enumerate(theirs))) == [0, 1, 2]


def test_labels_that_differ_in_case_alone_are_kept_apart() -> None:
    task = task_of(("us", "US", "Us"))
    assert columns_of(task, {0: "US", 1: "Us", 2: "us"}) == [2, 0, 1]
    with pytest.raises(TeacherError):
        task.head.groups({0: "US", 1: "uS", 2: "us"}, None, "teacher")


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
        task_of().head.groups(dict(enumerate(theirs)), None, "teachers.big")
    assert caught.value.exit_code == 2
    if len(set(theirs)) < len(theirs):
        assert caught.value.cause == f"teachers.big: a label stands twice in {list(theirs)}"
    else:
        assert caught.value.cause == (
            f"teachers.big: its labels {list(theirs)} are not those of task movies: {list(LABELS)}"
        )
    assert "teachers.big.labels" in caught.value.remedy


def test_a_head_answers_in_the_tasks_order(tiny_model: TinyModel) -> None:
    task = task_of()
    model = task.head.attach(AutoModel.from_config(open_config(tiny_model("bert"))))
    assert model.num_labels == 3
    assert columns_of(task, model.config.id2label) == [0, 1, 2]
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}


# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_and_pad_give_the_tokenizers_own_ids(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    tokenizer = open_tokenizer(tiny_model(architecture))
    texts = [*texts_of(0, 12), "", "Ünknown ☃ words", "x" * 90, "so-so, really!"]
    encoded = task_of().head.encode(tokenizer, {"text": texts})
    rows = np.array([3, 0, 12, 14, 15, 7, 13])
    expected = tokenizer(
        [texts[i] for i in rows], truncation=True, max_length=16, padding=True, return_tensors="np"
    )
    batch = encoded.pad(rows).inputs
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
    encoded = task_of(max_length=max_length).head.encode(tokenizer, {"text": texts})
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    expected = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    np.testing.assert_array_equal(
        encoded.pad(np.arange(len(texts))).inputs["input_ids"], expected["input_ids"]
    )
    assert encoded.lengths.tolist() == [min(length, max_length) for length in whole]
    assert encoded.truncated == sum(length > max_length for length in whole)


@cache
def opened(folder: Path) -> Any:
    return open_tokenizer(folder)


def test_truncated_texts_are_counted_to_the_text(tiny_model: TinyModel) -> None:
    tokenizer = open_tokenizer(tiny_model("bert"))
    texts = [" ".join(["good"] * words) for words in (5, 6, 7, 100)]  # 7, 8, 9 and 102 tokens
    encoded = task_of(max_length=8).head.encode(tokenizer, {"text": texts})
    assert encoded.lengths.tolist() == [7, 8, 8, 8]
    assert encoded.truncated == 2
    assert task_of(max_length=64).head.encode(tokenizer, {"text": texts[:3]}).truncated == 0


def test_two_models_read_the_same_text_each_in_its_own_ids(tiny_model: TinyModel) -> None:
    text = {"text": ["a good film"]}
    bert, mpnet = (task_of().head.encode(open_tokenizer(tiny_model(a)), text) for a in ("bert", "mpnet"))
    assert bert.columns["input_ids"].tolist() != mpnet.columns["input_ids"].tolist()
    assert bert.lengths.tolist() == mpnet.lengths.tolist()
    assert (bert.pads["input_ids"], mpnet.pads["input_ids"]) == (0, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_does_not_change_what_a_model_says(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS)
    model = open_model(AutoModelForSequenceClassification, folder)
    encoded = task_of().head.encode(open_tokenizer(folder), {"text": texts_of(1, 6)})

    def answers(rows: list[int]) -> Tensor:
        with torch.no_grad():
            batch = TensorBatch.of(encoded.pad(np.array(rows)), torch.device("cpu"))
            logits: Tensor = task_of().head.read_out(model(**batch.inputs), batch)
        return logits

    together = answers([0, 1, 2, 3, 4, 5])
    alone = torch.cat([answers([i]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- pairs of texts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pair_encodes_as_the_tokenizer_does(tiny_model: TinyModel, architecture: Architecture) -> None:
    tokenizer = opened(tiny_model(architecture))
    first, second = texts_of(0, 6), texts_of(1, 6)
    second[2], first[3] = "good " * 40, "bad " * 40  # of a pair the longer loses tokens first
    task = text_classification("movies", LABELS, 16, fields=("text", "text_pair"))
    encoded = task.head.encode(tokenizer, {"text": first, "text_pair": second})
    expected = tokenizer(first, second, truncation=True, max_length=16, padding=True, return_tensors="np")
    batch = encoded.pad(np.arange(6)).inputs
    assert batch.keys() == expected.keys()
    for name, column in batch.items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
    whole = [len(ids) for ids in tokenizer(first, second)["input_ids"]]
    assert encoded.truncated == sum(length > 16 for length in whole) >= 2
    swapped = task.head.encode(tokenizer, {"text": second, "text_pair": first})
    assert swapped.columns["input_ids"].tolist() != encoded.columns["input_ids"].tolist()


def test_another_max_length_than_the_tasks(tiny_model: TinyModel) -> None:
    tokenizer, text = opened(tiny_model("bert")), {"text": ["good " * 40]}
    assert task_of().head.encode(tokenizer, text).lengths.tolist() == [16]
    assert task_of().head.encode(tokenizer, text, 9).lengths.tolist() == [9]
    assert task_of().head.encode(tokenizer, text, 32).lengths.tolist() == [32]


# ---------------------------------------------------------------- losses and scores


def test_values_are_rows_and_labels_are_row_labels() -> None:
    values, labels, counts = torch.randn(4, 3), torch.tensor([0, 2, UNLABELLED, 1]), torch.ones(4)
    task = task_of()
    assert torch.equal(task.head.rows(values, counts), values)
    assert torch.equal(task.head.flat(values, counts), values)
    assert torch.equal(task.head.row_labels(labels, counts), labels)
    assert (task.head.columns, task.head.row_weight, task.kind.continuous) == (LABELS, 1, False)
    assert task.reading.labelled(Ragged.single(labels.numpy())).tolist() == [True, True, False, True]


def some_answers(n: int = 300) -> tuple[NDArray[np.float32], Examples]:
    rng = np.random.default_rng(0)
    gold = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    values = rng.normal(size=(n, 3)).astype(np.float32)
    values[np.arange(n), gold] += 1
    return values, Examples("movies", np.arange(n, dtype=np.uint64), {"text": [""] * n}, Ragged.single(gold))


@pytest.mark.parametrize("metric", TEXT_CLASSIFICATION.selecting)
def test_the_metric_comes_from_sums_over_examples(metric: str) -> None:
    values, examples = some_answers()
    task = text_classification("movies", LABELS, 16, metric)
    sums = task.scoring.statistics(values, examples)
    assert len(sums) == len(values)
    assert float(task.scoring.score_of(sums.sum(0))) == pytest.approx(
        task.scoring.scores(values, examples)[metric], abs=1e-6
    )
    halves = np.stack((sums[:150].sum(0), sums[150:].sum(0)))
    first = examples.take(np.arange(150))
    assert task.scoring.score_of(halves)[0] == pytest.approx(
        task.scoring.scores(values[:150], first)[metric], abs=1e-6
    )


@pytest.mark.parametrize("metric", TEXT_CLASSIFICATION.selecting)
def test_the_constant_answer_is_the_most_frequent_label(metric: str) -> None:
    values, examples = some_answers()
    task = text_classification("movies", LABELS, 16, metric)
    constant = np.zeros_like(values)
    constant[:, 0] = 1
    expected = task.scoring.scores(constant, examples)[metric]
    assert task.scoring.constant_score(examples) == pytest.approx(expected, abs=1e-6)


def test_scores_do_not_tell_logits_from_log_probabilities() -> None:
    values, examples = some_answers()
    log_probabilities = values - np.log(np.exp(values).sum(1, keepdims=True))
    first, second = (task_of().scoring.scores(each, examples) for each in (values, log_probabilities))
    assert first == pytest.approx(second, abs=1e-6)
    found = task_of().scoring.classified(values, examples)
    assert found is not None
    assert found[0] is values
    assert found[1].tolist() == examples.labels.values.tolist()
