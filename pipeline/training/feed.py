"""The input of a training: for each task the encoded examples, their labels and their teachers' soft targets.

`Feed` cuts them into micro-batches. Their order is a pure function of (seed, epoch, step) and of the training's focus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Drawn, Encoded, Examples, token_budget_batches
from pipeline.data.splits import TaskData
from pipeline.losses import Needs
from pipeline.soft import Dense, Soft, TargetSource
from pipeline.tasks import Task
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.focus import Focus
from pipeline.training.hidden import HiddenMatch
from pipeline.training.kept import Kept
from pipeline.training.schedule import Schedule, Step
from pipeline.training.step import Aggregation, MicroBatch, Workers

WORTH_A_PASS = 1.25
"""Padded tokens of one forward pass ÷ those of two, from which two are taken: a second pass has a cost of its own."""


NEEDS: frozenset[Needs] = frozenset({"labels", "targets"})
"""What the micro-batches have where nothing else is asked for."""


@dataclass(frozen=True)
class TaskSet:
    """One task's train and validation split, encoded and as examples.

    sources: one for each teacher, in the order of `aggregation`'s weights; empty for training on labels alone ·
    hidden: hidden targets of the teachers and how they are matched, None without · ensemble_skill: the teachers' skill on
    validation together, None where nothing needs it.
    """

    task: Task
    train: Encoded
    examples: Examples
    validation: Encoded
    gold: Examples
    sources: Sequence[TargetSource] = ()
    aggregation: Aggregation | None = None
    hidden: HiddenMatch | None = None
    ensemble_skill: float | None = None

    @classmethod
    def of(
        cls,
        data: TaskData,
        tokenizer: Any,
        max_length: int | None = None,
        sources: Sequence[TargetSource] = (),
        aggregation: Aggregation | None = None,
        words: bool = False,
        kept: Kept | None = None,
    ) -> TaskSet:
        """The task's splits encoded by `tokenizer`; without sources, train's labelled examples alone.

        words: encoded with the words that tokens cover, for hidden targets · kept: examples that the same tokenizer
        encoded before are taken from it.
        """
        train = data.splits["train"] if sources else data.labelled_train()
        validation, head, memory = data.splits["validation"], data.task.head, kept or Kept()

        def encode(some: Examples) -> Encoded:
            # keys name inputs; labels take no part in what is encoded
            content = blake2b(some.keys.tobytes(), digest_size=16).digest()
            key = ("encoded", tokenizer, head, max_length, words, content)
            return memory.get(key, lambda: head.encode(tokenizer, some.inputs, max_length, words=words))

        return cls(data.task, encode(train), train, encode(validation), validation, sources, aggregation)


@dataclass(frozen=True)
class FedStep:
    """One optimiser step: this worker's micro-batches, and the loss normaliser of the step over all workers.

    normaliser: examples in the step × the mean of `Encoded.units` over the task's train split. With the step's own sum
    of units instead, a word in a batch of short sentences would weigh more than one in a batch of long sentences.
    """

    task: str
    batches: list[MicroBatch]
    normaliser: float


class Feed:
    """The micro-batches of a training on several tasks, made one step at a time.

    batch_size: examples per step, over all workers · tokens: most padded tokens of a micro-batch; a worker's share of a
    step is cut into as many micro-batches as that needs, their gradients add up · sampling: see `Schedule`.
    """

    def __init__(
        self,
        sets: Sequence[TaskSet],
        batch_size: int,
        tokens: int,
        *,
        seed: int = 0,
        sampling: float = 1.0,
        workers: Workers | None = None,
    ) -> None:
        self.sets = {task_set.task.name: task_set for task_set in sets}
        self.seed, self.workers = seed, workers or Workers()
        self._tokens = tokens
        self._lengths = {name: task_set.train.lengths for name, task_set in self.sets.items()}
        self._units = {name: task_set.train.units.mean() or 1.0 for name, task_set in self.sets.items()}
        paired = {name for name, task_set in self.sets.items() if np.ptp(task_set.train.units)}
        self._schedule = Schedule(self._lengths, batch_size, sampling, seed, paired)
        self.steps_per_epoch = self._schedule.steps_per_epoch

    def epoch(
        self, epoch: int, done: int = 0, needs: Set[Needs] = NEEDS, focus: Focus | None = None
    ) -> Iterator[FedStep]:
        """The steps of epoch number `epoch` (from 0), without the first `done` steps.

        needs: which targets they have · focus: on which tasks, None for the fixed shares.
        """
        focus = focus or Focus()
        for step in self._schedule.epoch(epoch, focus.factors(), focus.drawn)[done:]:
            normaliser = len(step.rows) * float(self._units[step.task])
            yield FedStep(step.task, self._micro_batches(step, needs), normaliser)

    def draw(self, focus: Focus) -> None:
        """Counts an epoch's batches in `focus`, after the epoch."""
        for task, quota in self._schedule.quotas_of(focus.factors()).items():
            focus.drawn[task] = focus.drawn.get(task, 0) + quota

    def _micro_batches(self, step: Step, needs: Set[Needs]) -> list[MicroBatch]:
        """This worker's share of a step.

        Every worker must take part in every step, so an empty share becomes one row that does not count.
        """
        task_set, lengths = self.sets[step.task], self._lengths[step.task]
        share = step.rows[self.workers.rank :: self.workers.world]
        if not len(share):
            return [_micro_batch(task_set, step.rows[:1], self.workers.device, needs, filler=True)]
        share = share[np.argsort(lengths[share], kind="stable")]
        return [
            _micro_batch(task_set, rows, self.workers.device, needs)
            for part in _parts(lengths, share)
            for rows in token_budget_batches(lengths, part, self._tokens)
        ]


def _parts(lengths: NDArray[np.int64], share: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A share sorted by length, in two halves where padding each by itself saves more than a forward pass costs."""
    halves = np.array_split(share, 2)
    together, apart = (
        sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in parts) for parts in ([share], halves)
    )
    return halves if together > WORTH_A_PASS * apart else [share]


def _micro_batch(
    task_set: TaskSet,
    rows: NDArray[np.int64],
    device: torch.device,
    needs: Set[Needs],
    filler: bool = False,
) -> MicroBatch:
    drawn = Drawn(task_set.examples, rows)
    targets = [source.targets(drawn) for source in task_set.sources] if "targets" in needs else []
    match = task_set.hidden if "hidden" in needs else None
    return MicroBatch(
        TensorBatch.of(task_set.train.pad(rows, words=match is not None), device),
        torch.from_numpy(task_set.examples.labels.take(rows).values).to(device),
        _stacked(targets).to(device) if targets else None,
        filler,
        None if match is None else match.targets(drawn).to(device),
    )


def _stacked(targets: Sequence[Soft]) -> Tensor:
    """(K, M, C) tensor of the K teachers' dense values."""
    dense = [torch.from_numpy(each.values) for each in targets if isinstance(each, Dense)]
    if len(dense) < len(targets):
        raise TypeError("no task kind is trained on soft targets over a vocabulary")
    return torch.stack(dense)
