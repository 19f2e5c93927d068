"""One distillation step, pure PyTorch: micro-batches of one task → gradients and loss terms.

`Workers` is an argument, so that one process, several Ray Train workers and a test run the same code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pipeline.batch import (
    UNLABELLED,
    Drawn,
    Encoded,
    Examples,
    flat_index,
    is_present,
    pad_targets,
    token_budget_batches,
)
from pipeline.config.kinds import PERPLEXITY, TOKEN_ACCURACY
from pipeline.config.schema import Strategy
from pipeline.events import event_ids, student_events, teacher_events
from pipeline.losses import (
    FrameInputs,
    LossInputs,
    LossWeights,
    hidden_squared_error,
    mean_surprise,
    needs_of,
    task_loss,
)
from pipeline.memory import run_batches
from pipeline.tasks import Task
from pipeline.tasks.ctc import FrameHead
from pipeline.tasks.forced import most_tokens
from pipeline.tasks.generation import write_texts
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.writing import writing_head
from pipeline.training.hidden import HiddenMatch
from students.student import MultiTaskStudent
from teachers.aggregation import aggregate


@dataclass(frozen=True)
class Workers:
    """This process among the processes that train together. With one process a collective does nothing."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over the workers, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every worker's `tensor`, all of one shape, by rank."""
        if self.world == 1:
            return [tensor]
        tensors = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(tensors, tensor)
        return tensors

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's `value`, of any type that can be pickled, by rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first worker's `value`, of any type that can be pickled, on every worker."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]


@dataclass(frozen=True)
class SparseTargets:
    """Token targets of K teachers for N positions. ids, log_probabilities: (K, N, k), rest: (K, N), as `pipeline.soft.Sparse`
    has them · size: of the vocabulary."""

    ids: Tensor
    log_probabilities: Tensor
    rest: Tensor
    size: int


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass of one worker: m examples of one task, M items in all.

    tokens: the model's inputs · labels: of all examples, end to end, or the token ids of their drawn texts · teachers: (K, M, C) soft targets before
    aggregation, or token targets, or None · filler: true where the examples only fill the batch and do not count in the loss · hidden:
    (W, D) stored hidden targets of the examples' words, or None · rows: (m,) of the examples in their split.
    """

    tokens: TensorBatch
    labels: Tensor
    teachers: Tensor | SparseTargets | None
    filler: bool = False
    hidden: Tensor | None = None
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Aggregation:
    """How the soft targets of a task's K teachers are combined into one target; weights (K,) sum to 1."""

    strategy: Strategy
    weights: Tensor


class WithLoss(nn.Module):
    """A student and its loss as one module, so that what wraps it sees which parameters the backward pass will reach."""

    def __init__(self, student: MultiTaskStudent) -> None:
        super().__init__()
        self.student = student
        self.values: Tensor | None = None
        """(M, C) the student's predictions for the latest micro-batch, detached; None of a kind that writes."""

    def forward(
        self,
        task: Task,
        batch: MicroBatch,
        weights: LossWeights,
        aggregation: Aggregation | None,
        normaliser: float,
        autocast: torch.autocast,
        match: HiddenMatch | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and its terms without a gradient; the arguments are those of `accumulate`."""
        words, hidden = batch.tokens.words, None
        if words is not None and match is not None and batch.hidden is not None:
            with autocast:
                output, projected = self.student(task.name, batch.tokens.inputs, words)
            hidden = match.inputs(projected, batch.hidden, words, batch.filler)
        else:
            with autocast:
                output = self.student(task.name, batch.tokens.inputs, target=batch.tokens.target)
        values = task.head.read_out(output, batch.tokens)
        self.values = None if task.kind.writes else values.detach()
        inputs = loss_inputs(task, values, batch, weights, aggregation)
        return task_loss(replace(inputs, hidden=hidden), weights, normaliser, task.head.losses)


def accumulate(
    model: nn.Module,
    task: Task,
    batches: Sequence[MicroBatch],
    weights: LossWeights,
    aggregation: Aggregation | None,
    normaliser: float,
    autocast: torch.autocast,
    match: HiddenMatch | None = None,
    values: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of a step to the trained parameters' gradients: of several workers the sum over them.

    model: `pipeline.training.replica.Replica.model` · normaliser: what the step's losses are divided by, over all workers (`FedStep.normaliser`) · match: how
    the batches' hidden targets are matched, needed where the hidden term has a weight · values: gets the student's predictions of each batch, where one
    worker trains alone. Returns detached scalars: this
    worker's share of ``total`` and of each term by name (see `task_loss`). Their sums over the workers are the
    step's losses.
    """
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, 1):
        with _synchronized(model, last=number == len(batches)):
            total, terms = model(task, batch, weights, aggregation, normaliser, autocast, match)
            total.backward()
        if values is not None and isinstance(model, WithLoss) and model.values is not None:
            values.append(model.values)
        for name, value in {"total": total.detach(), **terms}.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


@contextmanager
def _synchronized(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Within it a backward pass adds to the gradients, and exchanges them between the workers only where it is the step's last."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    sharded = getattr(getattr(model, "student", None), "set_requires_gradient_sync", None)  # of FSDP2
    if sharded is not None:
        sharded(last)
    yield


def loss_inputs(
    task: Task, values: Tensor, batch: MicroBatch, weights: LossWeights, aggregation: Aggregation | None
) -> LossInputs:
    """The inputs of a micro-batch's loss. values: (M, C), the student's predictions.

    A row without any student prediction (a word that the tokenizer drops) does not count. Where the student has no
    prediction for some of a row's columns, the target is the teachers' distribution over the other columns.
    """
    counts = batch.tokens.counts
    if isinstance(task.head, FrameHead):
        return _frame_inputs(task.head.inputs(values, batch.tokens), batch, weights, aggregation)
    if task.kind.writes:
        return _text_inputs(values, batch, weights, aggregation)
    assert not isinstance(batch.teachers, SparseTargets), "of kinds that write"
    logits = task.head.rows(values, counts)
    labels = task.head.row_labels(batch.labels, counts)
    valid = logits.new_full((len(logits),), 0.0 if batch.filler else task.head.row_weight)
    target = taught = None
    if (
        batch.teachers is not None
        and aggregation is not None
        and "targets" in needs_of(task.head.losses, weights)
    ):
        teachers = task.head.rows(batch.teachers.float(), counts)
        target = aggregate(
            teachers,
            strategy=aggregation.strategy,
            weights=aggregation.weights,
            temperature=weights.temperature,
            labels=labels,
            continuous=task.kind.continuous,
        )
    if task.kind.continuous:
        return LossInputs(logits, labels, target, valid)
    seen = is_present(logits.detach())
    if not bool(seen.all()):
        valid = valid * seen.any(dim=-1)
        hidden = ~seen.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        labels = labels.masked_fill(hidden, UNLABELLED)
    if target is not None and aggregation is not None:
        present = is_present(teachers[aggregation.weights.to(teachers.device) > 0])
        if not bool(present.all() & seen.all()):
            taught = present.any(dim=-1).any(dim=0).to(valid)
            target = target * seen
            kept = target.sum(dim=-1)
            taught = taught * (kept > 0)
            target = target / kept.clamp(min=torch.finfo(kept.dtype).tiny).unsqueeze(-1)
    return LossInputs(logits, labels, target, valid, taught)


def _frame_inputs(
    frames: FrameInputs, batch: MicroBatch, weights: LossWeights, aggregation: Aggregation | None
) -> LossInputs:
    """The inputs of the losses of a model that labels frames: with token targets, of the N frames of the batch's recordings."""
    there = torch.arange(frames.logits.shape[1], device=frames.logits.device) < frames.counts.unsqueeze(-1)
    logits, teachers = frames.logits[there], batch.teachers
    valid, target = logits.new_full((1,), 0.0 if batch.filler else 1.0), None
    if isinstance(teachers, SparseTargets) and aggregation is not None:
        events = event_ids(teachers.ids)
        target = _event_target(teachers, events, aggregation, weights.temperature)
        logits = student_events(logits[:, : teachers.size], events)
    return LossInputs(logits, batch.labels, target, valid, frames=frames)


def _text_inputs(
    logits: Tensor, batch: MicroBatch, weights: LossWeights, aggregation: Aggregation | None
) -> LossInputs:
    """The inputs of the loss at the N positions of the batch's texts. logits: (N, V).

    With token targets the rows are over few events, of which the position's own token is one, so that the hard loss is the
    same (`pipeline.events`). A position of the student's own text has no label.
    """
    labels, teachers = batch.labels, batch.teachers
    valid = logits.new_full((len(logits),), 0.0 if batch.filler else 1.0)
    spread = mean_surprise(logits) if weights.label_smoothing else None
    if not isinstance(teachers, SparseTargets) or aggregation is None:
        return LossInputs(logits, labels, None, valid, spread=spread)
    assert batch.tokens.target is not None, "a batch of pairs"
    written = batch.tokens.target[batch.tokens.target_mask]
    events = event_ids(teachers.ids, written)
    own = (events == written.unsqueeze(-1)).long().argmax(dim=-1)
    target = _event_target(teachers, events, aggregation, weights.temperature, own)
    labels = own.masked_fill(labels == UNLABELLED, UNLABELLED)
    return LossInputs(
        student_events(logits[:, : teachers.size], events), labels, target, valid, spread=spread
    )


def _event_target(
    teachers: SparseTargets,
    events: Tensor,
    aggregation: Aggregation,
    temperature: float,
    labels: Tensor | None = None,
) -> Tensor:
    """(N, u + 1) the teachers' aggregated probabilities of N rows' events. labels: (N,) places among the events, where the strategy needs them."""
    logs = teacher_events(teachers.ids, teachers.log_probabilities, teachers.rest, events, teachers.size)
    return aggregate(
        logs,
        strategy=aggregation.strategy,
        weights=aggregation.weights,
        temperature=temperature,
        labels=labels,
    )


@torch.inference_mode()
def predict(
    student: MultiTaskStudent,
    task: Task,
    encoded: Encoded,
    tokens: int,
    workers: Workers | None = None,
    tokenizer: Any = None,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """(M, C) float32 predictions for n examples, computed in fp32, or (n, 1) what the student writes; several workers
    share the batches.

    The student is left in evaluation mode. tokenizer: needed where the task's kind writes · rows: (n,) of `encoded` where not all are
    asked for, of kinds that do not write.
    """
    workers = workers or Workers()
    student.eval()
    if task.kind.writes:
        return _written(student, task, encoded, tokens, workers, tokenizer)
    rows = np.arange(len(encoded)) if rows is None else rows
    counts, lengths = encoded.counts[rows], encoded.lengths[rows]
    starts = np.concatenate(([0], np.cumsum(counts)))
    values = torch.zeros(int(starts[-1]), len(task.head.columns), device=workers.device)
    order = np.argsort(lengths, kind="stable")

    def work(some: NDArray[np.int64]) -> None:
        batch = TensorBatch.of(encoded.pad(rows[some]), workers.device)
        items = torch.from_numpy(flat_index(starts[some], counts[some])).to(workers.device)
        values[items] = task.head.read_out(student(task.name, batch.inputs), batch)

    run_batches(token_budget_batches(lengths, order, tokens)[workers.rank :: workers.world], work)
    return workers.sum_(values).cpu().numpy()


def _written(
    student: MultiTaskStudent, task: Task, encoded: Encoded, tokens: int, workers: Workers, tokenizer: Any
) -> NDArray[Any]:
    """(n, 1) the texts that the student writes, on every worker."""
    head = writing_head(task)
    own = write_texts(
        student.model(task.name),
        tokenizer,
        encoded,
        head.generation.model_copy(update={"candidates": 1}),
        target_length=head.target_length,
        tokens=tokens,
        device=workers.device,
        share=(workers.rank, workers.world),
    ).values
    parts = workers.gather_objects(own)
    return functools.reduce(lambda a, b: np.where(a == "", b, a), parts)


LARGEST = 700.0
"""Nats a token, of which exp is still a number: a diverged model may have more."""


@torch.inference_mode()
def forced_scores(
    student: MultiTaskStudent, task: Task, encoded: Encoded, tokens: int, workers: Workers
) -> dict[str, float]:
    """Scores of a student that is forced along n gold texts, by metric (`Kind.forced`); several workers share the batches.

    None of a model that labels frames. ``token_accuracy``: the share of the tokens that it has as the most likely next one, after the gold tokens before ·
    ``perplexity``: exp of the mean negative log-likelihood of a token of its own vocabulary. The student is left in evaluation
    mode. encoded: with targets, each text's end mark among its tokens.
    """
    assert encoded.targets is not None, "of a kind that writes"
    if isinstance(task.head, FrameHead):
        return {}
    student.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=workers.device)
    targets, lengths = encoded.targets, encoded.lengths + encoded.targets.counts
    order = np.argsort(lengths, kind="stable")
    if encoded.audio is not None:  # no text is forced along several windows
        order = order[np.diff(encoded.sequences)[order] == 1]
    tokens = most_tokens(tokens, len(student.model(task.name).get_output_embeddings().weight))

    def work(rows: NDArray[np.int64]) -> None:
        ids = targets.take(rows)
        batch = TensorBatch.of(encoded.pad(rows), workers.device)
        batch = replace(batch, target=torch.from_numpy(pad_targets(ids)).to(workers.device))
        logits = task.head.read_out(student(task.name, batch.inputs, target=batch.target), batch)
        gold = torch.from_numpy(ids.values).to(workers.device)
        right, surprise = (logits.argmax(dim=-1) == gold).sum(), cross_entropy(logits, gold, reduction="sum")
        sums.add_(torch.stack([one.double() for one in (right, surprise, gold.new_tensor(len(gold)))]))

    run_batches(token_budget_batches(lengths, order, tokens)[workers.rank :: workers.world], work)
    right_ones, surprise, every = workers.sum_(sums).tolist()
    every = max(every, 1.0)
    return {
        TOKEN_ACCURACY.name: right_ones / every,
        PERPLEXITY.name: math.exp(min(surprise / every, LARGEST)),
    }


@torch.inference_mode()
def hidden_error(
    student: MultiTaskStudent,
    task: str,
    match: HiddenMatch,
    encoded: Encoded,
    examples: Examples,
    tokens: int,
    workers: Workers,
) -> float:
    """The hidden term on the examples: the mean over their words; several workers share the batches.

    The student is left in evaluation mode. 1 where it does no better than the train targets' mean.
    """
    student.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=workers.device)
    order = np.argsort(encoded.lengths, kind="stable")

    def work(rows: NDArray[np.int64]) -> None:
        batch = TensorBatch.of(encoded.pad(rows, words=True), workers.device)
        assert batch.words is not None, "padded with words"
        stored = match.targets(Drawn(examples, rows)).to(workers.device)
        _, projected = student(task, batch.inputs, batch.words)
        inputs = match.inputs(projected, stored, batch.words, filler=False)
        counts = inputs.counted.any(dim=-1).sum()
        sums.add_(torch.stack([hidden_squared_error(inputs).double().sum() / match.word, counts.double()]))

    run_batches(token_budget_batches(encoded.lengths, order, tokens)[workers.rank :: workers.world], work)
    total, words = workers.sum_(sums).tolist()
    return float(total / max(words, 1.0))
