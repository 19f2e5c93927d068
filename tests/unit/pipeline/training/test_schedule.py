"""The order of batches: every example as often as it should come, whatever the workers, the seed alone deciding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.training.schedule import Schedule

PROPERTY = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy
SIZES = {"large": 90, "middle": 30, "small": 8}


def lengths_of(sizes: Mapping[str, int] = SIZES, longest: int = 20) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return {task: rng.integers(3, longest + 1, size) for task, size in sizes.items()}


def flat(schedule: Schedule, epoch: int) -> list[tuple[str, list[int]]]:
    return [(step.task, step.rows.tolist()) for step in schedule.epoch(epoch)]


def visits(schedule: Schedule, epochs: range) -> dict[str, Counter[int]]:
    counts: dict[str, Counter[int]] = {}
    for epoch in epochs:
        for step in schedule.epoch(epoch):
            counts.setdefault(step.task, Counter()).update(step.rows.tolist())
    return counts


def test_at_tau_one_every_example_comes_once_an_epoch() -> None:
    schedule = Schedule(lengths_of(), tokens=64, sampling=1.0, seed=0)
    for epoch in range(4):
        counts = visits(schedule, range(epoch, epoch + 1))
        assert {task: len(rows) for task, rows in counts.items()} == SIZES
        assert all(count == 1 for rows in counts.values() for count in rows.values())


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 30), min_size=1, max_size=25), min_size=1
    ),
    st.integers(1, 80),
    st.integers(0, 5),
)
def test_at_tau_one_every_example_comes_once_an_epoch_whatever_the_data(
    lengths: dict[str, list[int]], tokens: int, epoch: int
) -> None:
    arrays = {task: np.array(values, dtype=np.int64) for task, values in lengths.items()}
    schedule = Schedule(arrays, tokens, 1.0, seed=1)
    counts = visits(schedule, range(epoch, epoch + 1))
    assert counts == {task: Counter(range(len(values))) for task, values in lengths.items()}


@pytest.mark.parametrize("sampling", [0.0, 0.5, 0.75, 1.0])
def test_steps_are_shared_out_by_tau(sampling: float) -> None:
    lengths = {task: np.full(size, 8, dtype=np.int64) for task, size in SIZES.items()}
    batches = {task: -(-size // 4) for task, size in SIZES.items()}
    schedule = Schedule(lengths, tokens=32, sampling=sampling, seed=0)
    total = sum(batches.values())
    weight = sum(size**sampling for size in batches.values())
    for task, size in batches.items():
        assert abs(schedule.quotas[task] - total * size**sampling / weight) < 1
    assert schedule.steps_per_epoch == sum(schedule.quotas.values()) == total
    assert Counter(step.task for step in schedule.epoch(3)) == schedule.quotas


def test_no_task_is_left_out() -> None:
    lengths = {"huge": np.full(4000, 8, dtype=np.int64), "one": np.array([8])}
    schedule = Schedule(lengths, tokens=32, sampling=1.0, seed=0)
    assert schedule.quotas["one"] == 1
    assert visits(schedule, range(1))["one"] == {0: 1}


@pytest.mark.parametrize("sampling", [0.0, 0.5])
def test_passes_run_on_across_epochs(sampling: float) -> None:
    schedule = Schedule(lengths_of(), tokens=64, sampling=sampling, seed=0)
    counts = visits(schedule, range(12))
    for task in SIZES:  # never one example twice more than another
        seen = counts[task]
        assert max(seen.values()) - min(seen.get(row, 0) for row in range(SIZES[task])) <= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    schedule = Schedule(lengths_of(), 64, 0.75, seed=3)
    again = Schedule(lengths_of(), 64, 0.75, seed=3)
    later = flat(again, 5)  # asked for first, as a resumed run does
    assert [flat(schedule, epoch) for epoch in range(6)][5] == later
    assert flat(schedule, 0) == flat(again, 0)
    assert flat(schedule, 0) != flat(schedule, 1)
    assert flat(schedule, 0) != flat(Schedule(lengths_of(), 64, 0.75, seed=4), 0)


def test_tasks_are_mixed() -> None:
    tasks = [step.task for step in Schedule(lengths_of(), 64, 1.0, seed=0).epoch(0)]
    assert sum(a != b for a, b in pairwise(tasks)) > len(set(tasks))


@PROPERTY
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 100), st.floats(0, 1))
def test_a_step_keeps_to_its_tokens(sizes: list[int], tokens: int, sampling: float) -> None:
    lengths = {"a": np.array(sizes, dtype=np.int64), "b": np.array([5, 6, 7])}
    for step in Schedule(lengths, tokens, sampling, seed=0).epoch(1):
        padded = len(step.rows) * lengths[step.task][step.rows].max()
        assert padded <= tokens or len(step.rows) == 1


def test_batches_hold_examples_of_like_length() -> None:
    lengths = lengths_of({"large": 400}, longest=60)
    schedule = Schedule(lengths, tokens=256, sampling=1.0, seed=0)
    kept = sum(int(lengths["large"][step.rows].sum()) for step in schedule.epoch(0))
    padded = sum(len(step.rows) * int(lengths["large"][step.rows].max()) for step in schedule.epoch(0))
    assert kept / padded > 0.9


def test_steps_know_nothing_of_workers() -> None:
    # a worker takes rows[rank::world] of each step: together they have the step, whatever their number
    for step in Schedule(lengths_of(), 64, 0.75, seed=0).epoch(0):
        for world in (1, 2, 3, 7):
            shares = [step.rows[rank::world] for rank in range(world)]
            assert sorted(np.concatenate(shares)) == sorted(step.rows)
