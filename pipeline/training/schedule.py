"""The order of batches: a pure function of (seed, epoch), so that training resumes at any step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import token_budget_batches


@dataclass(frozen=True)
class Step:
    """One optimiser step's global batch: rows of one task's train split."""

    task: str
    rows: NDArray[np.int64]


class Schedule:
    """The examples of each step.

    A pass over a task sorts its examples by length, ties in random order. It cuts them into batches of `tokens`
    padded tokens and shuffles the batches; every pass has the same number of batches. An epoch has as many steps as
    all tasks together have batches. They are divided among the tasks p_i ∝ n_i^τ (BAM, arXiv 1907.04829), where n_i
    is the task's number of batches. With τ = 1 an epoch visits every example once; with τ < 1 smaller tasks are
    passed more often.
    """

    def __init__(
        self, lengths: Mapping[str, NDArray[np.int64]], tokens: int, sampling: float, seed: int
    ) -> None:
        self._lengths, self._tokens, self._seed = lengths, tokens, seed
        self._sizes = {task: len(self._pass(task, 0)) for task in lengths}
        self.quotas = _share_out(self._sizes, sampling)
        self.steps_per_epoch = sum(self.quotas.values())

    def epoch(self, epoch: int) -> list[Step]:
        """The steps of epoch number `epoch`, from 0."""
        steps = []
        for task, quota in self.quotas.items():
            size = self._sizes[task]
            first, last = divmod(epoch * quota, size), (epoch + 1) * quota
            passes = range(first[0], -(-last // size))
            batches = [batch for number in passes for batch in self._pass(task, number)]
            steps += [Step(task, rows) for rows in batches[first[1] : first[1] + quota]]
        order = np.random.default_rng((self._seed, 1, epoch)).permutation(len(steps))
        return [steps[i] for i in order]

    def _pass(self, task: str, number: int) -> list[NDArray[np.int64]]:
        lengths = self._lengths[task]
        rng = np.random.default_rng((self._seed, 0, list(self._lengths).index(task), number))
        order = rng.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = token_budget_batches(lengths, order, self._tokens)
        return [batches[i] for i in rng.permutation(len(batches))]


def _share_out(sizes: Mapping[str, int], sampling: float) -> dict[str, int]:
    """Steps by task: Σ sizes steps divided ∝ size^sampling by largest remainder, at least one for each task."""
    total = sum(sizes.values())
    weights = {task: size**sampling for task, size in sizes.items()}
    exact = {task: total * weight / sum(weights.values()) for task, weight in weights.items()}
    quotas = {task: max(1, int(value)) for task, value in exact.items()}
    by_remainder: Sequence[str] = sorted(exact, key=lambda task: int(exact[task]) - exact[task])
    for task in by_remainder[: max(0, total - sum(quotas.values()))]:
        quotas[task] += 1
    return quotas
