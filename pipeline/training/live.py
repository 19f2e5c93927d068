"""Teachers that are trained on beside their student, as the student's training sees them: sources of targets, which learn from each step.

A teacher answers its calls in their order. So what a step's targets were computed from is decided by when they are asked for, not by
which process is faster: the same seed gives the same targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Drawn, Ragged, offsets_of
from pipeline.errors import BadTargetsError, CorruptError
from pipeline.soft import Dense, SoftTargets
from pipeline.training.schedule import Step
from pipeline.training.step import MicroBatch

Value = TypeVar("Value", covariant=True)


@dataclass(frozen=True)
class LiveTargets:
    """A teacher's answer. targets: of the rows asked for, by key · batches: that it had been given to learn from before · loss: of
    the latest batch that it learnt from, NaN before the first."""

    targets: SoftTargets
    batches: int
    loss: float


class Reply(Protocol[Value]):
    """What a call will give."""

    def get(self) -> Value:
        """Waits for it. Raises the call's error."""
        ...


class Host(Protocol):
    """A teacher that is trained on, wherever it is; see `pipeline.training.live_teacher.LiveTeacher`. Calls take effect in their order."""

    def begin(self, total_steps: int) -> None:
        """The student's steps in all. To be called first."""
        ...

    def targets(self, rows: NDArray[np.int64]) -> Reply[LiveTargets]:
        """The targets of rows (m,) of its task's train split, of the teacher as it is then."""
        ...

    def learn(self, step: int, rows: NDArray[np.int64], predictions: Ragged | None) -> None:
        """Gives it a batch to learn from."""
        ...

    def save(self, file: Path) -> Reply[None]:
        """Writes its state."""
        ...

    def saved(self, file: Path) -> None:
        """Where its latest state lies from now on."""
        ...

    def load(self, file: Path) -> Reply[int]:
        """Reads its state; gives the number of batches that it had been given."""
        ...

    def export(self, folder: Path) -> Reply[None]:
        """Writes it as a fine-tuned teacher."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Live:
    """Targets of one teacher for the rows of the step that was asked for last: a `pipeline.soft.TargetSource`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows = np.empty(0, dtype=np.int64)
        self._targets: SoftTargets | None = None

    def receive(self, rows: NDArray[np.int64], targets: SoftTargets) -> None:
        """Takes the targets of a step's rows (m,). Raises `BadTargetsError` for NaN or Inf."""
        if not np.isfinite(targets.soft.numbers).all():
            raise BadTargetsError(
                f"teacher {self._name}, which is trained on, answers NaN or Inf",
                "Lower co_train.learning_rate, or clip gradients (train.gradient_clip); the last checkpoint is intact.",
            )
        order = np.argsort(rows, kind="stable")
        self._rows = rows[order]
        self._targets = SoftTargets(targets.keys[order], targets.soft.take(order))

    def targets(self, batch: Drawn) -> Dense:
        """The targets of the batch's examples, in their order. Raises `CorruptError` where the teacher has answered about others."""
        assert self._targets is not None, "received before"
        places = np.searchsorted(self._rows, batch.rows).clip(max=len(self._rows) - 1)
        if not np.array_equal(self._targets.keys[places], batch.keys):
            raise CorruptError(
                f"teacher {self._name} has answered about other examples than those of the step",
                "Do the nodes of the cluster read the same data? Run the same command again.",
            )
        soft = self._targets.soft.take(places)
        assert isinstance(soft, Dense), "only of kinds that do not write"
        return soft


class LiveTeachers:
    """All teachers that are trained on beside one training of a student.

    hosts: by teacher · tasks: by teacher · max_age: the steps for which targets are asked ahead · mutual: whether teachers learn from their
    student's predictions, so that they learn after a step instead of during it.

    `Feed` calls `expect` before it makes a step, `Trainer` calls `taken` after it.
    """

    def __init__(
        self, hosts: Mapping[str, Host], tasks: Mapping[str, str], max_age: int = 0, *, mutual: bool = False
    ) -> None:
        self.hosts, self.max_age = hosts, max_age
        self.sources = {name: Live(name) for name in hosts}
        self._mutual = mutual
        self._teachers: dict[str, list[str]] = {}
        for name, task in tasks.items():
            self._teachers.setdefault(task, []).append(name)
        self.tasks = frozenset(self._teachers)
        self._given = dict.fromkeys(hosts, 0)
        self._asked: dict[int, dict[str, Reply[LiveTargets]]] = {}
        self._number, self._current = 0, Step("", np.empty(0, dtype=np.int64))
        self._measured: dict[str, float] = {}

    def begin(self, total_steps: int) -> None:
        """To be called before a training. total_steps: its optimiser steps."""
        for host in self.hosts.values():
            host.begin(total_steps)

    def expect(self, number: int, coming: Sequence[Step]) -> None:
        """Gets the targets of step `number`, the first of `coming`, and asks for those of the others. Waits.

        coming: at most 1 + `max_age` steps, those of tasks without such teachers among them; empty where the training needs no targets now.
        """
        self._measured = {}
        for ahead, step in enumerate(coming):
            if step.task in self._teachers and number + ahead not in self._asked:
                self._asked[number + ahead] = {
                    name: self.hosts[name].targets(step.rows) for name in self._teachers[step.task]
                }
        if number not in self._asked:
            return
        self._number, self._current = number, coming[0]
        ages = []
        for name, reply in self._asked.pop(number).items():
            answer = reply.get()
            self.sources[name].receive(self._current.rows, answer.targets)
            ages.append(self._given[name] - answer.batches)
            if not math.isnan(answer.loss):
                self._measured[f"co_train/loss/{name}"] = answer.loss
        self._measured[f"co_train/age/{self._current.task}"] = sum(ages) / len(ages)
        if not self._mutual:
            self._learn(self._current.rows, None)

    def taken(self, predicted: Sequence[tuple[MicroBatch, Tensor]]) -> Mapping[str, float]:
        """To be called after each step; gives what was measured in it, by name: the age of its targets, in batches that its teachers
        were given since, and the teachers' losses.

        predicted: the step's micro-batches with the student's predictions, (M, C) each.
        """
        if self._measured and self._mutual:
            self._learn(*_joined(predicted))
        return self._measured

    def _learn(self, rows: NDArray[np.int64], predictions: Ragged | None) -> None:
        for name in self._teachers[self._current.task]:
            self.hosts[name].learn(self._number, rows, predictions)
            self._given[name] += 1

    def save(self, folder: Path) -> None:
        """Writes the teachers' states into `folder`, as they are after the batches that they were given."""
        for reply in [host.save(folder / _file(name)) for name, host in self.hosts.items()]:
            reply.get()

    def saved(self, folder: Path) -> None:
        """Where the states lie from now on that `save` wrote."""
        for name, host in self.hosts.items():
            host.saved(folder / _file(name))

    def load(self, folder: Path) -> None:
        """Goes on from the states in `folder`."""
        self._asked.clear()
        replies = {name: host.load(folder / _file(name)) for name, host in self.hosts.items()}
        self._given = {name: reply.get() for name, reply in replies.items()}

    def export(self, folders: Mapping[str, Path]) -> None:
        """Writes each teacher as a fine-tuned one. folders: by teacher."""
        for reply in [host.export(folders[name]) for name, host in self.hosts.items()]:
            reply.get()

    def close(self) -> None:
        """Ends the teachers."""
        for host in self.hosts.values():
            host.close()


def _joined(predicted: Sequence[tuple[MicroBatch, Tensor]]) -> tuple[NDArray[np.int64], Ragged]:
    """The rows of a step's micro-batches and the student's (M, C) predictions for them, one micro-batch after another."""
    rows = [batch.rows for batch, _ in predicted if batch.rows is not None]
    counts = [batch.tokens.counts.cpu().numpy() for batch, _ in predicted]
    values = [one.float().cpu().numpy() for _, one in predicted]
    return np.concatenate(rows), Ragged(np.concatenate(values), offsets_of(np.concatenate(counts)))


def _file(teacher: str) -> str:
    return f"{teacher}.safetensors"
