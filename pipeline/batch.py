"""Examples and batches, which all modules share. NumPy only, so that any module may import it.

Every kind of task counts in *items*. An item has one row of predictions: a text is one item, a sentence has one item
per word, a context has one per cell (its words and "no answer"). A model's predictions for n examples are `Ragged`:
m_i rows of C columns for example i, the same for every tokenizer. Soft targets: `pipeline.soft`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
ABSENT = -60000.0
"""The logit where a model has no prediction (a label it lacks, a word it does not see): finite in float16,
probability 0 beside any other."""


NOT_GIVEN: NDArray[np.int64] = np.empty(0, dtype=np.int64)


def is_present(logits: Any) -> Any:
    """Where `logits`, an array or a tensor of any shape, are a model's own rather than `ABSENT`."""
    return logits > ABSENT / 2


@dataclass(frozen=True, eq=False)
class Ragged:
    """The rows of n examples in one flat array: example i has ``values[offsets[i] : offsets[i + 1]]``.

    values: (total, …) · offsets: (n + 1,) int64, from 0.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def single(cls, values: NDArray[Any]) -> Ragged:
        """One row per example: values (n, …)."""
        return cls(values, np.arange(len(values) + 1))

    @classmethod
    def of(cls, rows: Sequence[NDArray[Any]]) -> Ragged:
        """From one array of rows per example; at least one array."""
        return cls(np.concatenate(rows), offsets_of(np.array([len(each) for each in rows])))

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """The examples of `parts`, one part after another; at least one part."""
        counts = np.concatenate([part.counts for part in parts])
        return cls(np.concatenate([part.values for part in parts]), offsets_of(counts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n,) int64 rows per example."""
        return np.diff(self.offsets)

    def take(self, examples: NDArray[np.int64]) -> Ragged:
        """The rows of `examples` (m,), in that order."""
        rows, offsets = rows_of(self.offsets, examples)
        return Ragged(self.values[rows], offsets)


def rows_of(
    offsets: NDArray[np.int64], examples: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row indices of `examples` (m,), where example i has ``[offsets[i], offsets[i + 1])``, and the offsets (m + 1,)
    of these examples within them."""
    starts = offsets[examples]
    counts = offsets[examples + 1] - starts
    return flat_index(starts, counts), offsets_of(counts)


def offsets_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) int64 offsets from the number of rows per example (n,): each example's first row, and the total."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def flat_index(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[s, s + 1, … s + c - 1]`` of each start and count (m,), end to end."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


def content_keys(kind: str, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.uint64]:
    """(n,) 64-bit content hashes of the examples, one input column a field, each a string or a list of strings;
    labels take no part.

    A key names an example wherever it stands: order, split and run do not change it. 64 bits keep the
    chance of one collision among ten million examples under 3e-6.
    """
    salt = blake2b(kind.encode(), digest_size=16).digest()
    names = sorted(inputs)
    digests = bytearray()
    for fields in zip(*(inputs[name] for name in names), strict=True):
        digest = blake2b(digest_size=8, person=salt)
        for name, value in zip(names, fields, strict=True):
            parts = (value,) if isinstance(value, str) else value
            if not isinstance(value, str):
                digest.update(f"{name}#{len(parts)}:".encode())
            for part in parts:
                data = part.encode("utf-8", "surrogatepass")
                digest.update(f"{name}:{len(data)}:".encode())
                digest.update(data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Examples:
    """Some examples of one task, by column.

    keys: (n,) uint64 content hashes · inputs: columns of n strings (`pipeline.strings.Strings` as they come from a data set), or of n lists of strings, e.g.
    ``{"text": [...]}`` · labels: the gold labels, in the task kind's own form (see `pipeline.tasks`).
    """

    task: str
    keys: NDArray[np.uint64]
    inputs: Mapping[str, Sequence[Any]]
    labels: Ragged

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """The examples at `rows` (m,), in that order."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        inputs = {
            # texts in Arrow (`pipeline.strings`) take rows by themselves
            name: column.take(rows) if hasattr(column, "take") else [column[i] for i in rows]
            for name, column in self.inputs.items()
        }
        return Examples(self.task, self.keys[rows], inputs, self.labels.take(rows))


@dataclass(frozen=True)
class Drawn:
    """The examples of a batch: `rows` (m,) of `examples`. Keys and inputs are looked up only when they are read."""

    examples: Examples
    rows: NDArray[np.int64]

    @property
    def keys(self) -> NDArray[np.uint64]:
        """(m,) content hashes."""
        return self.examples.keys[self.rows]

    @property
    def inputs(self) -> Mapping[str, Sequence[Any]]:
        """Columns of m entries, as `Examples` has them."""
        return self.examples.take(self.rows).inputs


@dataclass(frozen=True, eq=False)
class TextWords:
    """Which words of their examples the tokens of n examples cover.

    first, last: flat (total,) int32 beside the token ids, a token's first and last word, counted within its example;
    -1 where it covers none · counts: (n,) int64 words an example, the same for every tokenizer · seen: (n,) int64
    those that some token covers.
    """

    first: NDArray[np.int32]
    last: NDArray[np.int32]
    counts: NDArray[np.int64]
    seen: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[TextWords]) -> TextWords:
        """The examples of `parts`, one part after another; at least one part."""
        arrays = [(part.first, part.last, part.counts, part.seen) for part in parts]
        return cls(*map(np.concatenate, zip(*arrays, strict=True)))


def _end_to_end(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of ragged arrays that follow one another."""
    return offsets_of(np.concatenate([np.diff(one) for one in offsets]))


@dataclass(frozen=True, eq=False)
class TargetTokens:
    """The token ids of a text for each of n examples, which a model learns to write.

    ids: flat (total,) int32 · starts, counts: (n,) int64, example i has ``ids[starts[i] : starts[i] + counts[i]]``; none
    where it has no text · truncated: how many texts lost tokens.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    truncated: int = 0

    @classmethod
    def join(cls, parts: Sequence[TargetTokens]) -> TargetTokens:
        """The examples of `parts`, one part after another; at least one part."""
        shifts = offsets_of(np.array([len(part.ids) for part in parts]))
        starts = [part.starts + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate(starts),
            np.concatenate([part.counts for part in parts]),
            sum(part.truncated for part in parts),
        )

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The ids of the examples `rows` (m,), int64, in that order."""
        counts = self.counts[rows]
        ids = self.ids[flat_index(self.starts[rows], counts)]
        return Ragged(ids.astype(np.int64), offsets_of(counts))


NO_TOKEN = -100
"""Pads the token ids of target texts, as the losses of transformers' models read them."""


def pad_targets(tokens: Ragged) -> NDArray[np.int64]:
    """(m, longest) int64 token ids of m texts, padded by `NO_TOKEN` on the right."""
    mask = np.arange(int(tokens.counts.max(initial=0))) < tokens.counts[:, None]
    padded = np.full(mask.shape, NO_TOKEN, dtype=np.int64)
    padded[mask] = tokens.values
    return padded


@dataclass(frozen=True)
class PaddedWords:
    """The tokens of each of a batch's W words.

    tokens: (E,) int64, word by word, indices into the batch's S · length padded tokens · offsets: (W + 1,) int64, word
    w has ``tokens[offsets[w] : offsets[w + 1]]``.
    """

    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Padded:
    """Some examples as a model takes them: S sequences of equal length.

    inputs: (S, length) int64 by the model's argument, or the float32 features of recordings · spots: (S, length) int64 by name, what each token is of
    its example (see `Encoded`) · owners: (S,) int64, the example, counted from 0 in this batch · counts: (m,)
    int64 items an example · words: the tokens of each word, where they were asked for.
    """

    inputs: Mapping[str, NDArray[np.int64]]
    spots: Mapping[str, NDArray[np.int64]]
    owners: NDArray[np.int64]
    counts: NDArray[np.int64]
    words: PaddedWords | None = None


class AudioWindows(Protocol):
    """The sequences of recordings (`pipeline.tasks.listening.Windows`): they are read when a model needs them."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The windows of `parts`, one part after another; at least one part."""
        ...

    def take(self, windows: NDArray[np.int64]) -> Self:
        """Some of the windows."""
        ...

    def padded(self, windows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What a model reads of some windows, by its argument."""
        ...

    def strides(self, windows: NDArray[np.int64]) -> list[tuple[float, float, float]]:
        """Of each window its length and how much of it its neighbours have, at the left and at the right, in seconds."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of n examples under one tokenizer, ragged and flat.

    columns: the tokenizer's outputs (``input_ids``, ``token_type_ids`` …), each flat (total,) int32 · offsets:
    (S + 1,) int64, sequence s owns ``[offsets[s], offsets[s + 1])`` · pads: padding value a column · truncated:
    how many of the n examples (or of their words, where items are words) were cut by `max_length` · spots: flat
    (total,) int32 columns with the index of the item, within its example, whose prediction is read at the token, -1
    for none; they are no input of the model · sequences: (n + 1,) int64, example i has the sequences
    ``[sequences[i], sequences[i + 1])``; by default one each · counts: (n,) int64 items per example, by default 1 ·
    units: (n,) int64 weight of an example in the loss's normaliser, by default 1 · words: which words the tokens
    cover, where `Head.encode` was asked for them · audio: of recordings, which have no columns: the sequences are windows, and their
    tokens the positions of an encoder.
    """

    columns: Mapping[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    pads: Mapping[str, int]
    truncated: int
    spots: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    sequences: NDArray[np.int64] = field(default_factory=lambda: NOT_GIVEN)
    counts: NDArray[np.int64] = field(default_factory=lambda: NOT_GIVEN)
    units: NDArray[np.int64] = field(default_factory=lambda: NOT_GIVEN)
    words: TextWords | None = None
    targets: TargetTokens | None = None
    audio: AudioWindows | None = None

    def __post_init__(self) -> None:
        if self.sequences is NOT_GIVEN:
            object.__setattr__(self, "sequences", np.arange(len(self.offsets)))
        for name in ("counts", "units"):
            if getattr(self, name) is NOT_GIVEN:
                object.__setattr__(self, name, np.ones(len(self), dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence[Encoded]) -> Encoded:
        """The examples of `parts`, which one tokenizer has encoded, one part after another; at least one part."""
        sizes = [int(part.offsets[-1]) for part in parts]
        spots = list(dict.fromkeys(name for part in parts for name in part.spots))

        def spot(part: Encoded, size: int, name: str) -> NDArray[np.int32]:
            return part.spots.get(name, np.full(size, -1, dtype=np.int32))

        words = [part.words for part in parts if part.words is not None]
        targets = [part.targets for part in parts if part.targets is not None]
        audio = [part.audio for part in parts if part.audio is not None]
        return cls(
            columns={
                name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
            },
            offsets=_end_to_end([part.offsets for part in parts]),
            pads=parts[0].pads,
            truncated=sum(part.truncated for part in parts),
            spots={
                name: np.concatenate([spot(*one, name) for one in zip(parts, sizes, strict=True)])
                for name in spots
            },
            sequences=_end_to_end([part.sequences for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            units=np.concatenate([part.units for part in parts]),
            words=TextWords.join(words) if words else None,
            targets=TargetTokens.join(targets) if targets else None,
            audio=type(audio[0]).join(audio) if audio else None,
        )

    def __len__(self) -> int:
        return len(self.sequences) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64 tokens per example, over all its sequences."""
        return np.diff(self.offsets[self.sequences])

    def pad(self, rows: NDArray[np.int64], words: bool = False) -> Padded:
        """The examples `rows` (m,), right-padded, with their ``attention_mask``. words: with each word's tokens; raises
        ValueError where the examples were encoded without."""
        spans = np.diff(self.sequences)[rows]
        sequences = flat_index(self.sequences[rows], spans)
        if self.audio is not None:
            owners = np.repeat(np.arange(len(rows)), spans)
            return Padded(self.audio.padded(sequences), {}, owners, self.counts[rows])
        lengths = np.diff(self.offsets)[sequences]
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        flat = flat_index(self.offsets[sequences], lengths)

        def fill(column: NDArray[np.int32], pad: int) -> NDArray[np.int64]:
            padded = np.full(mask.shape, pad, dtype=np.int64)
            padded[mask] = column[flat]
            return padded

        inputs = {name: fill(column, self.pads[name]) for name, column in self.columns.items()}
        inputs["attention_mask"] = mask.astype(np.int64)
        owners = np.repeat(np.arange(len(rows)), spans)
        return Padded(
            inputs,
            {name: fill(column, -1) for name, column in self.spots.items()},
            owners,
            self.counts[rows],
            self._words(rows, flat, np.flatnonzero(mask), np.repeat(owners, lengths)) if words else None,
        )

    def _words(
        self,
        rows: NDArray[np.int64],
        flat: NDArray[np.int64],
        places: NDArray[np.int64],
        owners: NDArray[np.int64],
    ) -> PaddedWords:
        """The tokens of the words of `rows`. flat, places, owners: (t,) of each token its index in the columns, its index
        among the padded tokens, and its example in the batch."""
        if self.words is None:
            raise ValueError("the examples were encoded without their words")
        counts = self.words.counts[rows]
        first, last = self.words.first[flat], self.words.last[flat]
        some = first >= 0
        starts, covered = (
            (np.cumsum(counts) - counts)[owners[some]],
            (last - first + 1)[some].astype(np.int64),
        )
        words = flat_index(starts + first[some], covered)
        tokens = np.repeat(places[some], covered)
        if (np.diff(words) < 0).any():  # windows that overlap
            order = np.argsort(words, kind="stable")
            words, tokens = words[order], tokens[order]
        return PaddedWords(tokens, offsets_of(np.bincount(words, minlength=int(counts.sum()))))


def first_windows(encoded: Encoded) -> Encoded:
    """Of recordings the first window of each alone: no text is learnt along several. Others unchanged."""
    if encoded.audio is None:
        return encoded
    firsts = encoded.sequences[:-1]
    lengths = np.diff(encoded.offsets)[firsts]
    audio = encoded.audio.take(firsts)
    return replace(encoded, offsets=offsets_of(lengths), sequences=np.arange(len(firsts) + 1), audio=audio)


def token_budget_batches(
    lengths: NDArray[np.int64], order: NDArray[np.int64], tokens: int
) -> list[NDArray[np.int64]]:
    """Cut `order` (rows into `lengths`) into consecutive batches whose padded size stays within `tokens`.

    A batch's padded size is its row count times its longest row; one row longer than the budget stands alone.
    """
    batches: list[NDArray[np.int64]] = []
    start, widest = 0, 0
    for end, length in zip(range(len(order)), lengths[order], strict=True):
        widest_here = max(widest, int(length))
        if end > start and widest_here * (end - start + 1) > tokens:
            batches.append(order[start:end])
            start, widest_here = end, int(length)
        widest = widest_here
    if start < len(order):
        batches.append(order[start:])
    return batches
