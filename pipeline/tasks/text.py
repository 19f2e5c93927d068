"""What the kinds that take a text, or a pair of texts, share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.batch import Encoded
from pipeline.errors import DataError
from pipeline.tasks.label_columns import Column

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig


def text_roles(config: TaskConfig) -> tuple[str, ...]:
    """`text`, and `text_pair` where the config names a column for it."""
    return ("text", "text_pair") if "text_pair" in config.data.columns else ("text",)


def texts_of(
    task: str, split: str, columns: Mapping[str, Column], roles: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """The columns of `roles`, each a list of strings. Raises `DataError` for a cell that is no text."""
    for role in roles:
        for row, value in enumerate(columns[role].values):
            if not isinstance(value, str):
                raise DataError(
                    f"tasks.{task}: row {row} of {split}: {role} is {value!r:.200}, not text",
                    "Remove or mend that row.",
                )
    return {role: columns[role].values for role in roles}


def encode_texts(tokenizer: Any, inputs: Mapping[str, Sequence[Any]], max_length: int) -> Encoded:
    """Token ids of n texts, or pairs of which the longer loses tokens first; how many lost any is counted."""
    texts = [list(inputs[role]) for role in ("text", "text_pair") if role in inputs]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(encoded["input_ids"]))
    full = np.flatnonzero(lengths == max_length)  # only these can have lost anything
    whole = tokenizer(*([column[i] for i in full] for column in texts), verbose=False) if len(full) else None
    return Encoded(
        columns=flat_columns(encoded, lengths),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        pads=pads_of(tokenizer),
        truncated=sum(len(row) > max_length for row in whole["input_ids"]) if whole else 0,
    )


def flat_columns(encoded: Any, lengths: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a tokenizer gave that models take, each column end to end."""
    return {
        name: np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        for name, rows in encoded.items()
        if name in ("input_ids", "token_type_ids")
    }


def pads_of(tokenizer: Any) -> dict[str, int]:
    """Padding value a column."""
    return {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
