"""`tutelage tune` as a person runs it: real Ray Tune, concurrent trials, some that fail or are ended early, one store,
MLflow; killed in the middle and started again."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray.tune
import yaml
from mlflow import MlflowClient

from pipeline.config.load import load_config
from pipeline.training.result import read_facts, read_predictions
from tests.conftest import TinyModel
from tests.integration.command import (
    TUTELAGE,
    assert_none_left,
    started,
    tutelage,
    wait_until,
)
from tests.integration.conftest import MakeRun
from tests.unit.tune.studies import search_of, with_facts
from tune import search as searching
from tune.study import Trial
from tune.trial import Shared

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
]

EXAMPLES = 144  # of a task: 96 train, 24 validation, 24 test


def study_of(folder: Path) -> dict[str, Any]:
    """What the study's study.json says."""
    found: dict[str, Any] = json.loads((folder / "runs/first-study/study.json").read_text())
    return found


def records(folder: Path) -> dict[int, dict[str, Any]]:
    """The trials' own records, by number."""
    files = sorted((folder / "runs/first-study/trials").glob("*/trial.json"))
    return {int(file.parent.name): json.loads(file.read_text()) for file in files}


def make_search(
    make_run: MakeRun, teachers: dict[str, dict[str, Any]], folder: Path, **sections: Any
) -> None:
    """A run file whose teachers need no fine-tuning, and whose one student trains in seconds."""
    train = {
        "epochs": 4,
        "batch_size": 6,
        "learning_rate": 2e-3,
        "checkpoint_steps": 7,
        "early_stopping": None,
    }
    given = {
        "teachers": teachers,
        "aggregation": {"strategy": "mean"},
        "train": {**train, **sections.pop("train", {})},
    }
    make_run(folder, **given, **sections)


def test_a_killed_search_goes_on_to_its_winner(
    make_run: MakeRun,
    ready_teachers: dict[str, dict[str, Any]],
    tiny_model: TinyModel,
    tmp_path: Path,
) -> None:
    too_high = 1e30  # its trials diverge
    space = {
        "loss.temperature": {"uniform": [1, 8]},
        "loss.task_weights.mood": {"loguniform": [0.3, 3]},
        "loss.soft": {"uniform": [0.1, 1]},
        "train.learning_rate": {"choice": [2e-3, too_high]},
    }
    search = {"trials": 4, "concurrency": 2, "space": space, "algorithm": "random", "scheduler": "none"}
    student = {"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}}
    make_search(make_run, ready_teachers, tmp_path, students=student, tune=search, seeds=[0, 1])

    with started(TUTELAGE, "tune", "run.yaml", cwd=tmp_path) as command:
        wait_until(lambda: command.ended() or _done(tmp_path) >= 1, lambda: command.output, 400)
        command.send(signal.SIGKILL, group=True)
        command.wait(30)
        assert f"{2 * EXAMPLES} computed" in command.output
    before = {number: one for number, one in records(tmp_path).items() if one["status"] != "running"}
    assert before

    command = tutelage("tune", "run.yaml", cwd=tmp_path, timeout_s=400)
    assert command.process.returncode == 0, command.output
    after, study = records(tmp_path), study_of(tmp_path)
    assert {number: after[number] for number in before} == before, "ended trials are not run again"
    assert len(study["trials"]) == 4
    statuses = [trial["status"] for trial in study["trials"]]
    assert set(statuses) == {"finished", "failed"}
    for trial in study["trials"]:
        diverged = trial["values"]["train.learning_rate"] == too_high
        assert (trial["status"] == "failed") == diverged
        if diverged:
            assert "NaN or Inf" in trial["error"]
            assert trial["failures"] in (2, 3)  # once more, then marked; 3 where the kill came between
    assert study["teacher_forwards"] == {"mood-ready": 0, "tone-ready": 0}, "all of them in the first launch"
    runs_tested = 2 if study["choice"]["stays"] else 4
    assert command.output.count("bare-distilled was trained by the search") == runs_tested
    _check_winner(tmp_path, study)
    _check_mlflow(tmp_path, statuses)


def _done(folder: Path) -> int:
    return sum(one["status"] in ("finished", "failed") for one in records(folder).values())


def _check_winner(folder: Path, study: dict[str, Any]) -> None:
    """The best on validation under every seed, or the default; its config complete; scores on test beside the baseline's."""
    finished = [trial["number"] for trial in study["trials"] if trial["status"] == "finished"]
    (winner,) = [trial for trial in study["trials"] if trial["best"]]
    own = next(trial for trial in study["trials"] if trial["number"] == 0)
    assert own["values"]["loss.temperature"] == 2.0, "the config's own values come first"
    choice = study["choice"]
    assert (choice["default"], choice["winner"], choice["seeds"]) == (0, winner["number"], [0, 1])
    assert {int(number) for number in choice["gains"]} == set(finished) - {0}
    assert choice["stays"] == (winner["number"] == 0)
    assert choice["stays"] or choice["gains"][str(winner["number"])]["lowest"] > 0
    finals = [
        json.loads(file.read_text()) for file in (folder / "runs/first-study/finals").glob("*/trial.json")
    ]
    assert sorted((one["repeats"], one["seed"], one["status"]) for one in finals) == [
        (number, 1, "finished") for number in finished
    ]
    run = "first" if choice["stays"] else "first-best"
    config = load_config(folder / "runs/first-study/best.yaml")
    assert config.loss.temperature == winner["values"]["loss.temperature"]
    assert config.tune is None
    reports = [json.loads((folder / f"runs/{run}-seed{seed}/report.json").read_text()) for seed in (0, 1)]
    macro = study["test"]["scores"]["macro"]
    assert macro["best"] == [report["macro"]["students"]["bare"]["score"] for report in reports]
    assert macro["best_supervised"] == [
        report["macro"]["students"]["bare"]["supervised"] for report in reports
    ]
    assert macro["default_supervised"] is not None
    curve = [
        json.loads(line)["metrics"]
        for line in (folder / f"runs/{run}-seed0/checkpoints/bare-distilled/metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    last = [point["macro/score"] for point in curve if "macro/score" in point][-1]
    assert last == winner["scores"]["macro/score"], "best.yaml makes the winner again"
    with (folder / "runs/first-study/trials.csv").open() as file:
        assert [int(row["number"]) for row in csv.DictReader(file)] == list(range(4))
    figures = {file.name for file in (folder / "runs/first-study/figures").iterdir()}
    assert {"parallel.png", "pareto.png", "curves.png", "cost.png"} <= figures
    assert not list((folder / "runs/first-study/trials").rglob("step-*")), "ended trials keep no weights"
    assert not list((folder / "runs/first-study/finals").rglob("step-*"))


def _check_mlflow(folder: Path, statuses: list[str]) -> None:
    """A parent, a child a trial, nothing left running, each child with what it was given and what it scored."""
    client = MlflowClient(f"sqlite:///{folder}/runs/_mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs)
    (parent,) = [run for run in runs if run.data.tags["role"] == "study"]
    finals = [run for run in runs if run.data.tags["role"] == "final"]
    assert [(run.data.tags["seed"], run.info.status) for run in finals] == [
        ("1", "FINISHED")
    ] * statuses.count("finished")
    children = {run.info.run_name: run for run in runs if run.data.tags["role"] == "trial"}
    assert len(children) == 4
    for number, status in enumerate(statuses):
        run = children[f"trial-{number:03d}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["outcome"] == status
        assert run.info.status == ("FAILED" if status == "failed" else "FINISHED")
        assert "loss.temperature" in run.data.params
        if status == "finished":
            wanted = {"validation/macro", "validation/mood", "loss/soft/mood", "best/macro"}
            wanted |= {"best/retention/macro", "best/retention/tone"}
            assert wanted <= set(run.data.metrics)
            history = client.get_metric_history(run.info.run_id, "validation/macro")
            assert len({point.step for point in history}) == len(history) == 4, "each epoch once"
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "study.md", "study.json", "trials.csv", "figures"} <= artifacts
    assert "test/macro/best" in parent.data.metrics


def test_trials_of_two_workers_are_ended_early_and_leave_none(
    make_run: MakeRun, ready_teachers: dict[str, dict[str, Any]], tiny_model: TinyModel, tmp_path: Path
) -> None:
    """What hangs where ended trials keep their workers: the last one has no CPUs before two others are gone."""
    search = {
        "trials": 3,
        "concurrency": 2,
        "reduction_factor": 2,
        # the first one learns, the others cannot: they are ended at the first rung
        "space": {"train.learning_rate": {"choice": [1e-2, 1e-9, 2e-9]}},
        "algorithm": "grid",
    }
    student = {"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}}
    make_search(
        make_run,
        ready_teachers,
        tmp_path,
        students=student,
        tune=search,
        baselines=[],
        train={"workers": 2, "epochs": 8, "cpus_per_worker": 1},
        loss={"hard": 1.0, "soft": 0.0},
        tracking={"enabled": False},
        cluster={"cpus": 4},
    )
    with started(TUTELAGE, "tune", "run.yaml", cwd=tmp_path) as command:
        done = tmp_path / "runs/first-study/study.json"
        wait_until(lambda: command.ended() or done.exists(), lambda: command.output, 400)
        command.send(signal.SIGINT)  # the winner's own training is seen above
        assert command.wait(60) == 130, command.output
        assert_none_left(command)
    study = study_of(tmp_path)
    ended = [trial["status"] for trial in study["trials"]]
    assert len(ended) == 3
    assert set(ended) == {"early-stopped", "finished"}
    assert sum(study["teacher_forwards"].values()) == 2 * EXAMPLES, "once a teacher, however many trials"
    assert study["forwards_ratio"] == 1.0


def test_trials_are_cross_validated_with_teachers_that_have_not_seen_the_fold(
    make_run: MakeRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    bert = str(tiny_model("bert"))
    tuned = {"epochs": 1, "learning_rate": 1e-2, "early_stopping": None}
    make_run(tmp_path)
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    sections = {
        "tasks": {"mood": run["tasks"]["mood"]},
        "teachers": {"tuned": {"task": "mood", "model": bert, "fine_tune": tuned, "preflight": "warn"}},
        "students": {"bare": run["students"]["bare"]},
        "aggregation": {"strategy": "mean"},
        "stages": [{"loss": {"hidden": 1}, "epochs": 2}, {"epochs": 2}],
        "train": {**run["train"], "epochs": None, "learning_rate": None, "head_learning_rate": None},
        "baselines": [],
        "tracking": {"enabled": False},
    }
    space = {"stages.1.learning_rate": {"choice": [2e-3, 4e-3]}}
    search = {"trials": 2, "concurrency": 1, "space": space, "algorithm": "grid", "folds": 2}
    make_run(tmp_path, tune={**search, "scheduler": "none"}, **sections)
    command = tutelage("tune", "run.yaml", cwd=tmp_path, timeout_s=300)
    assert command.process.returncode == 0, command.output
    study = study_of(tmp_path)
    assert study["folds"] == 2
    assert [trial["status"] for trial in study["trials"]] == ["finished", "finished"]
    assert study["soft_targets"] == {"tuned": 3 * EXAMPLES}, (
        "of the teacher itself, and of those of the folds"
    )
    assert study["forwards_ratio"] == 1.0
    assert len(list((tmp_path / "runs/_teachers").glob("tuned-*/teacher"))) == 3
    for trial in study["trials"]:
        folder = tmp_path / f"runs/first-study/trials/{trial['number']:03d}"
        own = [read_facts(folder / f"fold-{fold}/checkpoints/bare-distilled") for fold in (1, 2)]
        assert trial["epochs"] == 8
        mean = sum(one["kept"]["macro/score"] for one in own) / 2
        assert trial["scores"]["macro/score"] == pytest.approx(mean)
        every = read_predictions(folder / "checkpoints/bare-distilled")
        assert len(every["mood"]) == EXAMPLES - 24, "all of train and validation"
        assert not list(folder.rglob("step-*"))
    # the first stage of a fold was trained once, by the first trial
    seconds = [
        read_facts(tmp_path / f"runs/first-study/trials/{number:03d}/fold-1/checkpoints/bare-distilled")[
            "epoch_seconds"
        ]
        for number in (0, 1)
    ]
    assert seconds[0][:2] == seconds[1][:2]
    assert seconds[0][2:] != seconds[1][2:]
    assert not (tmp_path / "runs/first-study/first-stages").exists()


def test_ctrl_c_leaves_a_study_that_goes_on(
    make_run: MakeRun, ready_teachers: dict[str, dict[str, Any]], tiny_model: TinyModel, tmp_path: Path
) -> None:
    search = {"trials": 3, "concurrency": 2, "space": {"loss.temperature": {"uniform": [1, 8]}}}
    student = {"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}}
    make_search(
        make_run,
        ready_teachers,
        tmp_path,
        students=student,
        tune={**search, "scheduler": "none"},
        baselines=[],
        train={"epochs": 400},
        stages=[],  # a first stage on hidden states would report no epoch
        tracking={"enabled": False},
    )
    with started(TUTELAGE, "tune", "run.yaml", cwd=tmp_path) as command:
        wait_until(lambda: command.ended() or _epochs(tmp_path) >= 2, lambda: command.output, 400)
        command.send(signal.SIGINT)
        assert command.wait(60) == 130, command.output
        assert_none_left(command)
    study = study_of(tmp_path)
    assert {trial["status"] for trial in study["trials"]} == {"interrupted"}
    assert any(trial["best"] for trial in study["trials"]), "the best so far"
    assert (tmp_path / "runs/first-study/best.yaml").exists()
    assert list((tmp_path / "runs/first-study/trials").rglob("step-*")), "to go on from"


def _epochs(folder: Path) -> int:
    return min([one["epochs"] for one in records(folder).values()], default=0)


def test_a_process_serves_trials_one_after_another_until_one_fails(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that raises, or whose process dies, is tried again in a new process; what it left behind serves no other."""
    log = tmp_path / "log"

    def train(config: dict[str, Any], shared: Shared) -> None:
        number, begun = config["point"]["number"], log.read_text().split()
        with log.open("a") as stream:
            stream.write(f"{number}:{os.getpid()}\n")
        if number in (1, 3) and not any(one.startswith(f"{number}:") for one in begun):
            if number == 3:
                os._exit(1)
            raise RuntimeError("the first attempt fails")
        ray.tune.report({"epoch": 1, "macro/score": 0.5})

    log.touch()
    monkeypatch.setattr(searching, "_trainable", train)
    space = {"loss.temperature": {"choice": [1.0, 2.0, 3.0, 4.0, 5.0]}}
    config = search_of(space, algorithm="grid", trials=5, concurrency=1, scheduler="none", retries=1)
    data: Any = dict.fromkeys(("movies", "stars"))
    trials: list[Trial] = []
    shared = Shared(*with_facts(config), tmp_path / "study/trials", data, {}, {}, 1.0)
    searching.search(config, shared, trials, lambda trial: None, lambda: False)

    attempts = [tuple(map(int, line.split(":"))) for line in log.read_text().split()]
    assert sorted(number for number, _ in attempts) == [0, 1, 1, 2, 3, 3, 4]
    assert {trial.number: trial.failures for trial in trials} == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
    assert len({process for _, process in attempts}) == 3, "one at first, and one after each failure"
    for failing in (1, 3):
        first = next(place for place, (number, _) in enumerate(attempts) if number == failing)
        assert attempts[first][1] not in [process for _, process in attempts[first + 1 :]]
