"""The input of a training: for each task the encoded examples, their labels and their teachers' soft targets.

`Feed` cuts them into micro-batches. Their order is a pure function of (seed, epoch, step) and of the training's focus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import UNLABELLED, Drawn, Encoded, Examples, pad_targets, token_budget_batches
from pipeline.data.splits import TaskData
from pipeline.errors import DataError
from pipeline.losses import Needs
from pipeline.memory import too_large
from pipeline.soft import Dense, Soft, Sparse, TargetSource
from pipeline.tasks import Task
from pipeline.tasks.ctc import FrameHead, frame_pairs, of_model
from pipeline.tasks.hearing import speech_head
from pipeline.tasks.pairs import pairs
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.writing import writing_head
from pipeline.training.encoded import content_of, encoded
from pipeline.training.focus import Focus
from pipeline.training.hidden import HiddenMatch
from pipeline.training.kept import Kept
from pipeline.training.live import LiveTeachers
from pipeline.training.schedule import Schedule, Step
from pipeline.training.step import Aggregation, MicroBatch, SparseTargets, Workers
from pipeline.training.texts import Draw, DrawnTexts
from pipeline.training.written import WrittenTexts

WORTH_A_PASS = 1.25
"""Padded tokens of one forward pass ÷ those of two, from which two are taken: a second pass has a cost of its own."""


NEEDS: frozenset[Needs] = frozenset({"labels", "targets"})
"""What the micro-batches have where nothing else is asked for."""


@dataclass(frozen=True)
class TaskSet:
    """One task's train and validation split, encoded and as examples.

    sources: one for each teacher, in the order of `aggregation`'s weights; empty for training on labels alone ·
    hidden: hidden targets of the teachers and how they are matched, None without · ensemble_skill: the teachers' skill on
    validation together, None where nothing needs it · texts: what the student learns to write, where the task's kind
    writes · tokenizer: that encoded the examples · left_out: texts of teachers, and recordings, that are not learnt, by their fault.
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
    texts: DrawnTexts | None = None
    tokenizer: Any = None
    left_out: Mapping[str, int] = field(default_factory=dict)

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
        written: WrittenTexts | None = None,
        keyed: bool = False,
    ) -> TaskSet:
        """The task's splits encoded by `tokenizer`; without sources or written texts, train's labelled examples alone.

        written: what teachers wrote for train's examples; one without reference and without such a text is left out · keyed:
        whether token targets are read along the texts · words: encoded with the words that tokens cover, for hidden targets · kept: examples that the same tokenizer
        encoded before are taken from it.
        """
        data = replace(data, task=of_model(data.task, tokenizer))
        train = data.splits["train"] if sources or written is not None else data.labelled_train()
        left_out = dict(written.left_out) if written is not None else {}
        if data.task.kind.audio:
            train, written, longer = _within_window(data.task, tokenizer, train, written)
            left_out[LONGER] = longer
        if isinstance(data.task.head, FrameHead):
            train, written, faults = _learnable(data.task.head, tokenizer, train, written)
            left_out |= faults
        if written is not None:
            train, written = _with_texts(data.task, train, written)
        validation, head, memory = data.splits["validation"], data.task.head, kept or Kept()

        def encode(some: Examples) -> Encoded:
            key = ("encoded", tokenizer, head, max_length, words, content_of(some))
            return memory.get(key, lambda: encoded(head, tokenizer, some, max_length, words))

        ours, texts = encode(train), None
        if data.task.kind.writes:
            texts = drawn_texts(data.task, tokenizer, ours, train, written or WrittenTexts(), keyed)
        return cls(
            data.task,
            ours,
            train,
            encode(validation),
            validation,
            sources,
            aggregation,
            texts=texts,
            tokenizer=tokenizer,
            left_out=left_out,
        )


LONGER = "of a recording that is longer than the model's window"
"""Why a text is not learnt: only a part of it is spoken in each window."""


def _within_window(
    task: Task, tokenizer: Any, train: Examples, written: WrittenTexts | None
) -> tuple[Examples, WrittenTexts | None, int]:
    """The recordings that are within one window of the tokenizer's model, with what was written for them, and how many others there are.

    Raises `DataError` where there is none.
    """
    listener = speech_head(task).listener(tokenizer)
    rows = np.flatnonzero(listener.fits(train.inputs["source"]))
    longer = len(train) - len(rows)
    if not len(rows):
        raise DataError(
            f"tasks.{task.name}: all {longer:,} recordings of train are longer than the {listener.window:g} s of {listener.folder}",
            "Cut them at a pause of the speech, or take a model with a longer window.",
        )
    if written is not None:
        written = replace(written, texts=tuple(texts[rows] for texts in written.texts))
    return train.take(rows), written, longer


def _learnable(
    head: FrameHead, tokenizer: Any, train: Examples, written: WrittenTexts | None
) -> tuple[Examples, WrittenTexts | None, dict[str, int]]:
    """The examples without those whose reference a model that labels frames cannot learn, and what was written for them without such texts; how many there are, by fault.

    Raises `DataError` where no reference can be learnt.
    """
    recordings, references = list(train.inputs["source"]), list(train.inputs["target"])
    faults = head.faults(tokenizer, recordings, references)
    kept = np.flatnonzero(~np.any(list(faults.values()), axis=0))
    left_out = {fault: int(mask.sum()) for fault, mask in faults.items()}
    if not len(kept):
        fault = max(left_out, key=lambda one: left_out[one])
        raise DataError(
            f"tasks.{head.task}: {tokenizer.name_or_path} can learn none of the {len(train):,} texts of train: most are {fault}",
            "Write them as the model does, or take another model.",
        )
    if written is not None:
        columns = []
        for texts in written.texts:
            faults = head.faults(tokenizer, recordings, texts.tolist())
            left_out = {fault: left_out[fault] + int(mask.sum()) for fault, mask in faults.items()}
            columns.append(np.where(np.any(list(faults.values()), axis=0), "", texts)[kept])
        written = replace(written, texts=tuple(columns))
    return train.take(kept), written, left_out


def _with_texts(task: Task, train: Examples, written: WrittenTexts) -> tuple[Examples, WrittenTexts]:
    """The examples that have a reference or a teacher's text, and those texts."""
    has = task.reading.labelled(train.labels)
    for texts in written.texts:
        has = has | (texts != "")
    if has.all():
        return train, written
    rows = np.flatnonzero(has)
    return train.take(rows), replace(written, texts=tuple(texts[rows] for texts in written.texts))


def drawn_texts(
    task: Task,
    tokenizer: Any,
    train: Encoded,
    examples: Examples,
    written: WrittenTexts,
    keyed: bool,
) -> DrawnTexts:
    """The references of the encoded examples and their teachers' texts. written, keyed: as of `TaskSet.of`."""
    assert train.targets is not None, "encoded with targets"
    head = writing_head(task)
    others, shares = [texts.tolist() for texts in written.texts], written.shares
    tokens = [train.targets, *(head.targets(tokenizer, texts) for texts in others)]
    keys = None
    if keyed and isinstance(head, FrameHead):
        keys = np.tile(frame_pairs(task, examples.inputs["source"]).keys, len(tokens))
    elif keyed:
        texts = [*examples.inputs["target"], *chain(*others)]
        keys = pairs(task, list(examples.inputs["source"]) * len(tokens), texts).keys
    return DrawnTexts.of(tokens, [1 - sum(shares), *shares], keys, written.own)


@dataclass(frozen=True)
class FedStep:
    """One optimiser step: this worker's micro-batches, and the loss normaliser of the step over all workers.

    drawn: the step's rows of all workers · normaliser: examples in the step × the mean of `Encoded.units` over the task's train split. With the step's own sum
    of units instead, a word in a batch of short sentences would weigh more than one in a batch of long sentences.
    """

    task: str
    batches: list[MicroBatch]
    normaliser: float
    drawn: Step


class Feed:
    """The micro-batches of a training on several tasks, made one step at a time.

    batch_size: examples per step, over all workers · tokens: most padded tokens of a micro-batch; a worker's share of a
    step is cut into as many micro-batches as that needs, their gradients add up · sampling: see `Schedule` · live: the teachers that are
    trained on meanwhile, which must know the steps that come; None without.
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
        live: LiveTeachers | None = None,
    ) -> None:
        self.live = live
        self.sets = {task_set.task.name: task_set for task_set in sets}
        self.seed, self.workers = seed, workers or Workers()
        self._tokens = tokens
        self._lengths = {name: _lengths(task_set) for name, task_set in self.sets.items()}
        self._units = {name: task_set.train.units.mean() or 1.0 for name, task_set in self.sets.items()}
        self._drawn: dict[str, Draw] = {}
        paired = {name for name, task_set in self.sets.items() if np.ptp(task_set.train.units)}
        self._schedule = Schedule(self._lengths, batch_size, sampling, seed, paired)
        self.steps_per_epoch = self._schedule.steps_per_epoch

    def limit(self, tokens: int) -> None:
        """Has no more padded tokens in a micro-batch."""
        self._tokens = min(self._tokens, tokens)

    def epoch(
        self,
        epoch: int,
        done: int = 0,
        needs: Set[Needs] = NEEDS,
        focus: Focus | None = None,
        texts: Mapping[str, float] = MappingProxyType({}),
    ) -> Iterator[FedStep]:
        """The steps of epoch number `epoch` (from 0), without the first `done` steps.

        needs: which targets they have · focus: on which tasks, None for the fixed shares · texts: by task the share of examples that learn a
        teacher's text, where it is not that of the task's set; 0: examples with a reference stand in for those without.
        """
        focus, instead = focus or Focus(), dict[str, NDArray[np.int64]]()
        for name, task_set in self.sets.items():
            if task_set.texts is not None:
                own = task_set.texts if name not in texts else task_set.texts.at(texts[name])
                self._drawn[name] = drawn = own.draw(self.seed, epoch)
                counts = drawn.tokens.counts
                if texts.get(name) == 0:
                    instead[name] = rows = stand_ins(
                        self._lengths[name], own.referenced, (self.seed, 3, epoch)
                    )
                    counts = counts[rows]
                self._units[name] = counts.mean()
        coming = self._schedule.epoch(epoch, focus.factors(), focus.drawn)[done:]
        for place, step in enumerate(coming):
            if step.task in instead:
                step = replace(step, rows=instead[step.task][step.rows])
            if self.live is not None:
                ahead = coming[place : place + 1 + self.live.max_age] if "targets" in needs else []
                self.live.expect(epoch * self.steps_per_epoch + done + place, ahead)
            yield self.fed(step, needs)

    def fed(self, step: Step, needs: Set[Needs]) -> FedStep:
        """One step of given rows."""
        normaliser = len(step.rows) * float(self._units[step.task])
        return FedStep(step.task, self._micro_batches(step, needs), normaliser, step)

    def halved(self, step: FedStep, needs: Set[Needs]) -> FedStep:
        """A step that does not fit into the device's memory once more, in more forward passes; those of later steps are as small.

        Raises `ExhaustedError` where each has one example already.
        """
        lengths, before = self._lengths[step.task], self._passes(step.drawn, self.workers.rank)
        if max(map(len, before)) == 1:
            raise too_large(f"an example of {step.task}")
        self._tokens = min(self._tokens, max(len(rows) * int(lengths[rows].max()) for rows in before))
        while len(self._passes(step.drawn, self.workers.rank)) == len(before):
            self._tokens //= 2
        return replace(step, batches=self._micro_batches(step.drawn, needs))

    def draw(self, focus: Focus) -> None:
        """Counts an epoch's batches in `focus`, after the epoch."""
        for task, quota in self._schedule.quotas_of(focus.factors()).items():
            focus.drawn[task] = focus.drawn.get(task, 0) + quota

    def _micro_batches(self, step: Step, needs: Set[Needs]) -> list[MicroBatch]:
        """This worker's share of a step, in as many forward passes as the worker with the most has.

        A forward pass of a sharded student is made by all workers together, so a missing one becomes one row that does not count.
        """
        task_set = self.sets[step.task]
        passes = [self._passes(step, rank) for rank in range(self.workers.world)]
        own = passes[self.workers.rank]
        missing = max(map(len, passes)) - len(own)
        return [
            *(self._micro_batch(task_set, rows, needs) for rows in own),
            *(self._micro_batch(task_set, step.rows[:1], needs, filler=True) for _ in range(missing)),
        ]

    def _passes(self, step: Step, rank: int) -> list[NDArray[np.int64]]:
        """The rows of each forward pass of a worker; none where the step has fewer rows than there are workers."""
        lengths, share = self._lengths[step.task], step.rows[rank :: self.workers.world]
        if not len(share):
            return []
        share = share[np.argsort(lengths[share], kind="stable")]
        return [
            rows
            for part in _parts(lengths, share)
            for rows in token_budget_batches(lengths, part, self._tokens)
        ]

    def _micro_batch(
        self, task_set: TaskSet, rows: NDArray[np.int64], needs: Set[Needs], filler: bool = False
    ) -> MicroBatch:
        device, drawn = self.workers.device, Drawn(task_set.examples, rows)
        texts = self._drawn.get(task_set.task.name)
        if texts is not None and texts.keys is not None:
            drawn = Drawn(replace(task_set.examples, keys=texts.keys), rows)
        targets = [source.targets(drawn) for source in task_set.sources] if "targets" in needs else []
        match = task_set.hidden if "hidden" in needs else None
        tokens = TensorBatch.of(task_set.train.pad(rows, words=match is not None), device)
        labels = task_set.examples.labels.take(rows)
        if texts is not None:
            labels = texts.tokens.take(rows)
            tokens = replace(tokens, target=torch.from_numpy(pad_targets(labels)).to(device))
            if texts.own is not None:  # no reference, and no teacher's text: its tokens are no labels
                own = np.repeat(texts.own[rows], labels.counts)
                labels = replace(labels, values=np.where(own, UNLABELLED, labels.values))
        return MicroBatch(
            tokens,
            torch.from_numpy(labels.values).to(device),
            _stacked(targets, device) if targets else None,
            filler,
            None if match is None else match.targets(drawn).to(device),
            rows,
        )


def _lengths(task_set: TaskSet) -> NDArray[np.int64]:
    """(n,) tokens that an example's forward pass reads and writes."""
    read = task_set.train.lengths
    return read if task_set.texts is None else read + task_set.texts.lengths


def stand_ins(
    lengths: NDArray[np.int64], there: NDArray[np.bool_], seed: tuple[int, ...]
) -> NDArray[np.int64]:
    """(n,) for each of n examples one of those that are `there`, each of them equally often but for one. The n-th longest has the n-th
    longest, so that a schedule's batches need little padding still. Without any, each stands for itself."""
    count, those = len(lengths), np.flatnonzero(there)
    if len(those) in (0, count):
        return np.arange(count)
    drawn = np.resize(np.random.default_rng(seed).permutation(those), count)
    rows = np.empty(count, dtype=np.int64)
    rows[np.argsort(lengths, kind="stable")] = drawn[np.argsort(lengths[drawn], kind="stable")]
    return rows


def _parts(lengths: NDArray[np.int64], share: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A share sorted by length, in two halves where padding each by itself saves more than a forward pass costs."""
    halves = np.array_split(share, 2)
    together, apart = (
        sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in parts) for parts in ([share], halves)
    )
    return halves if together > WORTH_A_PASS * apart else [share]


def _stacked(targets: Sequence[Soft], device: torch.device) -> Tensor | SparseTargets:
    """(K, M, C) tensor of the K teachers' dense values, or their sparse ones.

    Raises TypeError for other soft targets.
    """

    def stack(arrays: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    dense = [one.values for one in targets if isinstance(one, Dense)]
    if len(dense) == len(targets):
        return stack(dense)
    sparse = [one for one in targets if isinstance(one, Sparse)]
    if len(sparse) < len(targets):
        raise TypeError("no loss is computed against texts: they are drawn as labels")
    columns = zip(*(one.arrays for one in sparse), strict=True)
    ids, logs, rest = map(stack, columns)
    return SparseTargets(ids, logs, rest, sparse[0].space.size)
