"""The training loop in one process: optimiser, schedule, losses, early stopping, NaN. Resuming: test_resume.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.batch import Drawn
from pipeline.config.recipe import Patience
from pipeline.errors import DivergedError, ExhaustedError
from pipeline.losses import LossWeights
from pipeline.soft import Dense
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text_classification import ClassHead, ClassScoring, text_classification
from pipeline.training import loop
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.feed import TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.optimizer import learning_rate_factor
from pipeline.training.schedule import Schedule
from pipeline.training.stage import LossPlan, Stage
from pipeline.training.step import Aggregation, accumulate, predict
from tests.unit.pipeline.small_training import (
    DISTIL,
    FixedTargets,
    StopAfter,
    curve,
    largest_difference,
    points,
    same_bits,
    same_predictions,
    settings,
    student_of,
    task_of,
    task_set,
    trainer_of,
    two_tasks,
    weights_of,
)

PLAIN = {"warmup": 0.0, "schedule": "constant", "gradient_clip": None, "weight_decay": 0.0}


# ---------------------------------------------------------------- against a loop written by hand


def by_hand(sets: TaskSet, optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Two epochs at a learning rate of 0.01 on the trainer's batches, in as few lines as PyTorch allows."""
    student = student_of([sets], dropout=0.0).train()
    own = optimizer(list(student.parameters()))
    schedule = Schedule({sets.task.name: sets.train.lengths}, 4, 1.0, 0)
    for epoch in range(2):
        for step in schedule.epoch(epoch):
            own.zero_grad()
            batch = TensorBatch.of(sets.train.pad(step.rows), torch.device("cpu"))
            logits = student.model(sets.task.name)(**batch.inputs).logits
            labels = torch.from_numpy(sets.examples.labels.values[step.rows])
            torch.nn.functional.cross_entropy(logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            own.step()
    return weights_of(student)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_a_loop_written_by_hand(tmp_path: Path, name: str) -> None:
    def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        if name == "sgd":
            return torch.optim.SGD(parameters, lr=0.01, momentum=0.8)
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)

    sets = task_set()
    config = settings(
        **{**PLAIN, "gradient_clip": 0.5},
        epochs=2,
        optimizer=name,
        momentum=0.8,
        learning_rate=0.01,
    )
    trainer = trainer_of(tmp_path, [sets], config, LossPlan(), dropout=0.0)
    trainer.fit()
    found, expected = weights_of(trainer.student), by_hand(sets, optimizer)
    # An attention key's bias has gradient 0 but for rounding, which AdamW scales up: it changes no output.
    compared = [key for key in found if not key.endswith("key.bias")]
    assert largest_difference({k: found[k] for k in compared}, {k: expected[k] for k in compared}) < 1e-4


@pytest.mark.parametrize("tokens", [60, 40, 1])
def test_a_step_in_parts_gives_the_gradient_of_the_whole_step(tmp_path: Path, tokens: int) -> None:
    # SGD at rate 1 for one step: what the weights move by is the gradient. Differences measured < 3e-8.
    config = settings(**PLAIN, epochs=1, batch_size=12, optimizer="sgd", learning_rate=1.0, momentum=0)
    moved = {}
    for most in (4096, tokens):
        sets = task_set(count=12, teachers=2, strategy="confidence")
        changed = config.model_copy(update={"tokens_per_forward": most})
        trainer = trainer_of(tmp_path / str(most), [sets], changed, dropout=0.0)
        before = weights_of(trainer.student)
        assert trainer.fit().step == 1
        moved[most] = {name: w - before[name] for name, w in weights_of(trainer.student).items()}
    assert largest_difference(moved[tokens], moved[4096]) < 3e-7
    assert max(float(move.abs().max()) for move in moved[4096].values()) > 0.01
    one, other = (curve(tmp_path / str(most), "loss/total") for most in (4096, tokens))
    assert other == pytest.approx(one, abs=1e-6)


class Cramped(torch.nn.Module):
    """A model on a device with memory for `most` examples in a forward pass; `backward`: which only the backward pass runs out of."""

    def __init__(self, model: torch.nn.Module, most: int, backward: bool) -> None:
        super().__init__()
        self.model, self.most, self.backward = model, most, backward

    def forward(self, task: Any, batch: Any, *rest: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, terms = self.model(task, batch, *rest)
        if len(batch.labels) <= self.most:
            return total, terms
        if not self.backward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        total.register_hook(_no_memory)
        return total + sum(
            parameter.sum() for parameter in self.model.parameters()
        ), terms  # some gradients are made


def _no_memory(gradient: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_does_not_fit_is_taken_in_smaller_passes(tmp_path: Path, backward: bool) -> None:
    config = settings(**PLAIN, epochs=1, batch_size=12, optimizer="sgd", learning_rate=1.0, momentum=0)
    trained = {}
    for most in (12, 3):
        trainer = trainer_of(tmp_path / str(most), [task_set(count=24, teachers=2)], config, dropout=0.0)
        trainer.replica.model = Cramped(trainer.replica.model, most, backward)
        progress = trainer.fit()
        trained[most] = weights_of(trainer.student)
        assert (progress.halved > 0) == (most < 12)
    assert progress.halved <= 3  # later steps begin with the passes that fit
    assert largest_difference(trained[3], trained[12]) < 3e-7


def test_an_example_that_does_not_fit_ends_the_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [task_set(count=24, teachers=2)], settings(epochs=1))
    trainer.replica.model = Cramped(trainer.replica.model, 0, backward=False)
    with pytest.raises(ExhaustedError, match=r"^out of the device's memory with an example of "):
        trainer.fit()


# ---------------------------------------------------------------- optimiser and schedule


def test_heads_learn_at_their_own_rate(tmp_path: Path) -> None:
    sets = task_set(count=6)
    config = settings(
        **{**PLAIN, "optimizer": "sgd", "momentum": 0, "gradient_clip": None},
        epochs=1,
        batch_size=99,
        learning_rate=0.01,
    )
    moved = {}
    for rate in (0.01, 0.03):
        changed = config.model_copy(update={"head_learning_rate": rate})
        trainer = trainer_of(tmp_path / str(rate), [sets], changed, LossPlan(), dropout=0.0)
        before = weights_of(trainer.student)
        assert trainer.fit().step == 1
        moved[rate] = {name: w - before[name] for name, w in weights_of(trainer.student).items()}
    for name, move in moved[0.01].items():
        factor = 1 if "encoder" in name else 3
        torch.testing.assert_close(moved[0.03][name], factor * move, atol=1e-6, rtol=1e-4)
    assert any(float(move.abs().max()) > 1e-4 for name, move in moved[0.03].items() if "encoder" not in name)


def test_weight_decay_shrinks_what_has_no_gradient(tmp_path: Path) -> None:
    # At a rate of 0.1 and a decay of 0.5 a step multiplies matrices by 0.95: an unused token's row shows it.
    sets = task_set(count=6)
    config = settings(**{**PLAIN, "weight_decay": 0.5}, epochs=1, batch_size=99, learning_rate=0.1)
    trainer = trainer_of(tmp_path, [sets], config, LossPlan(), dropout=0.0)
    embeddings = trainer.student.encoder.get_parameter("embeddings.word_embeddings.weight")
    unused, before = 1, embeddings.detach().clone()
    trainer.fit()
    torch.testing.assert_close(embeddings[unused], 0.95 * before[unused])


def test_the_schedule_spans_the_whole_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(epochs=2, warmup=0.25, learning_rate=0.002)
    trainer = trainer_of(tmp_path, two_tasks(), config)
    rates: list[float] = []
    step = trainer.optimizer.step

    def recorded(*args: Any) -> Any:
        rates.extend({group["lr"] for group in trainer.optimizer.param_groups})
        return step(*args)

    monkeypatch.setattr(trainer.optimizer, "step", recorded)
    trainer.fit()
    total = trainer.total_steps
    assert rates == [0.002 * learning_rate_factor(k, total, 0.25, "linear") for k in range(total)]
    assert max(rates) == 0.002
    assert curve(tmp_path, "train/learning_rate")[-1] == rates[-1] > 0


# ---------------------------------------------------------------- losses


@dataclass
class Seen:
    """What each step was given."""

    task: str
    rows: int
    weights: LossWeights


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """A list to which each step of a trainer is appended."""
    seen: list[Seen] = []

    def watched(
        student: Any, task: Any, batches: Any, weights: LossWeights, **more: Any
    ) -> dict[str, Tensor]:
        seen.append(Seen(task.name, sum(len(batch.labels) for batch in batches), weights))
        return accumulate(student, task, batches, weights, **more)

    monkeypatch.setattr(loop, "accumulate", watched)
    return seen


def test_annealing_hands_the_soft_weight_over_to_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    weights = {"mood": 1.5, "tone.v2": 0.5}
    plan = LossPlan({name: replace(DISTIL.others, task=one) for name, one in weights.items()}, "linear")
    trainer = trainer_of(tmp_path, two_tasks(), settings(epochs=2), plan)
    trainer.fit()
    total = trainer.total_steps
    assert [each.weights.terms["soft"] for each in seen] == pytest.approx(
        [0.7 * (1 - k / total) for k in range(total)]
    )
    assert [sum(each.weights.terms.values()) for each in seen] == pytest.approx([1.0] * total)
    assert {(each.task, each.weights.task) for each in seen} == {("mood", 1.5), ("tone.v2", 0.5)}
    assert plan.at("mood", 1.0) == LossWeights({"hard": 1.0, "soft": 0.0}, 2.0, 1.5)


def test_a_supervised_plan_logs_no_soft_loss_and_a_distilled_one_does(tmp_path: Path) -> None:
    names = {}
    for plan, folder in ((LossPlan(), tmp_path / "supervised"), (DISTIL, tmp_path / "distilled")):
        trainer_of(folder, two_tasks(), settings(epochs=1), plan).fit()
        names[folder.name] = {name for line in points(folder) for name in line["metrics"] if "loss/" in name}
    assert names["supervised"] == {"loss/total", "loss/hard/mood", "loss/hard/tone.v2"}
    assert names["distilled"] == names["supervised"] | {"loss/soft/mood", "loss/soft/tone.v2"}


def test_a_distilled_plan_without_targets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no target"):
        trainer_of(tmp_path, [task_set()], settings()).fit()


@pytest.mark.parametrize(("sampling", "mood"), [(1.0, 9), (0.0, 6)])
def test_sampling_decides_how_many_steps_a_task_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: float, mood: int
) -> None:
    seen = watch(monkeypatch)
    sets = [task_set(count=36), task_set(task_of("tone", ("a", "b", "c")), count=12)]
    sets = [
        replace(each, train=replace(each.train, offsets=4 * np.arange(len(each.train) + 1))) for each in sets
    ]
    trainer = trainer_of(tmp_path, sets, settings(epochs=2), LossPlan(), sampling=sampling)
    trainer.fit()
    steps = Counter(each.task for each in seen)
    assert steps == {"mood": 2 * mood, "tone": 2 * (12 - mood)}
    assert {each.rows for each in seen} == {4}


def test_a_student_of_soft_targets_alone_comes_to_answer_as_its_teacher(tmp_path: Path) -> None:
    sets = task_set(count=48)
    teacher = student_of([sets], dropout=0.0, seed=7)
    with torch.no_grad():
        teacher.model("mood").classifier.weight.mul_(20)  # a random teacher hardly has opinions
    says = predict(teacher, sets.task, sets.train, 256).astype(np.float16)
    taught = replace(sets, sources=[FixedTargets(says)], aggregation=Aggregation("mean", torch.ones(1)))
    config = settings(epochs=25, learning_rate=3e-3, batch_size=10)
    trainer = trainer_of(
        tmp_path, [taught], config, LossPlan(others=LossWeights({"hard": 0.0, "soft": 1.0}, 2.0)), dropout=0.0
    )
    trainer.fit()
    losses = curve(tmp_path, "loss/soft/mood")
    assert losses[-1] < 0.1 * losses[0]
    own = predict(trainer.student, sets.task, sets.train, 256)
    assert (own.argmax(1) == says.argmax(1)).mean() > 0.9


def test_a_student_that_is_its_teacher_stays_where_it_is(tmp_path: Path) -> None:
    sets = task_set(count=16)
    says = predict(student_of([sets], dropout=0.0), sets.task, sets.train, 256)
    taught = replace(
        sets,
        sources=[FixedTargets(says)],  # not rounded to float16 here
        aggregation=Aggregation("mean", torch.ones(1)),
    )
    config = settings(**PLAIN, epochs=1, optimizer="sgd", learning_rate=0.1, momentum=0)
    trainer = trainer_of(
        tmp_path, [taught], config, LossPlan(others=LossWeights({"hard": 0.0, "soft": 1.0}, 4.0)), dropout=0.0
    )
    before = weights_of(trainer.student)
    trainer.fit()
    assert max(map(abs, curve(tmp_path, "loss/soft/mood"))) < 4**2 * 1e-6
    assert largest_difference(weights_of(trainer.student), before) < 1e-6


def test_bf16_trains_on_a_cpu_and_keeps_the_weights_in_fp32(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(tmp_path / precision, two_tasks(), settings(epochs=1, precision=precision))
        assert trainer.fit().status == "done"
    assert {w.dtype for w in weights_of(trainer.student).values()} == {torch.float32}
    full, half = (curve(tmp_path / precision, "loss/total") for precision in ("fp32", "bf16"))
    assert half != full
    assert half == pytest.approx(full, abs=0.02)  # bf16 has 8 bits of mantissa


@pytest.mark.parametrize(
    ("precision", "capable", "enabled"),
    [("auto", False, False), ("auto", True, True), ("fp32", True, False), ("bf16", False, True)],
)
def test_auto_means_bf16_where_the_cpu_computes_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, capable: bool, enabled: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable, "amx_bf16": False})
    trainer = trainer_of(tmp_path, [task_set()], settings(precision=precision), LossPlan())
    with trainer.autocast:
        assert torch.is_autocast_enabled("cpu") == enabled
        assert not enabled or torch.get_autocast_dtype("cpu") == torch.bfloat16


# ---------------------------------------------------------------- validation


def script(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Makes one task's validation scores these, epoch by epoch."""
    left = list(scores)
    monkeypatch.setattr(ClassScoring, "scores", lambda *_: {"accuracy": left.pop(0)})


def watched_weights(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Gets the weights that each epoch ends with."""
    at_epoch: list[dict[str, Tensor]] = []
    validate = trainer._validate

    def watched(epoch: int) -> None:
        trainer.replica.gather()
        at_epoch.append(weights_of(trainer.student))
        validate(epoch)

    monkeypatch.setattr(trainer, "_validate", watched)
    return at_epoch


def test_early_stopping_keeps_the_best_epochs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=9, schedule="constant", early_stopping=Patience(patience=2))
    sets = [task_set(teachers=1)]
    trainer = trainer_of(tmp_path, sets, config)
    at_epoch = watched_weights(trainer, monkeypatch)
    script(monkeypatch, [0.5, 0.7, 0.7, 0.6])  # an equal score is no better
    progress = trainer.fit()
    assert (progress.status, progress.best_epoch, progress.best_score) == ("early_stopped", 1, 0.7)
    assert progress.step == 4 * trainer.feed.steps_per_epoch
    assert same_bits(weights_of(trainer.student), at_epoch[1])
    assert not same_bits(at_epoch[1], at_epoch[3])
    assert not trainer.student.training
    assert curve(tmp_path, "macro/score") == curve(tmp_path, "mood/accuracy") == [0.5, 0.7, 0.7, 0.6]


def test_patience_starts_again_with_a_better_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(epochs=5, early_stopping=Patience(patience=2))
    script(monkeypatch, [0.5, 0.4, 0.6, 0.5, 0.4])
    progress = trainer_of(tmp_path, [task_set(teachers=1)], config).fit()
    assert (progress.status, progress.best_epoch) == ("done", 2)  # the last epoch there is: done, not stopped


def test_the_best_weights_of_an_earlier_stage_are_kept_and_patience_counts_in_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second stage gets worse: the weights of the second epoch come back, after the last stage's first epoch and two more without a better one."""
    stages = (Stage(DISTIL, 3, 1e-3, 1e-3), Stage(DISTIL, 5, 1e-3, 1e-3))
    config = settings(epochs=8, early_stopping=Patience(patience=2))
    trainer = trainer_of(tmp_path, [task_set(teachers=1)], config, DISTIL, stages=stages)
    at_epoch = watched_weights(trainer, monkeypatch)
    script(monkeypatch, [0.5, 0.8, 0.7, 0.4, 0.6, 0.6])
    progress = trainer.fit()
    assert (progress.status, progress.best_epoch, progress.best_score) == ("early_stopped", 1, 0.8)
    assert len(at_epoch) == 6
    assert same_bits(weights_of(trainer.student), at_epoch[1])


def test_without_early_stopping_the_last_weights_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [0.9, 0.5, 0.1])
    progress = trainer_of(tmp_path, [task_set(teachers=1)], settings()).fit()
    assert (progress.status, progress.best_score, progress.best_epoch) == ("done", 0.1, 2)


@pytest.mark.parametrize("patience", [1, None])
def test_an_ended_training_has_the_predictions_and_a_checkpoint_of_the_weights_it_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    """The predictions are those that would be made again, bit for bit."""
    stops = None if patience is None else Patience(patience=patience)
    config = settings(epochs=3, early_stopping=stops)
    trainer = trainer_of(tmp_path, two_tasks(), config)
    monkeypatch.setattr(ClassScoring, "scores", lambda *_: {"accuracy": [0.5, 0.7, 0.6][epoch_of(trainer)]})
    trainer.fit()
    assert trainer.progress.best_epoch == (2 if patience is None else 1)
    assert trainer.kept_predictions.keys() == {"mood", "tone.v2"}
    assert same_predictions(trainer.kept_predictions, trainer.predictions())
    last = load_checkpoint(tmp_path)
    assert last is not None
    assert last.tensors.keys() == {"model", "rng"}
    assert same_bits(last.tensors["model"], trainer._weights())

    again = trainer_of(tmp_path, two_tasks(), config)
    assert again.fit() == trainer.progress, "nothing is trained"
    assert again.kept_predictions == {}
    assert same_predictions(again.predictions(), trainer.predictions())


def epoch_of(trainer: Trainer) -> int:
    """The number of the epoch that has just been trained, from 0."""
    return trainer.progress.step // trainer.feed.steps_per_epoch - 1


def test_the_macro_score_is_the_mean_over_tasks(tmp_path: Path) -> None:
    trainer_of(tmp_path, two_tasks(), settings(epochs=1)).fit()
    (line,) = [line["metrics"] for line in points(tmp_path) if "macro/score" in line["metrics"]]
    assert line["macro/score"] == pytest.approx((line["mood/accuracy"] + line["tone.v2/accuracy"]) / 2)


def reports_of(trainer: Trainer) -> list[tuple[int, float, int]]:
    """Fills up with what a trainer reports: epochs, macro score, and the step of the checkpoint then there."""
    reported: list[tuple[int, float, int]] = []

    def report(epochs: int, scores: Mapping[str, float]) -> None:
        found = load_checkpoint(trainer.folder)
        assert found is not None
        assert found.state["progress"]["kept"] == scores
        reported.append((epochs, scores["macro/score"], found.state["progress"]["step"]))

    trainer.report = report
    return reported


@pytest.mark.parametrize(("patience", "kept"), [(None, [0.5, 0.7, 0.6]), (2, [0.5, 0.7, 0.7])])
def test_each_epoch_is_reported_with_the_scores_of_the_weights_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None, kept: list[float]
) -> None:
    """Once its checkpoint is written: who is ended on hearing it loses nothing."""
    stopping = None if patience is None else Patience(patience=patience)
    trainer = trainer_of(tmp_path, [task_set(teachers=1)], settings(early_stopping=stopping))
    reported, a_pass = reports_of(trainer), trainer.feed.steps_per_epoch
    script(monkeypatch, [0.5, 0.7, 0.6])
    progress = trainer.fit()
    assert reported == [(epoch, score, epoch * a_pass) for epoch, score in enumerate(kept, 1)]
    assert progress.kept["mood/accuracy"] == kept[-1]


def test_a_resumed_training_knows_what_it_keeps_and_reports_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(early_stopping=Patience(patience=2))
    sets = [task_set(teachers=1)]
    script(monkeypatch, [0.7, 0.5, 0.6])
    a_pass = trainer_of(tmp_path, sets, config).feed.steps_per_epoch
    first = trainer_of(tmp_path, sets, config, should_stop=StopAfter(a_pass + 1))
    reported = reports_of(first)
    assert first.fit().status == "interrupted"
    assert reported == [(1, 0.7, a_pass)]
    again = trainer_of(tmp_path, sets, config)
    reported = reports_of(again)
    assert again.fit().kept["macro/score"] == 0.7
    assert reported == [(2, 0.7, 2 * a_pass), (3, 0.7, 3 * a_pass)]


# ---------------------------------------------------------------- NaN


@dataclass
class Poisoned(FixedTargets):
    """NaN for the `bad` rows; from the `healthy`-th read on."""

    bad: frozenset[int] = frozenset()
    healthy: int = 0
    reads: int = 0

    def targets(self, batch: Drawn) -> Dense:
        self.reads += 1
        soft = super().targets(batch)
        if self.reads > self.healthy:
            soft.values[np.isin(batch.rows, list(self.bad))] = np.nan
        return soft


def poison(sets: TaskSet, bad: Sequence[int], healthy: int = 0) -> TaskSet:
    """`sets` with one teacher that says NaN about the `bad` rows."""
    (source,) = sets.sources
    assert isinstance(source, FixedTargets)
    return replace(sets, sources=[Poisoned(source.logits, frozenset(bad), healthy)])


def test_a_step_with_a_nan_loss_is_left_out_and_counted(tmp_path: Path) -> None:
    sets = poison(task_set(teachers=1), [3])
    trainer = trainer_of(tmp_path, [sets], settings(max_skipped_steps=1))
    progress = trainer.fit()
    assert (progress.status, progress.skipped, progress.skipped_in_a_row) == ("done", 3, 0)  # one an epoch
    assert all(bool(w.isfinite().all()) for w in weights_of(trainer.student).values())
    assert all(math.isfinite(value) for value in curve(tmp_path, "loss/total"))
    assert curve(tmp_path, "train/skipped_steps")[-1] == 3


def test_a_skipped_step_moves_nothing(tmp_path: Path) -> None:
    sets = poison(task_set(count=6, teachers=1), range(6))
    trainer = trainer_of(tmp_path, [sets], settings(epochs=1, batch_size=99))
    before = weights_of(trainer.student)
    assert trainer.fit().skipped == 1
    assert same_bits(weights_of(trainer.student), before)


@dataclass(frozen=True)
class SteepHead(ClassHead):
    """A finite loss with a NaN gradient: 0 · √0."""

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        logits = super().read_out(output, batch)
        return logits + 0 * (logits - logits.detach()).sum(-1, keepdim=True).sqrt()


def test_a_nan_gradient_of_a_finite_loss_is_left_out_too(tmp_path: Path) -> None:
    plain = text_classification("mood", ("bad", "good"), 16)
    steep = replace(plain, head=SteepHead("mood", 16, ("bad", "good")))
    trainer = trainer_of(tmp_path, [task_set(steep, count=6)], settings(epochs=1, batch_size=99), LossPlan())
    before = weights_of(trainer.student)
    assert trainer.fit().skipped == 1
    assert same_bits(weights_of(trainer.student), before)


@pytest.mark.parametrize("checkpoint_steps", [1, 3])
def test_too_many_in_a_row_end_the_run_and_leave_a_sound_checkpoint(
    tmp_path: Path, checkpoint_steps: int
) -> None:
    config = settings(max_skipped_steps=2, checkpoint_steps=checkpoint_steps)
    healthy = task_set(teachers=1)
    sets = poison(healthy, range(24), healthy=7)
    with pytest.raises(DivergedError, match=r"3 steps in a row, up to step 10 \(task mood\)") as error:
        trainer_of(tmp_path, [sets], config).fit()
    assert error.value.exit_code == 3
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state["progress"]["step"] == 9
    assert all(bool(w.isfinite().all()) for w in found.tensors["model"].values())
    with pytest.raises(DivergedError):  # what failed fails again, at the same place
        trainer_of(tmp_path, [poison(healthy, range(24))], config).fit()
    mended = trainer_of(tmp_path, [healthy], config).fit()
    assert (mended.status, mended.skipped) == ("done", 2)


def test_weights_that_blow_up_are_a_diverged_run_even_at_validation(tmp_path: Path) -> None:
    # so few steps that validation comes before the steps to skip are used up
    config = settings(**PLAIN, epochs=2, batch_size=12, learning_rate=1e38, optimizer="sgd")
    with pytest.raises(DivergedError) as error:
        trainer_of(tmp_path, [task_set()], config, LossPlan()).fit()
    assert "mood" in error.value.cause
    found = load_checkpoint(tmp_path)
    assert found is None or all(bool(w.isfinite().all()) for w in found.tensors["model"].values())


def test_the_best_weights_are_not_those_of_a_later_step(tmp_path: Path) -> None:
    """`best` is a copy: training on does not change it."""
    config = settings(epochs=2, early_stopping=Patience(patience=1))
    trainer = trainer_of(tmp_path, [task_set(teachers=1)], config)
    trainer.fit()
    own: Mapping[str, Tensor] = dict(trainer.student.named_parameters())
    assert all(trainer.best[name].data_ptr() != own[name].data_ptr() for name in own)


# ---------------------------------------------------------------- gradual unfreezing


def test_gradual_unfreezing_trains_one_part_more_after_another(tmp_path: Path) -> None:
    """A stage of two epochs over four parts: half of them, then all; the stage after it trains all from the start."""
    stages = (Stage(DISTIL, 2, 1e-3, 1e-3, "gradual"), Stage(DISTIL, 1, 1e-3, 1e-3))
    trainer = trainer_of(tmp_path, two_tasks(), settings(epochs=3), DISTIL, stages=stages)
    embeddings, first, last = (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.output.dense.weight",
        "encoder.layer.1.output.dense.weight",
    )
    epochs: list[list[bool]] = []
    before = {n: t.clone() for n, t in trainer.student.encoder.state_dict().items()}
    validate = trainer._validate

    def watch(epoch: int) -> None:
        nonlocal before
        trainer.replica.gather()
        after = {n: t.clone() for n, t in trainer.student.encoder.state_dict().items()}
        epochs.append([not torch.equal(before[n], after[n]) for n in (embeddings, first, last)])
        before = after
        validate(epoch)

    trainer._validate = watch  # type: ignore[method-assign]
    trainer.fit()
    assert epochs == [[False, False, True], [True, True, True], [True, True, True]]


@pytest.mark.parametrize(
    ("epochs", "counts"),
    [(1, [4]), (2, [2, 4]), (3, [2, 3, 4]), (4, [1, 2, 3, 4]), (8, [1, 1, 2, 2, 3, 3, 4, 4])],
)
def test_parts_trained_by_epoch(epochs: int, counts: list[int]) -> None:
    stage = Stage(DISTIL, epochs, 1e-3, 1e-3, "gradual")
    assert [stage.trained_parts(epoch, 4) for epoch in range(epochs)] == counts
