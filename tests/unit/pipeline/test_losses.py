"""The losses against PyTorch's own, against calculus, and against themselves cut into parts."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, one_hot, softmax

from pipeline.batch import ABSENT, UNLABELLED
from pipeline.losses import (
    DISTRIBUTION_LOSSES,
    NUMBER_LOSSES,
    ON_POLICY,
    TEXT_LOSSES,
    HiddenInputs,
    LossInputs,
    LossTerm,
    LossWeights,
    annealed,
    hard_cross_entropy,
    hard_squared_error,
    hidden_squared_error,
    needs_of,
    soft_divergence,
    soft_kl,
    soft_squared_error,
    task_loss,
)

PROPERTY = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy
SHAPES = st.tuples(st.integers(1, 6), st.integers(2, 7))
BOTH = {"hard": 0.3, "soft": 0.7}
TEMPERATURES = st.floats(0.25, 32)


def logits_of(shape: Any) -> st.SearchStrategy[Tensor]:
    finite = st.floats(-20, 20, width=32)
    return hnp.arrays(np.float32, shape, elements=finite).map(torch.from_numpy)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_inputs(n: int = 12, c: int = 4) -> LossInputs:
    """Examples, two of them unlabelled and three that only fill the batch."""
    labels = torch.arange(n) % c
    labels[2:4] = UNLABELLED
    valid = torch.ones(n)
    valid[[1, 2, n - 1]] = 0
    return LossInputs(gaussian(n, c), labels, softmax(gaussian(n, c, seed=1), dim=-1), valid)


# ---------------------------------------------------------------- soft loss


@PROPERTY
@given(SHAPES.flatmap(logits_of), TEMPERATURES)
def test_soft_loss_is_zero_at_student_equals_teacher(logits: Tensor, temperature: float) -> None:
    loss = soft_kl(logits, softmax(logits / temperature, dim=-1), temperature)
    assert loss.abs().max() <= 1e-6 * max(1, temperature**2)


@PROPERTY
@given(SHAPES.flatmap(lambda shape: st.tuples(logits_of(shape), logits_of(shape))), TEMPERATURES)
def test_soft_loss_is_pytorchs_kl(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    target = softmax(teacher / temperature, dim=-1)
    log_student = log_softmax(student.double() / temperature, dim=-1)
    expected = kl_div(log_student, target.double(), reduction="none").sum(-1) * temperature**2
    loss = soft_kl(student, target, temperature)
    assert torch.allclose(loss.double(), expected, rtol=1e-5, atol=1e-6 * max(1, temperature**2))


@PROPERTY
@given(SHAPES.flatmap(lambda shape: st.tuples(logits_of(shape), logits_of(shape))), TEMPERATURES)
def test_gradient_of_soft_loss(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    student.requires_grad_()
    target = softmax(teacher / temperature, dim=-1)
    (gradient,) = torch.autograd.grad(soft_kl(student, target, temperature).sum(), student)
    expected = temperature * (softmax(student.detach() / temperature, dim=-1) - target)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_soft_gradients_keep_their_scale(temperature: float) -> None:
    """On small logits the norm stays within 5% of that at T = 1; without T² it would fall to 1/T²."""

    def norm(at: float) -> float:
        student = (0.1 * gaussian(64, 8)).requires_grad_()
        target = softmax(0.1 * gaussian(64, 8, seed=1) / at, dim=-1)
        return float(torch.autograd.grad(soft_kl(student, target, at).sum(), student)[0].norm())

    assert norm(temperature) / norm(1.0) == pytest.approx(1, abs=0.05)


def test_soft_loss_takes_zeros_in_the_target() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    loss = soft_kl(logits, torch.tensor([[0.0, 1.0, 0.0]]), 1.0)
    assert torch.equal(loss, cross_entropy(logits, torch.tensor([1]), reduction="none"))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------- hard loss


def test_hard_loss_is_pytorchs_cross_entropy_and_zero_without_label() -> None:
    logits, labels = gaussian(6, 3), torch.tensor([0, UNLABELLED, 2, 1, UNLABELLED, 0])
    loss = hard_cross_entropy(logits, labels)
    known = labels != UNLABELLED
    assert torch.equal(loss[known], cross_entropy(logits[known], labels[known], reduction="none"))
    assert torch.equal(loss[~known], torch.zeros(2))


def test_losses_compute_in_float32() -> None:
    logits, labels = gaussian(5, 3).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    target = softmax(gaussian(5, 3, seed=1), dim=-1)
    assert torch.equal(hard_cross_entropy(logits, labels), hard_cross_entropy(logits.float(), labels))
    assert torch.equal(soft_kl(logits, target, 2.0), soft_kl(logits.float(), target, 2.0))
    assert soft_kl(logits, target, 2.0).dtype == torch.float32


# ---------------------------------------------------------------- annealing


def test_constant_annealing_keeps_the_weights() -> None:
    assert annealed(BOTH, 0.9, "constant") == BOTH


@PROPERTY
@given(st.floats(0, 1), st.floats(0, 1))
def test_linear_annealing_keeps_the_sum(hard: float, progress: float) -> None:
    now = annealed({"hard": hard, "soft": 1 - hard}, progress, "linear")
    assert sum(now.values()) == pytest.approx(1)
    assert now["soft"] == pytest.approx((1 - hard) * (1 - progress))


def test_linear_annealing_ends_without_soft_loss() -> None:
    assert annealed(BOTH, 0.0, "linear") == BOTH
    assert annealed(BOTH, 1.0, "linear") == {"hard": 1.0, "soft": 0.0}


def test_linear_annealing_hands_every_other_term_over_to_the_labels() -> None:
    weights = {"soft": 0.5, "hard": 0.2, "hidden": 0.3}
    assert annealed(weights, 0.5, "linear") == pytest.approx({"hard": 0.6, "soft": 0.25, "hidden": 0.15})
    assert annealed({"soft": 1.0}, 0.25, "linear") == {"hard": 0.25, "soft": 0.75}
    own = {"hard": 0.0, "soft": 1.0, ON_POLICY: 1.0}  # of other rows: nothing can take what it would lose
    assert annealed(own, 0.25, "linear") == {"hard": 0.25, "soft": 0.75, ON_POLICY: 1.0}


def test_linear_annealing_from_soft_alone_is_bam() -> None:
    """The gradient at T = 1 is that of the cross-entropy to λ·y + (1 − λ)·p_T (1907.04829)."""
    progress, labels = 0.4, torch.tensor([0, 2, 1])
    target = softmax(gaussian(3, 3, seed=1), dim=-1)
    logits = gaussian(3, 3).requires_grad_()
    weights = annealed({"hard": 0.0, "soft": 1.0}, progress, "linear")
    total, _ = task_loss(LossInputs(logits, labels, target, torch.ones(3)), LossWeights(weights, 1.0), 1.0)
    bam = progress * one_hot(labels, 3).float() + (1 - progress) * target
    expected = torch.autograd.grad(cross_entropy(logits, bam, reduction="sum"), logits)[0]
    assert torch.allclose(torch.autograd.grad(total, logits)[0], expected, atol=1e-6)


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_annealing_refuses_progress_outside_the_training(progress: float) -> None:
    with pytest.raises(ValueError, match="progress"):
        annealed(BOTH, progress, "linear")


# ---------------------------------------------------------------- task loss


def test_task_loss_is_the_weighted_sum_over_valid_rows() -> None:
    inputs = some_inputs()
    assert inputs.target is not None
    rows = inputs.valid.bool()
    hard = hard_cross_entropy(inputs.logits, inputs.labels)[rows].sum() / 9
    soft = soft_kl(inputs.logits, inputs.target, 2.0)[rows].sum() / 9
    total, terms = task_loss(inputs, LossWeights(BOTH, 2.0, task=1.5), 9)
    assert torch.allclose(total, 1.5 * (0.3 * hard + 0.7 * soft))
    assert set(terms) == {"hard", "soft"}
    assert torch.allclose(terms["hard"], hard)
    assert torch.allclose(terms["soft"], soft)
    assert not any(term.requires_grad for term in terms.values())


@PROPERTY
@given(st.lists(st.integers(0, 12), max_size=4))
def test_parts_add_up_to_the_whole(cuts: list[int]) -> None:
    """Whatever way a step is cut into micro-batches and workers: loss, terms and gradient are the same."""
    inputs, weights, normaliser = some_inputs(), LossWeights(BOTH, 2.0), 9.0
    assert inputs.target is not None
    logits = inputs.logits.clone().requires_grad_()
    edges = [0, *sorted(cuts), 12]
    parts = []
    for start, end in pairwise(edges):
        own = slice(start, end)
        part = LossInputs(logits[own], inputs.labels[own], inputs.target[own], inputs.valid[own])
        parts.append(task_loss(part, weights, normaliser))
    everything = LossInputs(logits, inputs.labels, inputs.target, inputs.valid)
    whole, terms = task_loss(everything, weights, normaliser)
    total = torch.stack([part for part, _ in parts]).sum()
    assert torch.allclose(total, whole)
    for name, term in terms.items():
        assert torch.allclose(torch.stack([part[name] for _, part in parts]).sum(), term)
    of_parts, of_whole = (torch.autograd.grad(loss, logits)[0] for loss in (total, whole))
    assert torch.allclose(of_parts, of_whole)


def test_padding_rows_have_no_gradient() -> None:
    inputs = some_inputs()
    inputs.logits.requires_grad_()
    total, _ = task_loss(inputs, LossWeights(BOTH, 2.0), 9)
    (gradient,) = torch.autograd.grad(total, inputs.logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, inputs.valid.bool())


def test_no_soft_weight_needs_no_target_and_computes_no_soft_loss() -> None:
    def never(inputs: LossInputs, weights: LossWeights) -> Tensor:
        raise AssertionError("computed")

    terms = (DISTRIBUTION_LOSSES[0], LossTerm("soft", "targets", never))
    whole = some_inputs()
    for target in (whole.target, None):
        inputs = LossInputs(whole.logits, whole.labels, target, whole.valid)
        for weights in ({"hard": 1.0, "soft": 0.0}, {"hard": 1.0}):
            total, sums = task_loss(inputs, LossWeights(weights, 2.0), 9, terms)
            assert set(sums) == {"hard"}
            assert torch.equal(total.detach(), sums["hard"])


def test_a_term_of_ones_own_counts_with_its_weight_and_is_returned_by_name() -> None:
    inputs, size = some_inputs(), LossTerm("size", "labels", lambda inputs, _: inputs.logits.square().sum(-1))
    terms = (*DISTRIBUTION_LOSSES, size)
    without, _ = task_loss(inputs, LossWeights(BOTH, 2.0, task=1.5), 9)
    total, sums = task_loss(inputs, LossWeights({**BOTH, "size": 0.1}, 2.0, task=1.5), 9, terms)
    expected = (inputs.logits.square().sum(-1) * inputs.valid).sum() / 9
    assert list(sums) == ["hard", "soft", "size"]
    assert torch.allclose(sums["size"], expected)
    assert torch.allclose(total, without + 1.5 * 0.1 * expected)


def test_the_weight_of_a_term_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss term is called 'attention'"):
        task_loss(some_inputs(), LossWeights({**BOTH, "attention": 0.1}, 2.0), 9)


def some_hidden() -> HiddenInputs:
    """Three words, two teachers of two dimensions and of one, which do not see the last word, and the second one."""
    return HiddenInputs(
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 9.0], [9.0, 9.0, 9.0]], requires_grad=True),
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -6e4], [-6e4, -6e4, -6e4]]),
        torch.tensor([[0.375, 0.0], [0.375, 0.0], [0.0, 0.25]]),
        torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
    )


def test_hidden_squared_error_weighs_teachers_and_counts_what_they_see() -> None:
    assert hidden_squared_error(some_hidden()).tolist() == pytest.approx([0.375 * 5 + 0.25 * 4, 0.375, 0])


def test_the_hidden_term_is_added_with_its_weight() -> None:
    inputs, hidden = some_inputs(), some_hidden()
    without, _ = task_loss(inputs, LossWeights(BOTH, 2.0), 9)
    total, sums = task_loss(replace(inputs, hidden=hidden), LossWeights({**BOTH, "hidden": 0.5}, 2.0), 9)
    assert list(sums) == ["hard", "soft", "hidden"]
    assert sums["hidden"].item() == pytest.approx((0.375 * 6 + 0.25 * 4) / 9)
    assert total.item() == pytest.approx(without.item() + 0.5 * sums["hidden"].item())
    with pytest.raises(ValueError, match="there are none"):
        task_loss(inputs, LossWeights({"hidden": 1.0}, 2.0), 9)


def test_the_hidden_term_alone_gives_the_logits_no_gradient() -> None:
    inputs, hidden = some_inputs(), some_hidden()
    inputs.logits.requires_grad_()
    weights = LossWeights({"hard": 0.0, "soft": 0.0, "hidden": 1.0}, 2.0)
    total, sums = task_loss(replace(inputs, hidden=hidden), weights, 9)
    assert list(sums) == ["hidden"]
    total.backward()
    assert inputs.logits.grad is None
    assert hidden.projected.grad is not None
    assert bool((hidden.projected.grad[2] == 0).all())
    assert needs_of(DISTRIBUTION_LOSSES, weights) == {"hidden"}
    assert needs_of(DISTRIBUTION_LOSSES, LossWeights(BOTH, 2.0)) == {"labels", "targets"}


def test_soft_weight_without_target_is_refused() -> None:
    whole = some_inputs()
    with pytest.raises(ValueError, match="no target"):
        task_loss(LossInputs(whole.logits, whole.labels, None, whole.valid), LossWeights(BOTH, 2.0), 9)


def test_target_of_another_shape_is_refused() -> None:
    whole = some_inputs()
    inputs = LossInputs(whole.logits, whole.labels, torch.full((1, 4), 0.25), whole.valid)  # would broadcast
    with pytest.raises(ValueError, match="does not fit"):
        task_loss(inputs, LossWeights(BOTH, 2.0), 9)


@pytest.mark.parametrize("normaliser", [0.0, -1.0, math.nan])
def test_normaliser_must_be_above_zero(normaliser: float) -> None:
    with pytest.raises(ValueError, match="normaliser"):
        task_loss(some_inputs(), LossWeights(BOTH, 2.0), normaliser)


def test_rows_that_nobody_taught_have_the_hard_loss_alone() -> None:
    inputs = some_inputs()
    assert inputs.target is not None
    taught = torch.ones(12)
    taught[[0, 5]] = 0
    total, terms = task_loss(replace(inputs, taught=taught), LossWeights(BOTH, 2.0), 9)
    soft = soft_kl(inputs.logits, inputs.target, 2.0)
    assert torch.allclose(terms["soft"], (soft * inputs.valid * taught).sum() / 9)
    assert torch.equal(terms["hard"], task_loss(inputs, LossWeights(BOTH, 2.0), 9)[1]["hard"])
    everybody, _ = task_loss(replace(inputs, taught=torch.ones(12)), LossWeights(BOTH, 2.0), 9)
    assert torch.equal(everybody, task_loss(inputs, LossWeights(BOTH, 2.0), 9)[0])
    assert not torch.equal(total, everybody)


def test_a_rows_share_scales_its_loss() -> None:
    inputs = some_inputs()
    whole, _ = task_loss(inputs, LossWeights(BOTH, 2.0), 9)
    third, _ = task_loss(replace(inputs, valid=inputs.valid / 3), LossWeights(BOTH, 2.0), 9)
    assert torch.allclose(3 * third, whole)


def test_losses_do_not_depend_on_the_order_of_labels() -> None:
    logits, teacher = gaussian(5, 3), gaussian(5, 3, seed=1)
    labels, order = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 0, 1])
    soft = soft_kl(logits, softmax(teacher / 2, -1), 2.0)
    shuffled = soft_kl(logits[:, order], softmax(teacher[:, order] / 2, -1), 2.0)
    assert torch.allclose(shuffled, soft, atol=1e-6)
    hard = hard_cross_entropy(logits[:, order], order.argsort()[labels])
    assert torch.allclose(hard, hard_cross_entropy(logits, labels))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_column_that_is_absent_on_both_sides_takes_no_part(temperature: float) -> None:
    logits, teacher = gaussian(5, 4), gaussian(5, 4, seed=1)
    logits[:, 2] = teacher[:, 2] = ABSENT
    seen = torch.tensor([0, 1, 3])
    labels = torch.tensor([0, 1, 3, 3, 0])
    loss = soft_kl(logits.requires_grad_(), softmax(teacher / temperature, -1), temperature)
    expected = soft_kl(logits[:, seen], softmax(teacher[:, seen] / temperature, -1), temperature)
    assert torch.allclose(loss, expected, atol=1e-6)
    narrow = torch.tensor([0, 1, 2, 2, 0])
    hard = hard_cross_entropy(logits, labels)
    assert torch.allclose(hard, hard_cross_entropy(logits[:, seen], narrow))
    (gradient,) = torch.autograd.grad((loss + hard).sum(), logits)
    assert torch.equal(gradient[:, 2], torch.zeros(5))
    assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------- numbers


def test_squared_errors_of_numbers() -> None:
    """By hand: the hard loss to labels, of which one is missing; the soft loss at no temperature."""
    values, labels = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0.0, math.nan, 1.0])
    assert hard_squared_error(values, labels).tolist() == [1, 0, 4]
    target = torch.tensor([[3.0], [2.0], [0.0]])
    for temperature in (1.0, 4.0):
        assert soft_squared_error(values, target, temperature).tolist() == [4, 0, 1]


def test_squared_errors_are_pytorchs_with_their_gradients() -> None:
    values, labels = gaussian(6, 1).requires_grad_(), gaussian(6, seed=1)
    for found in (hard_squared_error(values, labels), soft_squared_error(values, labels[:, None], 1.0)):
        expected = mse_loss(values[:, 0], labels, reduction="none")
        assert torch.allclose(found, expected)
        own, theirs = (torch.autograd.grad(loss.sum(), values)[0] for loss in (found, expected))
        assert torch.allclose(own, theirs)


def test_a_missing_number_has_no_gradient_and_no_nan() -> None:
    values = torch.tensor([[1.0], [2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(hard_squared_error(values, torch.tensor([math.nan, 0.0])).sum(), values)
    assert gradient.tolist() == [[0], [4]]


def test_squared_errors_compute_in_float32() -> None:
    values = gaussian(5, 1).bfloat16()
    assert hard_squared_error(values, gaussian(5)).dtype == torch.float32
    assert soft_squared_error(values, gaussian(5, 1), 1.0).dtype == torch.float32


def test_numbers_bring_their_own_losses() -> None:
    inputs = LossInputs(
        torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 0.0]), torch.tensor([[3.0], [2.0]]), torch.ones(2)
    )
    weights = LossWeights({"hard": 0.5, "soft": 0.5}, 1.0)
    total, _ = task_loss(inputs, weights, 2, NUMBER_LOSSES)
    assert float(total) == 0.5 * (1 + 4) / 2 + 0.5 * (4 + 0) / 2


# ---------------------------------------------------------------- beta


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of rows, by PyTorch."""
    return torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_generalised_divergence_is_the_mixture_of_two(beta: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 5), softmax(torch.randn(6, 5), dim=-1)
    own = softmax(logits / temperature, dim=-1)
    middle = beta * target + (1 - beta) * own
    expected = beta * divergence(target, middle) + (1 - beta) * divergence(own, middle)
    if beta in (0.0, 1.0):
        expected = divergence(target, own) if beta == 0 else divergence(own, target)
    got = soft_divergence(logits, target, temperature, beta)
    torch.testing.assert_close(got, temperature**2 * expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_absent_columns_leave_the_divergence_and_its_gradient_finite(beta: float) -> None:
    logits = torch.tensor([[1.0, 0.5, ABSENT], [0.2, -1.0, 0.3]], requires_grad=True)
    target = torch.tensor([[0.7, 0.3, 0.0], [0.5, 0.5, 0.0]])
    loss = soft_divergence(logits, target, 1.0, beta)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(gradient).all())
    without = soft_divergence(logits[:1, :2], target[:1, :2], 1.0, beta)
    torch.testing.assert_close(loss[:1], without)


def test_beta_of_a_student_that_equals_its_teacher_is_zero_and_it_is_a_term_of_the_loss() -> None:
    logits = torch.tensor([[1.0, 0.5, -2.0]])
    for beta in (0.2, 1.0):
        assert float(soft_divergence(logits, softmax(logits / 3, -1), 3.0, beta)) == pytest.approx(
            0, abs=1e-6
        )
    target = torch.tensor([[0.1, 0.2, 0.7]])
    inputs = LossInputs(logits, torch.tensor([0]), target, torch.ones(1))
    total, terms = task_loss(inputs, LossWeights({"soft": 1.0}, 2.0, beta=0.5), 1.0)
    assert float(terms["soft"]) == pytest.approx(float(soft_divergence(logits, target, 2.0, 0.5)))
    assert float(total) == float(terms["soft"])


# ---------------------------------------------------------------- texts


def test_own_texts_have_the_divergence_alone_and_the_others_never() -> None:
    inputs = replace(some_inputs(), valid=torch.ones(12))
    own = inputs.labels == UNLABELLED
    weights = LossWeights({"hard": 0.4, "soft": 0.6, ON_POLICY: 1.0}, 2.0, beta=0.5)
    total, terms = task_loss(inputs, weights, 12.0, TEXT_LOSSES)
    divergence = soft_divergence(inputs.logits, inputs.target, 2.0, 0.5)  # type: ignore[arg-type]
    hard = hard_cross_entropy(inputs.logits, inputs.labels)
    assert float(terms[ON_POLICY]) == pytest.approx(float(divergence[own].sum()) / 12)
    assert float(terms["soft"]) == pytest.approx(float(divergence[~own].sum()) / 12)
    expected = 0.4 * hard.sum() + 0.6 * divergence[~own].sum() + divergence[own].sum()
    assert float(total) == pytest.approx(float(expected) / 12, rel=1e-6)


def test_without_own_texts_the_loss_of_texts_is_that_of_distributions() -> None:
    inputs = replace(some_inputs(), labels=torch.arange(12) % 4)
    for weights in (BOTH, {"hard": 0.0, "soft": 1.0}):
        one, other = (
            task_loss(inputs, LossWeights(weights, 2.0), 12.0, terms)
            for terms in (TEXT_LOSSES, DISTRIBUTION_LOSSES)
        )
        assert torch.equal(one[0], other[0])
        assert one[1].keys() == other[1].keys()
