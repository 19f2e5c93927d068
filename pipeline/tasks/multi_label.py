"""Multi-label text classification: any number of C labels a text, each decided by itself.

A text's C labels are C rows of two classes, no and yes, with logits 0 and z: softmax over them is the sigmoid
of z, cross-entropy the binary cross-entropy, so losses and aggregation are those of every other kind. An
example counts as the mean over its labels, as `BCEWithLogitsLoss` has it.

Values: (n, C) logits of yes; rows: (n · C, 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, UNLABELLED, Examples, Ragged, is_present
from pipeline.config.kinds import MULTI_LABEL as KIND
from pipeline.errors import DataError
from pipeline.tasks.heads import attach_head, label_settings
from pipeline.tasks.label_columns import Column, label_ids, label_index, label_space, refuse_label
from pipeline.tasks.label_map import Groups, label_groups, marginalise
from pipeline.tasks.scores import ece, refuse_unlabelled
from pipeline.tasks.task import Task
from pipeline.tasks.text import FIELDS, TextHead, TextReading, text_snippet

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


def multi_label(
    name: str,
    labels: tuple[str, ...],
    max_length: int,
    metric: str = KIND.metrics[0].name,
    fields: tuple[str, ...] = FIELDS,
) -> Task:
    """A multi-label task over `labels`."""
    return Task(
        name,
        KIND,
        MultiLabelReading(name, labels, fields),
        MultiLabelHead(name, max_length, labels, fields),
        MultiLabelScoring(metric, labels),
    )


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; labels as declared, or the data set's names, or the labels in train's lists."""
    column = _without_vectors(name, "train", train["label"], config.data.labels or train["label"].names)
    _check_lists(name, "train", column.values)
    present = [label for value in column.values if value is not None for label in value]
    labels = label_space(name, config.data.labels, column.names, present)
    metric, fields = config.metric or KIND.metrics[0].name, KIND.content(config.data.columns)
    return multi_label(name, labels, config.data.max_length, metric, fields)


@dataclass(frozen=True)
class MultiLabelReading(TextReading):
    """See `pipeline.tasks.task.Reading`."""

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Texts, and per text (C,) int64: 1 for each label in its list, else 0; all -1 where it has no list."""
        inputs = self.texts(columns, split)
        marks = np.full((len(inputs["text"]), len(self.labels)), UNLABELLED)
        if "label" not in columns:
            return inputs, Ragged.single(marks)
        column = _without_vectors(self.task, split, columns["label"], self.labels)
        _check_lists(self.task, split, column.values)
        every = [label for value in column.values if value is not None for label in value]
        index = label_index(self.labels, column.names, every)
        for row, value in enumerate(column.values):
            if value is None:
                continue
            ids = label_ids(index, value)
            if (ids < 0).any():
                raise refuse_label(self.task, row, split, value[int((ids < 0).argmax())], self.labels)
            marks[row] = 0
            marks[row, ids] = 1
        return inputs, Ragged.single(marks)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the example has a list of labels, which may be empty."""
        return _labelled(labels)


@dataclass(frozen=True)
class MultiLabelHead(TextHead):
    """See `pipeline.tasks.task.Head`."""

    version: ClassVar[int] = 1  # increase it when predictions change: see `Head.version`

    columns: tuple[str, ...]
    fields: tuple[str, ...] = FIELDS

    @property
    def row_weight(self) -> float:
        """1 ÷ C: an example's loss is the mean over its C labels."""
        return 1 / len(self.columns)

    def attach(self, trunk: Any) -> Any:
        """A head with one output, a sigmoid's logit, per label."""
        settings = label_settings(self.columns)
        return attach_head(trunk, KIND, {**settings, "problem_type": "multi_label_classification"})

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """The teacher's columns for each label, matched by name; see `label_groups`."""
        return label_groups(id2label, self.columns, declared, self.task, where)

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """(…, C) largest logit of each group: labels are no distribution, so probabilities are not summed."""
        return marginalise(values, groups, independent=True)

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """(…, n · C, 2): 0 for no, the logit for yes; both `ABSENT` where there is no prediction."""
        no = torch.where(is_present(values), 0.0, ABSENT).to(values)
        pairs = torch.stack((no, values), dim=-1)
        return pairs.flatten(start_dim=-3, end_dim=-2)

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(n, C) logits of yes, the log-odds of each row."""
        return (rows[:, 1] - rows[:, 0]).view(-1, len(self.columns))

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """(n · C,) int64: 0 or 1 for each label, `UNLABELLED` for an example without a list."""
        return labels.reshape(-1)

    def snippet(self) -> str:
        """Python code for a model card that loads the exported folder and uses it."""
        return text_snippet(str(KIND.pipeline), self.fields)


@dataclass(frozen=True)
class MultiLabelScoring:
    """See `pipeline.tasks.task.Scoring`."""

    metric: str
    labels: tuple[str, ...]

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """``micro_f1``, ``macro_f1``, ``subset_accuracy`` (every label right), ``nll`` (mean over labels, nats), ``ece``."""
        gold = _gold(examples)
        sums = _statistics(values, gold).sum(0)
        z = values.astype(np.float64)
        probability = 1 / (1 + np.exp(-z))
        return {
            **{metric: float(_score(metric, sums)) for metric in KIND.selecting},
            "nll": float((np.logaddexp(0, z) - gold * z).mean()),
            "ece": ece(np.maximum(probability, 1 - probability).ravel(), ((z > 0) == gold).ravel()),
        }

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 3C + 2): hits, predictions and gold by label; whether all labels are right; 1, which counts examples."""
        return _statistics(values, _gold(examples))

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the task's metric of summed statistics: micro F1, macro F1 or subset accuracy."""
        return _score(self.metric, sums)

    def constant_score(self, examples: Examples) -> float:
        """The best score of three constant predictions: no label, every label, the labels that most texts have."""
        gold = _gold(examples)
        answers = (np.zeros(len(self.labels)), np.ones(len(self.labels)), gold.mean(0) > 0.5)
        same = [np.tile(np.where(answer, 1.0, -1.0), (len(gold), 1)) for answer in answers]
        return max(float(self.score_of(_statistics(one, gold).sum(0))) for one in same)

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of the n · C decisions that are equal in both."""
        return float(((a > 0) == (b > 0)).mean())

    def decisions(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.int64]:
        """(n, C) 1 for each label that a text is given, else 0."""
        return (values > 0).astype(np.int64)

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """Each text's labels, separated by commas."""
        return [
            ", ".join(label for label, mark in zip(self.labels, marks, strict=True) if mark == 1) or "none"
            for marks in decisions.tolist()
        ]

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """None: a text has no single label."""
        return None


def _labelled(labels: Ragged) -> NDArray[np.bool_]:
    return np.asarray(labels.values[:, 0] != UNLABELLED)


def _gold(examples: Examples) -> NDArray[np.int64]:
    refuse_unlabelled(_labelled(examples.labels))
    return np.asarray(examples.labels.values)


def _statistics(values: NDArray[np.floating], gold: NDArray[np.int64]) -> NDArray[np.float64]:
    predicted = values > 0
    right = (predicted == gold).all(1, keepdims=True)
    return np.hstack((predicted * gold, predicted, gold, right, np.ones_like(right))).astype(np.float64)


def _without_vectors(task: str, split: str, column: Column, labels: Sequence[str] | None) -> Column:
    """The column with lists of labels where it has vectors of 0 and 1, one number a label.

    Vectors are of one length, and some have a number twice, which a list of labels has not. Raises `DataError` where there are no
    `labels` of that length.
    """
    rows = [value for value in column.values if value is not None]
    alike = all(isinstance(row, list | tuple) for row in rows) and len(set(map(len, rows))) == 1
    if not alike or not all(one in (0, 1) for row in rows for one in row):
        return column
    if all(len(set(row)) == len(row) for row in rows):
        return column
    length = len(rows[0])
    if labels is None or len(labels) != length:
        raise DataError(
            f"tasks.{task}: the labels of {split} are vectors of {length} numbers, 0 or 1",
            f"Name the {length} labels in data.labels, in the order of the vectors.",
        )
    names = np.array(labels, dtype=object)
    lists = [None if row is None else names[np.flatnonzero(row)].tolist() for row in column.values]
    return Column(lists)


def _check_lists(task: str, split: str, values: Sequence[Any]) -> None:
    """Raises `DataError` unless each row is a list of labels or None."""
    for row, value in enumerate(values):
        if not isinstance(value, list | tuple | None):
            raise DataError(
                f"tasks.{task}: row {row} of {split}: label is {value!r:.200}, not a list of labels",
                "Give each row a list, empty for none, or set problem: single_label.",
            )


def _score(metric: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    hits, predicted, gold = np.split(sums[..., :-2], 3, axis=-1)
    match metric:
        case "subset_accuracy":
            return np.asarray(sums[..., -2] / sums[..., -1])
        case "micro_f1":
            return np.asarray(2 * hits.sum(-1) / np.maximum(predicted.sum(-1) + gold.sum(-1), 1))
        case _:  # a label that neither occurs nor is predicted has no F1
            f1, known = 2 * hits / np.maximum(predicted + gold, 1), predicted + gold > 0
            return np.asarray((f1 * known).sum(-1) / np.maximum(known.sum(-1), 1))
