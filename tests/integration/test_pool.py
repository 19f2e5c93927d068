"""Labelling on a real local Ray: replicas that die, hang, cannot start or talk nonsense; shards that rot; two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.config.schema import ServingConfig
from pipeline.errors import BadTargetsError, ExhaustedError
from pipeline.places import PATIENCE, Patience
from pipeline.soft import Dense
from pipeline.tasks.text_classification import text_classification
from teachers import pool
from teachers.pool import Labelling, TeacherPool, fill_store
from teachers.spec import TeacherSpec
from teachers.store import Store
from teachers.store_key import store_key
from tests.conftest import VOCABULARY, TinyModel, texts_of
from tests.integration.command import descendants, wait_until
from tests.integration.conftest import CPUS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

TASK = text_classification("mood", ("bad", "good"), 32, "accuracy")
Progress = Callable[[str, int, int], None]


def examples_of(texts: Sequence[str]) -> Examples:
    inputs = {"text": list(texts)}
    labels = Ragged.single(np.zeros(len(texts), dtype=np.int64))
    return Examples("mood", content_keys(TASK.kind.name, inputs), inputs, labels)


EXAMPLES = examples_of(texts_of(0, 200) + texts_of(1, 200))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHUNK", 8)  # 50 calls for 400 examples


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> Path:
    return tiny_model("bert", ("good", "bad"))


def spec_of(model: Path, name: str = "mood-bert", **serving: Any) -> TeacherSpec:
    key = store_key(model, TASK, "fp32")
    return TeacherSpec(name, str(model), None, TASK, ServingConfig(**serving), key)


def label(
    store: Store,
    *specs: TeacherSpec,
    examples: Examples = EXAMPLES,
    on_progress: Progress = lambda teacher, done, total: None,
    patience: Patience = PATIENCE,
) -> dict[str, Labelling]:
    return fill_store(specs, {"mood": [examples]}, store, on_progress, patience=patience)


def contents(store_folder: Path) -> dict[str, bytes]:
    """Shards by name, which is a hash of what is in them."""
    return {file.name: file.read_bytes() for file in store_folder.glob("*/*.arrow")}


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store filled by two replicas to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK", 8)
        done = label(Store(str(folder)), spec_of(model, replicas=2))
    assert done == {"mood-bert": Labelling(forwards=400, truncated=0, restarts=0)}
    return folder


def read(folder: Path, spec: TeacherSpec, examples: Examples = EXAMPLES) -> NDArray[np.float16]:
    view = Store(str(folder)).view(spec.key, examples.keys, TASK.reading.labels)
    return view.gather(examples.keys).values.astype(np.float16, copy=False)


# ---------------------------------------------------------------- replicas


class Watched(TeacherPool):
    """A pool that tells its replicas' process ids."""

    def _start_placed(self) -> None:
        super()._start_placed()
        self.started = getattr(self, "started", [])
        self.started += [one.ready for one in self._replicas if one.ready not in (None, *self.started)]

    def has_shown(self, lines: Sequence[str]) -> bool:
        self._check_time(deque())
        return bool(lines)

    def has_started(self, count: int) -> bool:
        self._start_placed()
        return len(self.started) == count

    def pids(self) -> list[int]:
        """Of all replicas so far, in order; waits until they have started."""
        return [int(pid) for pid in ray.get(self.started, timeout=120)]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every pool that the test makes."""
    made: list[Watched] = []

    def make(spec: TeacherSpec, replicas: int, patience: Patience) -> Watched:
        made.append(Watched(spec, replicas, patience))
        return made[-1]

    monkeypatch.setattr(pool, "TeacherPool", make)
    return made


def test_killed_and_hanging_replicas_are_replaced(
    model: Path, undisturbed: Path, pools: list[Watched], tmp_path: Path
) -> None:
    """One replica is killed and another stopped in the middle; the third has their calls to do as well."""
    spec = spec_of(model, replicas=3, restarts=9)
    hit: list[int] = []

    def disturb(teacher: str, done: int, total: int) -> None:
        if done and not hit:
            hit[:] = pools[0].pids()
            os.kill(hit[0], signal.SIGKILL)
            os.kill(hit[1], signal.SIGSTOP)
            pools[0].spec = replace(spec, serving=spec.serving.model_copy(update={"timeout_s": 12.0}))
            for replica in pools[0]._replicas:  # the test took this time, not the replicas
                replica.last_result = time.monotonic()

    done = label(Store(str(tmp_path)), spec, on_progress=disturb)["mood-bert"]
    assert len(set(hit)) == 3
    assert (done.forwards, done.truncated) == (400, 0)
    assert done.restarts >= 2
    assert contents(tmp_path) == contents(undisturbed)
    wait_until(lambda: not set(hit) & set(descendants(os.getpid())), lambda: f"one of {hit} still runs", 20)


def test_a_replica_whose_calls_all_fail_is_replaced(
    model: Path, undisturbed: Path, pools: list[Watched], tmp_path: Path
) -> None:
    """As where its device is lost: the process lives and answers, with errors."""
    spec = spec_of(model, restarts=1)
    broken: list[bool] = []

    def break_it(teacher: str, done: int, total: int) -> None:
        if done == 80 and not broken:
            broken.append(True)
            actor: Any = pools[0]._replicas[0].actor
            ray.get(actor.__ray_call__.remote(lambda self: setattr(self, "_teacher", None)), timeout=60)

    done = label(Store(str(tmp_path)), spec, on_progress=break_it)["mood-bert"]
    assert (done.forwards, done.restarts) == (400, 1)
    assert np.array_equal(read(tmp_path, spec), read(undisturbed, spec))


def test_an_example_that_always_fails_is_named_after_two_tries(model: Path, tmp_path: Path) -> None:
    texts = list(EXAMPLES.inputs["text"])
    row = int(np.argmin([len(text) for text in texts]))
    wrong: list[Any] = [*texts[:row], ["neither", "text", "nor pair"], *texts[row + 1 :]]
    store, spec = Store(str(tmp_path)), spec_of(model)
    with pytest.raises(BadTargetsError, match="failed twice on the same 8 examples, the first") as caught:
        label(store, spec, examples=replace(EXAMPLES, inputs={"text": wrong}))
    assert caught.value.exit_code == 3
    assert (
        "TextEncodeInput" in caught.value.cause
        or "TypeError" in caught.value.cause
        or "ValueError" in caught.value.cause
    )
    missing = store.missing(spec.key, EXAMPLES.keys)
    assert row in missing
    assert len(missing) < 400, "the others are kept"


def test_replicas_lost_too_often_end_the_run_but_not_what_is_labelled(
    model: Path, undisturbed: Path, pools: list[Watched], tmp_path: Path
) -> None:
    spec = spec_of(model, restarts=0)
    seen: list[int] = []

    def kill(teacher: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 80:
            os.kill(pools[0].pids()[0], signal.SIGKILL)

    with pytest.raises(ExhaustedError, match="teacher mood-bert: replica lost") as caught:
        label(Store(str(tmp_path)), spec, on_progress=kill)
    assert caught.value.exit_code == 4
    assert "teachers.mood-bert.serving.restarts" in caught.value.remedy
    missing = Store(str(tmp_path)).missing(spec.key, EXAMPLES.keys)
    assert len(missing) == 400 - max(seen)
    kept = np.setdiff1d(np.arange(400), missing)
    assert np.array_equal(read(tmp_path, spec, EXAMPLES.take(kept)), read(undisturbed, spec)[kept])


def test_a_teacher_that_nobody_can_host_is_named_in_time(model: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    spec, lines = spec_of(model, name="golden", resources={"gold": 2.0}), list[str]()
    with pytest.raises(
        ExhaustedError, match=r"teacher golden: for 3 s no node has 1 CPU, 2 gold; the cluster"
    ):
        label(Store(str(tmp_path)), spec, patience=Patience(3, lines.append))
    assert time.monotonic() - started < 10
    (line,) = lines
    assert line.startswith("teacher golden: waiting for a node, no node has 1 CPU, 2 gold; the cluster has")


def test_teachers_take_turns_where_there_is_room_for_one(
    model: Path, undisturbed: Path, pools: list[Watched], tmp_path: Path
) -> None:
    """The second teacher waits longer than its time-out for the first one's end, which is no fault."""
    broad = spec_of(model, name="broad", cpus=CPUS)
    late = replace(spec_of(model, name="late", timeout_s=20, cpus=CPUS), key="0a")
    begun: list[str] = []

    def slow(teacher: str, done: int, total: int) -> None:
        if done:
            begun.append(teacher)
            if teacher == begun[0]:
                time.sleep(0.5)

    done = label(Store(str(tmp_path)), broad, late, on_progress=slow)
    assert {one.forwards for one in done.values()} == {400}
    first, second = dict.fromkeys(begun)
    assert begun == [first] * 50 + [second] * 50
    assert np.array_equal(read(tmp_path, broad), read(undisturbed, broad))


def test_more_replicas_than_there_is_room_for_come_as_it_gets_free(
    model: Path, undisturbed: Path, pools: list[Watched], tmp_path: Path
) -> None:
    from ray.util import placement_group, remove_placement_group

    spec, lines = spec_of(model, replicas=CPUS), list[str]()
    taken = placement_group([{"CPU": CPUS - 1}])
    assert taken.wait(30)

    def free(teacher: str, done: int, total: int) -> None:
        if done == 40:
            wait_until(lambda: pools[0].has_shown(lines), lambda: "nothing shown", 20)
            remove_placement_group(taken)
            wait_until(lambda: pools[0].has_started(CPUS), lambda: f"{pools[0].started}", 20)
            assert len(set(pools[0].pids())) == CPUS

    label(Store(str(tmp_path)), spec, on_progress=free, patience=Patience(show=lines.append))
    assert lines == [f"teacher mood-bert: 1 of {CPUS} started, waiting for 1 CPU"]
    assert contents(tmp_path) == contents(undisturbed)


def test_nonsense_is_not_stored_and_names_teacher_and_text(
    model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The bad teacher says NaN to one word; it waits for the good one, so that both have their say."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][VOCABULARY.index("boring")] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    good, bad = spec_of(model, name="good"), spec_of(broken, name="bad")
    good_is_done = threading.Event()

    def after_the_good_one(teacher: str, done: int, total: int) -> None:
        if teacher == "bad" and done == 0:
            good_is_done.wait(120)
        if teacher == "good" and done == total:
            good_is_done.set()

    store = tmp_path / "store"
    with pytest.raises(BadTargetsError, match=r"teacher bad .* gave nan for label .*boring") as caught:
        label(Store(str(store)), good, bad, on_progress=after_the_good_one)
    assert caught.value.exit_code == 3
    assert np.array_equal(read(store, good), read(undisturbed, good))
    missing = Store(str(store)).missing(bad.key, EXAMPLES.keys)
    unsaid = {row for row, text in enumerate(EXAMPLES.inputs["text"]) if "boring" in text.split()}
    assert unsaid <= set(missing.tolist())


# ---------------------------------------------------------------- the store below


def test_only_rotten_and_new_examples_are_labelled_again(
    model: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four shards, a bit of one flipped, and ten examples more than before."""
    spec, targets = spec_of(model), read(undisturbed, spec_of(model))
    monkeypatch.setattr(pool, "SHARD", 100)
    store = Store(str(tmp_path))
    writer = pool._ShardWriter(store, spec.key, spec.name, EXAMPLES.keys, EXAMPLES.inputs)
    for rows in np.split(np.arange(400), 50):
        writer.add(rows, Dense(Ragged.single(targets[rows].astype(np.float32)), TASK.reading.labels))
    writer.flush()
    shards = sorted(tmp_path.glob("*/*.arrow"))
    rotten = bytearray(shards[1].read_bytes())
    rotten[len(rotten) // 2] ^= 1
    shards[1].write_bytes(rotten)
    lost = json.loads(shards[1].with_suffix(".json").read_text())["rows"]
    assert len(shards) == 4
    assert lost < 110

    grown = examples_of([*EXAMPLES.inputs["text"], *texts_of(2, 10)])
    done = label(Store(str(tmp_path)), spec, examples=grown)["mood-bert"]
    assert done.forwards == lost + 10
    assert "is corrupt" in caplog.text
    assert np.array_equal(read(tmp_path, spec, grown)[:400], targets)
    assert label(Store(str(tmp_path)), spec, examples=grown)["mood-bert"].forwards == 0


def test_two_may_fill_one_store_at_once(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    spec = spec_of(model)
    halves = [EXAMPLES.take(np.arange(300)), EXAMPLES.take(np.arange(100, 400))]
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(label, Store(str(tmp_path)), spec, examples=half) for half in halves]
    forwards = [future.result()["mood-bert"].forwards for future in both]
    assert 400 <= sum(forwards) <= 600
    assert np.array_equal(read(tmp_path, spec), read(undisturbed, spec))
