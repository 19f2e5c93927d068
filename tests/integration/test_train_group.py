"""The worker group on a real local Ray Train: one worker or two, a worker killed, a training that diverges."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.load import load_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.data.transfer import load_tasks
from pipeline.errors import DivergedError
from pipeline.predictor import Predictor
from pipeline.run_folder import FAILURE, job_folder
from pipeline.soft import SoftTargets
from pipeline.training import jobs as training
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.plan import Plan, new_plan
from pipeline.training.result import PREDICTIONS
from pipeline.training.step import Workers
from pipeline.training.worker_group import run_worker_group
from teachers.store import Store
from teachers.store_key import store_key
from tests.conftest import TinyModel
from tests.integration.command import descendants
from tests.integration.conftest import MakeRun
from tests.unit.pipeline.facts import facts_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\b"),
]

PLAIN, ROUGH = Job("plain", "distilled"), Job("rough", "distilled")


class Bench:
    """Trains the same students again and again: data read and soft targets stored once."""

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
                logits, _ = Predictor(Path(teacher.model), data.task).predict(examples.inputs)
                store.append(self.keys[name], SoftTargets(examples.keys, logits))

    def plan(self, name: str, *students: str, workers: int = 1) -> Plan:
        """A run folder of that name, and the plan to train `students` in it."""
        changes = {
            "name": name,
            "students": {student: self.config.students[student] for student in students},
            "train": self.config.train.model_copy(update={"workers": workers}),
        }
        config = self.config.model_copy(update=changes)
        config.run_dir.mkdir(parents=True)
        return new_plan(config, facts_of(config), self.data, self.keys, self.folders)


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: MakeRun,
    ready_teachers: dict[str, dict[str, Any]],
    tiny_model: TinyModel,
) -> Bench:
    """Two tasks with a teacher each; a student without dropout and on SGD, one with dropout, one that diverges."""
    folder = tmp_path_factory.mktemp("group")
    bert = str(tiny_model("bert"))
    settings: dict[str, dict[str, Any]] = {
        "plain": {"dropout": 0.0, "optimizer": "sgd", "learning_rate": 0.01, "epochs": 1},
        "rough": {},
        "wild": {"learning_rate": 1e30, "gradient_clip": None},
    }
    students = {name: {"model": bert, "train": train} for name, train in settings.items()}
    file = make_run(
        folder, runs_dir=str(folder / "runs"), teachers=ready_teachers, students=students, baselines=[]
    )
    return Bench(load_config(file))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Path:
    """The run folder of a training in this very process, without Ray."""
    plan = bench.plan("undisturbed", "plain", "rough")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(plan.cpus)))
    training.train_jobs(plan, Workers())
    torch.set_num_threads(threads)
    return plan.run_dir


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


def test_a_killed_worker_changes_nothing_and_a_diverged_training_is_not_tried_again(
    bench: Bench, undisturbed: Path
) -> None:
    """The group starts again from the last checkpoint, once, and ends with the bits of a training without Ray."""
    plan = bench.plan("killed", "plain", "rough", "wild")
    metrics = job_folder(plan.run_dir, ROUGH) / METRICS
    with (
        workers_watched(kill_after=metrics, step=10) as workers,
        pytest.raises(DivergedError, match="NaN or Inf") as caught,
    ):
        run_worker_group(plan)
    assert caught.value.exit_code == 3
    assert len(workers) == 2  # the one that was killed, and the one after it
    assert outcome(plan.run_dir) == outcome(undisturbed)
    for job in (PLAIN, ROUGH):
        assert points(plan.run_dir, job) == points(undisturbed, job)
    assert not (plan.run_dir / "ray").exists()
    assert not list(plan.run_dir.glob(f"{FAILURE}*"))


def test_two_workers_train_the_same_student(bench: Bench, undisturbed: Path) -> None:
    """Only sums are taken in another order: rounding grows to some 1e-4 of a loss."""
    plan = bench.plan("shared", "plain", workers=2)
    run_worker_group(plan)
    found, expected = points(plan.run_dir, PLAIN), points(undisturbed, PLAIN)
    assert [point.keys() for point in found] == [point.keys() for point in expected]
    for here, there in zip(found, expected, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-4)
    for task, logits in load_file(job_folder(undisturbed, PLAIN) / PREDICTIONS).items():
        again = load_file(job_folder(plan.run_dir, PLAIN) / PREDICTIONS)[task]
        assert torch.allclose(again, logits, rtol=0, atol=1e-3)
