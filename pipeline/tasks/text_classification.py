"""Text classification: one text, or a pair of texts, one label out of C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import UNLABELLED, Encoded, Examples, Ragged
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
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text import encode_texts, text_roles, texts_of

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


@dataclass(frozen=True)
class TextClassification:
    """One text classification task; see `pipeline.tasks.Task`. Values and rows: (n, C) logits."""

    kind: ClassVar[str] = "text-classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    errors: ClassVar[tuple[str, ...]] = ("nll", "ece")
    continuous: ClassVar[bool] = False
    label_roles: ClassVar[tuple[str, ...]] = ("label",)
    lost: ClassVar[str] = "texts"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    row_weight: ClassVar[float] = 1.0
    pipeline: ClassVar[str | None] = "text-classification"

    name: str
    labels: tuple[str, ...]
    max_length: int
    metric: str = "accuracy"
    fields: tuple[str, ...] = ("text",)

    @property
    def background(self) -> str | None:
        """None."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """The label space."""
        return self.labels

    # ---- data

    @staticmethod
    def roles(config: TaskConfig) -> tuple[str, ...]:
        """See `text_roles`."""
        return text_roles(config)

    @classmethod
    def make(cls, name: str, config: TaskConfig, train: Mapping[str, Column]) -> Self:
        """The task; labels as declared, or the data set's names, or those found in train."""
        column = train["label"]
        labels = label_space(name, config.data.labels, column.names, column.values)
        metric = config.metric or cls.metrics[0]
        return cls(name, labels, config.data.max_length, metric, cls.roles(config))

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Texts, and one label index each."""
        inputs = texts_of(self.name, split, columns, self.fields)
        if "label" not in columns:
            return inputs, Ragged.single(np.full(len(inputs["text"]), UNLABELLED))
        column = columns["label"]
        ids = label_ids(label_index(self.labels, column.names, column.values), column.values)
        for row in np.flatnonzero(ids < UNLABELLED)[:1]:
            raise refuse_label(self.name, int(row), split, column.values[row], self.labels)
        return inputs, Ragged.single(ids)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """Which have a label."""
        return np.asarray(labels.values != UNLABELLED)

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """One item a text."""
        return np.ones(len(inputs["text"]), dtype=np.int64)

    # ---- models

    @staticmethod
    def model_class() -> Any:
        """`AutoModelForSequenceClassification`."""
        from transformers import (
            AutoModelForSequenceClassification,  # the core's other users need no transformers
        )

        return AutoModelForSequenceClassification

    def head_settings(self) -> dict[str, Any]:
        """Label names in the task's order, softmax over them."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def prepare_head(self, model: Any) -> None:
        """As drawn."""

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """By name; see `label_groups`."""
        return label_groups(id2label, self.labels, declared, self.name, where)

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """Probabilities summed."""
        return marginalise(values, groups)

    def encode(
        self, tokenizer: Any, inputs: Mapping[str, Sequence[Any]], max_length: int | None = None
    ) -> Encoded:
        """Token ids of n texts or pairs, cut to `max_length`; how many were cut is counted."""
        return encode_texts(tokenizer, inputs, max_length or self.max_length)

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """The logits."""
        logits: Tensor = output.logits.float()
        return logits

    # ---- losses

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """The values."""
        return values

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """The rows."""
        return rows

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """The labels."""
        return labels

    # ---- evaluation

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """See `pipeline.tasks.scores.scores`."""
        return scores(softmax(values), examples.labels.values)

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """Hits, predictions and gold labels by class."""
        return class_statistics(values.argmax(1), examples.labels.values, len(self.labels))

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accuracy or macro F1."""
        return class_score(self.metric, sums)

    def constant_score(self, examples: Examples) -> float:
        """The most frequent label's."""
        return constant_class_score(self.metric, examples.labels.values, len(self.labels))

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of texts that get the same label."""
        return agreement(a, b)

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """Every text."""
        return values, examples.labels.values

    @property
    def entity_types(self) -> tuple[str, ...]:
        """None: labels are no entity tags."""
        return ()

    # ---- use

    def snippet(self) -> str:
        """For a model card."""
        text = '"Some text."' if len(self.fields) == 1 else '{"text": "One text.", "text_pair": "Another."}'
        return (
            f'from transformers import pipeline\npipeline("{self.pipeline}", "path/to/this/folder")({text})'
        )
