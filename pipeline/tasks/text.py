"""Shared code of the kinds that take a text or a pair of texts: reading, encoding, a head with one row of logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, Ragged
from pipeline.errors import DataError
from pipeline.losses import DISTRIBUTION_LOSSES, LossTerm
from pipeline.strings import Strings
from pipeline.tasks.heads import ItemHead
from pipeline.tasks.label_columns import Column
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.variants import Side, Variant, altered, side_of
from pipeline.tasks.words import text_words

FIELDS = ("text",)


@dataclass(frozen=True)
class TextReading(ABC):
    """Reads texts, one item per example; a kind adds how it reads its labels."""

    background: ClassVar[str | None] = None
    entity_types: ClassVar[tuple[str, ...]] = ()

    task: str
    labels: tuple[str, ...]
    fields: tuple[str, ...] = FIELDS

    def texts(self, columns: Mapping[str, Column], split: str) -> dict[str, Sequence[Any]]:
        """The text, or the pair of texts, of each example. Raises `DataError` for a cell that is no text."""
        return texts_of(self.task, split, columns, self.fields)

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) ones: one item per example."""
        return np.ones(len(inputs["text"]), dtype=np.int64)

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The texts, or both sides of the pairs."""
        return tuple(inputs[role] for role in self.fields)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """The same texts, or pairs."""
        return dict(zip(self.fields, columns, strict=True))

    @abstractmethod
    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """See `pipeline.tasks.task.Reading`."""

    @property
    def rewritable(self) -> tuple[bool, ...]:
        """Every text."""
        return (True,) * len(self.fields)

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """The text, or both sides of the pair."""
        return tuple(side_of(inputs[role][row]) for role in self.fields)

    def altered(
        self,
        inputs: Mapping[str, Sequence[Any]],
        labels: Ragged,
        variants: Sequence[Variant],
        *,
        keep_labels: bool,
    ) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """The altered texts or pairs, with their examples' labels or none."""
        texts = altered_texts(self.fields, variants)
        read, none = self.read({role: Column(column) for role, column in texts.items()}, "augment")
        return read, labels.take(np.array([one.row for one in variants])) if keep_labels else none


@dataclass(frozen=True)
class TextHead(ItemHead):
    """A head with one row of outputs per text, which is also its row in the losses; a kind defines the outputs."""

    losses: ClassVar[tuple[LossTerm, ...]] = DISTRIBUTION_LOSSES

    task: str
    max_length: int

    @property
    def row_weight(self) -> float:
        """1: each text has one row."""
        return 1.0

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """Token ids of n texts or pairs, cut to `max_length`; how many were cut is counted."""
        return encode_texts(tokenizer, inputs, max_length or self.max_length, words)

    def truncatable(self, counts: NDArray[np.int64]) -> int:
        """The number of texts: each may be cut."""
        return len(counts)

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(m, C) float32 logits of the model's output."""
        logits: Tensor = output.logits.float()
        return logits

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """`values` unchanged: they are the rows."""
        return values

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """`rows` unchanged: they are the values."""
        return rows

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """`labels` unchanged: one per row."""
        return labels


def texts_of(
    task: str, split: str, columns: Mapping[str, Column], roles: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """The columns of `roles`, each a list of strings. Raises `DataError` for a cell that is no text."""
    for role in roles:
        if isinstance(columns[role].values, Strings):
            continue
        for row, value in enumerate(columns[role].values):
            if not isinstance(value, str):
                remedy = "Remove or mend that row."
                if isinstance(value, dict):
                    fields = " or ".join(f"COLUMN.{name}" for name in value)
                    remedy = (
                        f"Set data.columns.{role} to one of its fields: {fields}, with the column's name."
                    )
                raise DataError(
                    f"tasks.{task}: row {row} of {split}: {role} is {value!r:.200}, not text", remedy
                )
    return {role: columns[role].values for role in roles}


def altered_texts(fields: Sequence[str], variants: Sequence[Variant]) -> dict[str, list[str]]:
    """The texts of `variants`, a column for each of `fields`."""
    return {
        role: [altered(one.sides[place], one.changes[place]) for one in variants]
        for place, role in enumerate(fields)
    }


def encode_texts(
    tokenizer: Any, inputs: Mapping[str, Sequence[Any]], max_length: int, words: bool = False
) -> Encoded:
    """Token ids of n texts, or pairs of which the longer loses tokens first; how many lost any is counted.

    words: see `pipeline.tasks.task.Head.encode`.
    """
    texts = [list(inputs[role]) for role in ("text", "text_pair") if role in inputs]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(encoded["input_ids"]))
    full = np.flatnonzero(lengths == max_length)  # only these texts can have lost tokens
    whole = tokenizer(*([column[i] for i in full] for column in texts), verbose=False) if len(full) else None
    return Encoded(
        columns=flat_columns(encoded, lengths),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        pads=pads_of(tokenizer),
        truncated=sum(len(row) > max_length for row in whole["input_ids"]) if whole else 0,
        words=text_words(tokenizer, encoded.encodings or (), texts, np.arange(len(lengths)))
        if words
        else None,
    )


def text_snippet(pipeline: str, fields: Sequence[str]) -> str:
    """Lines of Python that open an exported folder with a transformers pipeline and give it a text, or a pair."""
    text = '"Some text."' if len(fields) == 1 else '{"text": "One text.", "text_pair": "Another."}'
    return f'from transformers import pipeline\npipeline("{pipeline}", "path/to/this/folder")({text})'


def flat_columns(encoded: Any, lengths: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The tokenizer's outputs that models take, by name, each as one flat array."""
    return {
        name: np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        for name, rows in encoded.items()
        if name in ("input_ids", "token_type_ids")
    }


def pads_of(tokenizer: Any) -> dict[str, int]:
    """Padding value by column."""
    return {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
