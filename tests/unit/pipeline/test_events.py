"""Sparse distributions as events: with all ids the numbers are the dense ones, with few the mass stays whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.batch import ABSENT, Ragged, is_present
from pipeline.config.generation import TokenTargetsConfig
from pipeline.config.kinds import TEXT_CLASSIFICATION
from pipeline.config.schema import Strategy, strategies
from pipeline.events import event_ids, sparse_rows, student_events, teacher_events
from pipeline.losses import soft_kl
from pipeline.soft import NO_ID, Sparse, Vocabulary
from teachers.aggregation import aggregate

TEACHERS, ROWS, SIZE = 3, 5, 12
STRATEGIES = strategies(TEXT_CLASSIFICATION, labelled=True)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable ids of each row in an order of no meaning, their log-probabilities, the log of the rest."""
    logs = torch.log_softmax(logits, dim=-1)
    ids = logs.topk(k).indices[..., torch.randperm(k, generator=torch.Generator().manual_seed(1))]
    others = logs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1).clamp(min=ABSENT)
    return ids.int(), logs.gather(-1, ids), others


def events_of(logits: Tensor, k: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The union of the teachers' k ids, and their events."""
    ids, logs, rest = top(logits, k)
    events = event_ids(ids, labels)
    return events, teacher_events(ids, logs, rest, events, logits.shape[-1])


def dense(events: Tensor, of_events: Tensor) -> Tensor:
    """(N, V + 1): what stands for each id in its place, and the rest last."""
    out = torch.zeros(len(events), SIZE + 1)
    for row, (ids, values) in enumerate(zip(events, of_events, strict=True)):
        real = ids != NO_ID
        out[row, ids[real]] = values[:-1][real]
        out[row, -1] = values[-1]
    return out


def test_the_union_has_each_id_once() -> None:
    ids = torch.tensor([[[7, 2], [1, NO_ID]], [[2, 9], [1, 0]]])
    rows = event_ids(ids, torch.tensor([9, 4]))
    assert [sorted(row[row != NO_ID].tolist()) for row in rows] == [[2, 7, 9], [0, 1, 4]]
    assert rows.shape == (2, 5)
    assert bool((rows[:, 0] != NO_ID).all())
    assert [sorted(set(row.tolist()) - {NO_ID}) for row in event_ids(ids)] == [[2, 7, 9], [0, 1]]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_over_all_ids_the_aggregate_is_the_dense_one(strategy: Strategy, temperature: float) -> None:
    logits, labels = gaussian(TEACHERS, ROWS, SIZE), torch.arange(ROWS)
    expected = aggregate(logits, strategy=strategy, weights=WEIGHTS, temperature=temperature, labels=labels)
    events, of_teachers = events_of(logits, SIZE, labels)
    at = (events == labels[:, None]).int().argmax(dim=-1)
    target = aggregate(of_teachers, strategy=strategy, weights=WEIGHTS, temperature=temperature, labels=at)
    found = dense(events, target)
    assert torch.allclose(found[:, :-1], expected, atol=1e-6)
    assert float(found[:, -1].abs().max()) == 0


@pytest.mark.parametrize("k", [1, 3, SIZE])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_zero_where_the_student_is_the_teacher(k: int, temperature: float) -> None:
    logits = gaussian(1, ROWS, SIZE)
    events, of_teacher = events_of(logits, k)
    target = aggregate(
        of_teacher, strategy="mean", weights=torch.ones(1), temperature=temperature, labels=None
    )
    student = logits[0].clone().requires_grad_()
    of_student = student_events(student, events)
    loss = soft_kl(of_student, target, temperature)
    assert float(loss.detach().abs().max()) < 1e-6 * temperature**2
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert float(gradient.abs().max()) < 1e-5


def test_what_the_store_keeps_costs_little() -> None:
    """The same through `Sparse` in float16: the target is a thousandth of a nat away at most."""
    logits = gaussian(1, ROWS, SIZE)
    ids, logs, rest = (each[0].numpy() for each in top(logits, 4))
    stored = Sparse(Ragged.single(ids), logs, rest, Vocabulary(SIZE, "ab")).half()
    kept = [torch.from_numpy(np.array(array)).unsqueeze(0) for array in stored.arrays]
    events = event_ids(kept[0])
    of_teacher = teacher_events(kept[0], kept[1], kept[2], events, SIZE)
    target = aggregate(of_teacher, strategy="mean", weights=torch.ones(1), temperature=1.0, labels=None)
    assert 0 <= float(soft_kl(student_events(logits[0], events), target, 1.0).max()) < 1e-3


def test_gradients_of_the_students_events_are_those_of_its_whole_distribution() -> None:
    logits, ids = gaussian(ROWS, SIZE, seed=2) * 4, gaussian(1, ROWS, SIZE).topk(3).indices
    events = event_ids(ids)
    inside = torch.zeros(ROWS, SIZE).scatter(-1, events, 1.0).bool()
    slope = gaussian(ROWS, events.shape[1] + 1, seed=3)
    gradients = []
    for whole in (False, True):
        own = logits.clone().requires_grad_()
        rows = student_events(own, events)
        if whole:
            logs = own.log_softmax(-1)
            rest = logs.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)
            rows = torch.cat((logs.gather(-1, events), rest), dim=-1)
        gradients.append(torch.autograd.grad((slope * rows).sum(), own)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


def test_over_all_ids_loss_and_gradient_are_the_dense_ones() -> None:
    logits, student = gaussian(1, ROWS, SIZE), gaussian(ROWS, SIZE, seed=1).requires_grad_()
    events, of_teacher = events_of(logits, SIZE)
    one = torch.ones(1)
    target = aggregate(of_teacher, strategy="mean", weights=one, temperature=2.0, labels=None)
    sparse = soft_kl(student_events(student, events), target, 2.0)
    whole = soft_kl(student, torch.softmax(logits[0] / 2, dim=-1), 2.0)
    assert torch.allclose(sparse, whole, atol=1e-5)
    ours, theirs = (torch.autograd.grad(loss.sum(), student)[0] for loss in (sparse, whole))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, SIZE - 1])
def test_every_teachers_events_sum_to_one(k: int) -> None:
    events, of_teachers = events_of(gaussian(TEACHERS, ROWS, SIZE), k, torch.arange(ROWS))
    assert of_teachers.shape == (TEACHERS, ROWS, TEACHERS * k + 2)
    assert torch.allclose(of_teachers.exp().sum(dim=-1), torch.ones(TEACHERS, ROWS), atol=1e-5)
    assert torch.equal(is_present(of_teachers[0, :, :-1]), events != NO_ID)


def test_an_id_that_a_teacher_has_not_listed_gets_an_even_share_of_its_rest() -> None:
    ids = torch.tensor([[[4, NO_ID]], [[1, 2]]])
    logs = torch.tensor([[[0.6, 1.0]], [[0.5, 0.3]]]).log()
    rest = torch.tensor([[0.4], [0.2]]).log()
    logs[0, 0, 1] = ABSENT
    events = event_ids(ids)
    found = [dense(events, of_one.exp())[0] for of_one in teacher_events(ids, logs, rest, events, SIZE)]
    assert found[0][[1, 2, 4, -1]].tolist() == pytest.approx([0.4 / 11, 0.4 / 11, 0.6, 0.4 * 9 / 11])
    assert found[1][[1, 2, 4, -1]].tolist() == pytest.approx([0.5, 0.3, 0.02, 0.18])


def test_the_students_rest_keeps_its_digits() -> None:
    """One minus the events would be 0 in float32, or a multiple of 6e-8."""
    logits = torch.tensor([[30.0, 0.0, 0.0, -1.0]])
    rest = student_events(logits, torch.tensor([[0, NO_ID]]))[0, -1]
    expected = torch.logsumexp(logits[0, 1:].double(), 0) - torch.logsumexp(logits[0].double(), 0)
    assert float(rest) == pytest.approx(float(expected), rel=1e-5)


# ---------------------------------------------------------------- what is stored of a distribution


def test_the_most_probable_ids_are_stored_and_the_texts_own() -> None:
    logits, labels = gaussian(ROWS, SIZE), torch.arange(ROWS)
    ids, logs, rest = sparse_rows(logits, TokenTargetsConfig(ids=3), labels, seed=0)
    whole = torch.log_softmax(logits, dim=-1)
    for row in range(ROWS):
        best = whole[row].topk(3).indices.tolist()
        expected = best if row in best else [*best[:2], row]
        assert ids[row].tolist() == expected
        assert logs[row] == pytest.approx(whole[row, expected].numpy())
        assert np.exp(logs[row]).sum() + np.exp(rest[row]) == pytest.approx(1)


def test_samples_are_an_unbiased_estimate() -> None:
    logits, labels = gaussian(1, SIZE).expand(4000, SIZE), torch.zeros(4000, dtype=torch.int64)
    ids, logs, rest = sparse_rows(logits, TokenTargetsConfig(form="sampled", ids=6), labels, seed=0)
    assert (rest == ABSENT).all()
    for row in range(100):
        real = ids[row] != NO_ID
        assert len(set(ids[row][real])) == real.sum()
        assert np.exp(logs[row][real]).sum() == pytest.approx(1)
        assert (logs[row][~real] == ABSENT).all()
    mean = np.zeros(SIZE)
    real = ids != NO_ID
    np.add.at(mean, ids[real], np.exp(logs[real]) / len(ids))
    assert mean == pytest.approx(torch.softmax(logits[0], -1).numpy(), abs=0.01)
