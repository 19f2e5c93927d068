"""The number of threads of a training: on a busy machine PyTorch's threads wait for each other at every operation."""

from __future__ import annotations

import statistics
import time

import torch

ROUNDS, STEPS = 5, 3
CLEARLY = 1.2  # several threads must be this many times slower: noise of the scheduler must not decide


def faster_threads(threads: int) -> tuple[int, dict[int, float]]:
    """`threads`, or 1 where one thread is clearly faster now, and the seconds of a step by number of threads.

    A step is forward and backward of a small feed-forward block. Both numbers of threads take turns; the median of
    `ROUNDS` rounds counts. The measurement takes about a tenth of a second on an idle machine.
    """
    if threads <= 1:
        return 1, {}
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {threads: [], 1: []}
    block = torch.nn.Sequential(
        torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 128), torch.nn.LayerNorm(128)
    )
    inputs = torch.linspace(-1, 1, 512 * 128).reshape(512, 128)
    try:
        for round_ in range(ROUNDS + 1):
            for count, times in seconds.items():
                torch.set_num_threads(count)
                taken = _step_seconds(block, inputs)
                if round_:  # the first one warms up
                    times.append(taken)
    finally:
        torch.set_num_threads(before)
    medians = {count: statistics.median(times) for count, times in seconds.items()}
    return chosen(medians), medians


def chosen(seconds: dict[int, float]) -> int:
    """The number of threads to use: the largest, unless one thread is clearly faster. seconds: of a step, by number."""
    most = max(seconds)
    return 1 if seconds[most] > CLEARLY * seconds[1] else most


def _step_seconds(block: torch.nn.Module, inputs: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        block(inputs).square().mean().backward()
    return (time.perf_counter() - started) / STEPS
