"""The order of batches: a pure function of (seed, epoch) and of the tasks' shares, so that training resumes at any step."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

POOL = 16
"""Batches whose examples are sorted by length together. In larger pools an example meets the same few others in every
pass, since only they are as long; in smaller ones more of a batch is padding."""


@dataclass(frozen=True)
class Step:
    """One optimiser step's global batch: rows of one task's train split."""

    task: str
    rows: NDArray[np.int64]


class Schedule:
    """The examples of each step.

    Every step has `batch_size` examples of one task. A pass over a task shuffles its n examples and cuts them into
    ⌈n ÷ `batch_size`⌉ batches, whose sizes differ by at most one. Within each pool of `POOL` batches the examples are
    sorted by length before they are cut, so that a batch needs little padding; then all batches are shuffled. Batches
    of equal counts, not of equal tokens: a loss is a mean over a step, so an example in a smaller batch would weigh more
    than one in a larger batch. A batch of a task in `paired` has a short half and a long half, so that all have about as
    many tokens: for tasks whose loss is a mean over words, of which a batch of short sentences would have too few.

    An epoch has as many steps as all tasks together have batches. They are divided among the tasks p_i ∝ n_i^τ (BAM,
    arXiv 1907.04829), where n_i is the task's number of batches. With τ = 1 an epoch visits every example once; with
    τ < 1 smaller tasks are passed more often.
    """

    def __init__(
        self,
        lengths: Mapping[str, NDArray[np.int64]],
        batch_size: int,
        sampling: float,
        seed: int,
        paired: Container[str] = (),
    ) -> None:
        self._lengths, self._seed, self._paired = lengths, seed, paired
        self._sizes = {task: -(-len(each) // batch_size) for task, each in lengths.items()}
        self._sampling = sampling
        self.quotas = self.quotas_of({})
        self.steps_per_epoch = sum(self.quotas.values())

    def epoch(
        self,
        epoch: int,
        factors: Mapping[str, float] = MappingProxyType({}),
        drawn: Mapping[str, int] = MappingProxyType({}),
    ) -> list[Step]:
        """The steps of epoch number `epoch`, from 0.

        factors: what the tasks' shares are multiplied by, by task · drawn: with factors in this epoch or one before it,
        the batches that all earlier epochs drew, by task.
        """
        steps = []
        for task, quota in self.quotas_of(factors).items():
            size = self._sizes[task]
            earlier = drawn.get(task, epoch * quota)
            first, last = divmod(earlier, size), earlier + quota
            passes = range(first[0], -(-last // size))
            batches = [batch for number in passes for batch in self._pass(task, number)]
            steps += [Step(task, rows) for rows in batches[first[1] : first[1] + quota]]
        order = np.random.default_rng((self._seed, 1, epoch)).permutation(len(steps))
        return [steps[i] for i in order]

    def quotas_of(self, factors: Mapping[str, float]) -> dict[str, int]:
        """Steps of an epoch by task, at least one for each. factors: see `epoch`."""
        total = sum(self._sizes.values())
        weights = {t: size**self._sampling * factors.get(t, 1.0) for t, size in self._sizes.items()}
        exact = {task: total * weight / sum(weights.values()) for task, weight in weights.items()}
        quotas = {task: max(1, int(value)) for task, value in exact.items()}
        by_remainder: Sequence[str] = sorted(exact, key=lambda task: int(exact[task]) - exact[task])
        for task in by_remainder[: max(0, total - sum(quotas.values()))]:
            quotas[task] += 1
        while sum(quotas.values()) > total:  # tasks that are due less than one step have taken others' steps
            quotas[max(quotas, key=lambda task: quotas[task])] -= 1
        return quotas

    def _pass(self, task: str, number: int) -> list[NDArray[np.int64]]:
        lengths = self._lengths[task]
        rng = np.random.default_rng((self._seed, 0, list(self._lengths).index(task), number))
        order = rng.permutation(len(lengths))
        batches: list[NDArray[np.int64]] = []
        edges = np.arange(self._sizes[task] + 1) * len(order) // self._sizes[task]
        for first in range(0, self._sizes[task], POOL):
            last = min(first + POOL, self._sizes[task])
            pool = order[edges[first] : edges[last]]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += (
                _pairs(pool, last - first) if task in self._paired else np.array_split(pool, last - first)
            )
        return [batches[i] for i in rng.permutation(len(batches))]


def _pairs(pool: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """`count` batches of a sorted pool, each of a chunk and of the chunk as far from the other end."""
    chunks = np.array_split(pool, 2 * count)
    return [np.concatenate((chunks[i], chunks[-1 - i])) for i in range(count)]
