"""What a student minimises: pure functions from logits, labels and targets to a number.

A hard loss compares the student with the labels, a soft loss with its teachers' aggregated soft targets.
Both give one value an example, in nats; `task_loss` weighs, masks and sums them. Everything is computed in
float32, whatever the logits' dtype. There are two pairs: one for distributions (every kind of classification,
of texts, words or an answer's start and end) and one for numbers.

Not here: how several teachers become one target (`teachers.aggregation`) and how tasks are drawn
(`pipeline.data`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from pipeline.batch import UNLABELLED

HardLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → (N,) float32, 0 for an unlabelled example."""
SoftLoss = Callable[[Tensor, Tensor, float], Tensor]
"""(logits, target at the temperature, temperature) → (N,) float32."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part of a task's loss counts at this step.

    hard, soft: the two losses' weights, summing to 1 (the config normalises them, `annealed` keeps the sum) ·
    temperature: of teachers and student in the soft loss, > 0 · task: weight of the whole task.
    """

    hard: float
    soft: float
    temperature: float
    task: float = 1.0


@dataclass(frozen=True)
class LossInputs:
    """What the loss of N rows of one task is made from.

    logits: (N, C) the student's, any float dtype · labels: (N,) int64, `UNLABELLED` where there is none ·
    target: (N, C) float, the teachers' probabilities at the temperature; None without teachers ·
    valid: (N,) float, what a row counts: usually 1, and 0 for a row that only fills the batch (its other values:
    any finite ones) · taught: (N,) float, 0 for a row on which no teacher had a word; None for all 1.
    """

    logits: Tensor
    labels: Tensor
    target: Tensor | None
    valid: Tensor
    taught: Tensor | None = None


def annealed(
    hard: float, soft: float, progress: float, annealing: Literal["constant", "linear"]
) -> tuple[float, float]:
    """The weights (hard, soft) when `progress` of the training, in [0, 1], is done; their sum does not change.

    ``linear``: the soft weight falls in a straight line to 0 and the hard weight takes what it loses. From
    hard = 0, soft = 1 this is teacher annealing (BAM, arXiv:1907.04829): λ·CE(y) + (1 − λ)·soft loss, with
    λ = progress, which at temperature 1 has the gradient of the cross-entropy to BAM's target
    λ·y + (1 − λ)·p_T.

    Raises ValueError for a progress outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress} is outside [0, 1]")
    if annealing == "constant":
        return hard, soft
    return hard + soft * progress, soft * (1 - progress)


def hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 cross-entropy in nats of logits (N, C) to labels (N,) int64; `UNLABELLED` rows give 0."""
    return cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="none")


def soft_kl(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(N,) float32 T² · KL(target ‖ softmax(logits / T)) in nats (Hinton et al., arXiv:1503.02531, section 2).

    logits: (N, C), any float dtype · target: (N, C) probabilities, already at temperature T, zeros allowed ·
    temperature: T > 0. Gradient on the logits: T · (softmax(logits / T) − target); T² is what keeps its scale
    independent of T. The target's own entropy is subtracted, so a student that equals its teacher has loss 0
    (up to about T² · 1e-7, the rounding of float32).
    """
    target = target.float()
    log_probabilities = log_softmax(logits.float() / temperature, dim=-1)
    divergence = torch.xlogy(target, target) - target * log_probabilities  # xlogy: 0 · log 0 = 0
    return temperature**2 * divergence.sum(dim=-1)


def hard_squared_error(values: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 squared error of values (N, 1) to labels (N,) float; NaN, no label, gives 0."""
    known = ~labels.isnan()
    return torch.where(known, torch.square(values.float().squeeze(-1) - labels.nan_to_num()), 0.0)


def soft_squared_error(values: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(N,) float32 squared error of values (N, 1) to the aggregated target (N, 1); numbers have no temperature."""
    return torch.square(values.float() - target).squeeze(-1)


def task_loss(
    inputs: LossInputs,
    weights: LossWeights,
    normaliser: float,
    *,
    hard_loss: HardLoss = hard_cross_entropy,
    soft_loss: SoftLoss = soft_kl,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One task's loss: the scalar to differentiate, and its unweighted terms, detached, for the log.

    total = task · (hard · Σ hard_i + soft · Σ soft_i) / normaliser, terms = {"hard": Σ hard_i / normaliser,
    "soft": Σ soft_i / normaliser}, sums over the valid rows. `normaliser`: how many valid rows the whole step
    has, over all its micro-batches and workers, so that totals and terms of the parts simply add up to those
    of the whole. With a soft weight of 0 the soft term is not computed and is absent from the terms.

    Raises ValueError for a soft weight without a target (never silently the hard loss alone), a target of
    another shape than the logits, or a normaliser that is not above 0.
    """
    if not normaliser > 0:
        raise ValueError(f"normaliser {normaliser} must be above 0")
    terms = {"hard": (hard_loss(inputs.logits, inputs.labels) * inputs.valid).sum() / normaliser}
    total = weights.hard * terms["hard"]
    if weights.soft != 0:
        target = _target(inputs, weights.soft)
        soft = soft_loss(inputs.logits, target, weights.temperature)
        counted = inputs.valid if inputs.taught is None else inputs.valid * inputs.taught
        terms["soft"] = (soft * counted).sum() / normaliser
        total = total + weights.soft * terms["soft"]
    return weights.task * total, {name: term.detach() for name, term in terms.items()}


def _target(inputs: LossInputs, soft: float) -> Tensor:
    """The inputs' target, which there must be."""
    if inputs.target is None:
        raise ValueError(f"the soft loss has weight {soft} and there is no target")
    if inputs.target.shape != inputs.logits.shape:
        shapes = f"{tuple(inputs.target.shape)} does not fit logits {tuple(inputs.logits.shape)}"
        raise ValueError(f"target {shapes}")
    return inputs.target
