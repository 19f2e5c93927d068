"""What crosses module borders: examples, soft targets, batches. NumPy only, so that any room may import it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1


def content_keys(kind: str, inputs: Mapping[str, Sequence[str]]) -> NDArray[np.uint64]:
    """(n,) 64-bit content hashes of the examples, one input column a field; labels take no part.

    A key names an example wherever it stands: order, split and run do not change it. 64 bits keep the
    chance of one collision among ten million examples under 3e-6.
    """
    salt = blake2b(kind.encode(), digest_size=16).digest()
    names = sorted(inputs)
    digests = bytearray()
    for fields in zip(*(inputs[name] for name in names), strict=True):
        digest = blake2b(digest_size=8, person=salt)
        for name, field in zip(names, fields, strict=True):
            data = field.encode("utf-8", "surrogatepass")
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Examples:
    """Some examples of one task, by column.

    keys: (n,) uint64 content hashes · inputs: text columns of n strings, e.g. ``{"text": [...]}`` ·
    labels: (n,) int64 indices into the task's label space, `UNLABELLED` where there is none.
    """

    task: str
    keys: NDArray[np.uint64]
    inputs: Mapping[str, Sequence[str]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """The examples at `rows` (m,), in that order."""
        inputs = {name: [column[i] for i in rows] for name, column in self.inputs.items()}
        return Examples(self.task, self.keys[rows], inputs, self.labels[rows])


@dataclass(frozen=True)
class SoftTargets:
    """What one teacher says about n examples, before temperature.

    keys: (n,) uint64 · logits: (n, C) float16 or float32, column c belongs to ``labels[c]`` · labels: the
    task's label space. Rows carry their example's key, so they can never be read in the wrong order.
    """

    keys: NDArray[np.uint64]
    logits: NDArray[np.floating]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.keys), len(self.labels)):
            raise ValueError(
                f"{len(self.keys)} keys and {len(self.labels)} labels do not fit logits {self.logits.shape}"
            )

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Encoded:
    """Token ids of n examples under one tokenizer, ragged and flat.

    columns: the tokenizer's outputs (``input_ids``, ``token_type_ids`` …), each flat (total,) int32 ·
    offsets: (n + 1,) int64, example i owns ``[offsets[i], offsets[i + 1])`` · pads: padding value a column ·
    truncated: how many of the n examples lost tokens to `max_length`.
    """

    columns: Mapping[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    pads: Mapping[str, int]
    truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens an example."""
        return np.diff(self.offsets)

    def pad(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Right-padded (m, longest) int64 arrays of `rows`, with their ``attention_mask``."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        mask = np.arange(width) < lengths[:, None]
        flat = (self.offsets[rows][:, None] + np.arange(width))[mask]
        batch: dict[str, NDArray[np.int64]] = {}
        for name, column in self.columns.items():
            padded = np.full(mask.shape, self.pads[name], dtype=np.int64)
            padded[mask] = column[flat]
            batch[name] = padded
        batch["attention_mask"] = mask.astype(np.int64)
        return batch


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
