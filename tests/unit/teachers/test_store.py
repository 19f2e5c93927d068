"""The store: what is read back, who may write at once, and what damage does."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import fs, ipc

from pipeline.batch import Drawn, Examples, Ragged, content_keys, offsets_of
from pipeline.errors import BadTargetsError, CorruptError, ExhaustedError, TeacherError
from pipeline.soft import Dense, SoftTargets, Space, Sparse, Vocabulary
from teachers.store import ORPHAN_AGE_S, Store

TEACHER = "0a1b2c"
LABELS = ("negative", "neutral", "positive")


def keys_of(start: int, stop: int) -> NDArray[np.uint64]:
    return content_keys("text-classification", {"text": [f"example {i}" for i in range(start, stop)]})


def logits_of(keys: NDArray[np.uint64], labels: int = len(LABELS)) -> NDArray[np.float16]:
    """Logits that give their key away: every row is a function of its own key alone."""
    parts = [(keys >> np.uint64(8 * (c % 8))) & np.uint64(0xFF) for c in range(labels)]
    return np.stack(parts, axis=1).astype(np.float16)


def single(
    keys: NDArray[np.uint64], logits: NDArray[np.floating], labels: tuple[str, ...] = LABELS
) -> SoftTargets:
    return SoftTargets(keys, Dense(Ragged.single(logits), labels))


def targets_of(keys: NDArray[np.uint64]) -> SoftTargets:
    return single(keys, logits_of(keys).astype(np.float32))


def read(store: Store, keys: NDArray[np.uint64]) -> NDArray[np.floating]:
    return store.view(TEACHER, keys, LABELS).gather(keys).values


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / TEACHER).glob("shard-*.arrow"))


def run_python(script: str, *args: str) -> subprocess.Popen[bytes]:
    """`script` in a process of its own, with this one's import path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", script, *args], env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def two_shards(folder: Path) -> Path:
    """A store of examples 0 … 99 and 100 … 149, in one shard each."""
    Store(str(folder)).append(TEACHER, targets_of(keys_of(0, 100)))
    Store(str(folder)).append(TEACHER, targets_of(keys_of(100, 150)))
    return folder


def test_roundtrip(folder: Path) -> None:
    keys = keys_of(0, 100)
    Store(str(folder)).append(TEACHER, targets_of(keys))
    view = Store(str(folder)).view(TEACHER, keys, LABELS)
    batch = view.gather(keys[[5, 99, 5, 0]])
    assert batch.space == LABELS
    assert batch.values.dtype == np.float16
    np.testing.assert_array_equal(batch.values, logits_of(keys[[5, 99, 5, 0]]))


def test_gather_of_no_rows(two_shards: Path) -> None:
    view = Store(str(two_shards)).view(TEACHER, keys_of(0, 150), LABELS)
    assert view.gather(keys_of(0, 0)).values.shape == (0, 3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_order_over_any_shards_reads_the_right_rows(data: st.DataObject) -> None:
    keys = keys_of(0, 60)
    written = np.array(data.draw(st.permutations(range(60)), "order written"))
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=4), "shard borders"))
    asked = np.array(data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=90), "keys asked for"))
    rows = np.array(data.draw(st.lists(st.integers(0, len(asked) - 1), max_size=90), "rows"), dtype=np.int64)
    with tempfile.TemporaryDirectory() as path:
        store = Store(path)
        for part in np.split(written, cuts):
            store.append(TEACHER, targets_of(keys[part]))
        view = store.view(TEACHER, keys[asked], LABELS)
        np.testing.assert_array_equal(view.gather(keys[asked[rows]]).values, logits_of(keys[asked[rows]]))


def test_only_what_is_missing_is_appended(two_shards: Path) -> None:
    store, keys = Store(str(two_shards)), keys_of(50, 200)
    rows = store.missing(TEACHER, keys)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, np.arange(100, 150))
    store.append(TEACHER, targets_of(keys[rows]))
    assert len(store.missing(TEACHER, keys)) == 0
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))


def test_missing_names_a_repeated_key_once(two_shards: Path) -> None:
    keys = keys_of(148, 153)[[4, 0, 4, 3, 3]]
    np.testing.assert_array_equal(Store(str(two_shards)).missing(TEACHER, keys), [0, 3])


def test_an_empty_store_lacks_everything(folder: Path) -> None:
    store = Store(str(folder))
    np.testing.assert_array_equal(store.missing(TEACHER, keys_of(0, 3)), [0, 1, 2])
    assert store.size(TEACHER) == 0
    assert not folder.exists()


def test_no_targets_make_no_shard(folder: Path) -> None:
    Store(str(folder)).append(TEACHER, targets_of(keys_of(0, 0)))
    assert not folder.exists()


def test_teachers_do_not_mix(two_shards: Path) -> None:
    assert len(Store(str(two_shards)).missing("ff", keys_of(0, 150))) == 150


def test_a_batch_is_read_by_its_keys(two_shards: Path) -> None:
    keys = keys_of(0, 150)
    examples = Examples("mood", keys, {"text": [f"example {i}" for i in range(150)]}, Ragged.single(keys))
    rows = np.array([120, 3, 3])
    soft = Store(str(two_shards)).view(TEACHER, keys, LABELS).targets(Drawn(examples, rows))
    np.testing.assert_array_equal(soft.values, logits_of(keys[rows]))


def test_a_key_that_nobody_asked_for_before_is_refused_too(two_shards: Path) -> None:
    view = Store(str(two_shards)).view(TEACHER, keys_of(0, 10), LABELS)
    with pytest.raises(CorruptError, match="1 of 2 soft targets are missing"):
        view.gather(keys_of(149, 151))


def test_a_missing_key_is_refused(two_shards: Path) -> None:
    with pytest.raises(CorruptError, match=f"lacks 2 of 152 targets of teacher {TEACHER}"):
        Store(str(two_shards)).view(TEACHER, keys_of(0, 152), LABELS)


@pytest.mark.parametrize("teacher", ["", "..", "movies", "a/b"])
def test_only_a_fingerprint_names_a_folder(folder: Path, teacher: str) -> None:
    with pytest.raises(ValueError, match="not a hexadecimal fingerprint"):
        Store(str(folder)).missing(teacher, keys_of(0, 1))


def test_of_a_repeated_key_the_first_written_counts(folder: Path) -> None:
    keys = keys_of(0, 4)
    first, later = logits_of(keys), logits_of(keys) + np.float16(1)
    store = Store(str(folder))
    store.append(TEACHER, single(keys[[0, 0]], np.stack([first[0], later[0]])))
    for part, logits in ([0, 1], later), ([1, 2], first), ([2, 3], later):
        store.append(TEACHER, single(keys[part], logits[part]))
        expected = read(store, keys[:2])
        np.testing.assert_array_equal(expected, [first[0], later[1]])
    np.testing.assert_array_equal(read(Store(str(folder)), keys), [first[0], later[1], first[2], later[3]])


def test_the_same_targets_make_one_shard(folder: Path) -> None:
    store, keys = Store(str(folder)), keys_of(0, 100)
    store.append(TEACHER, targets_of(keys))
    before = {file.name: file.read_bytes() for file in (folder / TEACHER).iterdir()}
    store.append(TEACHER, targets_of(keys[::-1]))
    assert {file.name: file.read_bytes() for file in (folder / TEACHER).iterdir()} == before


def test_shards_of_another_process_are_seen(folder: Path) -> None:
    mine, other, keys = Store(str(folder)), Store(str(folder)), keys_of(0, 100)
    other.append(TEACHER, targets_of(keys[:50]))
    np.testing.assert_array_equal(mine.missing(TEACHER, keys), np.arange(50, 100))
    view = mine.view(TEACHER, keys[:50], LABELS)
    other.append(TEACHER, targets_of(keys[50:]))
    assert len(mine.missing(TEACHER, keys)) == 0
    np.testing.assert_array_equal(read(mine, keys), logits_of(keys))
    np.testing.assert_array_equal(view.gather(keys[:50]).values, logits_of(keys[:50]))


def test_a_shard_is_plain_arrow_with_its_labels(folder: Path) -> None:
    Store(str(folder)).append(TEACHER, targets_of(keys_of(0, 100)))
    (shard,) = shards_in(folder)
    table = ipc.open_file(shard.read_bytes()).read_all()
    assert table.schema.field("key").type == pa.uint64()
    assert table.schema.field("logits").type == pa.list_(pa.float16(), 3)
    assert json.loads(table.schema.metadata[b"labels"]) == list(LABELS)
    assert table["key"].to_pylist() == sorted(keys_of(0, 100).tolist())
    entry = json.loads(shard.with_suffix(".json").read_text())
    assert (entry["rows"], entry["bytes"], entry["labels"]) == (100, shard.stat().st_size, list(LABELS))
    assert shard.name == f"shard-{entry['checksum']}.arrow"


SINGLE = Ragged.single(np.arange(12, dtype=np.float32).reshape(4, 3))
SEVERAL = Ragged(np.arange(18, dtype=np.float32).reshape(6, 3), np.array([0, 2, 2, 3, 6]))


@pytest.mark.parametrize(
    ("logits", "name"),
    [(SINGLE, "dcb5c4a3adc93e64d37ebec81b5b669d"), (SEVERAL, "491e1eb65bc9ced4eef1e24149e17025")],
)
def test_equal_targets_have_the_bytes_that_they_always_had(folder: Path, logits: Ragged, name: str) -> None:
    """A shard is named by its bytes: another name would be a second copy in the stores that users have."""
    targets = SoftTargets(np.array([7, 3, 9, 1], dtype=np.uint64), Dense(logits, ("bad", "süß", "plain")))
    Store(str(folder)).append(TEACHER, targets)
    assert [file.name for file in shards_in(folder)] == [f"shard-{name}.arrow"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files where Linux shows them")
def test_no_file_stays_open(two_shards: Path) -> None:
    store = Store(str(two_shards))
    read(store, keys_of(0, 150))
    links = [link for link in Path("/proc/self/fd").glob("*") if link.is_symlink()]
    assert not [link for link in links if str(two_shards) in str(link.resolve())]


@pytest.mark.parametrize("labels", [2, 3, 8, 20, 52])
def test_size_at_ten_thousand_rows(folder: Path, labels: int) -> None:
    rows = 10_000
    keys = np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    names = tuple(f"label number {c}" for c in range(labels))
    Store(str(folder)).append(TEACHER, single(keys, logits_of(keys, labels), names))
    (shard,) = shards_in(folder)
    assert shard.stat().st_size <= (2 * labels + 8) * rows + 3 * 1024
    files = (folder / TEACHER).iterdir()
    assert Store(str(folder)).size(TEACHER) == sum(file.stat().st_size for file in files)


def test_teacher_json_is_written_once(folder: Path) -> None:
    for name in "movies-minilm", "another":
        Store(str(folder)).describe(TEACHER, {"name": name, "labels": ["schlecht", "süß"]})
    text = (folder / TEACHER / "teacher.json").read_text(encoding="utf-8")
    assert json.loads(text)["name"] == "movies-minilm"
    assert "süß" in text


# --- several items an example ------------------------------------------------------------------------------


def sentences_of(keys: NDArray[np.uint64], labels: int = len(LABELS)) -> Ragged:
    """Nought to four items an example that give their key and place away."""
    counts = (keys % np.uint64(5)).astype(np.int64)
    rows = [logits_of(keys[[i]], labels) + np.arange(n)[:, None] for i, n in enumerate(counts)]
    return Ragged.of([row.astype(np.float16) for row in rows])


def words_of(keys: NDArray[np.uint64]) -> SoftTargets:
    return SoftTargets(keys, Dense(sentences_of(keys), LABELS))


def test_several_items_an_example_are_read_back_in_any_order(folder: Path) -> None:
    keys = keys_of(0, 60)
    store = Store(str(folder))
    for part in np.split(np.random.default_rng(0).permutation(60), [25, 26, 50]):
        store.append(TEACHER, words_of(keys[part]))
    assert len(shards_in(folder)) == 4
    order = np.random.default_rng(1).integers(0, 60, 90)
    expected = sentences_of(keys).take(order)
    view = Store(str(folder)).view(TEACHER, keys[order], LABELS, expected.counts)
    for rows in (np.arange(90), np.array([3, 3, 80]), np.arange(90)[::-1], np.empty(0, dtype=np.int64)):
        soft = view.gather(keys[order[rows]])
        assert soft.values.dtype == np.float16
        np.testing.assert_array_equal(soft.values, expected.take(rows).values)
        np.testing.assert_array_equal(soft.offsets, expected.take(rows).offsets)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_items_over_any_shards_read_the_right_rows(data: st.DataObject) -> None:
    keys = keys_of(0, 20)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=20, max_size=20), "items")
    values = np.arange(sum(counts) * 2, dtype=np.float16).reshape(-1, 2)
    targets = Ragged(values, np.cumsum([0, *counts], dtype=np.int64))
    written = np.array(data.draw(st.permutations(range(20)), "order written"))
    cuts = sorted(data.draw(st.lists(st.integers(0, 20), max_size=3), "shard borders"))
    rows = np.array(data.draw(st.lists(st.integers(0, 19), max_size=30), "rows"), dtype=np.int64)
    with tempfile.TemporaryDirectory() as path:
        store = Store(path)
        for part in np.split(written, cuts):
            store.append(TEACHER, SoftTargets(keys[part], Dense(targets.take(part), ("a", "b"))))
        view = store.view(TEACHER, keys, ("a", "b"), targets.counts)
        np.testing.assert_array_equal(view.gather(keys[rows]).values, targets.take(rows).values)


def test_shards_of_one_item_and_of_several_lie_side_by_side(folder: Path) -> None:
    keys = keys_of(0, 40)
    single = keys[keys % np.uint64(5) == 1]
    store = Store(str(folder))
    store.append(TEACHER, words_of(single))
    store.append(TEACHER, words_of(keys))
    kinds = [ipc.open_file(file.read_bytes()).schema.field("logits").type for file in shards_in(folder)]
    assert sorted(map(str, kinds)) == ["fixed_size_list<item: halffloat>[3]", "list<item: halffloat>"]
    expected = sentences_of(keys)
    view = store.view(TEACHER, keys, LABELS, expected.counts)
    np.testing.assert_array_equal(view.gather(keys).values, expected.values)


def test_another_number_of_items_is_refused(folder: Path) -> None:
    keys = keys_of(0, 50)
    store = Store(str(folder))
    store.append(TEACHER, words_of(keys))
    counts = sentences_of(keys).counts
    for other, wrong in ((counts + (np.arange(50) < 2), 2), (None, int((counts != 1).sum()))):
        with pytest.raises(CorruptError, match=f"{wrong} of 50 targets .* number of items") as caught:
            store.view(TEACHER, keys, LABELS, other)
        assert f"Remove {TEACHER} from the store" in caught.value.remedy
    ones = keys_of(50, 60)
    store.append("ff", targets_of(ones))
    with pytest.raises(CorruptError, match="10 of 10 targets"):
        store.view("ff", ones, LABELS, np.full(10, 2))


def test_a_bad_item_is_named(folder: Path) -> None:
    keys = keys_of(0, 40)
    targets = words_of(keys)
    row = int(np.flatnonzero(np.diff(targets.soft.offsets) == 3)[2])
    later = int(np.flatnonzero(np.diff(targets.soft.offsets) == 1)[-1])
    targets.soft.values[targets.soft.offsets[row] + 1, 2] = np.nan
    targets.soft.values[targets.soft.offsets[row] + 2, 0] = np.inf
    targets.soft.values[targets.soft.offsets[later], 0] = np.nan
    with pytest.raises(BadTargetsError) as caught:
        Store(str(folder)).append(TEACHER, targets, [f"sentence {i}" for i in range(40)].__getitem__)
    message = f"gave nan for label 'positive' on example \"sentence {min(row, later)}\""
    if row < later:
        message += f", item 1 (key {int(keys[row]):016x}); 2 of 40 examples are bad"
    assert message in caught.value.cause
    assert not folder.exists()


def test_size_of_ten_thousand_sentences(folder: Path) -> None:
    """About 14 words of 9 labels: at most a quarter more than the raw half floats."""
    rng = np.random.default_rng(0)
    counts = rng.integers(4, 25, 10_000)
    keys = np.arange(10_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values = rng.normal(size=(int(counts.sum()), 9)).astype(np.float16)
    targets = Ragged(values, np.concatenate(([0], np.cumsum(counts))))
    store = Store(str(folder))
    store.append(TEACHER, SoftTargets(keys, Dense(targets, tuple(f"B-label {c}" for c in range(9)))))
    assert counts.mean() == pytest.approx(14, abs=0.2)
    assert store.size(TEACHER) / values.nbytes <= 1.25
    assert store.size(TEACHER) <= values.nbytes + 12 * 10_000 + 3 * 1024  # a key and an offset each


# --- over a vocabulary ------------------------------------------------------------------------------------


WORDS = Vocabulary(1000, "0123abcd")


def sparse_of(keys: NDArray[np.uint64], k: int = 4) -> SoftTargets:
    """Nought to four rows an example, of `k` ids that give their key and place away."""
    counts = (keys % np.uint64(5)).astype(np.int64)
    rows = np.concatenate([(int(key) % 97) * 10 + np.arange(n) for key, n in zip(keys, counts, strict=True)])
    ids = (rows[:, None] + np.arange(k)).astype(np.int32)
    logs = -np.arange(1, k + 1, dtype=np.float32) - rows[:, None] / 1024
    return SoftTargets(keys, Sparse(Ragged(ids, offsets_of(counts)), logs, logs[:, 0] / 2, WORDS))


def test_sparse_targets_are_read_back_in_any_order(folder: Path) -> None:
    keys = keys_of(0, 60)
    store = Store(str(folder))
    for part in np.split(np.random.default_rng(0).permutation(60), [25, 26, 50]):
        store.append(TEACHER, sparse_of(keys[part]))
    assert len(shards_in(folder)) == 4
    order = np.random.default_rng(1).integers(0, 60, 90)
    expected = sparse_of(keys).soft.half().take(order)
    view = Store(str(folder)).view(TEACHER, keys[order], WORDS, expected.counts)
    for rows in (np.arange(90), np.array([3, 3, 80]), np.arange(90)[::-1], np.empty(0, dtype=np.int64)):
        soft = view.gather(keys[order[rows]])
        assert isinstance(soft, Sparse)
        assert soft.space == WORDS
        for stored, wanted in zip(soft.arrays, expected.take(rows).arrays, strict=True):
            assert stored.dtype == wanted.dtype
            np.testing.assert_array_equal(stored, wanted)
        np.testing.assert_array_equal(soft.offsets, expected.take(rows).offsets)


def test_a_sparse_shard_names_its_vocabulary(folder: Path) -> None:
    Store(str(folder)).append(TEACHER, sparse_of(keys_of(0, 100)))
    (shard,) = shards_in(folder)
    table = ipc.open_file(shard.read_bytes()).read_all()
    vocabulary = {"size": 1000, "fingerprint": "0123abcd"}
    assert json.loads(table.schema.metadata[b"vocabulary"]) == vocabulary
    assert json.loads(shard.with_suffix(".json").read_text())["vocabulary"] == vocabulary
    assert table.column_names == ["key", "ids", "log_probabilities", "rest"]
    rows = int((keys_of(0, 100) % np.uint64(5)).sum())
    assert (
        shard.stat().st_size <= rows * (4 * 6 + 2) + 100 * (8 + 3 * 8) + 3 * 1024
    )  # a key, 3 offsets of 8 bytes


@pytest.mark.parametrize("space", [Vocabulary(1000, "ffff"), Vocabulary(999, "0123abcd"), LABELS])
def test_another_vocabulary_is_refused(folder: Path, space: Space) -> None:
    store, targets = Store(str(folder)), sparse_of(keys_of(0, 10))
    store.append(TEACHER, targets)
    with pytest.raises(TeacherError, match="over vocabulary 0123abcd of 1000 tokens, not "):
        store.view(TEACHER, targets.keys, space, targets.soft.counts)
    if isinstance(space, Vocabulary) and isinstance(targets.soft, Sparse):
        other = replace(targets.soft.take(np.array([0])), space=replace(WORDS, fingerprint="ffff"))
        with pytest.raises(TeacherError, match="not vocabulary ffff of 1000 tokens"):
            store.append(TEACHER, SoftTargets(targets.keys[:1], other))
    with pytest.raises(TeacherError, match="over vocabulary 0123abcd of 1000 tokens, not 3 named columns"):
        store.append(TEACHER, targets_of(keys_of(10, 20)))
    assert len(shards_in(folder)) == 1


def test_a_bad_log_probability_is_named(folder: Path) -> None:
    keys = keys_of(0, 10)
    row = int(np.flatnonzero(keys % np.uint64(5) > 1)[0])
    for column, event in ((2, "token id {}"), (4, "the other token ids")):
        targets = sparse_of(keys)
        assert isinstance(targets.soft, Sparse)
        item = int(targets.soft.offsets[row]) + 1
        numbers = targets.soft.rest if column == 4 else targets.soft.log_probabilities[:, column]
        numbers[item] = -np.inf
        event = event.format(targets.soft.ids.values[item, 2])
        with pytest.raises(BadTargetsError, match=f"gave -inf for {event} on example row {row}, item 1"):
            Store(str(folder)).append(TEACHER, targets)
    assert not folder.exists()


# --- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (np.nan, np.float32, "gave nan for"),
        (-np.inf, np.float16, "gave -inf for"),
        (70_000.0, np.float32, "gave 70000, beyond float16, for"),
    ],
)
def test_bad_targets_are_refused_and_nothing_is_written(
    folder: Path, value: float, dtype: type[np.floating], shown: str
) -> None:
    keys = keys_of(0, 100)
    logits: NDArray[np.floating] = logits_of(keys).astype(dtype)
    logits[[7, 9], 1] = value
    targets, texts = (
        single(keys, logits),
        [f"a film,\nthe {i}th" for i in range(100)],
    )
    with pytest.raises(BadTargetsError) as caught:
        Store(str(folder)).append(TEACHER, targets, texts.__getitem__, "movies-minilm")
    shown = f"teacher movies-minilm ({TEACHER}) {shown} label 'neutral' on example "
    for part in shown, f'"a film, the 7th" (key {keys[7]:016x})', "2 of 100 examples":
        assert part in caught.value.cause
    assert not folder.exists()


def test_bad_targets_are_named_without_an_excerpt_too(folder: Path) -> None:
    targets = targets_of(keys_of(0, 3))
    targets.soft.values[2, 0] = np.nan
    with pytest.raises(BadTargetsError, match=f"teacher {TEACHER} gave nan .* example row 2"):
        Store(str(folder)).append(TEACHER, targets)


@pytest.mark.parametrize("labels", [LABELS[::-1], LABELS[:2], (*LABELS, "mixed")])
def test_other_labels_are_refused(two_shards: Path, labels: tuple[str, ...]) -> None:
    keys = keys_of(0, 10)
    before = shards_in(two_shards)
    with pytest.raises(TeacherError, match="other labels are stored"):
        Store(str(two_shards)).view(TEACHER, keys, labels)
    targets = single(keys, logits_of(keys, len(labels)), labels)
    with pytest.raises(TeacherError, match="other labels are stored"):
        Store(str(two_shards)).append(TEACHER, targets)
    assert shards_in(two_shards) == before


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExhaustedError, match="no room in"):
        Store(str(folder)).append(TEACHER, targets_of(keys_of(0, 100)))
    assert not list((folder / TEACHER).iterdir())


# --- several writers, and writers that die -----------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.batch import Ragged
from pipeline.soft import Dense, SoftTargets
from teachers.store import Store

folder, me = sys.argv[1], int(sys.argv[2])
saved = np.load(Path(folder).with_suffix(".npz"))
keys, logits, labels = saved["keys"], saved["logits"], tuple(map(str, saved["labels"]))
store = Store(folder)
Path(folder).with_suffix(f".ready{me}").touch()
while not Path(folder).with_suffix(".go").exists():
    time.sleep(0.001)
rows = np.roll(np.arange(len(keys)), -97 * me)
for part in np.array_split(rows, 12):  # each process writes everything, cut in its own way
    store.append("0a1b2c", SoftTargets(keys[part], Dense(Ragged.single(logits[part]), labels)))
    store.missing("0a1b2c", keys)
"""


def test_four_processes_write_at_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of(0, 1200)
    np.savez(folder.with_suffix(".npz"), keys=keys, logits=logits_of(keys), labels=np.array(LABELS))
    writers = [run_python(WRITER, str(folder), str(me)) for me in range(4)]
    while any(not folder.with_suffix(f".ready{me}").exists() for me in range(4)):
        assert all(writer.poll() is None for writer in writers)
    folder.with_suffix(".go").touch()
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    store = Store(str(folder))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))
    assert not caplog.records
    assert len(shards_in(folder)) == 48
    assert len(list((folder / TEACHER).iterdir())) == 96  # a shard and an entry each, no temporary file


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pipeline.batch import Ragged
from pipeline.soft import Dense, SoftTargets
from teachers.store import Store

folder, survived = sys.argv[1], int(sys.argv[2])
replace = Path.replace

def die_when_due(self, target):
    global survived
    if survived == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    survived -= 1
    return replace(self, target)

Path.replace = die_when_due
labels = ("negative", "neutral", "positive")
soft = Dense(Ragged.single(np.ones((100, 3), np.float16)), labels)
targets = SoftTargets(np.arange(100, dtype=np.uint64), soft)
Store(folder).append("0a1b2c", targets)
"""


@pytest.mark.parametrize(("renames", "left"), [(0, [".tmp"]), (1, [".arrow", ".tmp"])])
def test_a_killed_writer_has_written_nothing(folder: Path, renames: int, left: list[str]) -> None:
    assert run_python(KILLED, str(folder), str(renames)).wait() == -signal.SIGKILL
    assert sorted(file.suffix for file in (folder / TEACHER).iterdir()) == left
    store, keys = Store(str(folder)), np.arange(100, dtype=np.uint64)
    assert len(store.missing(TEACHER, keys)) == 100
    store.append(TEACHER, single(keys, np.ones((100, 3), np.float16)))
    assert len(store.missing(TEACHER, keys)) == 0
    assert list((folder / TEACHER).glob("*.tmp")), "what may belong to a live writer must stay"


def test_an_orphan_does_not_exist_and_goes_when_old(two_shards: Path) -> None:
    first, second = shards_in(two_shards)
    torn = first.with_name("shard-x.arrow.123.tmp")
    torn.touch()
    for shard in first, second:
        shard.with_suffix(".json").unlink()
    for file in first, torn:
        os.utime(file, (0, time.time() - ORPHAN_AGE_S - 60))
    store = Store(str(two_shards))
    assert len(store.missing(TEACHER, keys_of(0, 150))) == 150
    store.append(TEACHER, targets_of(keys_of(200, 210)))
    assert not first.exists()
    assert not torn.exists()
    assert second.exists()


def test_an_old_shard_with_an_entry_stays(two_shards: Path) -> None:
    for shard in shards_in(two_shards):
        os.utime(shard, (1, 1))
    store = Store(str(two_shards))
    store.append(TEACHER, targets_of(keys_of(150, 160)))
    np.testing.assert_array_equal(read(store, keys_of(0, 160)), logits_of(keys_of(0, 160)))


def test_an_old_orphan_written_again_stays(folder: Path) -> None:
    keys = keys_of(0, 100)
    Store(str(folder)).append(TEACHER, targets_of(keys))
    (shard,) = shards_in(folder)
    shard.with_suffix(".json").unlink()
    os.utime(shard, (1, 1))
    Store(str(folder)).append(TEACHER, targets_of(keys))
    np.testing.assert_array_equal(read(Store(str(folder)), keys), logits_of(keys))


# --- damage ------------------------------------------------------------------------------------------------


Damage = Callable[[Path, float], None]


def truncate(shard: Path, keep: float) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * keep)])


def flip(shard: Path, at: float) -> None:
    data = bytearray(shard.read_bytes())
    data[int((len(data) - 1) * at)] ^= 0x10
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "amount", "fault"),
    [
        *((truncate, keep, "bytes where") for keep in (0.0, 0.5, 0.999)),
        *((flip, at, "checksum does not match") for at in (0.0, 0.4, 0.8, 1.0)),
    ],
)
def test_only_a_damaged_shard_is_recomputed(
    two_shards: Path, caplog: pytest.LogCaptureFixture, damage: Damage, amount: float, fault: str
) -> None:
    keys = keys_of(0, 150)
    shard = max(shards_in(two_shards), key=lambda file: file.stat().st_size)
    damage(shard, amount)
    store = Store(str(two_shards))
    rows = store.missing(TEACHER, keys)
    np.testing.assert_array_equal(rows, np.arange(100))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in str(shard), fault, "100 rows will be recomputed":
        assert part in record.getMessage()
    assert not shard.exists()
    assert shard.with_name(f"{shard.name}.corrupt").exists()
    with pytest.raises(CorruptError, match="lacks 100 of 150"):
        store.view(TEACHER, keys, LABELS)
    store.append(TEACHER, targets_of(keys[rows]))  # the very same bytes, hence the same name
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))
    np.testing.assert_array_equal(read(Store(str(two_shards)), keys), logits_of(keys))
    assert len(caplog.records) == 1


def test_a_damaged_shard_is_replaced_by_appending_it_again(folder: Path) -> None:
    keys = keys_of(0, 100)
    Store(str(folder)).append(TEACHER, targets_of(keys))
    flip(shards_in(folder)[0], 0.5)
    Store(str(folder)).append(TEACHER, targets_of(keys))
    np.testing.assert_array_equal(read(Store(str(folder)), keys), logits_of(keys))


def test_a_shard_that_another_process_healed_is_opened_anew(folder: Path) -> None:
    mine, keys = Store(str(folder)), keys_of(0, 100)
    mine.append(TEACHER, targets_of(keys))
    assert len(mine.missing(TEACHER, keys)) == 0  # opened, and verified for good
    flip(shards_in(folder)[0], 0.5)
    assert len(Store(str(folder)).missing(TEACHER, keys)) == 100
    mine.append(TEACHER, targets_of(keys[:0]))  # sees that the shard has gone
    Store(str(folder)).append(TEACHER, targets_of(keys))
    np.testing.assert_array_equal(read(mine, keys), logits_of(keys))


def test_a_lost_shard_is_recomputed(two_shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, keys = Store(str(two_shards)), keys_of(0, 150)
    shards_in(two_shards)[0].unlink()
    rows = store.missing(TEACHER, keys)
    assert len(rows) in (50, 100)
    assert "it is gone" in caplog.text
    store.append(TEACHER, targets_of(keys[rows]))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"rows": "many"}'])
def test_an_unreadable_entry_makes_its_rows_missing(
    two_shards: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shards_in(two_shards)[0].with_suffix(".json").write_text(damage)
    store, keys = Store(str(two_shards)), keys_of(0, 150)
    rows = store.missing(TEACHER, keys)
    assert len(rows) in (50, 100)
    assert "is unreadable" in caplog.text
    store.append(TEACHER, targets_of(keys[rows]))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))


def test_a_shard_is_verified_once_a_process(two_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keys = Store(str(two_shards)), keys_of(0, 150)
    assert len(store.missing(TEACHER, keys)) == 0
    monkeypatch.setattr("teachers.store._checksum", lambda _: pytest.fail("hashed again"))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))


# --- stores behind a URL -----------------------------------------------------------------------------------


def test_a_file_url_is_a_local_store(folder: Path) -> None:
    spaced, keys = folder / "with space", keys_of(0, 100)
    Store(spaced.as_uri()).append(TEACHER, targets_of(keys))
    np.testing.assert_array_equal(read(Store(str(spaced)), keys), logits_of(keys))


def memory_store(tmp_path: Path) -> tuple[str, fs.FileSystem | None]:
    return f"fsspec+memory:///{uuid4().hex}/store", None  # shared by all of the process, as a bucket would be


def mock_store(tmp_path: Path) -> tuple[str, fs.FileSystem | None]:
    return "bucket/store", fs._MockFileSystem()


def subtree_store(tmp_path: Path) -> tuple[str, fs.FileSystem | None]:
    return "store", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


Remote = Callable[[Path], tuple[str, fs.FileSystem | None]]
REMOTE = pytest.mark.parametrize("remote", [memory_store, mock_store, subtree_store])


@REMOTE
def test_a_remote_store_is_copied_once_and_mapped(tmp_path: Path, remote: Remote) -> None:
    (path, filesystem), cache, keys = remote(tmp_path), tmp_path / "cache", keys_of(0, 150)
    for part in keys[:100], keys[100:]:
        Store(path, tmp_path / "writers", filesystem).append(TEACHER, targets_of(part))
    store = Store(path, cache, filesystem)
    store.describe(TEACHER, {"name": "movies-minilm"})
    np.testing.assert_array_equal(store.missing(TEACHER, keys_of(0, 160)), np.arange(150, 160))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))
    copies = shards_in(cache)
    assert len(copies) == 2
    assert store.size(TEACHER) > sum(copy.stat().st_size for copy in copies)
    made = [copy.stat().st_ino for copy in copies]
    np.testing.assert_array_equal(read(Store(path, cache, filesystem), keys), logits_of(keys))
    assert [copy.stat().st_ino for copy in copies] == made


@REMOTE
def test_a_damaged_copy_is_copied_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, remote: Remote
) -> None:
    (path, filesystem), cache, keys = remote(tmp_path), tmp_path / "cache", keys_of(0, 100)
    Store(path, cache, filesystem).append(TEACHER, targets_of(keys))
    read(Store(path, cache, filesystem), keys)
    truncate(shards_in(cache)[0], 0.3)
    np.testing.assert_array_equal(read(Store(path, cache, filesystem), keys), logits_of(keys))
    assert not caplog.records


def test_a_damaged_remote_shard_is_recomputed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path, filesystem), cache, keys = subtree_store(tmp_path), tmp_path / "cache", keys_of(0, 100)
    Store(path, cache, filesystem).append(TEACHER, targets_of(keys))
    flip(shards_in(tmp_path / "store")[0], 0.5)
    store = Store(path, cache, filesystem)
    assert len(store.missing(TEACHER, keys)) == 100
    assert "100 rows will be recomputed" in caplog.text
    store.append(TEACHER, targets_of(keys))
    np.testing.assert_array_equal(read(store, keys), logits_of(keys))
    np.testing.assert_array_equal(read(Store(path, cache, filesystem), keys), logits_of(keys))


def test_stores_do_not_share_a_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = keys_of(0, 10)
    for _ in range(2):
        store = Store(*memory_store(tmp_path)[:1])
        store.append(TEACHER, targets_of(keys))
        read(store, keys)
    assert len(list((tmp_path / "tutelage").iterdir())) == 2
