"""The worker group on a real local Ray Train: one worker or two, a worker killed, a training that diverges."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import train as training
from pipeline.batch import SoftTargets
from pipeline.config import RunConfig, load_config
from pipeline.data import TaskData, load_tasks
from pipeline.errors import DivergedError
from pipeline.loop import METRICS, read_metrics
from pipeline.train import PREDICTIONS, Job, job_folder, new_plan
from teachers.store import Store
from teachers.teacher import Teacher, store_key
from tests.conftest import TinyModel
from tests.integration.command import descendants
from tests.integration.conftest import MakeRun

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings(r"default:::ray\b"),
]

PLAIN, ROUGH = Job("plain", "distilled"), Job("rough", "distilled")


class Bench:
    """Launches the same training again and again: data read and soft targets stored once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.data: Mapping[str, TaskData] = load_tasks(config)
        self.folders = {name: teacher.model for name, teacher in config.teachers.items()}
        self.keys: dict[str, str] = {}
        store = Store(config.store_path)
        for name, teacher in config.teachers.items():
            data = self.data[teacher.task]
            self.keys[name] = store_key(Path(teacher.model), data.task, "fp32")
            for examples in data.all_examples():
                logits, _ = Teacher(Path(teacher.model), data.task).label(examples.inputs)
                store.append(self.keys[name], SoftTargets(examples.keys, logits, data.task.labels))

    def launch(self, name: str, **train: Any) -> Path:
        """Trains in a run folder of that name, `train`'s keys laid over the config's; returns the folder."""
        changed = self.config.train.model_copy(update=train)
        config = self.config.model_copy(update={"name": name, "train": changed})
        config.run_dir.mkdir(parents=True)
        training.launch(new_plan(config, self.data, self.keys, self.folders))
        return config.run_dir


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: MakeRun,
    ready_teachers: dict[str, dict[str, Any]],
    tiny_model: TinyModel,
) -> Bench:
    """Two students on two tasks with a teacher each, one without dropout and on SGD."""
    folder = tmp_path_factory.mktemp("group")
    bert = str(tiny_model("bert"))
    plain = {"dropout": 0.0, "optimizer": "sgd", "learning_rate": 0.01, "epochs": 2}
    students = {"plain": {"model": bert, "train": plain}, "rough": {"model": bert}}
    file = make_run(
        folder, runs_dir=str(folder / "runs"), teachers=ready_teachers, students=students, baselines=[]
    )
    return Bench(load_config(file))


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, bench: Bench) -> Path:
    """The run folder of one worker to which nothing happened."""
    return bench.launch("undisturbed")


def points(run_dir: Path, job: Job) -> list[dict[str, float]]:
    """A job's curves, without seconds."""
    lines = read_metrics(job_folder(run_dir, job) / METRICS)
    return [
        {"step": line["step"], **{n: v for n, v in line["metrics"].items() if n != "time/epoch_s"}}
        for line in lines
    ]


def outcome(run_dir: Path) -> dict[str, bytes]:
    """Weights and predictions of every student."""
    files = [*run_dir.glob("students/*/*/*.safetensors"), *run_dir.glob(f"checkpoints/*/{PREDICTIONS}")]
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in files}


@contextmanager
def workers_watched(kill_after: Path | None = None, step: int = 0) -> Iterator[set[int]]:
    """Process ids of the workers of this process's Ray that train; the first is killed when `kill_after` has `step`."""
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        killed = kill_after is None
        while not over.wait(0.05):
            training = [p for p, title in descendants(os.getpid()).items() if "RayTrainWorker" in title]
            seen.update(training)
            if (
                not killed
                and kill_after is not None
                and any(p["step"] >= step for p in read_metrics(kill_after))
            ):
                os.kill(training[0], signal.SIGKILL)
                killed = True

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_killed_worker_changes_nothing(bench: Bench, undisturbed: Path) -> None:
    """The group starts again from the last checkpoint and ends with the same bits, dropout included."""
    metrics = job_folder(bench.config.run_dir.with_name("killed"), ROUGH) / METRICS
    with workers_watched(kill_after=metrics, step=10) as workers:
        killed = bench.launch("killed")
    assert len(workers) == 2  # the one that was killed, and the one after it
    assert outcome(killed) == outcome(undisturbed)
    for job in (PLAIN, ROUGH):
        assert points(killed, job) == points(undisturbed, job)
    assert not (killed / "ray").exists()


def test_two_workers_train_the_same_student(bench: Bench, undisturbed: Path) -> None:
    """Only sums are taken in another order: in 74 steps rounding grows to some 1e-4 of a loss."""
    shared = bench.launch("shared", workers=2)
    found, expected = points(shared, PLAIN), points(undisturbed, PLAIN)
    assert [point.keys() for point in found] == [point.keys() for point in expected]
    for here, there in zip(found, expected, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-6)
    for task, logits in load_file(job_folder(undisturbed, PLAIN) / PREDICTIONS).items():
        again = load_file(job_folder(shared, PLAIN) / PREDICTIONS)[task]
        assert torch.allclose(again, logits, rtol=1e-3, atol=1e-3)
    assert len(points(shared, ROUGH)) == len(points(undisturbed, ROUGH))


def test_a_diverged_training_is_not_tried_again(bench: Bench) -> None:
    with workers_watched() as workers, pytest.raises(DivergedError, match="NaN or Inf") as caught:
        bench.launch("diverged", learning_rate=1e30, gradient_clip=None)
    assert caught.value.exit_code == 3
    assert len(workers) == 1
    folder = bench.config.run_dir.with_name("diverged")
    assert not list(folder.glob(".failure-*"))
    for file in folder.glob("checkpoints/*/step-*/model.safetensors"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(file).values())
