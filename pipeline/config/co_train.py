"""The part of the config that says how teachers are trained on beside their student."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import Count, Positive, Strict


class CoTrainConfig(Strict):
    """Teachers that are trained on while a student learns from them: their targets are computed step by step, and not stored."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Tasks of which all teachers are trained on; null: all of the run. The other tasks' targets come from the store."""
    optimizer: Literal["adamw", "sgd"] | None = None
    """The teachers' optimiser; null: that of their student. Other keys of the student's `train` hold for both."""
    learning_rate: Positive | None = None
    """Peak learning rate of the teachers, heads and all; null: derived from each teacher's width, for `adamw` alone."""
    every: Count = 1
    """A teacher learns from every n-th batch of its task; 1: from all."""
    max_age: Annotated[int, Field(ge=0, le=1000)] = 0
    """Most batches from which a teacher has learnt since it computed the targets of a step. 0: synchronous, each step has those of the newest teacher · above: asynchronous, targets are asked for so many steps ahead, and the student seldom waits."""
    mutual: Annotated[float, Field(ge=0, lt=1)] = 0
    """Weight of a teacher's soft loss towards its student's predictions for the same batch (deep mutual learning, 1706.00384); the hard loss has the rest."""

    @model_validator(mode="after")
    def _rate_of_sgd(self) -> Self:
        if self.optimizer == "sgd" and self.learning_rate is None:
            raise ValueError("`learning_rate` is missing: only that of adamw can be derived")
        return self
