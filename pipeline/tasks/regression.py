"""Text regression: one number a text, or a pair of texts.

Losses see values in units of the training labels' standard deviation, so that a task's weight means the same
whatever its scale; models, the store and reports have them as they are. Values: (n, 1) in the labels' own unit; rows: (n, 1) standardised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Examples, Ragged
from pipeline.config.kinds import REGRESSION as KIND
from pipeline.errors import DataError, TeacherError
from pipeline.losses import NUMBER_LOSSES, LossTerm
from pipeline.tasks.heads import attach_head, label_settings
from pipeline.tasks.label_columns import Column
from pipeline.tasks.label_map import Groups
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.task import Task
from pipeline.tasks.text import FIELDS, TextHead, TextReading, text_snippet

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

COLUMNS = ("value",)


def regression(
    name: str,
    max_length: int,
    metric: str = KIND.metrics[0].name,
    fields: tuple[str, ...] = FIELDS,
    *,
    center: float = 0.0,
    scale: float = 1.0,
) -> Task:
    """A regression task. center, scale: mean and standard deviation of the training labels."""
    return Task(
        name,
        KIND,
        NumberReading(name, (), fields),
        NumberHead(name, max_length, center, scale, fields),
        NumberScoring(metric),
    )


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; center and scale are computed from train's labels."""
    if config.data.labels is not None:
        raise DataError(f"tasks.{name}.data.labels: regression has no label space", "Remove data.labels.")
    numbers = _numbers(name, "train", train["label"].values)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) < 2 or numbers.std() == 0:
        raise DataError(
            f"tasks.{name}: all labels of train are the same number",
            "There is nothing to learn from them.",
        )
    metric, fields = config.metric or KIND.metrics[0].name, KIND.content(config.data.columns)
    center, scale = float(numbers.mean()), float(numbers.std())
    return regression(name, config.data.max_length, metric, fields, center=center, scale=scale)


@dataclass(frozen=True)
class NumberReading(TextReading):
    """See `pipeline.tasks.task.Reading`."""

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Texts, and one float64 each, NaN where there is none."""
        inputs = self.texts(columns, split)
        values = columns["label"].values if "label" in columns else [None] * len(inputs["text"])
        return inputs, Ragged.single(_numbers(self.task, split, values))

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the example has a number."""
        return _labelled(labels)


class _ExactLinear(torch.nn.Linear):
    """Computes in fp32 under autocast too: of the years around 2000 bf16 knows every eighth."""

    def forward(self, features: Tensor) -> Tensor:
        """(…, 1) of (…, width)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


@dataclass(frozen=True)
class NumberHead(TextHead):
    """See `pipeline.tasks.task.Head`."""

    version: ClassVar[int] = 2  # increase it when predictions change: see `Head.version`
    losses: ClassVar[tuple[LossTerm, ...]] = NUMBER_LOSSES
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    center: float = 0.0
    scale: float = 1.0
    fields: tuple[str, ...] = FIELDS

    def attach(self, trunk: Any) -> Any:
        """A head with one output in the labels' unit, in fp32; its bias starts at the training labels' mean."""
        model = attach_head(trunk, KIND, {**label_settings(COLUMNS), "problem_type": "regression"})
        last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1][-1]
        last.__class__ = _ExactLinear  # with the weights that were drawn for it
        with torch.no_grad():
            last.weight.mul_(self.scale)
            last.bias.fill_(self.center)
        return model

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """None: one number has no name. Raises `TeacherError` for a teacher with several outputs."""
        if declared is not None or len(id2label) != 1:
            raise TeacherError(
                f"{where}: task {self.task} is a regression, the teacher has {len(id2label)} outputs",
                "Give a regression model (num_labels 1), without a label mapping.",
            )
        return None

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """`values` unchanged: a number has no label groups."""
        return values

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """(…, n, 1) standardised: (values − center) ÷ scale."""
        return (values - self.center) / self.scale

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(n, 1) values in the labels' unit: rows · scale + center."""
        return rows * self.scale + self.center

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """(n,) standardised labels: (labels − center) ÷ scale, NaN where there is none."""
        return ((labels - self.center) / self.scale).float()

    def snippet(self) -> str:
        """Python code for a model card that loads the exported folder and uses it."""
        return text_snippet(str(KIND.pipeline), self.fields)


@dataclass(frozen=True)
class NumberScoring:
    """See `pipeline.tasks.task.Scoring`."""

    metric: str

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """``pearson``, ``spearman``, ``mse``, ``mae``; a constant answer correlates with nothing: 0."""
        from scipy.stats import rankdata

        predicted, gold = values[:, 0].astype(np.float64), _gold(examples)
        return {
            "pearson": float(_correlation(_moments(predicted, gold).sum(0))),
            "spearman": float(_correlation(_moments(rankdata(predicted), rankdata(gold)).sum(0))),
            "mse": float(np.square(predicted - gold).mean()),
            "mae": float(np.abs(predicted - gold).mean()),
        }

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 6) moments of predictions and labels; for Spearman of their ranks within this test set."""
        from scipy.stats import rankdata

        predicted, gold = values[:, 0].astype(np.float64), _gold(examples)
        return (
            _moments(rankdata(predicted), rankdata(gold))
            if self.metric == "spearman"
            else _moments(predicted, gold)
        )

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the correlation of summed moments."""
        return _correlation(sums)

    def constant_score(self, examples: Examples) -> float:
        """0: a constant prediction has no correlation with the labels."""
        return 0.0

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Pearson's correlation of the two predictions."""
        return float(_correlation(_moments(a[:, 0].astype(np.float64), b[:, 0].astype(np.float64)).sum(0)))

    def decisions(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.floating]:
        """(n,) numbers."""
        return values[:, 0]

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """The numbers, to two decimals."""
        return [f"{number:.2f}" for number in decisions.tolist()]

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """None: there are no classes."""
        return None


def _labelled(labels: Ragged) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(labels.values))


def _gold(examples: Examples) -> NDArray[np.float64]:
    refuse_unlabelled(_labelled(examples.labels))
    return np.asarray(examples.labels.values)


def _numbers(task: str, split: str, values: Sequence[Any]) -> NDArray[np.float64]:
    """(n,) float64, NaN for None. Raises `DataError` for a value that is not a finite number."""
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None:
            continue
        try:  # a text may be a number, where another row made a column of texts of it
            numbers[row] = np.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]):
            raise DataError(
                f"tasks.{task}: row {row} of {split}: label {value!r:.200} is not a number",
                "Mend the row, or drop problem: regression; of a csv file with decimal commas set data.options.decimal.",
            )
    return numbers


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 6) sums that Pearson's correlation is made from; shifted by their means, against cancellation."""
    x, y = x - x.mean(), y - y.mean()
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=1)


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (xy - x * y / n) / spread, 0.0))
