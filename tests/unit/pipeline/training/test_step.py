"""One step: gradients do not depend on how its rows are cut up; `predict` on how they are batched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, UNLABELLED, Drawn
from pipeline.config.schema import Strategy
from pipeline.losses import LossInputs, LossWeights, task_loss
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.feed import TaskSet
from pipeline.training.step import (
    Aggregation,
    MicroBatch,
    WithLoss,
    Workers,
    accumulate,
    loss_inputs,
    predict,
)
from students.student import MultiTaskStudent
from teachers.aggregation import aggregate
from tests.unit.pipeline.small_training import largest_difference, student_of, task_of, task_set

WEIGHTS = LossWeights({"hard": 0.3, "soft": 0.7}, temperature=2.0)
CPU = torch.device("cpu")
FULL = torch.autocast("cpu", enabled=False)
STRATEGIES: tuple[Strategy, ...] = ("mean", "log_mean", "confidence", "entropy", "best")


def micro_batch(task_set: TaskSet, rows: NDArray[np.int64], *, filler: bool = False) -> MicroBatch:
    targets = [source.targets(Drawn(task_set.examples, rows)) for source in task_set.sources]
    return MicroBatch(
        TensorBatch.of(task_set.train.pad(rows), CPU),
        torch.from_numpy(task_set.examples.labels.take(rows).values),
        torch.stack([torch.from_numpy(soft.values) for soft in targets]) if targets else None,
        filler,
    )


def gradients(
    sets: TaskSet,
    parts: Sequence[MicroBatch],
    normaliser: float,
    weights: LossWeights = WEIGHTS,
    aggregation: Aggregation | None = None,
    autocast: torch.autocast = FULL,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and summed terms of one step on a new student without dropout."""
    student = student_of([sets], dropout=0.0).train()
    terms = accumulate(
        WithLoss(student), sets.task, parts, weights, aggregation or sets.aggregation, normaliser, autocast
    )
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return found, {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_do_not_depend_on_the_micro_batches(strategy: Strategy) -> None:
    # Float tolerance: sums in another order. Gradients are of order 0.01; differences measured < 2e-8.
    sets = task_set(count=12, teachers=2, strategy=strategy)
    rows = np.arange(12)
    whole, terms = gradients(sets, [micro_batch(sets, rows)], 12)
    for cuts in ([6], [1, 2, 11], list(range(1, 12))):
        parts = [micro_batch(sets, part) for part in np.split(rows, cuts)]
        found, found_terms = gradients(sets, parts, 12)
        assert largest_difference(found, whole) < 2e-7
        assert found_terms == pytest.approx(terms, abs=1e-6)
    assert terms["total"] == pytest.approx(0.3 * terms["hard"] + 0.7 * terms["soft"], abs=1e-6)


def test_filler_rows_change_nothing() -> None:
    sets = task_set(count=8, teachers=1)
    part, filler = micro_batch(sets, np.arange(8)), micro_batch(sets, np.arange(1), filler=True)
    plain, terms = gradients(sets, [part], 8)
    filled, filled_terms = gradients(sets, [part, filler], 8)
    assert largest_difference(filled, plain) == 0
    assert filled_terms == terms


def test_task_weight_scales_the_gradient() -> None:
    sets = task_set(count=8, teachers=1)
    part = [micro_batch(sets, np.arange(8))]
    once, terms = gradients(sets, part, 8)
    thrice, weighted = gradients(sets, part, 8, LossWeights({"hard": 0.3, "soft": 0.7}, 2.0, task=3.0))
    assert largest_difference(thrice, {name: 3 * g for name, g in once.items()}) < 2e-7
    assert weighted["total"] == pytest.approx(3 * terms["total"])
    assert weighted["hard"] == pytest.approx(terms["hard"])  # the terms are logged unweighted


def test_labels_alone_need_no_teachers_and_log_no_soft_term() -> None:
    sets = task_set(count=8)
    _, terms = gradients(
        sets, [micro_batch(sets, np.arange(8))], 8, LossWeights({"hard": 1.0, "soft": 0.0}, 1.0)
    )
    assert terms.keys() == {"total", "hard"}
    assert terms["total"] == terms["hard"] == pytest.approx(np.log(2), abs=0.3)


def test_soft_weight_zero_ignores_the_teachers() -> None:
    with_teachers, without = task_set(count=8, teachers=2), task_set(count=8)
    weights = LossWeights({"hard": 1.0, "soft": 0.0}, 2.0)
    a, _ = gradients(with_teachers, [micro_batch(with_teachers, np.arange(8))], 8, weights)
    b, _ = gradients(without, [micro_batch(without, np.arange(8))], 8, weights)
    assert largest_difference(a, b) == 0


def test_missing_targets_are_an_error_never_the_hard_loss_alone() -> None:
    sets = task_set(count=4)
    with pytest.raises(ValueError, match="no target"):
        gradients(sets, [micro_batch(sets, np.arange(4))], 4)


def test_teacher_weights_choose_whom_to_follow() -> None:
    sets = task_set(count=8, teachers=2)
    part = micro_batch(sets, np.arange(8))
    assert isinstance(part.teachers, Tensor)
    second = MicroBatch(part.tokens, part.labels, part.teachers[1:])
    weighted, _ = gradients(sets, [part], 8, aggregation=Aggregation("mean", torch.tensor([0.0, 1.0])))
    alone, _ = gradients(sets, [second], 8, aggregation=Aggregation("mean", torch.tensor([1.0])))
    assert largest_difference(weighted, alone) == 0


# ---------------------------------------------------------------- what somebody has no word on


def inputs_of(
    values: Tensor,
    teachers: Tensor,
    shares: Sequence[float],
    labels: Sequence[int],
    strategy: Strategy = "mean",
) -> LossInputs:
    """What the loss of rows of four labels is made from."""
    task = task_of("mood", ("a", "b", "c", "d"))
    ones = torch.ones(len(values), dtype=torch.int64)
    batch = MicroBatch(TensorBatch({}, {}, ones, ones), torch.tensor(labels), teachers)
    return loss_inputs(task, values, batch, WEIGHTS, Aggregation(strategy, torch.tensor(shares)))


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_whole_rows_are_left_as_they_are() -> None:
    values, teachers = gaussian(3, 4), gaussian(2, 3, 4, seed=1)
    inputs = inputs_of(values, teachers, [0.5, 0.5], [0, UNLABELLED, 2])
    assert inputs.taught is None
    assert inputs.valid.tolist() == [1, 1, 1]
    expected = aggregate(
        teachers, strategy="mean", weights=torch.tensor([0.5, 0.5]), temperature=2.0, labels=None
    )
    assert inputs.target is not None
    assert torch.equal(inputs.target, expected)
    assert torch.equal(inputs.labels, torch.tensor([0, UNLABELLED, 2]))


def test_a_row_that_the_student_does_not_see_does_not_count() -> None:
    values = gaussian(3, 4)
    values[1] = ABSENT
    inputs = inputs_of(values, gaussian(1, 3, 4, seed=1), [1.0], [0, 1, 2])
    assert inputs.valid.tolist() == [1, 0, 1]
    assert inputs.labels.tolist() == [0, UNLABELLED, 2]
    total, terms = task_loss(inputs, WEIGHTS, 3)
    seen = torch.tensor([0, 2])
    alone = inputs_of(values[seen], gaussian(1, 3, 4, seed=1)[:, seen], [1.0], [0, 2])
    assert torch.allclose(total, task_loss(alone, WEIGHTS, 3)[0])
    assert all(bool(term.isfinite()) for term in terms.values())


def test_of_a_column_that_the_student_does_not_see_the_teachers_are_not_asked() -> None:
    values, teacher = gaussian(2, 4), gaussian(1, 2, 4, seed=1)
    values[0, 2] = ABSENT
    inputs = inputs_of(values, teacher, [1.0], [2, 2])
    assert inputs.target is not None
    assert inputs.taught is not None
    seen = torch.tensor([0, 1, 3])
    expected = torch.softmax(teacher[0, 0, seen] / 2, dim=-1)
    assert torch.allclose(inputs.target[0, seen], expected)
    assert float(inputs.target[0, 2]) == 0
    assert torch.allclose(inputs.target[1], torch.softmax(teacher[0, 1] / 2, dim=-1))
    assert inputs.labels.tolist() == [UNLABELLED, 2]  # what it cannot say is not held against it
    assert (inputs.valid.tolist(), inputs.taught.tolist()) == ([1, 1], [1, 1])


def test_a_row_on_which_no_teacher_speaks_has_the_hard_loss_alone() -> None:
    teachers = gaussian(2, 3, 4, seed=1)
    teachers[:, 1] = ABSENT
    teachers[0, 2] = ABSENT
    inputs = inputs_of(gaussian(3, 4), teachers, [0.5, 0.5], [0, 1, 2])
    assert inputs.taught is not None
    assert inputs.taught.tolist() == [1, 0, 1]
    assert inputs.target is not None
    assert torch.isfinite(inputs.target).all()
    assert torch.allclose(inputs.target[2], torch.softmax(teachers[1, 2] / 2, dim=-1))


def test_a_teacher_of_weight_zero_does_not_speak() -> None:
    teachers = gaussian(2, 3, 4, seed=1)
    teachers[0, 1] = ABSENT
    inputs = inputs_of(gaussian(3, 4), teachers, [1.0, 0.0], [0, 1, 2])
    assert inputs.taught is not None
    assert inputs.taught.tolist() == [1, 0, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_label_that_one_teacher_lacks_is_taught_by_the_other(strategy: Strategy) -> None:
    teachers = gaussian(2, 3, 4, seed=1)
    teachers[0, :, 3] = ABSENT
    inputs = inputs_of(gaussian(3, 4), teachers, [0.5, 0.5], [0, 1, 2], strategy)
    assert inputs.target is not None
    assert torch.allclose(inputs.target.sum(-1), torch.ones(3), atol=1e-6)
    assert strategy == "best" or bool((inputs.target[:, 3] > 0).all())


def test_one_task_leaves_the_other_heads_alone() -> None:
    sets = [task_set(), task_set(task_of("tone.v2", ("a", "b", "c")))]
    student = student_of(sets, dropout=0.0)
    accumulate(
        WithLoss(student),
        sets[1].task,
        [micro_batch(sets[1], np.arange(4))],
        LossWeights({"hard": 1.0, "soft": 0.0}, 1.0),
        None,
        4,
        FULL,
    )
    assert student.model("mood").classifier.weight.grad is None
    assert student.model("tone.v2").classifier.weight.grad is not None
    assert student.encoder.get_parameter("embeddings.word_embeddings.weight").grad is not None


def test_bf16_autocast_keeps_weights_and_gradients_in_fp32() -> None:
    sets = task_set(count=8, teachers=1)
    part = [micro_batch(sets, np.arange(8))]
    full, terms = gradients(sets, part, 8)
    half, half_terms = gradients(sets, part, 8, autocast=torch.autocast("cpu", dtype=torch.bfloat16))
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    assert half_terms == pytest.approx(terms, abs=0.02)  # bf16 has 8 bits of mantissa
    assert 0 < largest_difference(half, full) < 0.05


def test_alone_every_collective_is_free() -> None:
    workers, tensor = Workers(), torch.ones(3)
    assert workers.sum_(tensor) is tensor
    assert workers.gather(tensor) == [tensor]


# ---------------------------------------------------------------- predict


def one_by_one(student: MultiTaskStudent, sets: TaskSet) -> Tensor:
    """The model's own forward, a row at a time, in order."""
    student.eval()
    with torch.no_grad():
        rows = [TensorBatch.of(sets.train.pad(np.array([i])), CPU) for i in range(len(sets.train))]
        return torch.cat([student.model(sets.task.name)(**batch.inputs).logits for batch in rows])


@pytest.mark.parametrize("tokens", [1, 13, 40, 10**6])
def test_predict_is_the_models_forward_in_order_for_any_token_budget(tokens: int) -> None:
    sets = task_set(count=24)
    student = student_of([sets], dropout=0.5)
    found = predict(student, sets.task, sets.train, tokens)
    # padding adds masked positions to the sums: measured < 1e-8
    np.testing.assert_allclose(found, one_by_one(student, sets), atol=1e-5, rtol=0)
    assert not student.training


def test_predict_leaves_the_random_numbers_alone() -> None:
    sets = task_set(count=6)
    student = student_of([sets])
    before = torch.get_rng_state()
    predict(student.train(), sets.task, sets.train, 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_share_out_all_the_batches_of_predict() -> None:
    class Rank(Workers):
        """One of two workers that never meet: `predict`'s sum is left to the test."""

        def sum_(self, tensor: Tensor) -> Tensor:
            return tensor

    sets = task_set(count=11)
    student = student_of([sets])
    alone = predict(student, sets.task, sets.train, 30)
    shares = [predict(student, sets.task, sets.train, 30, Rank(rank, 2)) for rank in range(2)]
    assert np.array_equal(shares[0] + shares[1], alone)
    assert all(bool((share != 0).any()) for share in shares)
    assert not any(bool(((a != 0) & (b != 0)).any()) for a, b in itertools.pairwise(shares))
