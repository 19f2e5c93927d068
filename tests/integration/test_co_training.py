"""Teachers that are trained on beside their student, by the command: an actor is killed, and the weights are those of a training without Ray."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.load import load_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.prepare import prepare, teacher_specs
from pipeline.report.evidence import checked_keys
from pipeline.run_folder import job_folder
from pipeline.training.jobs import train_jobs
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.plan import new_plan
from pipeline.training.step import Workers
from tests.conftest import TinyModel
from tests.integration.command import TUTELAGE, Command, processes_of, started, tutelage, wait_until
from tests.integration.conftest import MakeRun

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
JOB = Job("bare", "distilled")


def at_step(run_dir: Path, step: int) -> Callable[[], bool]:
    """Whether the training has logged a step."""
    return lambda: any(line["step"] >= step for line in read_metrics(job_folder(run_dir, JOB) / METRICS))


def weights(run_dir: Path) -> dict[str, bytes]:
    """Of the student and of its teachers."""
    files = [*run_dir.glob("students/*/*/*.safetensors"), *run_dir.glob("teachers/*/*/*.safetensors")]
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in files}


def kill_a_teacher(command: Command) -> None:
    pids = [
        pid
        for pid, title in processes_of(command.process.pid).items()
        if re.match(r"ray::LiveTeacherActor", title)
    ]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)


def in_this_process(config: RunConfig) -> None:
    """The run's trainings without Ray, teachers and all."""
    inputs = prepare(config)
    live = {spec.name: spec for spec in teacher_specs(config, inputs, config.co_trained)}
    folders = {name: str(folder) for name, folder in inputs.teachers.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_jobs(new_plan(config, inputs.facts, inputs.data, {}, folders, live=live), Workers())
    torch.set_num_threads(threads)


def test_a_killed_teacher_goes_on_and_no_weight_depends_on_it(
    tmp_path: Path, make_run: MakeRun, ready_teachers: dict[str, dict[str, Any]], tiny_model: TinyModel
) -> None:
    file = make_run(
        tmp_path,
        runs_dir=str(tmp_path / "runs"),
        teachers=ready_teachers,
        students={"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}},
        aggregation={"strategy": "mean"},
        baselines=[],
        co_train={"learning_rate": 1e-3},
        tracking={"enabled": False},
    )
    whole, killed = (load_config(file, [f"name={name}"]) for name in ("whole", "killed"))
    in_this_process(whole)
    with started(TUTELAGE, "train", file.name, "name=killed", cwd=tmp_path) as command:
        wait_until(at_step(killed.run_dir, 20), lambda: command.output, 400)
        kill_a_teacher(command)
        assert command.wait() == 0, command.output
    assert len(weights(whole.run_dir)) == 4
    assert weights(killed.run_dir) == weights(whole.run_dir)

    report = json.loads((killed.run_dir / "report.json").read_text())
    assert report["teacher_forwards"] == {"mood-ready": 48, "tone-ready": 48}  # validation and test
    assert any("mood-ready was trained on beside the student" in note for note in report["notes"])
    # what reads the store afterwards sees the teachers as they are at the end
    inputs = prepare(killed)
    before = {spec.name: spec.key for spec in teacher_specs(killed, inputs)}
    assert checked_keys(killed, inputs).items().isdisjoint(before.items())
    again = tutelage("train", file.name, "name=killed", cwd=tmp_path)
    assert "nothing left to train" in again.output, again.output
