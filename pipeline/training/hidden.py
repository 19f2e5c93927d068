"""The hidden term of a task: stored hidden targets of its teachers → standardised targets of a batch's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Drawn, Encoded, Examples, is_present
from pipeline.losses import HiddenInputs
from pipeline.soft import Soft, TargetSource
from pipeline.tasks.tensors import TensorWords

SAMPLE = 2000
"""Training examples whose words give mean and deviation of the targets."""
LEAST_DEVIATION = 1e-4
"""Of a dimension: one that hardly varies would otherwise be mostly the rounding of float16."""


@dataclass(frozen=True)
class HiddenMatch:
    """How hidden vectors of a task's K teachers, D dimensions end to end, are matched.

    sources: of each teacher's hidden targets · widths: each teacher's dimensions · mean, deviation: (D,) float32 of the
    train targets · weights: (D, K) float32, see `pipeline.losses.HiddenInputs` ·
    word: what a word counts, so that a step's loss normaliser gives a mean over the words of its examples.
    """

    sources: Sequence[TargetSource]
    widths: tuple[int, ...]
    mean: Tensor
    deviation: Tensor
    weights: Tensor
    word: float

    @classmethod
    def over(
        cls,
        sources: Sequence[TargetSource],
        teacher_weights: Sequence[float],
        train: Encoded,
        examples: Examples,
    ) -> HiddenMatch:
        """From the targets of `SAMPLE` train examples, evenly spaced. teacher_weights: K, whose sum is 1."""
        rows = np.unique(np.linspace(0, len(examples) - 1, min(SAMPLE, len(examples))).astype(np.int64))
        sample = [_vectors(source.targets(Drawn(examples, rows))) for source in sources]
        widths = tuple(vectors.shape[1] for vectors in sample)
        moments = [_moments(vectors) for vectors in sample]
        weights = [
            torch.full((width, 1), weight / width)
            for width, weight in zip(widths, teacher_weights, strict=True)
        ]
        assert train.words is not None, "encoded with words"
        seen = float(train.words.seen.mean()) or 1.0
        return cls(
            sources,
            widths,
            torch.cat([mean for mean, _ in moments]),
            torch.cat([deviation for _, deviation in moments]),
            torch.block_diag(*weights),
            (float(train.units.mean()) or 1.0) / seen,
        )

    def targets(self, batch: Drawn) -> Tensor:
        """(W, D) float16 targets of the words of the batch's examples, as stored; on the CPU."""
        parts = [_vectors(source.targets(batch)) for source in self.sources]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def inputs(self, projected: Tensor, stored: Tensor, words: TensorWords, filler: bool) -> HiddenInputs:
        """The inputs of the hidden term. projected, stored: (W, D) of the batch's words."""
        device = projected.device
        firsts = np.cumsum((0, *self.widths[:-1]))
        seen = (words.offsets.diff() > 0).unsqueeze(-1)
        counted = (is_present(stored[:, firsts]) & seen) * (0.0 if filler else self.word)
        target = stored.float().sub_(self.mean.to(device)).div_(self.deviation.to(device))
        return HiddenInputs(projected, target, self.weights.to(device), counted)


def _vectors(soft: Soft) -> Tensor:
    """(W, H) the values of hidden targets."""
    return torch.from_numpy(soft.values)


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(H,) float32 mean and standard deviation of the vectors (W, H) of words that the teacher sees."""
    some = vectors[is_present(vectors[:, 0])].double()
    if not len(some):
        return torch.zeros(vectors.shape[1]), torch.ones(vectors.shape[1])
    deviation = some.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)
    return some.mean(dim=0).float(), deviation.float()
