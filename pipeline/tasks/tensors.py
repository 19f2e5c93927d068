"""A padded batch as tensors, and the conversions between ragged values and padded rows that kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.batch import ABSENT, NO_TOKEN, Padded


@dataclass(frozen=True)
class TensorWords:
    """`pipeline.batch.PaddedWords` on a device; the same names, shapes and int64."""

    tokens: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class TensorBatch:
    """`Padded` on a device; the same names, shapes and types.

    target: (m, longest) token ids that the model learns to write, padded by `NO_TOKEN`, where there are any.
    """

    inputs: Mapping[str, Tensor]
    spots: Mapping[str, Tensor]
    owners: Tensor
    counts: Tensor
    words: TensorWords | None = None
    target: Tensor | None = None

    @property
    def target_mask(self) -> Tensor:
        """(m, longest) bool: where `target` has a token."""
        assert self.target is not None, "a batch with targets"
        return self.target != NO_TOKEN

    @classmethod
    def of(cls, batch: Padded, device: torch.device) -> TensorBatch:
        """The batch on `device`."""

        def move(array: object) -> Tensor:
            return torch.as_tensor(array).to(device, non_blocking=True)

        return cls(
            {name: move(array) for name, array in batch.inputs.items()},
            {name: move(array) for name, array in batch.spots.items()},
            move(batch.owners),
            move(batch.counts),
            TensorWords(move(batch.words.tokens), move(batch.words.offsets)) if batch.words else None,
        )


def pad_items(values: Tensor, counts: Tensor) -> Tensor:
    """(…, M, C) values of m examples with `counts` (m,) items → (…, m, longest, C), padded by `ABSENT`."""
    mask = item_mask(counts)
    padded = values.new_full((*values.shape[:-2], *mask.shape, values.shape[-1]), ABSENT)
    padded[..., mask, :] = values
    return padded


def item_mask(counts: Tensor) -> Tensor:
    """(m, longest) bool: true for an item, false for padding."""
    longest = int(counts.max()) if len(counts) else 0
    return torch.arange(longest, device=counts.device) < counts[:, None]


def item_starts(counts: Tensor) -> Tensor:
    """(m,) index of each example's first item in the flat order."""
    return counts.cumsum(0) - counts
