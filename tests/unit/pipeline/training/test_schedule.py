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
    schedule = Schedule(lengths_of(), batch_size=6, sampling=1.0, seed=0)
    for epoch in range(4):
        counts = visits(schedule, range(epoch, epoch + 1))
        assert {task: len(rows) for task, rows in counts.items()} == SIZES
        assert all(count == 1 for rows in counts.values() for count in rows.values())


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 30), min_size=1, max_size=25), min_size=1
    ),
    st.integers(1, 30),
    st.integers(0, 5),
)
def test_at_tau_one_every_example_comes_once_an_epoch_whatever_the_data(
    lengths: dict[str, list[int]], size: int, epoch: int
) -> None:
    arrays = {task: np.array(values, dtype=np.int64) for task, values in lengths.items()}
    schedule = Schedule(arrays, size, 1.0, seed=1)
    counts = visits(schedule, range(epoch, epoch + 1))
    assert counts == {task: Counter(range(len(values))) for task, values in lengths.items()}


@pytest.mark.parametrize("sampling", [0.0, 0.5, 0.75, 1.0])
def test_steps_are_shared_out_by_tau(sampling: float) -> None:
    lengths = {task: np.full(size, 8, dtype=np.int64) for task, size in SIZES.items()}
    batches = {task: -(-size // 4) for task, size in SIZES.items()}
    schedule = Schedule(lengths, batch_size=4, sampling=sampling, seed=0)
    total = sum(batches.values())
    weight = sum(size**sampling for size in batches.values())
    for task, size in batches.items():
        assert abs(schedule.quotas[task] - total * size**sampling / weight) < 1
    assert schedule.steps_per_epoch == sum(schedule.quotas.values()) == total
    assert Counter(step.task for step in schedule.epoch(3)) == schedule.quotas


def test_no_task_is_left_out() -> None:
    lengths = {"huge": np.full(4000, 8, dtype=np.int64), "one": np.array([8])}
    schedule = Schedule(lengths, batch_size=4, sampling=1.0, seed=0)
    assert schedule.quotas["one"] == 1
    assert visits(schedule, range(1))["one"] == {0: 1}


@pytest.mark.parametrize("sampling", [0.0, 0.5])
def test_passes_run_on_across_epochs(sampling: float) -> None:
    schedule = Schedule(lengths_of(), batch_size=6, sampling=sampling, seed=0)
    counts = visits(schedule, range(12))
    for task in SIZES:  # never one example twice more than another
        seen = counts[task]
        assert max(seen.values()) - min(seen.get(row, 0) for row in range(SIZES[task])) <= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    schedule = Schedule(lengths_of(), 6, 0.75, seed=3)
    again = Schedule(lengths_of(), 6, 0.75, seed=3)
    later = flat(again, 5)  # asked for first, as a resumed run does
    assert [flat(schedule, epoch) for epoch in range(6)][5] == later
    assert flat(schedule, 0) == flat(again, 0)
    assert flat(schedule, 0) != flat(schedule, 1)
    assert flat(schedule, 0) != flat(Schedule(lengths_of(), 6, 0.75, seed=4), 0)


def test_tasks_are_mixed() -> None:
    tasks = [step.task for step in Schedule(lengths_of(), 6, 1.0, seed=0).epoch(0)]
    assert sum(a != b for a, b in pairwise(tasks)) > len(set(tasks))


@PROPERTY
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 30), st.floats(0, 1), st.booleans()
)
def test_batches_have_equal_counts(lengths: list[int], size: int, sampling: float, paired: bool) -> None:
    arrays = {"a": np.array(lengths, dtype=np.int64), "b": np.array([5, 6, 7])}
    schedule = Schedule(arrays, size, sampling, 0, "a" if paired else "")
    counts = [len(step.rows) for step in schedule.epoch(1) if step.task == "a"]
    assert max(counts) <= size
    assert max(counts) - min(counts) <= 1


def test_batches_hold_examples_of_like_length() -> None:
    lengths = lengths_of({"large": 4000}, longest=60)
    steps = Schedule(lengths, batch_size=32, sampling=1.0, seed=0).epoch(0)
    tokens = int(lengths["large"].sum())
    padded = sum(len(step.rows) * int(lengths["large"][step.rows].max()) for step in steps)
    assert tokens / padded > 0.9


def test_paired_batches_have_about_as_many_tokens() -> None:
    lengths = lengths_of({"words": 4000}, longest=60)

    def spread(paired: str) -> float:
        steps = Schedule(lengths, batch_size=32, sampling=1.0, seed=0, paired=paired).epoch(0)
        assert Counter(row for step in steps for row in step.rows.tolist()) == Counter(range(4000))
        tokens = [int(lengths["words"][step.rows].sum()) for step in steps]
        return float(np.std(tokens) / np.mean(tokens))

    assert spread("words") < 0.1 < 0.4 < spread("")


def test_an_example_meets_others_in_the_next_pass() -> None:
    lengths = {"a": np.repeat(np.arange(8, 58, dtype=np.int64), 32)}  # 32 examples of each length
    schedule = Schedule(lengths, batch_size=32, sampling=1.0, seed=0)
    first, second = ([frozenset(step.rows.tolist()) for step in schedule.epoch(e)] for e in (0, 1))
    met = [max(len(one & other) for other in second) for one in first]
    assert np.mean(met) < 16  # with one pool for all, batches would be the lengths: 32 of 32


def test_steps_know_nothing_of_workers() -> None:
    # a worker takes rows[rank::world] of each step: together they have the step, whatever their number
    for step in Schedule(lengths_of(), 6, 0.75, seed=0).epoch(0):
        for world in (1, 2, 3, 7):
            shares = [step.rows[rank::world] for rank in range(world)]
            assert sorted(np.concatenate(shares)) == sorted(step.rows)
