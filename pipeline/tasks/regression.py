"""Text regression: one number a text, or a pair of texts.

Losses see values in units of the training labels' standard deviation, so that a task's weight means the same
whatever its scale; models, the store and reports have them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Examples, Ragged
from pipeline.errors import DataError
from pipeline.tasks.label_columns import Column
from pipeline.tasks.label_map import Groups
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.text import texts_of
from pipeline.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


@dataclass(frozen=True)
class Regression(TextClassification):
    """One regression task; see `pipeline.tasks.Task`. Values: (n, 1) in the labels' own unit; rows: (n, 1)
    standardised. center, scale: mean and standard deviation of the training labels."""

    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    errors: ClassVar[tuple[str, ...]] = ("mse", "mae")
    continuous: ClassVar[bool] = True

    metric: str = "pearson"
    center: float = 0.0
    scale: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """One."""
        return ("value",)

    # ---- data

    @classmethod
    def make(cls, name: str, config: TaskConfig, train: Mapping[str, Column]) -> Self:
        """The task; its scale from train's labels."""
        if config.data.labels is not None:
            raise DataError(f"tasks.{name}.data.labels: regression has no label space", "Remove data.labels.")
        numbers = _numbers(name, "train", train["label"].values)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers) < 2 or numbers.std() == 0:
            raise DataError(
                f"tasks.{name}: all labels of train are the same number",
                "There is nothing to learn from them.",
            )
        metric, fields = config.metric or cls.metrics[0], cls.roles(config)
        center, scale = float(numbers.mean()), float(numbers.std())
        return cls(name, (), config.data.max_length, metric, fields, center, scale)

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Texts, and one float64 each, NaN where there is none."""
        inputs = texts_of(self.name, split, columns, self.fields)
        values = columns["label"].values if "label" in columns else [None] * len(inputs["text"])
        return inputs, Ragged.single(_numbers(self.name, split, values))

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """Which have a number."""
        return np.asarray(~np.isnan(labels.values))

    # ---- models

    def head_settings(self) -> dict[str, Any]:
        """One output, as it is."""
        return {
            "num_labels": 1,
            "id2label": {0: "value"},
            "label2id": {"value": 0},
            "problem_type": "regression",
        }

    def prepare_head(self, model: Any) -> None:
        """Starts from the training labels' mean, and in their unit."""
        last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1][-1]
        with torch.no_grad():
            last.weight.mul_(self.scale)
            last.bias.fill_(self.center)

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """None: one number has no name. Raises `TeacherError` for a teacher with several outputs."""
        if declared is not None or len(id2label) != 1:
            from pipeline.errors import TeacherError

            raise TeacherError(
                f"{where}: task {self.name} is a regression, the teacher has {len(id2label)} outputs",
                "Give a regression model (num_labels 1), without a label mapping.",
            )
        return None

    # ---- losses

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """Standardised."""
        return (values - self.center) / self.scale

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """In the labels' unit."""
        return rows * self.scale + self.center

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """Standardised."""
        return ((labels - self.center) / self.scale).float()

    # ---- evaluation

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """``pearson``, ``spearman``, ``mse``, ``mae``; a constant answer correlates with nothing: 0."""
        from scipy.stats import rankdata

        said, gold = values[:, 0].astype(np.float64), self._gold(examples)
        return {
            "pearson": float(_correlation(_moments(said, gold).sum(0))),
            "spearman": float(_correlation(_moments(rankdata(said), rankdata(gold)).sum(0))),
            "mse": float(np.square(said - gold).mean()),
            "mae": float(np.abs(said - gold).mean()),
        }

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """Moments; for Spearman those of the ranks within this test set."""
        from scipy.stats import rankdata

        said, gold = values[:, 0].astype(np.float64), self._gold(examples)
        return _moments(rankdata(said), rankdata(gold)) if self.metric == "spearman" else _moments(said, gold)

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Their correlation."""
        return _correlation(sums)

    def constant_score(self, examples: Examples) -> float:
        """0."""
        return 0.0

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Pearson's correlation of the two, which is what a share of equal answers would be here."""
        return float(_correlation(_moments(a[:, 0].astype(np.float64), b[:, 0].astype(np.float64)).sum(0)))

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """None: there are no classes."""
        return None

    def _gold(self, examples: Examples) -> NDArray[np.float64]:
        refuse_unlabelled(self.labelled(examples.labels))
        return np.asarray(examples.labels.values)


def _numbers(task: str, split: str, values: Sequence[Any]) -> NDArray[np.float64]:
    """(n,) NaN for None. Raises `DataError` for what is no finite number."""
    for row, value in enumerate(values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and np.isfinite(value)):
            raise DataError(
                f"tasks.{task}: row {row} of {split}: label {value!r} is not a number",
                "Mend the row, or drop problem: regression.",
            )
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 6) sums that Pearson's correlation is made from; shifted by their means, against cancellation."""
    x, y = x - x.mean(), y - y.mean()
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=1)


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (xy - x * y / n) / spread, 0.0))
