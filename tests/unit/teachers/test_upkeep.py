"""Upkeep of the store: what it lists, what compaction keeps, and what is never removed."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LockedError
from pipeline.run_folder import CONFIG, locked
from pipeline.soft import Layer
from teachers.store import Store
from teachers.upkeep import holdings, is_needless, runs_of, unread
from tests.unit.teachers.test_store import (
    LABELS,
    TEACHER,
    flip,
    keys_of,
    logits_of,
    read,
    shards_in,
    single,
    targets_of,
)

HERE = platform.node()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    """Examples 0 … 99 in ten shards."""
    store = Store(str(folder))
    for start in range(0, 100, 10):
        store.append(TEACHER, targets_of(keys_of(start, start + 10)))
    return store


def run_folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("")
    return folder


def test_a_store_that_is_not_there_holds_nothing(folder: Path) -> None:
    assert holdings(Store(str(folder))) == []
    assert not folder.exists()


def test_holdings_are_told_from_the_entries(store: Store, folder: Path) -> None:
    store.describe(TEACHER, {"teacher": "large", "task": "movies"})
    store.append("ff", single(keys_of(0, 5), np.ones((5, 2), dtype=np.float32), ("a", "b")))
    nameless, large = holdings(Store(str(folder)))
    assert (nameless.teacher, nameless.facts, nameless.space) == ("ff", {}, ("a", "b"))
    assert (large.examples, large.shards, large.space) == (100, 10, LABELS)
    assert large.facts["teacher"] == "large"
    assert large.size == sum(file.stat().st_size for file in (folder / TEACHER).iterdir())


# ---------------------------------------------------------------- compaction


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_compacted_store_has_the_same_targets_in_fewer_shards(data: st.DataObject) -> None:
    keys = keys_of(0, 60)
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), min_size=2, max_size=8), "shard borders"))
    size = data.draw(st.integers(500, 5000), "bytes a shard")
    with tempfile.TemporaryDirectory() as path:
        store, folder = Store(path), Path(path)
        for part in np.split(keys, cuts):
            store.append(TEACHER, targets_of(part))
        before = len(shards_in(folder))
        store.compact(TEACHER, size)
        assert len(shards_in(folder)) <= before
        for reader in (store, Store(path)):
            np.testing.assert_array_equal(read(reader, keys), logits_of(keys))
        after = shards_in(folder)
        store.compact(TEACHER, size)
        assert len(shards_in(folder)) <= len(after)


def test_all_fits_one_shard(store: Store, folder: Path) -> None:
    store.compact(TEACHER)
    assert len(shards_in(folder)) == 1
    (one,) = holdings(store)
    assert (one.shards, one.examples) == (1, 100)


def test_of_equal_keys_the_oldest_is_kept(folder: Path) -> None:
    store, keys = Store(str(folder)), keys_of(0, 10)
    store.append(TEACHER, targets_of(keys))
    store.append(TEACHER, single(keys_of(0, 20), np.zeros((20, 3), dtype=np.float32)))
    store.compact(TEACHER)
    np.testing.assert_array_equal(read(Store(str(folder)), keys), logits_of(keys))
    assert not read(Store(str(folder)), keys_of(10, 20)).any()


def test_an_interrupted_compaction_loses_nothing(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._files, "delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.compact(TEACHER)
    assert len(shards_in(folder)) == 11
    np.testing.assert_array_equal(read(Store(str(folder)), keys_of(0, 100)), logits_of(keys_of(0, 100)))
    Store(str(folder)).compact(TEACHER)
    assert len(shards_in(folder)) == 1


def test_a_compaction_keeps_the_rest_of_a_damaged_store(store: Store, folder: Path) -> None:
    flip(shards_in(folder)[0], 0.5)
    damaged = Store(str(folder))
    assert damaged.verify(TEACHER) == 1
    damaged.compact(TEACHER)
    assert len(damaged.missing(TEACHER, keys_of(0, 100))) == 10
    assert damaged.verify(TEACHER) == 0


# ---------------------------------------------------------------- what runs need


def test_targets_are_needed_while_a_run_that_reads_them_is_there(store: Store, tmp_path: Path) -> None:
    first, second = run_folder(tmp_path, "first"), run_folder(tmp_path, "second")
    for folder in (first, second, first):
        store.use(TEACHER, str(folder), HERE)
    assert runs_of(holdings(store)[0]) == [first, second]
    (first / CONFIG).unlink()
    assert not is_needless(holdings(store)[0])
    (second / CONFIG).unlink()
    assert is_needless(holdings(store)[0])


def test_targets_of_runs_that_are_not_known_stay(store: Store, tmp_path: Path) -> None:
    assert not is_needless(holdings(store)[0]), "of an earlier version"
    store.use(TEACHER, str(tmp_path / "gone"), "another-machine")
    store.use(TEACHER, str(tmp_path / "gone"), HERE)
    assert not is_needless(holdings(store)[0]), "of a run that cannot be seen from here"


def test_a_running_run_keeps_its_targets_from_being_moved(store: Store, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "first")
    store.use(TEACHER, str(folder), HERE)
    with unread(holdings(store)):
        pass
    with locked(folder), pytest.raises(LockedError, match="first"), unread(holdings(store)):
        pass


def test_what_is_removed_is_gone(store: Store, folder: Path) -> None:
    store.append("ff", single(keys_of(0, 5), np.ones((5, 2), dtype=np.float32), ("a", "b")))
    store.remove(TEACHER)
    assert [one.teacher for one in holdings(Store(str(folder)))] == ["ff"]
    assert len(Store(str(folder)).missing(TEACHER, keys_of(0, 100))) == 100


def test_the_space_of_hidden_targets_is_their_layer(folder: Path) -> None:
    from pipeline.batch import Ragged
    from pipeline.soft import Dense, SoftTargets

    values = np.ones((5, 4), dtype=np.float32)
    Store(str(folder)).append("ab", SoftTargets(keys_of(0, 5), Dense(Ragged.single(values), Layer(4, 2))))
    assert holdings(Store(str(folder)))[0].space == Layer(4, 2)


def test_a_run_behind_a_url_counts_as_there(store: Store) -> None:
    store.use(TEACHER, "s3://bucket/runs/first", "")
    (one,) = holdings(store)
    assert not is_needless(one)
    with pytest.raises(LockedError, match="s3://bucket/runs/first reads these targets"), unread([one]):
        pass
    with unread([one], sure=True):
        pass
