"""What a training minimises: loss weights by task over its course, in one stage or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from pipeline.config.recipe import Recipe
from pipeline.losses import LossWeights, annealed

LABELS_ALONE = LossWeights({"hard": 1.0}, temperature=1.0)


@dataclass(frozen=True)
class LossPlan:
    """Weights of the loss terms before annealing, by task. others: those of all other tasks; by default labels alone."""

    tasks: Mapping[str, LossWeights] = field(default_factory=dict)
    annealing: Literal["constant", "linear"] = "constant"
    others: LossWeights = LABELS_ALONE

    def at(self, task: str, progress: float) -> LossWeights:
        """The weights for a task when `progress` in [0, 1] of the training is done."""
        weights = self.tasks.get(task, self.others)
        return replace(weights, terms=annealed(weights.terms, progress, self.annealing))


@dataclass(frozen=True)
class Stage:
    """A part of a training with losses, length and peak learning rates of its own, for encoder and for the rest.

    It begins with a fresh optimiser; learning rate and annealing go by the stage's own steps. unfreeze: see `trained_parts` · texts: as of
    `pipeline.training.feed.Feed.epoch`.
    """

    losses: LossPlan
    epochs: int
    learning_rate: float
    head_learning_rate: float
    unfreeze: Literal["gradual"] | None = None
    texts: Mapping[str, float] = field(default_factory=dict)

    def trained_parts(self, epoch: int, parts: int) -> int:
        """How many of the encoder's parts, from the top, are trained in the stage's epoch number `epoch`, from 0.

        ``gradual`` (ULMFiT, arXiv:1801.06146): more in every epoch, evenly, and all in the last one.
        """
        return parts if self.unfreeze is None else ceil((epoch + 1) * parts / self.epochs)


def one_stage(config: Recipe, losses: LossPlan) -> tuple[Stage]:
    """A training in one part."""
    return (Stage(losses, config.epochs, config.learning_rate, config.head_learning_rate),)
