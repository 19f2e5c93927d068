"""The number of threads of a training: on a busy machine PyTorch's threads wait for each other at every operation."""

from __future__ import annotations

import statistics
import time

import torch

LOOKS, PAUSE_S = 3, 2.0
"""One look takes a moment of a training's hours; the processes that labelled may be ending in it."""
ROUNDS, STEPS = 5, 3
CLEARLY = 1.2  # several threads must be this many times slower: noise of the scheduler must not decide


def faster_threads(
    threads: int, looks: int = LOOKS, pause_s: float = PAUSE_S
) -> tuple[int, dict[int, float]]:
    """`threads`, or 1 where one thread is clearly faster in each of `looks` measurements, and the last one's seconds of a step by
    number of threads.

    A measurement takes about a tenth of a second on an idle machine, where the first one decides.
    """
    if threads <= 1:
        return 1, {}
    for look in range(looks):
        if look:
            time.sleep(pause_s)
        seconds = step_seconds(threads)
        if chosen(seconds) == threads:
            break
    return chosen(seconds), seconds


def step_seconds(threads: int) -> dict[int, float]:
    """Seconds of a step with `threads` threads and with one: forward and backward of a small feed-forward block.

    Both numbers of threads take turns; the median of `ROUNDS` rounds counts.
    """
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
    return {count: statistics.median(times) for count, times in seconds.items()}


def chosen(seconds: dict[int, float]) -> int:
    """The number of threads to use: the largest, unless one thread is clearly faster. seconds: of a step, by number."""
    most = max(seconds)
    return 1 if seconds[most] > CLEARLY * seconds[1] else most


def _step_seconds(block: torch.nn.Module, inputs: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        block(inputs).square().mean().backward()
    return (time.perf_counter() - started) / STEPS
