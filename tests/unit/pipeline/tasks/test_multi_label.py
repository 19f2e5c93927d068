"""Multi-label classification: lists of labels, losses as binary cross-entropies, scores as scikit-learn's."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import BCEWithLogitsLoss
from torchmetrics.functional.classification import multilabel_exact_match, multilabel_f1_score

from pipeline.batch import ABSENT, UNLABELLED, Examples, Ragged
from pipeline.config.kinds import MULTI_LABEL
from pipeline.config.schema import Strategy, TaskConfig, strategies
from pipeline.errors import DataError
from pipeline.losses import LossWeights, hard_cross_entropy, soft_kl, task_loss
from pipeline.models import open_tokenizer
from pipeline.tasks import MAKERS, Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.multi_label import from_train, multi_label
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.step import Aggregation, MicroBatch, loss_inputs
from students.export import save_task
from students.student import build_student
from teachers.aggregation import aggregate
from teachers.ensemble import ensemble_values
from tests.conftest import TinyModel, texts_of

LABELS = ("calm", "glad", "loud")
TASK = multi_label("moods", LABELS, 16)
CONFIG = TaskConfig.model_validate(
    {"kind": "text-classification", "problem": "multi_label", "data": {"path": "json"}}
)


def columns_of(labels: Sequence[Any], names: tuple[str, ...] | None = None) -> dict[str, Column]:
    texts = [f"text {i}" for i in range(len(labels))]
    return {"text": Column(texts), "label": Column(labels, names)}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def examples_of(gold: NDArray[np.int64]) -> Examples:
    keys = np.arange(len(gold), dtype=np.uint64)
    return Examples("moods", keys, {"text": [""] * len(gold)}, Ragged.single(gold))


def answers(n: int = 200, labels: int = 3, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    gold = (rng.random((n, labels)) < np.linspace(0.6, 0.1, labels)).astype(np.int64)
    return (2 * gold - 1 + rng.normal(0, 1.2, gold.shape)).astype(np.float32), gold


# ---------------------------------------------------------------- data


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert MAKERS[MULTI_LABEL] is from_train
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert (task.scoring.metric, task.kind.continuous, task.head.columns) == ("micro_f1", False, LABELS)
    assert task.head.row_weight == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("declared", "names", "values", "labels"),
    [
        (None, None, [["glad"], [], ["loud", "calm"], None], LABELS),
        (None, ("sad", "calm", "glad"), [[1], [0, 2]], ("sad", "calm", "glad")),
        (["loud", "calm"], None, [["calm"], []], ("loud", "calm")),
    ],
)
def test_the_label_space(
    declared: list[str] | None, names: tuple[str, ...] | None, values: list[Any], labels: tuple[str, ...]
) -> None:
    data = CONFIG.data.model_copy(update={"labels": declared})
    task = from_train("moods", CONFIG.model_copy(update={"data": data}), columns_of(values, names))
    assert task.reading.labels == labels


def test_a_list_of_labels_is_read_as_marks() -> None:
    inputs, labels = TASK.reading.read(columns_of([["glad"], [], ["loud", "calm"], None, ("calm",)]), "train")
    assert list(inputs["text"])[:2] == ["text 0", "text 1"]
    none = [UNLABELLED] * 3
    assert labels.values.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], none, [1, 0, 0]]
    assert TASK.reading.labelled(labels).tolist() == [True, True, True, False, True]
    assert labels.counts.tolist() == [1] * 5


VECTORS = [[0, 1, 1], [0, 0, 0], [1, 0, 1], None]


@pytest.mark.parametrize("kind", [int, float, bool])
def test_vectors_of_0_and_1_are_read_as_marks(kind: type) -> None:
    vectors = [None if row is None else [kind(one) for one in row] for row in VECTORS]
    data = CONFIG.data.model_copy(update={"labels": LABELS})
    task = from_train("moods", CONFIG.model_copy(update={"data": data}), columns_of(vectors))
    _, labels = task.reading.read(columns_of(vectors), "train")
    assert labels.values.tolist() == [[UNLABELLED] * 3 if row is None else row for row in VECTORS]


def test_vectors_without_as_many_labels_are_refused() -> None:
    with pytest.raises(DataError, match="labels of train are vectors of 3 numbers, 0 or 1") as caught:
        from_train("moods", CONFIG, columns_of(VECTORS))
    assert caught.value.remedy == "Name the 3 labels in data.labels, in the order of the vectors."
    with pytest.raises(DataError, match="labels of test are vectors of 2 numbers"):
        TASK.reading.read(columns_of([[0, 0], [0, 1]]), "test")


def test_lists_of_class_numbers_of_one_length_are_no_vectors() -> None:
    _, labels = TASK.reading.read(columns_of([[0, 1], [1, 0]]), "train")
    assert labels.values.tolist() == [[1, 1, 0]] * 2


def test_class_numbers_are_read_by_the_data_sets_names() -> None:
    _, labels = TASK.reading.read(columns_of([[0, 2], [1]], ("loud", "glad", "calm")), "train")
    assert labels.values.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_without_a_column_nothing_is_labelled() -> None:
    columns = columns_of([[], []])
    del columns["label"]
    _, labels = TASK.reading.read(columns, "unlabelled")
    assert labels.values.shape == (2, 3)
    assert not TASK.reading.labelled(labels).any()


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ([["calm"], "glad"], "row 1 of test: label is 'glad', not a list of labels"),
        ([["calm"], 1], "row 1 of test: label is 1, not a list of labels"),
        ([[], ["calm", "odd"]], f"row 1 of test: label 'odd' is not one of {list(LABELS)}"),
        ([["calm", None]], "row 0 of test: label None is not one of"),
    ],
)
def test_what_is_no_list_of_labels_is_refused_with_its_row(values: list[Any], cause: str) -> None:
    with pytest.raises(DataError) as caught:
        TASK.reading.read(columns_of(values), "test")
    assert caught.value.cause.startswith(f"tasks.moods: {cause}")


# ---------------------------------------------------------------- losses


def batch_of(values: Tensor, labels: Tensor, teachers: Tensor | None = None) -> MicroBatch:
    ones = torch.ones(len(values), dtype=torch.int64)
    return MicroBatch(TensorBatch({}, {}, ones, ones), labels, teachers)


def test_the_hard_loss_is_the_mean_binary_cross_entropy() -> None:
    values, labels = gaussian(7, 3).requires_grad_(), (gaussian(7, 3, seed=1) > 0).long()
    inputs = loss_inputs(
        TASK, values, batch_of(values, labels), LossWeights({"hard": 1.0, "soft": 0.0}, 1.0), None
    )
    assert inputs.logits.shape == (21, 2)
    total, _ = task_loss(inputs, LossWeights({"hard": 1.0, "soft": 0.0}, 1.0), 7)
    expected = BCEWithLogitsLoss()(values, labels.float())
    assert torch.allclose(total, expected)
    own, theirs = (torch.autograd.grad(loss, values)[0] for loss in (total, expected))
    assert torch.allclose(own, theirs, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_soft_loss_is_the_bernoullis_divergence(temperature: float) -> None:
    values, teacher = gaussian(7, 3), gaussian(1, 7, 3, seed=1)
    labels = torch.full((7, 3), UNLABELLED)
    weights = LossWeights({"hard": 0.0, "soft": 1.0}, temperature)
    aggregation = Aggregation("mean", torch.ones(1))
    inputs = loss_inputs(TASK, values, batch_of(values, labels, teacher), weights, aggregation)
    _, terms = task_loss(inputs, weights, 7)
    p, q = torch.sigmoid(teacher[0] / temperature), torch.sigmoid(values / temperature)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(terms["soft"], temperature**2 * divergence.mean(), rtol=1e-4)


def test_the_soft_loss_is_zero_where_student_is_teacher() -> None:
    values = gaussian(7, 3)
    weights, labels = LossWeights({"hard": 0.3, "soft": 0.7}, 3.0), torch.full((7, 3), UNLABELLED)
    batch = batch_of(values, labels, values.unsqueeze(0))
    _, terms = task_loss(
        loss_inputs(TASK, values, batch, weights, Aggregation("mean", torch.ones(1))), weights, 7
    )
    assert float(terms["soft"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["hard"]) == 0  # no labels


def test_rows_and_values_lead_into_each_other() -> None:
    values, counts = gaussian(4, 3), torch.ones(4, dtype=torch.int64)
    rows = TASK.head.rows(values, counts)
    assert torch.equal(TASK.head.flat(rows, counts), values)
    assert torch.allclose(TASK.head.flat(rows.log_softmax(-1), counts), values, atol=1e-6)
    assert TASK.head.rows(gaussian(5, 4, 3), counts).shape == (5, 12, 2)
    assert torch.equal(
        TASK.head.rows(gaussian(5, 4, 3), counts)[3], TASK.head.rows(gaussian(5, 4, 3)[3], counts)
    )
    marks = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert TASK.head.row_labels(marks, counts).tolist() == marks.flatten().tolist()


# ---------------------------------------------------------------- several teachers


@pytest.mark.parametrize("strategy", strategies(MULTI_LABEL, labelled=True))
def test_each_label_is_aggregated_by_itself(strategy: Strategy) -> None:
    teachers, labels = gaussian(2, 5, 3), (gaussian(5, 3, seed=1) > 0).long()
    counts, weights = torch.ones(5, dtype=torch.int64), torch.tensor([0.7, 0.3])

    def aggregated(task: Task, values: Tensor, marks: Tensor) -> Tensor:
        target = aggregate(
            task.head.rows(values, counts),
            strategy=strategy,
            weights=weights,
            temperature=2.0,
            labels=task.head.row_labels(marks, counts),
        )
        return target.view(5, -1, 2)

    together = aggregated(TASK, teachers, labels)
    for label in range(3):
        one = multi_label("one", (LABELS[label],), 16)
        alone = aggregated(one, teachers[..., [label]], labels[:, [label]])
        torch.testing.assert_close(together[:, [label]], alone, atol=1e-6, rtol=0)  # vector lanes may round


def test_the_mean_is_of_probabilities() -> None:
    teachers = [gaussian(5, 3).numpy(), gaussian(5, 3, seed=1).numpy()]
    found = ensemble_values(TASK, teachers, np.ones(5, dtype=np.int64), "mean", {"a": 0.7, "b": 0.3})
    sigmoid = [torch.sigmoid(torch.from_numpy(each)) for each in teachers]
    expected = 0.7 * sigmoid[0] + 0.3 * sigmoid[1]
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, atol=1e-6)


@pytest.mark.parametrize("strategy", strategies(MULTI_LABEL, labelled=True))
def test_a_teacher_that_lacks_a_label_does_not_say_no(strategy: Strategy) -> None:
    first, second = gaussian(5, 3), gaussian(5, 3, seed=1)
    first[:, 1] = ABSENT
    labels = torch.ones(5, 3, dtype=torch.int64)
    batch = batch_of(second, labels, torch.stack((first, second)))
    aggregation, weights = (
        Aggregation(strategy, torch.tensor([0.9, 0.1])),
        LossWeights({"hard": 0.5, "soft": 0.5}, 2.0),
    )
    inputs = loss_inputs(TASK, second, batch, weights, aggregation)
    assert inputs.target is not None
    alone = torch.softmax(TASK.head.rows(second, batch.tokens.counts) / 2.0, dim=-1)
    of_the_label = inputs.target.view(5, 3, 2)[:, 1]
    assert torch.allclose(of_the_label, alone.view(5, 3, 2)[:, 1], atol=1e-6)
    assert soft_kl(inputs.logits, inputs.target, 2.0).view(5, 3)[:, 1].abs().max() < 1e-5


def test_a_label_that_no_teacher_knows_has_the_hard_loss_alone() -> None:
    teacher, values = gaussian(5, 3), gaussian(5, 3, seed=1)
    teacher[:, 2] = ABSENT
    labels = torch.ones(5, 3, dtype=torch.int64)
    weights = LossWeights({"hard": 0.5, "soft": 0.5}, 2.0)
    batch = batch_of(values, labels, teacher.unsqueeze(0))
    inputs = loss_inputs(TASK, values, batch, weights, Aggregation("mean", torch.ones(1)))
    assert inputs.taught is not None
    assert inputs.taught.view(5, 3).tolist() == [[1, 1, 0]] * 5
    _, terms = task_loss(inputs, weights, 5)
    assert torch.isfinite(terms["soft"])
    hard = hard_cross_entropy(inputs.logits, inputs.labels)
    assert torch.allclose(terms["hard"], hard.sum() / 15)


def test_groups_take_the_largest() -> None:
    groups = TASK.head.groups({0: "calm", 1: "happy", 2: "glad"}, {"happy": "glad"}, "teachers.t")
    assert groups == ((0,), (1, 2), ())
    found = TASK.head.marginalise(torch.tensor([[1.0, 2.0, 3.0]]), groups)
    assert found.tolist() == [[1.0, 3.0, ABSENT]]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("labels", [2, 3, 12])
def test_scores_are_scikit_learns_and_torchmetrics(labels: int) -> None:
    values, gold = answers(labels=labels)
    task = multi_label("moods", tuple(map(str, range(labels))), 16)
    found, said = task.scoring.scores(values, examples_of(gold)), (values > 0).astype(int)
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(gold, said, average=average, zero_division=np.nan)
        assert found[f"{average}_f1"] == pytest.approx(expected, abs=1e-9)
        theirs = multilabel_f1_score(torch.tensor(said), torch.tensor(gold), labels, average=average)
        assert found[f"{average}_f1"] == pytest.approx(theirs.item(), abs=1e-6)
    exact = multilabel_exact_match(torch.tensor(said), torch.tensor(gold), labels)
    assert found["subset_accuracy"] == pytest.approx(exact.item(), abs=1e-6)
    assert found["subset_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, said))
    nll = BCEWithLogitsLoss()(torch.from_numpy(values).double(), torch.from_numpy(gold).double())
    assert found["nll"] == pytest.approx(nll.item())
    assert 0 < found["ece"] < 1
    assert list(found) == ["micro_f1", "macro_f1", "subset_accuracy", "nll", "ece"]


def test_scores_by_hand() -> None:
    """Said: {calm}, {calm, glad}, {}; true: {calm}, {glad}, {}: loud neither occurs nor is said."""
    values = np.array([[1.0, -1, -1], [1, 1, -1], [-1, -1, -1]], dtype=np.float32)
    gold = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = TASK.scoring.scores(values, examples_of(gold))
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["subset_accuracy"] == pytest.approx(2 / 3)
    sure = 1 / (1 + math.exp(-1))  # eight of nine right, all as sure
    assert found["ece"] == pytest.approx(abs(8 / 9 - sure))


@pytest.mark.parametrize("metric", MULTI_LABEL.selecting)
def test_nothing_said_where_nothing_is_true_is_finite(metric: str) -> None:
    gold = np.zeros((4, 3), dtype=np.int64)
    task = multi_label("moods", LABELS, 16, metric)
    found = task.scoring.scores(np.full((4, 3), -1.0), examples_of(gold))
    assert np.isfinite(list(found.values())).all()
    assert found["subset_accuracy"] == 1
    assert np.isfinite(task.scoring.constant_score(examples_of(gold)))


@pytest.mark.parametrize("metric", MULTI_LABEL.selecting)
def test_the_metric_comes_from_sums_over_examples(metric: str) -> None:
    values, gold = answers()
    task, examples = multi_label("moods", LABELS, 16, metric), examples_of(gold)
    sums = task.scoring.statistics(values, examples)
    assert float(task.scoring.score_of(sums.sum(0))) == pytest.approx(
        task.scoring.scores(values, examples)[metric]
    )


@pytest.mark.parametrize("metric", MULTI_LABEL.selecting)
def test_the_constant_answer_is_the_best_of_all(metric: str) -> None:
    _, gold = answers(n=60)
    task, examples = multi_label("moods", LABELS, 16, metric), examples_of(gold)
    every = [np.array([[bool(bits & 1 << c) for c in range(3)]]) for bits in range(8)]
    scores = [task.scoring.scores(np.repeat(2.0 * one - 1, 60, axis=0), examples)[metric] for one in every]
    assert task.scoring.constant_score(examples) <= max(scores) + 1e-9
    assert task.scoring.constant_score(examples) >= sorted(scores)[-2]


def test_agreement_is_by_label() -> None:
    a, b = np.array([[1.0, -1, 1], [1, 1, -1]]), np.array([[2.0, 1, 3], [1, -4, -1]])
    assert TASK.scoring.agreement(a, b, examples_of(np.zeros((2, 3), dtype=np.int64))) == pytest.approx(4 / 6)
    assert TASK.scoring.classified(a, examples_of(np.zeros((2, 3), dtype=np.int64))) is None


def test_a_missing_label_is_refused() -> None:
    values, gold = answers(n=4)
    gold[1] = UNLABELLED
    with pytest.raises(DataError, match="1 of 4 examples to score have no label"):
        TASK.scoring.scores(values, examples_of(gold))


# ---------------------------------------------------------------- use


def test_transformers_says_what_the_student_says(tiny_model: TinyModel, tmp_path: Path) -> None:
    from transformers import pipeline

    from pipeline.training.step import predict

    folder = tiny_model("bert")
    student, tokenizer = build_student(folder, [TASK]), open_tokenizer(folder)
    with torch.no_grad():
        student.model("moods").classifier.weight.mul_(20)
    save_task(student, "moods", tokenizer, tmp_path / "moods")
    texts = texts_of(0, 3) + texts_of(1, 3)
    values = predict(student, TASK, TASK.head.encode(tokenizer, {"text": texts}), 100)
    answer: Any = pipeline("text-classification", str(tmp_path / "moods"), top_k=None)
    found = [{each["label"]: each["score"] for each in row} for row in answer(texts)]
    scores = [[row[label] for label in LABELS] for row in found]
    np.testing.assert_allclose(scores, torch.from_numpy(values).sigmoid(), atol=1e-5)  # they sum to anything
