"""One distillation step, pure PyTorch: micro-batches of one task → gradients and loss terms.

Workers are passed in, so that one process, several Ray Train workers and a test run the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, token_budget_batches
from pipeline.losses import LossInputs, LossWeights, task_loss
from pipeline.tasks import Task
from students.student import MultiTaskStudent
from teachers.aggregation import Strategy, aggregate


@dataclass(frozen=True)
class Workers:
    """This process among those that train together. Alone, every collective is free."""

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


@dataclass(frozen=True)
class MicroBatch:
    """What one worker puts through the student at once: m rows of one task.

    inputs: (m, length) int64 by name · labels: (m,) int64 · teachers: (K, m, C) raw soft targets or None ·
    valid: (m,) float, 0 for rows that only fill the batch.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    teachers: Tensor | None
    valid: Tensor


@dataclass(frozen=True)
class Aggregation:
    """How a task's K teachers become one target; weights (K,) sum to 1."""

    strategy: Strategy
    weights: Tensor


def accumulate(
    student: MultiTaskStudent,
    task: Task,
    batches: Sequence[MicroBatch],
    weights: LossWeights,
    aggregation: Aggregation | None,
    normaliser: float,
    autocast: torch.autocast,
) -> dict[str, Tensor]:
    """Adds the gradient of this worker's share of a step to the student's.

    normaliser: valid rows of the whole step, over all workers and micro-batches. Returns this worker's share
    of ``total``, ``hard`` and, with teachers, ``soft``, detached scalars: summed over workers they are the
    step's losses.
    """
    sums: dict[str, Tensor] = {}
    for batch in batches:
        target = None
        if batch.teachers is not None and aggregation is not None and weights.soft > 0:
            target = aggregate(
                batch.teachers,
                strategy=aggregation.strategy,
                weights=aggregation.weights,
                temperature=weights.temperature,
                labels=batch.labels,
            )
        with autocast:
            logits = student(task.name, batch.inputs)
        total, terms = task_loss(
            LossInputs(logits, batch.labels, target, batch.valid),
            weights,
            normaliser,
            hard_loss=task.hard_loss,
            soft_loss=task.soft_loss,
        )
        total.backward()
        for name, value in {"total": total.detach(), **terms}.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def share_gradients(student: MultiTaskStudent, workers: Workers) -> None:
    """Sums the gradients over the workers. At a step all work on one task, so all have the same gradients."""
    if workers.world == 1:
        return
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    flat = workers.sum_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def to_tensors(batch: Mapping[str, NDArray[np.int64]], device: torch.device) -> dict[str, Tensor]:
    """A padded batch on `device`."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}


@torch.inference_mode()
def predict(
    student: MultiTaskStudent, task: Task, encoded: Encoded, tokens: int, workers: Workers | None = None
) -> Tensor:
    """(n, C) float32 logits of n examples on the CPU, in fp32; several workers share the batches.

    The student is left in evaluation mode.
    """
    workers = workers or Workers()
    student.eval()
    logits = torch.zeros(len(encoded), len(task.labels), device=workers.device)
    order = np.argsort(encoded.lengths, kind="stable")
    for rows in token_budget_batches(encoded.lengths, order, tokens)[workers.rank :: workers.world]:
        inputs = to_tensors(encoded.pad(rows), workers.device)
        logits[torch.from_numpy(rows).to(workers.device)] = student(task.name, inputs).float()
    return workers.sum_(logits).cpu()
