"""What a task of any kind offers, in three facets; each of its users takes the facet that it needs.

What a model predicts for an example is *values*: one row an item, one column a name in `Head.columns` (see
`pipeline.batch`), or, where `Kind.writes`, candidate texts (`pipeline.soft.Texts`). What losses and aggregation see is *rows*: (N, D), each row one distribution over D (or, for
a continuous kind, one number). `Head.rows` and `Head.flat` lead from one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, Examples, Ragged
from pipeline.config.kinds import Kind
from pipeline.losses import LossTerm
from pipeline.tasks.label_columns import Column
from pipeline.tasks.label_map import Groups
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.variants import Side, Variant


class Reading(Protocol):
    """Columns of a data set → inputs and labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space, in order; empty where there is none."""
        ...

    @property
    def background(self) -> str | None:
        """The label of items outside all entities (`O`), or None where the kind has no such label."""
        ...

    @property
    def entity_types(self) -> tuple[str, ...]:
        """The entity type of each of `labels`, "" for a label outside; empty where labels are no entity tags."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The inputs from which an example's content key is computed: a text, or both sides of a pair. Other inputs are
        used for scores only."""
        ...

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Inputs and labels of one split. Without label columns, or where a cell is None, examples are unlabelled.

        Raises `DataError` with the row number.
        """
        ...

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) bool: whether each example has labels."""
        ...

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) int64 items per example."""
        ...

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The examples as plain text: for each of `fields` a column of n strings."""
        ...

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Inputs made of plain text, a column for each of `fields`. A text may become several examples, or none."""
        ...

    @property
    def rewritable(self) -> tuple[bool, ...]:
        """For each of `fields`, whether the text may be said otherwise as a whole: not one whose words or characters have
        labels."""
        ...

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """The texts of one example, one for each of `fields`, and which of their words may be altered: none of an entity
        or an answer, and none that may be of one."""
        ...

    def altered(
        self,
        inputs: Mapping[str, Sequence[Any]],
        labels: Ragged,
        variants: Sequence[Variant],
        *,
        keep_labels: bool,
    ) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Inputs and labels of `variants` of the examples; the labels of their examples, or none.

        variants: at least one, with the sides that `sides` gives.
        """
        ...


class Head(Protocol):
    """Examples → token ids → a model's predictions → rows for losses; a teacher's label space → the task's."""

    @property
    def version(self) -> int:
        """Part of the key of stored soft targets.

        Increase a kind's version when its `encode`, `read_out` or `marginalise`, or a function that they call, gives
        other values for the same model and text; stored targets of the older version are then not used.
        """
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the C columns of values."""
        ...

    @property
    def decoding(self) -> Mapping[str, Any]:
        """What decides the predictions beside the model, `version`, `columns` and `max_length`, in JSON types; mostly
        nothing."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens per sequence, special tokens included."""
        ...

    def positions(self, max_length: int | None) -> int:
        """The positions that a model of the task needs for sequences of `max_length` tokens, by default the task's."""
        ...

    @property
    def row_weight(self) -> float:
        """Weight of one row in the loss: 1, or less where an example has several rows."""
        ...

    @property
    def losses(self) -> tuple[LossTerm, ...]:
        """The loss terms of the task's rows."""
        ...

    def attach(self, trunk: Any) -> Any:
        """A transformers model over `trunk` (shared, not copied), with a new head for the task."""
        ...

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """Token ids of n examples, at most `max_length` (by default the task's) per sequence.

        words: with the words that tokens cover, those of all inputs of an example (`pipeline.tasks.words`).
        """
        ...

    def truncatable(self, counts: NDArray[np.int64]) -> int:
        """The number of units that truncation may lose (`Kind.truncates`) in examples with `counts` (n,) items."""
        ...

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(M, C) float32 values of a batch's M items from the model's output."""
        ...

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """For each of the task's columns the teacher's columns that mean it; None where columns have no names.

        Raises `TeacherError`.
        """
        ...

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """(…, C') values of a teacher's own columns → (…, C) values of the task's columns."""
        ...

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """(…, M, C) values of examples with `counts` items (m,) → (…, N, D)."""
        ...

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(N, D) rows → (M, C) values, as `rows` takes them."""
        ...

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """Labels of m examples in one flat tensor → one label per row: (N,) int64, `UNLABELLED` for none.

        For a continuous kind: (N,) float32, NaN for none.
        """
        ...

    def snippet(self) -> str:
        """Lines of Python that open an exported folder at ``path/to/this/folder`` and use it."""
        ...


class Scoring(Protocol):
    """Predictions → scores."""

    @property
    def metric(self) -> str:
        """Name of the score that selects and compares models."""
        ...

    def scores(self, values: NDArray[Any], examples: Examples) -> dict[str, float]:
        """Every metric of (M, C) values. Raises `DataError` where a label is missing."""
        ...

    def statistics(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n, S) float64 statistics of each example, from whose sum over examples the metric is computed."""
        ...

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the metric, from (…, S) sums of statistics over examples."""
        ...

    def constant_score(self, examples: Examples) -> float:
        """The metric of the best constant prediction."""
        ...

    def agreement(self, a: NDArray[np.floating], b: NDArray[Any], examples: Examples) -> float:
        """Share of predictions on which two models agree."""
        ...

    def decisions(self, values: NDArray[Any], examples: Examples) -> NDArray[Any]:
        """What a model with (M, C) values decides, in the form of ``examples.labels.values``."""
        ...

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """The answer to each of n examples in words. decisions: of a model, or gold labels · items: (n,) the item of
        each example that is asked for, where items have decisions of their own."""
        ...

    def classified(
        self, values: NDArray[Any], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """Logits (N, C) over the label space and gold indices (N,), for the figures of confusion and reliability.

        None where a prediction is not one label out of C.
        """
        ...


@dataclass(frozen=True)
class Task:
    """One task of the config. Picklable, free of weights."""

    name: str
    kind: Kind
    reading: Reading
    head: Head
    scoring: Scoring
