"""The feed: micro-batches are a pure function of (seed, epoch, step), and the workers' shares make up each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.batch import Drawn, Ragged
from pipeline.soft import Dense, Sparse, Vocabulary
from pipeline.training.feed import FedStep, Feed, TaskSet
from pipeline.training.step import MicroBatch, Workers
from tests.unit.pipeline.small_training import gold_of, task_of, task_set, two_tasks

TOKENS = 48


def numbered(count: int = 24, teachers: int = 0) -> TaskSet:
    """A task whose labels are its examples' row numbers."""
    sets = task_set(count=count, teachers=teachers)
    rows = gold_of(sets.task, np.arange(count))
    return TaskSet(sets.task, sets.train, rows, sets.validation, sets.gold, sets.sources, sets.aggregation)


def rows_of(batches: Sequence[MicroBatch]) -> list[int]:
    return [int(row) for batch in batches if not batch.filler for row in batch.labels]


def contents(step: FedStep) -> tuple[object, ...]:
    batches = [(b.tokens.inputs["input_ids"].tolist(), b.labels.tolist(), b.filler) for b in step.batches]
    teachers = [None if b.teachers is None else b.teachers.tolist() for b in step.batches]
    return step.task, step.normaliser, batches, teachers


def test_steps_are_a_function_of_seed_epoch_and_step() -> None:
    feed, again = Feed(two_tasks(), TOKENS, seed=3), Feed(two_tasks(), TOKENS, seed=3)
    later = [contents(step) for step in again.epoch(2, 4)]  # asked for first, as a resumed run does
    whole = [[contents(step) for step in feed.epoch(epoch)] for epoch in range(3)]
    assert whole[2][4:] == later
    assert len(whole[2]) == feed.steps_per_epoch
    assert whole[0] != whole[1]
    assert whole[0] != [contents(step) for step in Feed(two_tasks(), TOKENS, seed=4).epoch(0)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_workers_shares_make_up_the_step(world: int, accumulation: int) -> None:
    alone = list(Feed([numbered()], TOKENS).epoch(0))
    feeds = [
        Feed([numbered()], TOKENS, accumulation=accumulation, workers=Workers(rank, world))
        for rank in range(world)
    ]
    seen: Counter[int] = Counter()
    for whole, *shares in zip(alone, *(feed.epoch(0) for feed in feeds), strict=True):
        assert sorted(row for share in shares for row in rows_of(share.batches)) == sorted(
            rows_of(whole.batches)
        )
        assert {share.normaliser for share in shares} == {len(rows_of(whole.batches))}
        if world > 1:  # all take part in every collective
            assert {len(share.batches) for share in shares} == {accumulation}
        seen.update(rows_of(whole.batches))
    assert seen == Counter(range(24))


def test_a_micro_batch_holds_what_belongs_to_its_rows() -> None:
    sets = numbered(teachers=2)
    for step in Feed([sets], TOKENS).epoch(0):
        for batch in step.batches:
            rows = batch.labels.numpy()
            assert (
                batch.tokens.inputs["input_ids"].tolist() == sets.train.pad(rows).inputs["input_ids"].tolist()
            )
            assert batch.teachers is not None
            for k, source in enumerate(sets.sources):
                expected = source.targets(Drawn(sets.examples, rows)).values
                assert torch.equal(batch.teachers[k], torch.from_numpy(expected))


def test_sources_are_given_keys_and_inputs() -> None:
    class Reads:
        """Keeps what it was given."""

        seen: list[tuple[list[int], list[str]]] = []  # noqa: RUF012

        def targets(self, batch: Drawn) -> Dense:
            self.seen.append((batch.keys.tolist(), list(batch.inputs["text"])))
            return Dense(Ragged.single(np.zeros((len(batch.keys), 2), np.float16)), ("bad", "good"))

    plain, source = task_set(count=6), Reads()
    texts = [f"text {row}" for row in range(6)]
    examples = gold_of(plain.task, np.zeros(6, dtype=np.int64))
    examples = type(examples)(examples.task, examples.keys + np.uint64(100), {"text": texts}, examples.labels)
    sets = TaskSet(plain.task, plain.train, examples, plain.validation, plain.gold, [source])
    list(Feed([sets], TOKENS).epoch(0))
    assert sorted(pair for keys, read in source.seen for pair in zip(keys, read, strict=True)) == [
        (100 + row, text) for row, text in enumerate(texts)
    ]


def test_targets_over_a_vocabulary_are_refused_here() -> None:
    class Tokens:
        """Distributions over a vocabulary."""

        def targets(self, batch: Drawn) -> Sparse:
            m = len(batch.rows)
            ids: NDArray[np.int32] = np.zeros((m, 1), np.int32)
            logs: NDArray[np.float16] = np.full((m, 1), -0.7, np.float16)
            return Sparse(Ragged.single(ids), logs, logs[:, 0], Vocabulary(9, "ab"))

    plain = task_set(task_of(), count=6)
    sets = TaskSet(plain.task, plain.train, plain.examples, plain.validation, plain.gold, [Tokens()])
    with pytest.raises(TypeError, match="over a vocabulary"):
        next(Feed([sets], TOKENS).epoch(0))
