"""Regression: numbers as they are in reports and the store, standardised in the losses."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Examples, Ragged
from pipeline.config.kinds import REGRESSION
from pipeline.config.schema import TaskConfig
from pipeline.errors import DataError, TeacherError
from pipeline.losses import LossWeights, task_loss
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.soft import Dense
from pipeline.tasks import MAKERS, Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.regression import NumberHead, from_train, regression
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.step import Aggregation, MicroBatch, loss_inputs, predict
from students.export import save_task
from students.student import build_student
from teachers.ensemble import ensemble_values
from teachers.store_key import store_key
from tests.conftest import Architecture, TinyModel, texts_of

TASK = regression("stars", 16, center=3.0, scale=2.0)
CONFIG = TaskConfig.model_validate(
    {"kind": "text-classification", "problem": "regression", "data": {"path": "json"}}
)
WEIGHTS = LossWeights({"hard": 0.3, "soft": 0.7}, 4.0)


def columns_of(labels: Sequence[Any]) -> dict[str, Column]:
    return {"text": Column([f"text {i}" for i in range(len(labels))]), "label": Column(labels)}


def examples_of(gold: Sequence[float] | NDArray[np.float64]) -> Examples:
    numbers = np.asarray(gold, dtype=np.float64)
    keys = np.arange(len(numbers), dtype=np.uint64)
    return Examples("stars", keys, {"text": [""] * len(numbers)}, Ragged.single(numbers))


def answers(n: int = 200) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    gold = rng.integers(1, 6, n).astype(np.float64)  # with ties
    return (gold + rng.normal(0, 1, n)).astype(np.float32)[:, None], gold


# ---------------------------------------------------------------- data


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert MAKERS[REGRESSION] is from_train
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert (task.scoring.metric, task.kind.continuous, task.head.columns, task.reading.labels) == (
        "pearson",
        True,
        ("value",),
        (),
    )
    assert task.head.row_weight == 1


def test_the_scale_is_that_of_the_training_labels() -> None:
    head = from_train("stars", CONFIG, columns_of([1, 2.0, None, 6])).head
    assert isinstance(head, NumberHead)
    assert head.center == 3.0
    assert head.scale == pytest.approx(np.std([1, 2, 6]))


def test_numbers_are_read_as_they_are() -> None:
    _, labels = TASK.reading.read(columns_of([1, 2.5, None, -3]), "train")
    assert labels.values.dtype == np.float64
    np.testing.assert_array_equal(labels.values, [1, 2.5, np.nan, -3])
    assert TASK.reading.labelled(labels).tolist() == [True, True, False, True]
    columns = columns_of([1])
    del columns["label"]
    assert not TASK.reading.labelled(TASK.reading.read(columns, "unlabelled")[1]).any()


@pytest.mark.parametrize("value", ["four", "", True, math.nan, math.inf, [1.0]])
def test_what_is_no_number_is_refused_with_its_row(value: object) -> None:
    with pytest.raises(DataError) as caught:
        TASK.reading.read(columns_of([1.0, value]), "test")
    assert caught.value.cause == f"tasks.stars: row 1 of test: label {value!r} is not a number"


def test_a_number_may_be_written_as_text_or_as_a_decimal() -> None:
    """As where one cell of a csv column was no number, and in parquet."""
    _, labels = TASK.reading.read(columns_of(["2.5", Decimal("3.25"), 4]), "test")
    assert labels.values.tolist() == [2.5, 3.25, 4.0]


@pytest.mark.parametrize("value", [425_984.0, 1995.25, 1e30])
def test_large_numbers_are_stored_as_they_are(value: float) -> None:
    """float16 ends at 65,504, and of years it knows every second."""
    soft = Dense(Ragged.single(np.array([[value]])), TASK.head.columns).half()
    assert soft.values[0, 0] == np.float32(value)


@pytest.mark.parametrize("values", [[2, 2, 2.0], [2.0], [None, 1.0], [None]])
def test_a_single_number_teaches_nothing(values: list[float | None]) -> None:
    with pytest.raises(DataError, match="the same number"):
        from_train("stars", CONFIG, columns_of(values))


def test_a_label_space_is_refused() -> None:
    data = CONFIG.data.model_copy(update={"labels": ("a", "b")})
    with pytest.raises(DataError, match="regression has no label space"):
        from_train("stars", CONFIG.model_copy(update={"data": data}), columns_of([1, 2]))


# ---------------------------------------------------------------- losses


def batch_of(labels: Tensor, teachers: Tensor | None = None) -> MicroBatch:
    ones = torch.ones(len(labels), dtype=torch.int64)
    return MicroBatch(TensorBatch({}, {}, ones, ones), labels, teachers)


def losses_of(task: Task, values: Tensor, labels: Tensor, teachers: Tensor) -> dict[str, float]:
    share = Aggregation("mean", torch.full((len(teachers),), 1 / len(teachers)))
    inputs = loss_inputs(task, values, batch_of(labels, teachers), WEIGHTS, share)
    _, terms = task_loss(inputs, WEIGHTS, len(values), task.head.losses)
    return {name: float(term) for name, term in terms.items()}


def test_losses_are_squared_errors_in_standard_deviations() -> None:
    """By hand: off by 2 and by 4 from the labels, by 0 and 2 from the teachers' mean; the deviation is 2."""
    values, labels = torch.tensor([[3.0], [5.0]]), torch.tensor([1.0, 1.0], dtype=torch.float64)
    teachers = torch.tensor([[[2.0], [3.0]], [[4.0], [3.0]]])
    found = losses_of(TASK, values, labels, teachers)
    assert found == {"hard": (1 + 4) / 2, "soft": (0 + 1) / 2}


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 1000), st.floats(-100, 100))
def test_losses_do_not_depend_on_the_unit(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(6, 1, generator=generator), torch.randn(6, generator=generator)
    teachers = torch.randn(2, 6, 1, generator=generator)
    task = regression("stars", 16)
    other = regression("stars", 16, center=shift, scale=scale)
    expected = losses_of(task, values, labels, teachers)
    found = losses_of(other, values * scale + shift, labels * scale + shift, teachers * scale + shift)
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)  # a large shift costs float32 its digits


def test_half_precision_is_computed_in_float32() -> None:
    """Numbers whose standardised form half precision would round again."""
    task = regression("stars", 16, center=1000.3, scale=0.7)
    teachers = torch.tensor([[[1001.0], [999.5]]]).half()
    values, labels = torch.tensor([[1000.0], [1000.5]]), torch.tensor([1000.0, 1001.0])
    expected = losses_of(task, values, labels, teachers.float())
    assert losses_of(task, values, labels, teachers) == expected


def test_examples_without_a_number_have_the_soft_loss_alone() -> None:
    values = torch.tensor([[3.0], [5.0]])
    teachers = torch.tensor([[[1.0], [5.0]]])
    found = losses_of(TASK, values, torch.tensor([math.nan, 5.0]), teachers)
    assert found == {"hard": 0.0, "soft": 0.5}


def test_rows_and_values_lead_into_each_other() -> None:
    values, counts = torch.randn(4, 1), torch.ones(4, dtype=torch.int64)
    rows = TASK.head.rows(values, counts)
    assert torch.allclose(rows, (values - 3) / 2)
    assert torch.allclose(TASK.head.flat(rows, counts), values)


def test_an_ensemble_is_the_weighted_mean() -> None:
    teachers = [np.array([[1.0], [2.0]], dtype=np.float32), np.array([[5.0], [-2.0]], dtype=np.float32)]
    found = ensemble_values(TASK, teachers, np.ones(2, dtype=np.int64), "mean", {"a": 0.75, "b": 0.25})
    np.testing.assert_allclose(found, [[2.0], [1.0]], atol=1e-6)


# ---------------------------------------------------------------- scores


def test_scores_are_scipys() -> None:
    values, gold = answers()
    found = TASK.scoring.scores(values, examples_of(gold))
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(values[:, 0], gold).statistic)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(values[:, 0], gold).statistic)
    assert found["mse"] == pytest.approx(np.mean((values[:, 0] - gold) ** 2))
    assert found["mae"] == pytest.approx(np.mean(np.abs(values[:, 0] - gold)))
    assert list(found) == ["pearson", "spearman", "mse", "mae"]


def test_large_numbers_do_not_cancel() -> None:
    values, gold = answers()
    shifted = TASK.scoring.scores(values.astype(np.float64) + 1e7, examples_of(gold + 1e7))
    assert shifted["pearson"] == pytest.approx(
        TASK.scoring.scores(values, examples_of(gold))["pearson"], abs=1e-9
    )


def test_a_constant_answer_correlates_with_nothing() -> None:
    _, gold = answers()
    found = TASK.scoring.scores(np.full((len(gold), 1), 4.0), examples_of(gold))
    assert (found["pearson"], found["spearman"]) == (0, 0)
    assert TASK.scoring.constant_score(examples_of(gold)) == 0


@pytest.mark.parametrize("metric", REGRESSION.selecting)
def test_the_metric_comes_from_sums_over_examples(metric: str) -> None:
    values, gold = answers()
    task, examples = regression("stars", 16, metric), examples_of(gold)
    sums = task.scoring.statistics(values, examples)
    assert float(task.scoring.score_of(sums.sum(0))) == pytest.approx(
        task.scoring.scores(values, examples)[metric]
    )
    twice = np.stack((sums.sum(0), 2 * sums.sum(0)))  # every example twice over
    assert task.scoring.score_of(twice)[1] == pytest.approx(task.scoring.score_of(twice)[0])


def test_agreement_is_pearsons() -> None:
    values, gold = answers()
    other = (2 * gold - 7)[:, None]
    expected = scipy.stats.pearsonr(values[:, 0], gold).statistic
    assert TASK.scoring.agreement(values, other, examples_of(gold)) == pytest.approx(expected)
    assert TASK.scoring.classified(values, examples_of(gold)) is None


def test_a_missing_number_is_refused() -> None:
    values, gold = answers(4)
    gold[2] = np.nan
    with pytest.raises(DataError, match="1 of 4 examples to score have no label"):
        TASK.scoring.scores(values, examples_of(gold))


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_a_new_head_starts_at_the_mean(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture)
    texts = texts_of(0, 8) + texts_of(1, 8)
    task = regression("stars", 16, center=1000.0, scale=5.0)
    encoded = task.head.encode(open_tokenizer(folder), {"text": texts})
    said = predict(build_student(folder, [task]), task, encoded, 100)
    assert said.shape == (16, 1)
    assert np.abs(said - 1000).max() < 5 * 3
    plain = predict(build_student(folder, [regression("stars", 16)]), task, encoded, 100)
    np.testing.assert_allclose(said, 5 * plain + 1000, atol=1e-2, rtol=0)  # the same head, in its unit


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_large_numbers_are_not_rounded_in_training(tiny_model: TinyModel, architecture: Architecture) -> None:
    """Of the years around 2000 bf16 knows every eighth."""
    folder = tiny_model(architecture)
    task = regression("stars", 16, center=2000.0, scale=10.0)
    student, tokenizer = build_student(folder, [task]), open_tokenizer(folder)
    encoded = task.head.encode(tokenizer, {"text": texts_of(0, 16)})
    batch = TensorBatch.of(encoded.pad(np.arange(16)), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.head.read_out(student("stars", batch.inputs), batch)
    exact = task.head.read_out(student("stars", batch.inputs), batch)
    assert len(rounded.unique()) > 8
    assert (rounded - exact).abs().max() < 1


@pytest.mark.parametrize(
    ("outputs", "declared"), [({0: "bad", 1: "good"}, None), ({0: "LABEL_0"}, {"LABEL_0": "value"})]
)
def test_a_teacher_with_labels_is_refused(
    outputs: dict[int, str], declared: dict[str, str | None] | None
) -> None:
    with pytest.raises(TeacherError, match=r"teachers\.t: task stars is a regression"):
        TASK.head.groups(outputs, declared, "teachers.t")


def test_the_name_of_the_one_output_does_not_matter() -> None:
    assert TASK.head.groups({0: "LABEL_0"}, None, "teachers.t") is None
    assert TASK.head.groups({0: "score"}, None, "teachers.t") is None


def test_transformers_and_a_teacher_say_what_the_student_says(tiny_model: TinyModel, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, pipeline

    folder = tiny_model("bert")
    student, tokenizer = build_student(folder, [TASK]), open_tokenizer(folder)
    with torch.no_grad():
        student.model("stars").classifier.weight.mul_(20)
    texts = texts_of(0, 5) + texts_of(1, 5)
    values = predict(student, TASK, TASK.head.encode(tokenizer, {"text": texts}), 100)
    save_task(student, "stars", tokenizer, tmp_path / "stars")
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stars", output_loading_info=True)
    assert not any(info.values())
    answer: Any = pipeline("text-classification", str(tmp_path / "stars"))
    np.testing.assert_allclose([row["score"] for row in answer(texts)], values[:, 0], atol=1e-4)
    assert {row["label"] for row in answer(texts)} == {"value"}
    found, truncated = Predictor(tmp_path / "stars", TASK).predict({"text": texts})
    np.testing.assert_allclose(found.values, values, atol=1e-4)
    assert truncated == 0


def test_the_training_labels_do_not_name_soft_targets(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("bert")
    save_task(build_student(folder, [TASK]), "stars", open_tokenizer(folder), tmp_path / "stars")
    key = store_key(tmp_path / "stars", TASK, "fp32")
    assert store_key(tmp_path / "stars", regression("stars", 16, center=9.0), "fp32") == key
