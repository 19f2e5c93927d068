"""One file a task kind: columns → examples and features, label space, losses, soft-target alignment, metric.

`Task` is what every kind offers; the rest of the code knows no kind by name. To add one, write its file and
give it a line in `KINDS`.

What a model says about an example is *values*: one row an item, one column a name in `columns` (see
`pipeline.batch`). What losses and aggregation see is *rows*: (N, D), each row one distribution over D (or, for
a continuous kind, one number). `rows` and `flat` lead from one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, Examples, Ragged
from pipeline.errors import ConfigError
from pipeline.tasks.label_columns import Column
from pipeline.tasks.label_map import Groups
from pipeline.tasks.multi_label import MultiLabel
from pipeline.tasks.question_answering import QuestionAnswering
from pipeline.tasks.regression import Regression
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text_classification import TextClassification
from pipeline.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


class Task(Protocol):
    """A task of some kind. Frozen, picklable, free of weights."""

    kind: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Scores that may select and compare models, the usual one first; higher is better."""
    errors: ClassVar[tuple[str, ...]]
    """Scores of which lower is better."""
    continuous: ClassVar[bool]
    """Whether rows are numbers rather than distributions."""
    label_roles: ClassVar[tuple[str, ...]]
    """Columns that say what is true."""
    lost: ClassVar[str]
    """What truncation loses and `Encoded.truncated` counts: texts, words, questions."""
    outputs: ClassVar[tuple[str, ...]]
    """What a model's output holds that values are read from."""

    @property
    def row_weight(self) -> float:
        """What one row counts in the loss: 1, or less where an example (or word) has several."""
        ...

    @property
    def name(self) -> str:
        """The task's name in the config."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space, in order; empty where there is none."""
        ...

    @property
    def background(self) -> str | None:
        """The label of items that are nothing in particular (`O`, where others mark entities), if there is one."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of values are called."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens a sequence, special tokens counted."""
        ...

    @property
    def metric(self) -> str:
        """The score that selects and compares models."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Input columns, those that make up an example's content."""
        ...

    # ---- data

    @staticmethod
    def roles(config: TaskConfig) -> tuple[str, ...]:
        """Input columns that this config asks for."""
        ...

    @classmethod
    def make(cls, name: str, config: TaskConfig, train: Mapping[str, Column]) -> Self:
        """The task, its label space found in train. Raises `DataError`."""
        ...

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Inputs and labels of one split. A split without label columns, and a None among them, is unlabelled.

        Raises `DataError`, naming the row.
        """
        ...

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) which examples have labels."""
        ...

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) items an example."""
        ...

    # ---- models

    @staticmethod
    def model_class() -> Any:
        """The `AutoModelFor…` whose head the kind uses."""
        ...

    def head_settings(self) -> dict[str, Any]:
        """What the head's Hugging Face config must say."""
        ...

    def prepare_head(self, model: Any) -> None:
        """Sets what a new head should start from, beyond chance."""
        ...

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """Which of a teacher's columns stand for each of ours; None where columns have no names to match."""
        ...

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """A teacher's own columns → the task's."""
        ...

    def encode(
        self, tokenizer: Any, inputs: Mapping[str, Sequence[Any]], max_length: int | None = None
    ) -> Encoded:
        """n examples → token ids, at most `max_length` (by default the task's) a sequence."""
        ...

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(M, C) float32 values of a batch's M items from the model's output."""
        ...

    # ---- losses

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """(…, M, C) values of examples with `counts` (m,) items → (…, N, D)."""
        ...

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(N, D) rows → (M, C) values, as `rows` takes them."""
        ...

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """Labels of some examples, end to end → one a row: (N,) int64, `UNLABELLED` for none; a continuous
        kind's (N,) float32, NaN for none."""
        ...

    # ---- evaluation

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """Every metric of (M, C) values. Raises `DataError` where a label is missing."""
        ...

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, S) sums that the metric is made from, by example."""
        ...

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the metric, of (…, S) sums over examples."""
        ...

    def constant_score(self, examples: Examples) -> float:
        """The metric of the best answer that never changes."""
        ...

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of answers on which two models agree."""
        ...

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """Logits (N, C) over `labels` and gold indices (N,) of what confusion and reliability are drawn from; None
        where an answer is not one label out of C."""
        ...

    @property
    def entity_types(self) -> tuple[str, ...]:
        """The entity type of each of `labels`, "" for a label outside; empty where labels are no entity tags."""
        ...

    # ---- use

    @property
    def pipeline(self) -> str | None:
        """The transformers pipeline that opens an exported folder."""
        ...

    def snippet(self) -> str:
        """Lines of Python that open an exported folder at ``path/to/this/folder`` and use it."""
        ...


KINDS: dict[tuple[str, str], type[Any]] = {
    (TextClassification.kind, "single_label"): TextClassification,
    (MultiLabel.kind, "multi_label"): MultiLabel,
    (Regression.kind, "regression"): Regression,
    (TokenClassification.kind, "single_label"): TokenClassification,
    (QuestionAnswering.kind, "single_label"): QuestionAnswering,
}
"""Task kinds by the config's `kind` and `problem`."""


def kind_of(config: TaskConfig) -> type[Task]:
    """The class of a config's kind. Raises `ConfigError`."""
    found = KINDS.get((config.kind, config.problem))
    if found is None:
        raise ConfigError(
            f"problem: {config.kind} has no {config.problem}",
            "Only text-classification has several problems.",
        )
    return found
