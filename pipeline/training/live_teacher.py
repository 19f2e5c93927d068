"""A teacher that is trained on beside its student. Plain PyTorch: an actor only wraps it (`pipeline.training.live_actor`).

It is a student of one task for the training loop, whose clock is its student's: learning rate and schedule go by the student's steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.batch import Drawn, Ragged, offsets_of
from pipeline.config.recipe import Recipe
from pipeline.config.resolved import CoTraining
from pipeline.data.splits import TaskData
from pipeline.errors import CorruptError, DivergedError
from pipeline.files import write_atomically
from pipeline.losses import LossWeights, Needs
from pipeline.models import fingerprint, open_tokenizer, resolve
from pipeline.predictor import check_model
from pipeline.soft import Dense, SoftTargets
from pipeline.tasks import Task
from pipeline.tasks.label_map import Groups
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.encoded import encoded
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.fine_tune import FACTS, TEACHER
from pipeline.training.live import Host, LiveTargets, LiveTeachers
from pipeline.training.loop import Trainer, rng_state, set_rng_state
from pipeline.training.schedule import Step
from pipeline.training.stage import LABELS_ALONE, LossPlan, one_stage
from pipeline.training.step import Aggregation, Workers, predict
from students.export import save_task
from students.student import open_trained
from teachers.spec import TeacherSpec

Value = TypeVar("Value", covariant=True)
LABELS: frozenset[Needs] = frozenset({"labels"})
LABELS_AND_STUDENT: frozenset[Needs] = frozenset({"labels", "targets"})


@dataclass(frozen=True)
class LiveSettings:
    """How a teacher is trained on. recipe: its epochs and early stopping are not read · every: see `CoTrainConfig` · mutual: weight of its
    soft loss towards the student's predictions, of which `temperature` is the temperature."""

    recipe: Recipe
    every: int = 1
    mutual: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LivePlan:
    """The teachers of a run that are trained on. together: how · specs: by teacher · private: whether Ray has this machine alone · nodes_timeout_s:
    see `pipeline.places.Patience`."""

    together: CoTraining
    specs: Mapping[str, TeacherSpec]
    private: bool = True
    nodes_timeout_s: float = 900.0

    def open(
        self,
        name: str,
        data: TaskData,
        seed: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> LiveTeacher:
        """A teacher as its student finds it at the start. data: of its task. Raises `TeacherError`."""
        spec, own = self.specs[name], self.together
        settings = LiveSettings(own.recipes[name], own.every, own.mutual, own.temperatures[name])
        return LiveTeacher(
            resolve(spec.opened, spec.revision, f"teachers.{name}"), spec, data, settings, seed, device
        )

    def teachers(self, host: Callable[[str], Host]) -> LiveTeachers:
        """All of them. host: gives one by its name."""
        tasks = {name: spec.task.name for name, spec in self.specs.items()}
        hosts = {name: host(name) for name in tasks}
        return LiveTeachers(hosts, tasks, self.together.max_age, mutual=self.together.mutual > 0)


class LiveTeacher:
    """One teacher: asked for the targets of batches, and given batches to learn from.

    folder: the model that it starts from, with a head for the task · data: of its task; rows are those of its train split. `begin` must be
    called before anything else. Random numbers are its own: what else its process draws has no effect on it.
    """

    def __init__(
        self,
        folder: Path,
        spec: TeacherSpec,
        data: TaskData,
        settings: LiveSettings,
        seed: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        where, self._task = f"teachers.{spec.name}", data.task
        groups = check_model(folder, data.task, where, max_length=spec.max_length, labels=spec.labels)
        self._name, self._settings, self._seed = spec.name, settings, seed
        self._workers, self._tokenizer = Workers(device=device), open_tokenizer(folder)
        aligned = data.task
        if groups is not None:
            head: Any = AlignedHead(data.task.head, groups)
            aligned = replace(data.task, head=head)
        self._student = open_trained(folder, aligned)
        train, validation = data.splits["train"], data.splits["validation"]
        texts, gold = (
            encoded(data.task.head, self._tokenizer, one, spec.max_length) for one in (train, validation)
        )
        self._followed = Followed()
        self._set = TaskSet(
            aligned,
            texts,
            train,
            gold,
            validation,
            sources=(self._followed,),
            aggregation=Aggregation("mean", torch.ones(1)),
            tokenizer=self._tokenizer,
        )
        self._labelled = data.task.reading.labelled(train.labels)
        self._batches, self._loss = 0, float("nan")
        self._failed: Exception | None = None
        with torch.random.fork_rng():
            torch.manual_seed(1_000_003 * (seed + 1))
            self._random = rng_state(device)

    def begin(self, total_steps: int) -> None:
        """total_steps: of the student's training."""
        recipe, mutual = self._settings.recipe, self._settings.mutual
        feed = Feed(
            [self._set], recipe.batch_size, recipe.tokens_per_forward, seed=self._seed, workers=self._workers
        )
        feed.steps_per_epoch = total_steps
        loss = LABELS_ALONE
        if mutual:
            loss = LossWeights({"hard": 1 - mutual, "soft": mutual}, self._settings.temperature)
        once = recipe.model_copy(update={"epochs": 1})
        stages = one_stage(once, LossPlan(others=loss))
        self._trainer = Trainer(self._student, feed, once, stages, Path())

    def targets(self, rows: NDArray[np.int64]) -> LiveTargets:
        """The targets of rows (m,), in evaluation mode, in float16 as in the store."""
        self._check()
        trained, tokens = self._trainer.replica.trained, self._settings.recipe.tokens_per_forward
        task, texts = self._set.task, self._set.train
        with self._trainer.autocast:
            values = predict(trained, task, texts, tokens, self._workers, rows=rows)
        soft = Dense(Ragged(values, offsets_of(texts.counts[rows])), self._task.head.columns).half()
        keys = self._set.examples.keys[rows]
        return LiveTargets(SoftTargets(keys, soft), self._batches, self._loss)

    def learn(self, step: int, rows: NDArray[np.int64], predictions: Ragged | None = None) -> None:
        """Takes one optimiser step on rows (m,) of a batch, or none: on every n-th batch alone, and on one with labels, or with predictions.

        step: number of the student's step, from 0 · predictions: the student's, in the order of `rows`. Raises `DivergedError`. After an error
        every call raises it: nobody waits for this one.
        """
        self._check()
        try:
            self._learn(step, rows, predictions)
        except DivergedError as error:
            self._failed = DivergedError(f"teacher {self._name}: {error.cause}", error.remedy)
            raise self._failed from None
        except Exception as error:
            self._failed = error
            raise

    def _learn(self, step: int, rows: NDArray[np.int64], predictions: Ragged | None) -> None:
        self._batches += 1
        if self._batches % self._settings.every:
            return
        if predictions is None:
            rows = rows[self._labelled[rows]]
        if not len(rows):
            return
        trainer = self._trainer
        trainer.progress.step = step
        self._followed.receive(rows, predictions, self._task)
        trainer.replica.trained.train()
        needs = LABELS if predictions is None else LABELS_AND_STUDENT
        with self._own_random_numbers():
            trainer.take(trainer.feed.fed(Step(self._task.name, rows), needs))
        self._loss = trainer.measured().get("loss/total", self._loss)

    def save(self, file: Path) -> None:
        """Writes all that decides its next answer."""
        self._check()
        with self._own_random_numbers():
            checkpoint = self._trainer.state()
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, own in checkpoint.tensors.items()
            for name, tensor in own.items()
        }
        facts = {"state": checkpoint.state, "batches": self._batches, "loss": self._loss}
        save_file(tensors, file, metadata={"facts": json.dumps(facts)})

    def load(self, file: Path) -> int:
        """Goes on from what `save` wrote; returns the number of batches that it had been given. Raises `CorruptError`."""
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        try:
            with safe_open(file, "pt") as stream:
                facts = json.loads(stream.metadata()["facts"])
                for name in stream.keys():  # noqa: SIM118 - no mapping
                    group, _, own = name.partition("/")
                    tensors.setdefault(group, {})[own] = stream.get_tensor(name)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"{file}: the state of teacher {self._name} cannot be read: {error}",
                "Remove the checkpoint that it lies in; the training goes on from the one before it.",
            ) from None
        with self._own_random_numbers():
            self._trainer.restore(Checkpoint(tensors, facts["state"]))
        self._batches, self._loss = int(facts["batches"]), float(facts["loss"])
        return self._batches

    def export(self, folder: Path) -> None:
        """Writes `folder`/teacher, a Hugging Face folder, in the layout of a fine-tuned teacher's folder."""
        self._check()
        self._trainer.replica.gather()
        save_task(self._student, self._task.name, self._tokenizer, folder / TEACHER)
        facts = {"batches": self._batches, "fingerprint": fingerprint(folder / TEACHER)}
        settings = {**asdict(self._settings), "recipe": self._settings.recipe.model_dump(mode="json")}
        write_atomically(folder / FACTS, json.dumps({**facts, "co_train": settings}, indent=1))

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        before = rng_state(self._workers.device)
        set_rng_state(self._random, self._workers.device)
        try:
            yield
        finally:
            self._random = rng_state(self._workers.device)
            set_rng_state(before, self._workers.device)


@dataclass(frozen=True)
class Done(Generic[Value]):
    """The result of a call that has been made: a `pipeline.training.live.Reply`."""

    value: Value

    def get(self) -> Value:
        """The result."""
        return self.value


class LocalTeacher:
    """A teacher in this very process: a `pipeline.training.live.Host` without Ray."""

    def __init__(self, teacher: LiveTeacher) -> None:
        self._teacher = teacher
        self.begin, self.learn = teacher.begin, teacher.learn

    def targets(self, rows: NDArray[np.int64]) -> Done[LiveTargets]:
        """See `Host`."""
        return Done(self._teacher.targets(rows))

    def save(self, file: Path) -> Done[None]:
        """See `Host`."""
        self._teacher.save(file)
        return Done(None)

    def saved(self, file: Path) -> None:
        """See `Host`."""

    def load(self, file: Path) -> Done[int]:
        """See `Host`."""
        return Done(self._teacher.load(file))

    def export(self, folder: Path) -> Done[None]:
        """See `Host`."""
        self._teacher.export(folder)
        return Done(None)

    def close(self) -> None:
        """See `Host`."""


class Followed:
    """A student's predictions as the targets of its teacher: a `pipeline.soft.TargetSource`."""

    def __init__(self) -> None:
        self._rows = np.empty(0, dtype=np.int64)
        self._soft: Dense | None = None

    def receive(self, rows: NDArray[np.int64], predictions: Ragged | None, task: Task) -> None:
        """The predictions for a batch's rows (m,), in their order."""
        order = np.argsort(rows, kind="stable")
        self._rows = rows[order]
        self._soft = None if predictions is None else Dense(predictions.take(order), task.head.columns)

    def targets(self, batch: Drawn) -> Dense:
        """See `pipeline.soft.TargetSource`."""
        assert self._soft is not None, "received before"
        return self._soft.take(np.searchsorted(self._rows, batch.rows))


@dataclass(frozen=True)
class AlignedHead:
    """A task's head for a model whose columns are others, or in another order: see `pipeline.tasks.task.Head`.

    groups: as of `Head.groups`.
    """

    head: Any
    groups: Groups

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy in the making has no head yet
            raise AttributeError(name)
        return getattr(self.head, name)

    def read_out(self, output: Any, batch: Any) -> torch.Tensor:
        """(M, C) values of the task's columns."""
        values: torch.Tensor = self.head.marginalise(self.head.read_out(output, batch), self.groups)
        return values
