"""Text classification: one text, or a pair of texts, one label out of C. Values and rows: (n, C) logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import UNLABELLED, Examples, Ragged
from pipeline.config.kinds import TEXT_CLASSIFICATION as KIND
from pipeline.tasks.heads import attach_head, label_settings
from pipeline.tasks.label_columns import Column, label_ids, label_index, label_space, refuse_label
from pipeline.tasks.label_map import Groups, label_groups, marginalise
from pipeline.tasks.scores import (
    agreement,
    class_score,
    class_statistics,
    constant_class_score,
    scores,
    softmax,
)
from pipeline.tasks.task import Task
from pipeline.tasks.text import FIELDS, TextHead, TextReading, text_snippet

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


def text_classification(
    name: str,
    labels: tuple[str, ...],
    max_length: int,
    metric: str = KIND.metrics[0].name,
    fields: tuple[str, ...] = FIELDS,
) -> Task:
    """A text classification task over `labels`."""
    return Task(
        name,
        KIND,
        ClassReading(name, labels, fields),
        ClassHead(name, max_length, labels, fields),
        ClassScoring(metric, labels),
    )


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; labels as declared, or the data set's names, or the distinct labels of train."""
    column = train["label"]
    labels = label_space(name, config.data.labels, column.names, column.values)
    metric, fields = config.metric or KIND.metrics[0].name, KIND.content(config.data.columns)
    return text_classification(name, labels, config.data.max_length, metric, fields)


@dataclass(frozen=True)
class ClassReading(TextReading):
    """See `pipeline.tasks.task.Reading`."""

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Texts, and one int64 label index per text, `UNLABELLED` for None."""
        inputs = self.texts(columns, split)
        if "label" not in columns:
            return inputs, Ragged.single(np.full(len(inputs["text"]), UNLABELLED))
        column = columns["label"]
        ids = label_ids(label_index(self.labels, column.names, column.values), column.values)
        for row in np.flatnonzero(ids < UNLABELLED)[:1]:
            raise refuse_label(self.task, int(row), split, column.values[row], self.labels)
        return inputs, Ragged.single(ids)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the example has a label."""
        return np.asarray(labels.values != UNLABELLED)


@dataclass(frozen=True)
class ClassHead(TextHead):
    """See `pipeline.tasks.task.Head`."""

    version: ClassVar[int] = 1  # increase it when predictions change: see `Head.version`

    columns: tuple[str, ...]
    fields: tuple[str, ...] = FIELDS

    def attach(self, trunk: Any) -> Any:
        """A head with one output per label; softmax over the outputs."""
        settings = label_settings(self.columns)
        return attach_head(trunk, KIND, {**settings, "problem_type": "single_label_classification"})

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """The teacher's columns for each label, matched by name; see `label_groups`."""
        return label_groups(id2label, self.columns, declared, self.task, where)

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """(…, C) logits; the probabilities of a group's columns are summed."""
        return marginalise(values, groups)

    def snippet(self) -> str:
        """Python code for a model card that loads the exported folder and uses it."""
        return text_snippet(str(KIND.pipeline), self.fields)


@dataclass(frozen=True)
class ClassScoring:
    """See `pipeline.tasks.task.Scoring`."""

    metric: str
    labels: tuple[str, ...]

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """See `pipeline.tasks.scores.scores`."""
        return scores(softmax(values), examples.labels.values)

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 3C) one-hot hits, predictions and gold labels; see `class_statistics`."""
        return class_statistics(values.argmax(1), examples.labels.values, len(self.labels))

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the task's metric of summed statistics: accuracy or macro F1."""
        return class_score(self.metric, sums)

    def constant_score(self, examples: Examples) -> float:
        """The score of predicting the most frequent label for every text."""
        return constant_class_score(self.metric, examples.labels.values, len(self.labels))

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of texts for which both predict the same label."""
        return agreement(a, b)

    def decisions(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.int64]:
        """(n,) label indices."""
        return np.asarray(values.argmax(1), dtype=np.int64)

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """The labels."""
        return [self.labels[label] for label in decisions.tolist()]

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """(n, C) logits and (n,) gold indices of all texts."""
        return values, examples.labels.values
