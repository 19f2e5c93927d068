"""The feed: micro-batches are a pure function of (seed, epoch, step), and the workers' shares make up each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, Drawn, Ragged
from pipeline.soft import Dense, Sparse, Texts, Vocabulary
from pipeline.text_arrays import text_array
from pipeline.training.feed import FedStep, Feed, TaskSet, stand_ins
from pipeline.training.step import MicroBatch, SparseTargets, Workers
from tests.unit.pipeline.small_training import encode, gold_of, task_of, task_set, two_tasks

SIZE = 5
TOKENS = 4096


def numbered(count: int = 24, teachers: int = 0) -> TaskSet:
    """A task whose labels are its examples' row numbers."""
    sets = task_set(count=count, teachers=teachers)
    rows = gold_of(sets.task, np.arange(count))
    return TaskSet(sets.task, sets.train, rows, sets.validation, sets.gold, sets.sources, sets.aggregation)


def rows_of(batches: Sequence[MicroBatch]) -> list[int]:
    return [int(row) for batch in batches if not batch.filler for row in batch.labels]


def dense(batch: MicroBatch) -> Tensor:
    assert isinstance(batch.teachers, Tensor)
    return batch.teachers


def contents(step: FedStep) -> tuple[object, ...]:
    batches = [(b.tokens.inputs["input_ids"].tolist(), b.labels.tolist(), b.filler) for b in step.batches]
    teachers = [None if b.teachers is None else dense(b).tolist() for b in step.batches]
    return step.task, step.normaliser, batches, teachers


def test_steps_are_a_function_of_seed_epoch_and_step() -> None:
    feed, again = Feed(two_tasks(), SIZE, TOKENS, seed=3), Feed(two_tasks(), SIZE, TOKENS, seed=3)
    later = [contents(step) for step in again.epoch(2, 4)]  # asked for first, as a resumed run does
    whole = [[contents(step) for step in feed.epoch(epoch)] for epoch in range(3)]
    assert whole[2][4:] == later
    assert len(whole[2]) == feed.steps_per_epoch
    assert whole[0] != whole[1]
    assert whole[0] != [contents(step) for step in Feed(two_tasks(), SIZE, TOKENS, seed=4).epoch(0)]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("tokens", [TOKENS, 20])
def test_the_workers_shares_make_up_the_step(world: int, tokens: int) -> None:
    alone = list(Feed([numbered()], SIZE, TOKENS).epoch(0))
    feeds = [Feed([numbered()], SIZE, tokens, workers=Workers(rank, world)) for rank in range(world)]
    seen: Counter[int] = Counter()
    for whole, *shares in zip(alone, *(feed.epoch(0) for feed in feeds), strict=True):
        assert sorted(row for share in shares for row in rows_of(share.batches)) == sorted(
            rows_of(whole.batches)
        )
        assert {share.normaliser for share in shares} == {len(rows_of(whole.batches))}
        assert all(share.batches for share in shares)  # all take part in every collective
        seen.update(rows_of(whole.batches))
    assert seen == Counter(range(24))


def test_a_micro_batch_keeps_to_its_tokens() -> None:
    steps = list(Feed([numbered()], 12, 30).epoch(0))
    assert {len(rows_of(step.batches)) for step in steps} == {12}
    batches = [batch for step in steps for batch in step.batches]
    assert len(batches) > len(steps)
    assert all(len(b.labels) == 1 or b.tokens.inputs["input_ids"].numel() <= 30 for b in batches)


def test_halves_of_unlike_length_are_padded_by_themselves() -> None:
    sets = numbered()
    rows = [[10] * (2 if row % 2 else 12) for row in range(24)]
    (step,) = Feed([replace(sets, train=encode(rows))], 24, TOKENS).epoch(0)
    assert [tuple(batch.tokens.inputs["input_ids"].shape) for batch in step.batches] == [(12, 2), (12, 12)]
    (step,) = Feed([replace(sets, train=encode([[10] * 12] * 24))], 24, TOKENS).epoch(0)
    assert len(step.batches) == 1


def test_steps_of_words_have_a_short_and_a_long_half() -> None:
    sets = numbered()
    lengths = np.arange(1, 25)
    encoded = replace(encode([[10] * length for length in lengths]), units=lengths)
    for step in Feed([replace(sets, train=encoded)], 4, TOKENS).epoch(0):
        assert sum(lengths[row] for row in rows_of(step.batches)) == 50  # 4 × the mean


def test_every_unit_of_a_task_weighs_the_same_in_every_step() -> None:
    sets = numbered()
    units = np.arange(1, 25)  # as a sentence's words
    encoded = replace(sets.train, units=units)
    steps = list(Feed([replace(sets, train=encoded)], SIZE, TOKENS).epoch(0))
    per_example = {round(step.normaliser / len(rows_of(step.batches)), 9) for step in steps}
    assert per_example == {units.mean()}
    assert sum(step.normaliser for step in steps) == pytest.approx(units.sum())


def test_a_micro_batch_holds_what_belongs_to_its_rows() -> None:
    sets = numbered(teachers=2)
    for step in Feed([sets], SIZE, TOKENS).epoch(0):
        for batch in step.batches:
            rows = batch.labels.numpy()
            assert (
                batch.tokens.inputs["input_ids"].tolist() == sets.train.pad(rows).inputs["input_ids"].tolist()
            )
            for k, source in enumerate(sets.sources):
                expected = source.targets(Drawn(sets.examples, rows)).values
                assert torch.equal(dense(batch)[k], torch.from_numpy(expected))


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
    list(Feed([sets], SIZE, TOKENS).epoch(0))
    assert sorted(pair for keys, read in source.seen for pair in zip(keys, read, strict=True)) == [
        (100 + row, text) for row, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Tokens:
    """Distributions over a vocabulary: of every example its own key and the id `other`, each with half the mass."""

    other: int

    def targets(self, batch: Drawn) -> Sparse:
        ids = np.stack([batch.keys, np.full(len(batch.keys), self.other)], axis=1).astype(np.int32)
        logs: NDArray[np.float16] = np.full(ids.shape, np.log(0.5), np.float16)
        rest: NDArray[np.float16] = np.full(len(ids), ABSENT, np.float16)
        return Sparse(Ragged.single(ids), logs, rest, Vocabulary(99, "ab"))


def test_targets_over_a_vocabulary_keep_their_ids() -> None:
    sets = replace(numbered(), sources=[Tokens(50), Tokens(60)])
    for step in Feed([sets], SIZE, TOKENS).epoch(0):
        for batch in step.batches:
            assert isinstance(batch.teachers, SparseTargets)
            assert batch.teachers.size == 99
            keys = sets.examples.keys[batch.labels.numpy()].tolist()
            assert batch.teachers.ids.tolist() == [[[key, other] for key in keys] for other in (50, 60)]
            assert batch.teachers.log_probabilities.shape == (2, len(keys), 2)
            assert batch.teachers.rest.tolist() == np.full((2, len(keys)), ABSENT, np.float16).tolist()


def test_texts_are_no_targets_of_a_loss() -> None:
    class Writes:
        """A text for each example."""

        def targets(self, batch: Drawn) -> Texts:
            texts = text_array([["so it is"]] * len(batch.rows))
            return Texts(texts, np.zeros(texts.shape, np.float16), np.ones(texts.shape, np.int32))

    sets = replace(task_set(task_of(), count=6), sources=[Writes()])
    with pytest.raises(TypeError, match="against texts"):
        next(Feed([sets], SIZE, TOKENS).epoch(0))


def test_stand_ins_have_a_reference_are_as_long_and_equally_many() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    there = np.random.default_rng(1).random(300) < 0.3
    rows = stand_ins(lengths, there, (0, 3, 1))
    assert there[rows].all()
    counts = np.bincount(rows, minlength=300)[there]
    assert counts.max() - counts.min() <= 1
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(lengths[rows[order]]) >= 0).all(), "the longer one's is the longer"
    assert (stand_ins(lengths, there, (0, 3, 1)) == rows).all()
    assert not (stand_ins(lengths, there, (0, 3, 2)) == rows).all(), "others stand in in another epoch"
    for every in (np.ones(300, dtype=np.bool_), np.zeros(300, dtype=np.bool_)):
        assert (stand_ins(lengths, every, (0,)) == np.arange(300)).all()
