"""The input of a training: for each task the encoded examples, their labels and their teachers' soft targets.

`Feed` cuts them into micro-batches. Their order is a pure function of (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Drawn, Encoded, Examples
from pipeline.data.splits import TaskData
from pipeline.soft import Dense, Soft
from pipeline.tasks import Task
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.schedule import Schedule
from pipeline.training.step import Aggregation, MicroBatch, Workers


class TargetSource(Protocol):
    """Soft targets of one teacher: read from the store (`teachers.store.Stored`), or computed as they are needed."""

    def targets(self, batch: Drawn) -> Soft:
        """The soft targets of the batch's m examples, in the batch's order."""
        ...


@dataclass(frozen=True)
class TaskSet:
    """One task's train and validation split, encoded and as examples.

    sources: one for each teacher, in the order of `aggregation`'s weights; empty for training on labels alone.
    """

    task: Task
    train: Encoded
    examples: Examples
    validation: Encoded
    gold: Examples
    sources: Sequence[TargetSource] = ()
    aggregation: Aggregation | None = None

    @classmethod
    def of(
        cls,
        data: TaskData,
        tokenizer: Any,
        max_length: int | None = None,
        sources: Sequence[TargetSource] = (),
        aggregation: Aggregation | None = None,
    ) -> TaskSet:
        """The task's splits encoded by `tokenizer`; without sources, train's labelled examples alone."""
        train = data.splits["train"] if sources else data.labelled_train()
        validation = data.splits["validation"]
        encoded, gold = (
            data.task.head.encode(tokenizer, some.inputs, max_length) for some in (train, validation)
        )
        return cls(data.task, encoded, train, gold, validation, sources, aggregation)


@dataclass(frozen=True)
class FedStep:
    """One optimiser step: this worker's micro-batches, and the loss normaliser of the step over all workers."""

    task: str
    batches: list[MicroBatch]
    normaliser: int


class Feed:
    """The micro-batches of a training on several tasks, made one step at a time.

    tokens: padded tokens per step · sampling: see `Schedule` · accumulation: micro-batches per worker and step.
    """

    def __init__(
        self,
        sets: Sequence[TaskSet],
        tokens: int,
        *,
        seed: int = 0,
        sampling: float = 1.0,
        accumulation: int = 1,
        workers: Workers | None = None,
    ) -> None:
        self.sets = {task_set.task.name: task_set for task_set in sets}
        self.seed, self.workers = seed, workers or Workers()
        self._parts = self.workers.world * accumulation
        lengths = {name: task_set.train.lengths for name, task_set in self.sets.items()}
        self._schedule = Schedule(lengths, tokens, sampling, seed)
        self.steps_per_epoch = self._schedule.steps_per_epoch

    def epoch(self, epoch: int, done: int = 0) -> Iterator[FedStep]:
        """The steps of epoch number `epoch` (from 0), without the first `done` steps."""
        for step in self._schedule.epoch(epoch)[done:]:
            units = int(self.sets[step.task].train.units[step.rows].sum())
            yield FedStep(step.task, self._micro_batches(self.sets[step.task], step.rows), max(1, units))

    def _micro_batches(self, task_set: TaskSet, rows: NDArray[np.int64]) -> list[MicroBatch]:
        """This worker's share of a step as `accumulation` micro-batches.

        Every worker must take part in every collective, so an empty micro-batch gets one row that does not count.
        """
        shares = [
            rows[part :: self._parts] for part in range(self.workers.rank, self._parts, self.workers.world)
        ]
        if self.workers.world == 1:
            shares = [share for share in shares if len(share)]
        return [
            _micro_batch(task_set, share if len(share) else rows[:1], self.workers.device, not len(share))
            for share in shares
        ]


def _micro_batch(
    task_set: TaskSet, rows: NDArray[np.int64], device: torch.device, filler: bool
) -> MicroBatch:
    drawn = Drawn(task_set.examples, rows)
    targets = [source.targets(drawn) for source in task_set.sources]
    return MicroBatch(
        TensorBatch.of(task_set.train.pad(rows), device),
        torch.from_numpy(task_set.examples.labels.take(rows).values).to(device),
        _stacked(targets).to(device) if targets else None,
        filler,
    )


def _stacked(targets: Sequence[Soft]) -> Tensor:
    """(K, M, C) tensor of the K teachers' dense values."""
    dense = [torch.from_numpy(each.values) for each in targets if isinstance(each, Dense)]
    if len(dense) < len(targets):
        raise TypeError("no task kind is trained on soft targets over a vocabulary")
    return torch.stack(dense)
