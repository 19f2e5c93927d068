"""A training's validation curve, and whether it was still rising when the training ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

TAIL = 4  # the last of so many equal parts of the epochs is "the end": a schedule's last epochs alone gain little


@dataclass(frozen=True)
class Curve:
    """Validation by epoch of one training, in the epochs' order.

    scores: the mean of the tasks' metrics · losses: the mean of the tasks' ``nll``, in nats, empty where no task has
    one · epochs: how many with a score the training was to take; early stopping may leave fewer scores.
    """

    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    epochs: int = 0

    @classmethod
    def of(cls, points: Sequence[Mapping[str, Any]]) -> Curve:
        """From the points of a metrics.jsonl; those without a validation score are skipped."""
        validated = [point for point in points if "macro/score" in point["metrics"]]
        if not validated:
            return cls()
        losses = [
            [value for name, value in point["metrics"].items() if name.endswith("/nll")]
            for point in validated
        ]
        first, last = validated[0], validated[-1]  # stages that train no head come before, without scores
        return cls(
            tuple(point["metrics"]["macro/score"] for point in validated),
            tuple(map(fmean, losses)) if all(losses) else (),
            round(last["epoch"] * last["total"] / last["step"]) - (first["epoch"] - 1),
        )

    def rise(self) -> float:
        """How much the score rose over the last quarter of the epochs, at least one epoch; 0 where it did not.

        0 as well where the last epoch is not the best, where the training was stopped early, and where the loss rose:
        a model that overfits may still gain, but more epochs are not what it needs.
        """
        tail = max(1, len(self.scores) // TAIL)
        if not 2 <= self.epochs <= len(self.scores) or max(self.scores) > self.scores[-1]:
            return 0.0
        if self.losses and self.losses[-1] > self.losses[-1 - tail]:
            return 0.0
        return self.scores[-1] - max(self.scores[:-tail])

    def rising(self, error: float) -> bool:
        """Whether the score was still rising at the end, by more than `error`, the standard error of one score."""
        return self.rise() > error
