"""The texts that a student learns to write: for each example and epoch one of the reference and its teachers' texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import TargetTokens


class Draw(NamedTuple):
    """The texts of n examples in one epoch. keys: (n,) of their pairs of source and text, where there are any · own: (n,) whether a text
    is the student's own, where any is."""

    tokens: TargetTokens
    keys: NDArray[np.uint64] | None
    own: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class DrawnTexts:
    """A texts for each of n examples, and the chance of each.

    tokens: of all texts; text a of example i is its number a · n + i · chances: (A, n) float64, whose sum over the texts is
    1; 0 for a text that is not there · keys: (A · n,) uint64 of the pairs of source and text, where token targets are read · own: whether
    the last text of each is the student's own, of the round before.
    """

    tokens: TargetTokens
    chances: NDArray[np.float64]
    keys: NDArray[np.uint64] | None = None
    own: bool = False

    @classmethod
    def of(
        cls,
        texts: Sequence[TargetTokens],
        weights: Sequence[float],
        keys: NDArray[np.uint64] | None = None,
        own: bool = False,
    ) -> DrawnTexts:
        """texts: A of the same n examples, empty for an example without · weights: (A,) ≥ 0, in whose ratio an example's
        texts are drawn; those that it lacks do not count. A text of weight 0 is drawn where there is no other.

        Raises ValueError for an example without any text.
        """
        firsts = np.cumsum([0, *(len(one.ids) for one in texts[:-1])])
        tokens = TargetTokens(
            np.concatenate([one.ids for one in texts]),
            np.concatenate([one.starts + first for one, first in zip(texts, firsts, strict=True)]),
            np.concatenate([one.counts for one in texts]),
            sum(one.truncated for one in texts),
        )
        there = np.stack([one.counts > 0 for one in texts])
        if not there.any(axis=0).all():
            raise ValueError(f"{int((~there.any(axis=0)).sum())} examples have no text to learn")
        chances = there * np.asarray(weights, dtype=np.float64)[:, None]
        chances = np.where(chances.sum(axis=0) > 0, chances, there)
        return cls(tokens, chances / chances.sum(axis=0), keys, own)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of the longest text of each example that may be drawn."""
        counts = self.tokens.counts.reshape(self.chances.shape)
        longest: NDArray[np.int64] = np.where(self.chances > 0, counts, 0).max(axis=0)
        return longest

    @property
    def referenced(self) -> NDArray[np.bool_]:
        """(n,) which examples have a reference."""
        there: NDArray[np.bool_] = self.tokens.counts[: self.chances.shape[1]] > 0
        return there

    def at(self, share: float) -> DrawnTexts:
        """The same texts with another chance, `share`, of an example with a reference to be one of its teachers', in their ratio. A student's
        own text keeps its chance before these, and has none where `share` is 0: references are then alone."""
        teachers = self.chances[1 : len(self.chances) - self.own]
        all_teachers = teachers.sum(axis=0)
        ratio = np.divide(teachers, all_teachers, out=np.zeros_like(teachers), where=all_teachers > 0)
        of_teachers = np.where(self.referenced, np.where(all_teachers > 0, share, 0.0), 1.0)
        chances = np.concatenate([1 - of_teachers[None], ratio * of_teachers])
        if self.own:
            others = self.referenced | (all_teachers > 0)
            own = np.where(others, self.chances[-1] if share else 0.0, 1.0)
            chances = np.concatenate([chances * (1 - own), own[None]])
        return replace(self, chances=chances)

    def draw(self, seed: int, epoch: int) -> Draw:
        """The n texts of an epoch: a pure function of (seed, epoch)."""
        count = self.chances.shape[1]
        draws = np.random.default_rng((seed, 2, epoch)).random(count)
        chosen = (draws >= np.cumsum(self.chances, axis=0)[:-1]).sum(axis=0)
        numbers = chosen * count + np.arange(count)
        tokens = TargetTokens(self.tokens.ids, self.tokens.starts[numbers], self.tokens.counts[numbers])
        own = chosen == len(self.chances) - 1 if self.own else None
        return Draw(tokens, None if self.keys is None else self.keys[numbers], own)
