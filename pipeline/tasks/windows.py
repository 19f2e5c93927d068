"""Long contexts in overlapping windows of tokens; tokens ↔ cells, the words of a context and "no answer".

Cell 0 is "no answer", cell i + 1 word i (see `pipeline.tasks.words`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, Encoded, TextWords
from pipeline.errors import ConfigError, TeacherError
from pipeline.tasks.tensors import TensorBatch, item_starts
from pipeline.tasks.text import flat_columns, pads_of
from pipeline.tasks.words import Words, text_words, words_of

SIDES = ("start", "end")
CHUNK = 1 << 20
"""Characters that are held as Python lists of tokens at once."""


@dataclass(frozen=True)
class _Part:
    """The windows of n examples. lengths: (S,) tokens per window · windows, cells: (n,) number of each per example."""

    columns: Mapping[str, NDArray[np.int32]]
    lengths: NDArray[np.int64]
    windows: NDArray[np.int64]
    cells: NDArray[np.int64]
    spots: Mapping[str, NDArray[np.int32]]
    words: TextWords | None


def chunks(contexts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Rows of contexts, in order, cut so that each part has about `CHUNK` characters."""
    ends = np.cumsum([len(context) for context in contexts], dtype=np.int64)
    return np.split(np.arange(len(contexts)), np.flatnonzero(np.diff(ends // CHUNK)) + 1)


def encode_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    task: str,
    words: bool = False,
) -> Encoded:
    """Token ids of n questions with their contexts, in as many windows of `max_length` as a context needs.

    Windows overlap by a quarter of `max_length`. A question longer than half of it is cut and counted as truncated;
    contexts are never cut. spots: for each token the cells of the first and of the last word that it covers, for its
    start and its end logit; cell 0 for the CLS token. words: see `pipeline.tasks.task.Head.encode`. Raises `TeacherError` for a tokenizer without CLS token or
    offsets, and `ConfigError` for a `max_length` without room for windows.
    """
    _check_tokenizer(tokenizer, max_length, task)
    parts, cut = [], 0
    for rows in chunks(contexts):
        short, shortened = _shortened(tokenizer, [questions[row] for row in rows], max_length // 2)
        cut += shortened
        sides = ([questions[row] for row in rows], [contexts[row] for row in rows]) if words else None
        parts.append(_windows(tokenizer, short, [contexts[row] for row in rows], max_length, sides))
    lengths = np.concatenate([part.lengths for part in parts])
    windows = np.concatenate([part.windows for part in parts])
    return Encoded(
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        pads=pads_of(tokenizer),
        truncated=cut,
        spots={side: np.concatenate([part.spots[side] for part in parts]) for side in SIDES},
        sequences=np.concatenate(([0], np.cumsum(windows))),
        counts=np.concatenate([part.cells for part in parts]),
        words=TextWords.join([part.words for part in parts if part.words]) if words else None,
    )


def cells_of(words: Words, examples: NDArray[np.int64], spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """(t, 2) cells of the first and the last word that characters `spans` (t, 2) of `examples` (t,) touch; -1 where
    they touch none."""
    covered = words.covered(examples, spans)
    return np.where(covered < 0, -1, covered + 1)


def cell_counts(contexts: Sequence[str]) -> NDArray[np.int64]:
    """(n,) cells per context: its words and 1."""
    return np.array([1 + len(words_of(context)) for context in contexts], dtype=np.int64)


def _check_tokenizer(tokenizer: Any, max_length: int, task: str) -> None:
    if not tokenizer.is_fast or tokenizer.cls_token_id is None:
        lacks = "no CLS token to say 'no answer' with" if tokenizer.is_fast else "no offsets of its tokens"
        raise TeacherError(
            f"task {task}: the tokenizer {tokenizer.name_or_path} has {lacks}",
            "Take a model whose tokenizer is a fast one with a CLS token, as BERT's and RoBERTa's.",
        )
    check_room(max_length, task, tokenizer.num_special_tokens_to_add(pair=True))


def check_room(max_length: int, task: str, special_tokens: int = 3) -> None:
    """Raises `ConfigError` where a window with the longest question would not advance by at least one token."""
    least = 4 * special_tokens + 1
    if max_length < least:
        raise ConfigError(
            f"task {task}: max_length {max_length} has no room for a question and a window of its context",
            f"Set max_length to {least} or more; 384 is usual.",
        )


def _shortened(tokenizer: Any, questions: list[str], limit: int) -> tuple[list[str], int]:
    """The questions, each cut to `limit` tokens, and the number of questions that were cut."""
    plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    long = [i for i, ids in enumerate(tokenizer(questions, **plain)["input_ids"]) if len(ids) > limit]
    for i in long:
        while True:  # the remaining text may be split into other tokens than before
            spans = tokenizer(questions[i], return_offsets_mapping=True, **plain)["offset_mapping"]
            if len(spans) <= limit:
                break
            questions[i] = questions[i][: min(spans[limit][0], len(questions[i]) - 1)]
    return questions, len(long)


def _windows(
    tokenizer: Any,
    questions: list[str],
    contexts: list[str],
    max_length: int,
    sides: Sequence[Sequence[str]] | None,
) -> _Part:
    """Token ids of the questions with their contexts, and the cells that tokens stand for.

    sides: the whole questions and the contexts, where the words that tokens cover are asked for.
    """
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=max_length // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(encoded["input_ids"]))
    total = int(lengths.sum())
    columns = flat_columns(encoded, lengths)
    parts = chain.from_iterable(window.sequence_ids for window in encoded.encodings)
    part = np.fromiter(parts, dtype=np.float64, count=total)  # NaN: a special token
    ends = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
    characters = np.fromiter(ends, dtype=np.int64, count=2 * total).reshape(-1, 2)
    owners = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64)

    words, inside = Words.of(contexts), part == 1
    spots = np.full((total, 2), -1, dtype=np.int32)
    spots[inside] = cells_of(words, np.repeat(owners, lengths)[inside], characters[inside])
    special = np.flatnonzero(np.isnan(part) & (columns["input_ids"] == tokenizer.cls_token_id))
    window, first = np.unique(np.repeat(np.arange(len(lengths)), lengths)[special], return_index=True)
    if len(window) < len(lengths):
        raise TeacherError(
            f"the tokenizer {tokenizer.name_or_path} puts no CLS token before a question and its context",
            "Save it with a template that does, as BERT's and RoBERTa's have it.",
        )
    spots[special[first]] = 0
    by_side = {side: spots[:, i].copy() for i, side in enumerate(SIDES)}
    windows = np.bincount(owners, minlength=len(contexts))
    covered = text_words(tokenizer, encoded.encodings, sides, owners) if sides else None
    return _Part(columns, lengths, windows, 1 + words.counts, by_side, covered)


def cell_logits(logits: Tensor, spots: Tensor, batch: TensorBatch) -> Tensor:
    """(M,) logits of a batch's cells, from (S, length) float32 logits of tokens. spots: each token's cell, -1 for none.

    A cell without token is `ABSENT`; a cell with one token has that token's logit, bit for bit.
    """
    window, token = (spots >= 0).nonzero(as_tuple=True)
    width = int(batch.counts.max())
    place, some = window * width + spots[window, token], logits[window, token]
    if bool((place.diff() < 0).any()):  # a tokenizer whose tokens do not follow the text
        place, order = torch.sort(place, stable=True)
        some = some[order]
    seen, run, lengths = torch.unique_consecutive(place, return_inverse=True, return_counts=True)
    # logsumexp over each window's tokens of a cell, exact where there is one. By runs, because `index_add` adds in no
    # fixed order on CUDA: with three tokens or more, two replicas of one teacher would differ in the last bits
    top = torch.segment_reduce(some.detach(), "max", lengths=lengths, unsafe=True)
    mass = torch.segment_reduce((some - top[run]).exp(), "sum", lengths=lengths, unsafe=True)
    pooled = top + mass.log()
    # over windows: the largest of a word's, the smallest of no answer's
    starts = item_starts(batch.counts)
    cell = starts[batch.owners[seen // width]] + seen % width
    sign = pooled.new_ones(int(batch.counts.sum()))
    sign[starts] = -1
    cells = torch.full_like(sign, ABSENT).scatter_reduce(
        0, cell, pooled * sign[cell], "amax", include_self=False
    )
    return cells * sign
