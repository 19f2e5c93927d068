"""Hidden targets in a training: standardised, masked, weighted by teacher; a student learns them; export drops the projection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.batch import Drawn
from pipeline.losses import LossWeights, Needs, hidden_squared_error
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.feed import Feed
from pipeline.training.stage import LossPlan, Stage
from pipeline.training.step import Workers, hidden_error
from tests.unit.pipeline.small_training import (
    curve,
    largest_difference,
    settings,
    student_of,
    task_set,
    trainer_of,
    two_tasks,
    weights_of,
    with_hidden,
)

HIDDEN = LossPlan(others=LossWeights({"hidden": 1.0}, 1.0))
ABSENT_ID = 12


def test_targets_are_standardised_by_dimension() -> None:
    each = with_hidden(task_set(count=40))
    assert each.hidden is not None
    every = Drawn(each.examples, np.arange(40))
    stored = each.hidden.targets(every)
    assert (stored.dtype, stored.shape[1], each.hidden.widths) == (torch.float16, 9, (6, 3))
    batch = TensorBatch.of(each.train.pad(every.rows, words=True), torch.device("cpu"))
    assert batch.words is not None
    inputs = each.hidden.inputs(torch.zeros(stored.shape), stored, batch.words, filler=False)
    assert torch.allclose(inputs.target.mean(0), torch.zeros(9), atol=1e-4)
    assert torch.allclose(inputs.target.std(0, correction=0), torch.ones(9), atol=1e-3)
    # the mean vector has a loss of 1 a word, a step's normaliser makes of it 1 an example
    normaliser = 40 * float(each.train.units.mean())
    assert float(hidden_squared_error(inputs).sum() / normaliser) == pytest.approx(1, abs=1e-3)
    assert float(inputs.weights.sum()) == pytest.approx(1)
    filler = each.hidden.inputs(torch.zeros(stored.shape), stored, batch.words, filler=True)
    assert float(hidden_squared_error(filler).abs().sum()) == 0


def test_words_that_a_teacher_does_not_see_take_no_part() -> None:
    each = with_hidden(task_set(count=40), absent=[ABSENT_ID])
    assert each.hidden is not None
    assert float(each.hidden.mean.min()) > 0, "ABSENT must not count in the mean"
    rows = np.arange(40)
    stored = each.hidden.targets(Drawn(each.examples, rows))
    batch = TensorBatch.of(each.train.pad(rows, words=True), torch.device("cpu"))
    assert batch.words is not None
    projected = torch.zeros(stored.shape, requires_grad=True)
    hidden_squared_error(each.hidden.inputs(projected, stored, batch.words, False)).sum().backward()
    absent = torch.from_numpy(each.train.columns["input_ids"] == ABSENT_ID)
    assert bool(absent.any())
    assert projected.grad is not None
    assert torch.equal(projected.grad.abs().sum(1) == 0, absent)


def test_a_student_learns_hidden_targets_and_leaves_its_heads_alone(tmp_path: Path) -> None:
    sets = [with_hidden(each) for each in two_tasks()]
    stages = [Stage(HIDDEN, 25, 5e-3, 2e-2)]
    trainer = trainer_of(tmp_path, sets, settings(), stages=stages, dropout=0.0)
    before = weights_of(trainer.student)
    while trainer.progress.step < trainer.total_steps:
        epoch = trainer.progress.step // trainer.feed.steps_per_epoch
        trainer.progress.epoch_seconds.append(trainer.run_epoch(epoch))
    trainer.replica.gather()
    errors = trainer._hidden_errors()
    assert set(errors) == {"validation/hidden/mood", "validation/hidden/tone.v2"}
    assert max(errors.values()) < 0.5  # 1 is the mean vector
    after = weights_of(trainer.student)
    heads = [name for name in before if name.startswith("models.") and "classifier" in name]
    assert heads
    assert all(torch.equal(before[name], after[name]) for name in heads)
    assert not torch.equal(before["projections.0.weight"], after["projections.0.weight"])
    assert curve(tmp_path, "loss/hidden/mood")[-1] < 0.5 < curve(tmp_path, "loss/hidden/mood")[0]


def test_joint_training_has_all_terms(tmp_path: Path) -> None:
    joint = LossPlan(others=LossWeights({"hard": 0.2, "soft": 0.4, "hidden": 0.4}, 2.0))
    trainer = trainer_of(tmp_path, [with_hidden(each) for each in two_tasks()], settings(epochs=1), joint)
    trainer.fit()
    for name in (
        "loss/hard/mood",
        "loss/soft/mood",
        "loss/hidden/mood",
        "validation/hidden/mood",
        "macro/score",
    ):
        assert curve(tmp_path, name), name


def test_any_number_of_parts_gives_one_gradient(tmp_path: Path) -> None:
    sets = [with_hidden(task_set(teachers=1))]
    gradients = []
    for tokens in (4096, 24):
        config = settings(batch_size=24, tokens_per_forward=tokens, optimizer="sgd", momentum=0.0)
        folder = tmp_path / str(tokens)
        folder.mkdir()
        trainer = trainer_of(folder, sets, config, dropout=0.0, stages=[Stage(HIDDEN, 1, 0.1, 0.1)])
        trainer.run_epoch(0)
        gradients.append(weights_of(trainer.student))
    assert largest_difference(*gradients) < 1e-5


def test_targets_are_read_only_where_the_loss_needs_them() -> None:
    feed = Feed([with_hidden(task_set(teachers=1))], 8, 4096)
    expected: dict[Needs, tuple[int, int]] = {"labels": (0, 0), "targets": (1, 0), "hidden": (0, 1)}
    for need, (soft, hidden) in expected.items():
        (batch, *_) = next(feed.epoch(0, needs={need})).batches
        assert (batch.teachers is not None, batch.hidden is not None) == (bool(soft), bool(hidden))
        assert (batch.tokens.words is not None) == bool(hidden)


def test_two_workers_share_the_validation_error() -> None:
    each = with_hidden(task_set(count=40), absent=[ABSENT_ID])
    student = student_of([each])
    assert each.hidden is not None

    def error(tokens: int) -> float:
        assert each.hidden is not None
        return hidden_error(student, "mood", each.hidden, each.validation, each.gold, tokens, Workers())

    assert error(4096) == pytest.approx(error(16), rel=1e-5)
    none = replace(each.hidden, deviation=torch.full((9,), 1e9))
    alike = student.projections[0]
    torch.nn.init.zeros_(alike.weight)  # type: ignore[arg-type]
    torch.nn.init.ones_(alike.bias)  # type: ignore[arg-type]
    value = hidden_error(student, "mood", none, each.validation, each.gold, 64, Workers())
    assert value == pytest.approx(1, abs=1e-3)  # (1 - 0)² a dimension, whatever is absent
