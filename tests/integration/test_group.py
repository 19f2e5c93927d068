"""One config under two seeds, as a person would: interrupted between the two, gone on with, then compared."""

from __future__ import annotations

import csv
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import TUTELAGE, Command, assert_none_left, started, tutelage, wait_until
from tests.integration.conftest import MakeRun
from tests.unit.pipeline.compare.test_show import Page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
]

ARGUMENTS = ("train", "run.yaml", "name=several", "seeds=[1,2]", "train.epochs=1")


@pytest.fixture(scope="module")
def interrupted(
    make_run: MakeRun, ready_teachers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Command]:
    """The folder of a group stopped as its second seed began, and the command that was."""
    folder = tmp_path_factory.mktemp("group")
    make_run(folder, teachers=ready_teachers, students={"cut": {"init_from": "mood-ready", "layers": 1}})
    with started(TUTELAGE, *ARGUMENTS, cwd=folder) as command:
        wait_until(
            lambda: "seed 2 (2 of 2)" in command.output or command.ended(),
            lambda: command.output,
            timeout_s=400,
        )
        command.send(signal.SIGINT, group=True)
        command.wait(60)
        assert_none_left(command)
    return folder, command


@pytest.fixture(scope="module")
def done(interrupted: tuple[Path, Command]) -> tuple[Path, Command]:
    """The same folder when the same command has been given again."""
    folder, _ = interrupted
    return folder, tutelage(*ARGUMENTS, cwd=folder, timeout_s=400)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_ctrl_c_as_a_seed_begins_is_heard(interrupted: tuple[Path, Command]) -> None:
    folder, command = interrupted
    assert command.process.returncode == 130, command.output
    assert "Traceback" not in command.output
    assert "error: interrupted" in command.output
    assert (folder / "runs/several-seed1/report.json").exists()
    assert not (folder / "runs/several-seed2/report.json").exists()
    assert not (folder / "runs/several/group.json").exists()


def test_the_same_command_goes_on_with_the_other_seed(done: tuple[Path, Command]) -> None:
    folder, command = done
    assert command.process.returncode == 0, command.output
    assert command.output.count("nothing left to train") == 1
    assert command.output.count("train: cut-distilled, cut-supervised") == 1
    assert "no test can give p below 0.5" in command.output
    reports = [read(folder / f"runs/several-seed{seed}/report.json") for seed in (1, 2)]
    assert [(report["seed"], report["group"]) for report in reports] == [(1, "several"), (2, "several")]
    assert [report["forwards_ratio"] for report in reports] == [0, 0]  # the interrupted command labelled
    group = read(folder / "runs/several/group.json")
    scores = [report["macro"]["students"]["cut"]["score"] for report in reports]
    assert group["macro"]["students"]["cut"]["score"]["by_seed"] == scores
    assert group["p_floor"] == 0.5
    assert "a run each" in (folder / "runs/several/group.md").read_text()


def test_both_runs_are_in_one_experiment(done: tuple[Path, Command]) -> None:
    from mlflow import MlflowClient

    folder, _ = done
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs/_mlflow/mlflow.db'}")
    experiment = client.get_experiment_by_name("several")
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], "tags.role = 'parent'")
    assert {run.info.run_name for run in parents} == {"several-seed1", "several-seed2"}
    assert {(run.data.tags["group"], run.info.status) for run in parents} == {("several", "FINISHED")}
    assert {run.data.params["seed"] for run in parents} == {"1", "2"}


@pytest.mark.parametrize("name", ["runs/several", "several"])
def test_compare_has_a_row_for_both(done: tuple[Path, Command], name: str) -> None:
    folder, _ = done
    command = tutelage("compare", name, "--to", "csv", cwd=folder)
    (row,) = csv.DictReader(io.StringIO(command.output))
    group = read(folder / "runs/several/group.json")["macro"]["students"]["cut"]
    assert (row["run"], row["student"], row["seeds"]) == ("several", "cut", "2")
    assert float(row["macro/score"]) == group["score"]["mean"]
    assert float(row["macro/p"]) == group["delta"]["p"]


def test_compare_as_a_page(done: tuple[Path, Command]) -> None:
    folder, _ = done
    command = tutelage("compare", "--to", "html", "--filter", "student=cut", "--sort", "p", cwd=folder)
    page = Page(command.output)
    assert page.open == []
    assert {"several", "cut", "mood-ready", "tone-ready", "mood/accuracy"} <= set(page.text)
