"""The training loop, without Ray: epochs, optimiser, validation, checkpoints, exact resume.

It trains students inside a Ray Train worker group and fine-tunes teachers; tests call it directly. Everything that
decides the next step is in the checkpoint or is a pure function of (seed, epoch). So an interrupted and resumed
training equals an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arithmetic import autocast
from pipeline.config.kinds import SKILL
from pipeline.config.recipe import Recipe
from pipeline.config.schema import WorkerStrategy
from pipeline.errors import DivergedError, ExhaustedError
from pipeline.losses import LossWeights, Needs, needs_of
from pipeline.memory import freed_memory_kept, trim_memory
from pipeline.tasks.forced import MOST_TRAINED, most_tokens
from pipeline.tasks.skill import relative_losses, skill
from pipeline.text_arrays import is_text
from pipeline.training import first_stage
from pipeline.training.checkpoint import (
    BESIDE,
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pipeline.training.feed import FedStep, Feed
from pipeline.training.focus import Focus
from pipeline.training.log import METRICS, append_metrics, trim_metrics
from pipeline.training.optimizer import learning_rate_factor, make_optimizer
from pipeline.training.replica import Replica
from pipeline.training.stage import Stage
from pipeline.training.step import MicroBatch, accumulate, forced_scores, hidden_error, predict
from pipeline.training.used_rows import UsedRowsReplica, used_ids
from students.layer_init import parts_from_top
from students.student import MultiTaskStudent

LOG_STEPS = 10  # steps per point of the loss curves
TRIM_STEPS = 50  # steps between two calls of `trim_memory`: their cost was not measurable
STOP_POLL_S = 0.2
DIVERGED = "Lower the learning rate, clip gradients, or use precision fp32; the last checkpoint is intact."


@dataclass
class Progress:
    """Where a training stands; kept in its checkpoints."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    halved: int = 0
    """Times that forward passes had to be made smaller, for lack of the device's memory."""
    best_score: float = -math.inf
    best_epoch: int = -1
    kept: dict[str, float] = field(default_factory=dict)
    """Validation scores of the weights that would be kept if training ended now."""
    status: str = "running"
    """running, done, early_stopped or interrupted."""
    epoch_seconds: list[float] = field(default_factory=list)
    focus: Focus = field(default_factory=Focus)


Report = Callable[[int, Mapping[str, float]], None]


class Trainer:
    """Trains one student on several tasks, in one stage or several; `fit` does all of it.

    Which stage a step belongs to is a function of its number. The best weights on validation are kept, of whichever stage; only the last one
    stops early. The epochs and learning rates of `config` are not read, each stage has its own.

    folder: gets the checkpoints and metrics.jsonl · should_stop: called between steps; once it returns true, `fit`
    writes a checkpoint and returns with status "interrupted" · report: called after each epoch's checkpoint, with
    the number of finished epochs and the validation scores of the weights kept so far · first_stages: folder of the
    first stages that other trainings with the same beginning may go on from (`pipeline.training.first_stage`), or None ·
    strategy: how several workers hold the student (`pipeline.training.replica`).
    """

    def __init__(
        self,
        student: MultiTaskStudent,
        feed: Feed,
        config: Recipe,
        stages: Sequence[Stage],
        folder: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        report: Report = lambda epochs, scores: None,
        first_stages: Path | None = None,
        strategy: WorkerStrategy = "ddp",
    ) -> None:
        self.student, self.feed, self.config, self.stages, self.folder = student, feed, config, stages, folder
        self.should_stop, self.report, self.first_stages = should_stop, report, first_stages
        self._first_stage: Path | None = None
        self.workers = feed.workers
        self.focused = all(one.ensemble_skill is not None for one in feed.sets.values())
        # a recording has tens of times as many positions as its text has tokens, and logits are at those alone
        if any(one.task.kind.writes and not one.task.kind.audio for one in feed.sets.values()):
            vocabulary = len(student.encoder.get_output_embeddings().weight)
            feed.limit(most_tokens(config.tokens_per_forward, vocabulary, MOST_TRAINED))
        self.total_steps = sum(stage.epochs for stage in stages) * feed.steps_per_epoch
        self.student.to(self.workers.device)
        self._fixed = {id(one) for one in student.parameters() if not one.requires_grad}
        self.replica = _replica_of(student, feed, config, strategy)
        # a model may have frozen parameters of its own, such as DistilBERT's sinusoidal positions
        trained = self.replica.trained
        trainable = {parameter for parameter in trained.parameters() if parameter.requires_grad}
        self._parts = [
            [parameter for parameter in part if parameter in trainable]
            for part in (parts_from_top(trained.encoder) if any(stage.unfreeze for stage in stages) else [])
        ]
        self._frozen = 0
        self._enter(0)
        self.autocast = autocast(config.precision, self.workers.device)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.kept_predictions: dict[str, NDArray[Any]] = {}
        """Validation predictions of the weights kept so far, by task; empty until this process has made them."""
        self._window: dict[str, list[float]] = defaultdict(list)
        self._predicted: list[tuple[MicroBatch, Tensor]] = []
        """The student's predictions in this step, where teachers are trained on beside it."""

    @freed_memory_kept()
    def fit(self) -> Progress:
        """Trains to the end, from the last checkpoint in `folder` if there is one.

        Afterwards the student has the selected weights: the last, or with early stopping the best on validation.

        Raises `DivergedError` after more than `max_skipped_steps` updates in a row with a NaN or Inf loss, or
        where validation gives NaN or Inf.
        """
        torch.manual_seed(1_000_003 * (self.feed.seed + 1) + self.workers.rank)  # dropout differs by worker
        if self.feed.live is not None:
            self.feed.live.begin(self.total_steps)
        self._resume()
        while self.progress.status == "running":
            epoch = self.progress.step // self.feed.steps_per_epoch
            if self.progress.step == self._end:
                self._enter(self._stage + 1)
            seconds = self.run_epoch(epoch)
            if self.progress.status != "interrupted":
                self.progress.epoch_seconds.append(seconds)
                self._validate(epoch)
                self._save()
                if self._first_stage is not None and self._stage == 0 and self.progress.step == self._end:
                    first_stage.publish(self.folder, self._first_stage)
                if self.progress.kept:
                    self.report(epoch + 1, self.progress.kept)
        if self.progress.status == "interrupted":
            return self.progress
        if self.best:
            self._load_weights(self.best)
        self.student.eval()
        return self.progress

    def _enter(self, index: int) -> None:
        """Begins stage number `index`, from 0, with a fresh optimiser."""
        ends = np.cumsum([0, *(one.epochs for one in self.stages)]) * self.feed.steps_per_epoch
        self._stage, self._begin, self._end = index, int(ends[index]), int(ends[index + 1])
        self.stage = self.stages[index]
        self._freeze(0)
        tasks = [task_set.task for task_set in self.feed.sets.values()]
        self.needs = frozenset[Needs]().union(
            *(needs_of(task.head.losses, self.stage.losses.at(task.name, 0.0)) for task in tasks)
        )
        rates = {
            "learning_rate": self.stage.learning_rate,
            "head_learning_rate": self.stage.head_learning_rate,
        }
        self.optimizer = make_optimizer(self.replica.trained, self.config.model_copy(update=rates))

    def run_epoch(self, epoch: int) -> float:
        """Takes the remaining optimiser steps of epoch number `epoch` (from 0); returns their seconds."""
        done = self.progress.step - epoch * self.feed.steps_per_epoch
        parts = len(self._parts)
        own = epoch - self._begin // self.feed.steps_per_epoch
        self._freeze(parts - self.stage.trained_parts(own, parts))
        started = time.perf_counter()
        self.replica.trained.train()
        steps = self.feed.epoch(epoch, done, self.needs, self.progress.focus, self.stage.texts)
        for position, step in enumerate(steps, done + 1):
            stop = self.take(step)
            last = position == self.feed.steps_per_epoch
            if self.progress.step % LOG_STEPS == 0 or self.progress.step == 1 or last:
                self._log_losses(epoch)
            if self.progress.step % TRIM_STEPS == 0 or last:
                trim_memory()
            if stop and not last:
                self._save(status="interrupted")
                break
            if not last and self.progress.step % self.config.checkpoint_steps == 0:
                self._save()
        return time.perf_counter() - started

    def _freeze(self, count: int) -> None:
        """Freezes the encoder's lowest `count` parts, and no others."""
        for number, part in enumerate(reversed(self._parts)):
            for parameter in part:
                parameter.requires_grad_(number >= count)
        if count != self._frozen:
            self.replica.wrap()
            self._frozen = count

    def take(self, step: FedStep) -> bool:
        """Takes one optimiser step; returns whether `should_stop` was true on any worker."""
        self._set_learning_rate()
        weights = self.stage.losses.at(
            step.task, (self.progress.step - self._begin) / (self._end - self._begin)
        )
        if factor := self.progress.focus.factors().get(step.task):
            weights = replace(weights, task=weights.task * factor)
        sums = self._gradients(step, weights)
        norm = self.replica.norm(
            torch.nn.utils.clip_grad_norm_(
                self.replica.trained.parameters(), self.config.gradient_clip or math.inf
            )
        )
        stop = float(self.should_stop())
        values = self.workers.sum_(torch.stack([*sums.values(), norm.new_tensor(stop)])).tolist()
        self.progress.step += 1
        if math.isfinite(values[0]) and math.isfinite(float(norm)):
            self.optimizer.step()
            self.replica.stepped(self.optimizer)
            self.progress.skipped_in_a_row = 0
            for name, value in zip(sums, values[:-1], strict=True):
                self._window["loss/total" if name == "total" else f"loss/{name}/{step.task}"].append(value)
        else:
            self._skip(step)
        if self.feed.live is not None:
            for name, value in self.feed.live.taken(self._predicted).items():
                self._window[name].append(value)
        return bool(values[-1] > 0)

    def _gradients(self, step: FedStep, weights: LossWeights) -> dict[str, Tensor]:
        """The step's losses, as of `accumulate`, and its gradients. Where one worker has too little memory for a forward or backward
        pass, the step is taken in smaller ones.

        Raises `ExhaustedError` where that does not help, or there are others, which wait for this worker's gradients.
        """
        task_set = self.feed.sets[step.task]
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            values: list[Tensor] | None = None if self.feed.live is None else []
            try:
                sums = accumulate(
                    self.replica.model,
                    task_set.task,
                    step.batches,
                    weights,
                    aggregation=task_set.aggregation,
                    normaliser=step.normaliser,
                    autocast=self.autocast,
                    match=task_set.hidden,
                    values=values,
                )
                if values is not None:
                    self._predicted = list(zip(step.batches, values, strict=False))
                return sums
            except torch.OutOfMemoryError as error:
                if self.workers.world > 1:
                    raise ExhaustedError(
                        f"out of the device's memory in step {self.progress.step + 1} (task {step.task})",
                        "Lower train.tokens_per_forward and run the same command again; it goes on from its checkpoint.",
                    ) from error
            step = self.feed.halved(step, self.needs)  # not in the handler: the error keeps tensors
            self.progress.halved += 1

    def _skip(self, step: FedStep) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row > self.config.max_skipped_steps:
            raise DivergedError(
                f"the loss is NaN or Inf in {self.progress.skipped_in_a_row} steps in a row, up to step "
                f"{self.progress.step} (task {step.task})",
                DIVERGED,
            )

    def _set_learning_rate(self) -> None:
        factor = learning_rate_factor(
            self.progress.step - self._begin,
            self._end - self._begin,
            self.config.warmup,
            self.config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _validate(self, epoch: int) -> None:
        """Scores the student on validation; keeps the best weights and, in the last stage, stops early where configured.

        A stage that trains no head has no scores.
        """
        self.replica.gather()
        values, predictions = self._hidden_errors(), dict[str, NDArray[Any]]()
        if self.focused:
            self.feed.draw(self.progress.focus)
        if self.needs != {"hidden"}:
            predictions = self.predictions()
            values |= self._scores(predictions)
            if self.focused:
                values |= self._measure_gaps(values)
        self._log({**values, "time/epoch_s": self.progress.epoch_seconds[-1]}, epoch)
        finished = self.progress.step == self.total_steps
        if "macro/score" in values:
            self._select(epoch, values, predictions, finished)
        if finished:
            self.progress.status = "done"

    def _measure_gaps(self, values: Mapping[str, float]) -> dict[str, float]:
        """Takes the tasks' gaps from validation into the training's focus; returns them for the log."""
        ensemble = {
            name: one.ensemble_skill for name, one in self.feed.sets.items() if one.ensemble_skill is not None
        }
        focus = self.progress.focus
        focus.measure({name: values[f"{name}/{SKILL}"] for name in ensemble}, ensemble)
        return {f"gap/{name}": gap for name, gap in focus.gaps.items()}

    def predictions(self) -> dict[str, NDArray[Any]]:
        """The student's (M, C) predictions on validation, by task."""
        tokens, workers = self.config.tokens_per_forward, self.workers
        return {
            name: predict(
                self.student, task_set.task, task_set.validation, tokens, workers, task_set.tokenizer
            )
            for name, task_set in self.feed.sets.items()
        }

    def validation_predictions(self) -> dict[str, NDArray[Any]]:
        """Those of the selected weights, after `fit`; made anew only where this process has not made them."""
        return self.kept_predictions or self.predictions()

    def _scores(self, predictions: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Every task's metrics on validation, and their means over the tasks. Raises `DivergedError`."""
        values: dict[str, float] = {}
        main, skills = list[float](), list[float]()
        for name, task_set in self.feed.sets.items():
            given, forced = predictions[name], dict[str, float]()
            if task_set.task.kind.writes:
                encoded, tokens = task_set.validation, self.config.tokens_per_forward
                forced = forced_scores(self.student, task_set.task, encoded, tokens, self.workers)
            numbers = list(forced.values()) if is_text(given) else given
            if not np.isfinite(numbers).all():
                raise DivergedError(
                    f"the student answers NaN or Inf on {name} after step {self.progress.step}",
                    DIVERGED,
                )
            scores = task_set.task.scoring.scores(given, task_set.gold)
            scores[SKILL] = skill(relative_losses(task_set.task, given, task_set.gold))
            scores |= forced
            values |= {f"{name}/{metric}": value for metric, value in scores.items()}
            main.append(scores[task_set.task.scoring.metric])
            skills.append(scores[SKILL])
        values["macro/score"] = sum(main) / len(main)
        values[f"macro/{SKILL}"] = sum(skills) / len(skills)
        return values

    def _hidden_errors(self) -> dict[str, float]:
        """The hidden term of every task on validation, where the stage has it. Raises `DivergedError`."""
        values: dict[str, float] = {}
        for name, task_set in self.feed.sets.items():
            if "hidden" not in self.needs or task_set.hidden is None:
                continue
            value = values[f"validation/hidden/{name}"] = hidden_error(
                self.student,
                name,
                task_set.hidden,
                task_set.validation,
                task_set.gold,
                self.config.tokens_per_forward,
                self.workers,
            )
            if not math.isfinite(value):
                raise DivergedError(
                    f"the student's hidden vectors on {name} are NaN or Inf after step {self.progress.step}",
                    DIVERGED,
                )
        return values

    def _select(
        self, epoch: int, values: dict[str, float], predictions: dict[str, NDArray[Any]], finished: bool
    ) -> None:
        """Keeps scores and predictions of the weights that would be kept, and the best weights of any stage; stops early, in the last
        stage, where configured: a stage's first epochs at its full rate may be worse than the end of the stage before it."""
        score = values["macro/score"]
        if self.config.early_stopping is None or score > self.progress.best_score:
            self.progress.kept, self.kept_predictions = values, predictions
        if self.config.early_stopping is None:
            self.progress.best_score, self.progress.best_epoch = score, epoch
        elif score > self.progress.best_score:
            self.best = {name: tensor.detach().clone() for name, tensor in self._weights().items()}
            self.progress.best_score, self.progress.best_epoch = score, epoch
        elif self._stage + 1 == len(self.stages) and not finished:
            first = self._begin // self.feed.steps_per_epoch
            if epoch - max(self.progress.best_epoch, first) >= self.config.early_stopping.patience:
                self.progress.status = "early_stopped"

    # ---- checkpoints

    def _weights(self) -> dict[str, Tensor]:
        """Parameters that train and buffers, each shared tensor once: the others are as in the folder that the student starts from."""
        seen = set(self._fixed)
        state = self.student.state_dict(keep_vars=True)
        return {n: t for n, t in state.items() if id(t) not in seen and not seen.add(id(t))}  # type: ignore[func-returns-value]

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = self._weights()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])

    def _save(self, status: Literal["interrupted"] | None = None) -> None:
        """Writes a checkpoint, with the states of the teachers that are trained on beside this training."""
        state, live = self.state(), self.feed.live
        if self.workers.rank == 0:
            final = save_checkpoint(
                self.folder, self.progress.step, state.tensors, state.state, live.save if live else None
            )
            if live is not None:
                live.saved(final / BESIDE)
        if status is not None:
            self.progress.status = status

    def state(self) -> Checkpoint:
        """All that decides the next step: of a training that has ended, nothing but the selected weights, a fourth of the size.

        To be called on all workers.
        """
        rng = {
            str(rank): state for rank, state in enumerate(self.workers.gather(rng_state(self.workers.device)))
        }
        self.replica.gather()
        slots = self.replica.optimizer_state(self.optimizer)
        optimizer = {f"{i}.{key}": value for i, slot in slots.items() for key, value in slot.items()}
        tensors = {"model": self._weights(), "optimizer": optimizer, "rng": rng, "best": self.best}
        if self.progress.status in ("done", "early_stopped"):
            tensors = {"model": self.best or self._weights(), "rng": rng}
        facts = {
            "progress": asdict(self.progress),
            "window": dict(self._window),
            "threads": torch.get_num_threads(),
            "decay": self.replica.decay,
        }
        return Checkpoint({name: group for name, group in tensors.items() if group}, facts)

    def _share_first_stage(self) -> None:
        """Begins with the first stage of another training with the same beginning, where there is one."""
        if self.first_stages is None or len(self.stages) == 1 or self.workers.rank != 0:
            return
        digest = first_stage.digest_of(self.student, self.feed, self.config, self.stages[0], self.focused)
        if digest is None:
            return
        self._first_stage = self.first_stages / digest
        if newest_checkpoint(self.folder) is None:
            first_stage.take(self._first_stage, self.folder)

    def _resume(self) -> None:
        self._share_first_stage()
        # the others may not see the first one's files
        checkpoint = self.workers.from_first(load_checkpoint(self.folder) if self.workers.rank == 0 else None)
        self._trim_log(0 if checkpoint is None else checkpoint.state["progress"]["step"])
        if checkpoint is None:
            return
        self.restore(checkpoint)
        if self.feed.live is not None:
            self.feed.live.load(checkpoint.beside)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from what `state` gave. To be called on all workers."""
        progress = checkpoint.state["progress"]
        self.progress = Progress(**{**progress, "focus": Focus(**progress["focus"])})
        self._enter(self._stage_of(self.progress.step))
        # the rounding of a sum depends on the number of threads that compute it
        torch.set_num_threads(checkpoint.state.get("threads", torch.get_num_threads()))
        self._window = defaultdict(list, checkpoint.state["window"])
        self._load_weights(checkpoint.tensors["model"])
        self.best = dict(checkpoint.tensors.get("best", {}))
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in checkpoint.tensors.get("optimizer", {}).items():
            index, key = name.split(".", 1)
            slots[int(index)][key] = tensor
        self.replica.scatter()
        self.replica.decay = checkpoint.state.get("decay", 1.0)
        if (
            self.progress.step > self._begin
        ):  # at a stage's first step, the moments are those of the stage before it
            self.replica.load_optimizer(self.optimizer, slots)
        set_rng_state(checkpoint.tensors["rng"][str(self.workers.rank)], self.workers.device)

    def _stage_of(self, step: int) -> int:
        """The stage of step number `step`, from 0; of the end of the training its last stage."""
        ends = np.cumsum([stage.epochs for stage in self.stages]) * self.feed.steps_per_epoch
        return min(int(np.searchsorted(ends, step, side="right")), len(self.stages) - 1)

    # ---- log

    def measured(self) -> dict[str, float]:
        """The means of what the steps since the last call have measured, by name."""
        values = {name: sum(window) / len(window) for name, window in self._window.items()}
        self._window.clear()
        return values

    def _log_losses(self, epoch: int) -> None:
        self._log({**self.measured(), "train/learning_rate": self.optimizer.param_groups[0]["lr"]}, epoch)

    def _log(self, values: Mapping[str, float], epoch: int) -> None:
        if self.workers.rank != 0:
            return
        line = {
            "step": self.progress.step,
            "total": self.total_steps,
            "epoch": epoch + 1,
            "time": time.time(),
            "metrics": {**values, "train/skipped_steps": self.progress.skipped},
        }
        append_metrics(self.folder / METRICS, line)

    def _trim_log(self, step: int) -> None:
        """Drops the points after the checkpoint's step: those steps are taken again."""
        if self.workers.rank != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        trim_metrics(self.folder / METRICS, step)


class StopWatch:
    """Whether the stop file exists; looks on the disk only a few times a second, however often it is called."""

    def __init__(self, file: Path) -> None:
        self._file, self._next, self._stop = file, 0.0, False

    def __call__(self) -> bool:
        if not self._stop and time.monotonic() >= self._next:
            self._stop = self._file.exists()
            self._next = time.monotonic() + STOP_POLL_S
        return self._stop


def _replica_of(student: MultiTaskStudent, feed: Feed, config: Recipe, strategy: WorkerStrategy) -> Replica:
    """The student as this worker trains it."""
    if strategy == "fsdp" and feed.workers.world > 1:
        from pipeline.training.sharded import ShardedReplica  # importing FSDP2 takes most of a second

        return ShardedReplica(student, feed.workers)
    used = used_ids(student, [one.train for one in feed.sets.values()])
    if used is None or config.optimizer != "adamw":
        return Replica(student, feed.workers)
    return UsedRowsReplica(student, feed.workers, used)


def rng_state(device: torch.device) -> Tensor:
    """The dropout generator's state as bytes, on `device` so that workers can exchange it."""
    state = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cat((state, torch.cuda.get_rng_state(device)))
    return state.to(device)


def set_rng_state(state: Tensor, device: torch.device) -> None:
    """The inverse of `rng_state`."""
    state = state.cpu()
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
