"""The shared MLflow server of examples/: trackers in several processes write to it at once, and nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from examples.mlflow_server import find_postgres, make_cluster, postgres, server_user
from pipeline.config.load import parse_config
from pipeline.errors import ConfigError
from pipeline.tracking.tracker import open_tracker
from tests.conftest import TinyModel
from tests.integration.command import Command, all_processes, descendants, started, wait_until

ROOT = Path(__file__).resolve().parents[2]
STUDIES, TRIALS, STEPS = 2, 3, 150


def why_not() -> str:
    """Why PostgreSQL cannot be tested here, or nothing."""
    try:
        find_postgres()
    except ConfigError as error:
        return error.cause
    return ""


pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
    pytest.mark.skipif(bool(why_not()), reason="no PostgreSQL: apt-get install postgresql"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user postgres can reach, which pytest's own are not where root runs the tests."""
    path = Path(tempfile.mkdtemp(prefix="tutelage-postgres-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def shared_server(folder: Path) -> Iterator[tuple[Command, str]]:
    """The script under way, and the URI that it says to use; stopped as by `kill`, which ends its servers too."""
    script = (sys.executable, str(ROOT / "examples" / "mlflow_server.py"))
    with started(*script, "--folder", str(folder / "server"), "--port", "5700", cwd=folder) as command:
        try:
            wait_until(
                lambda: "tracking.uri=" in command.output or command.ended(), lambda: command.output, 300
            )
            (uri,) = re.findall(r"tracking\.uri=(\S+)", command.output)
            yield command, uri
        finally:
            if not command.ended():
                command.send(signal.SIGTERM)
                command.wait(60)


def alive(pids: Iterable[int]) -> dict[int, str]:
    """Process id → title of those of `pids` that still run."""
    processes = all_processes()
    return {
        pid: processes[pid][2] for pid in pids if pid in processes and not processes[pid][1].startswith("Z")
    }


def curves(study: int, trial: int) -> dict[str, dict[int, float]]:
    """What a trial logs: values by step, by metric."""
    steps = range(1, STEPS + 1)
    return {
        "loss/total": {step: study + trial + step / 1000 for step in steps},
        "macro/score": {step: step / STEPS for step in steps},
    }


def record(study: int, folder: str, uri: str, model: str) -> tuple[int, int, int]:
    """A study in a process of its own, its trials writing at once; points sent and lost, other calls lost."""
    settings = parse_config(
        {
            "name": f"study-{study}",
            "runs_dir": f"{folder}/runs",
            "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
            "teachers": {"big": {"task": "movies", "model": "big"}},
            "students": {"half": {"init_from": "big"}},
            "tracking": {"uri": uri, "experiment": "shared"},
        }
    )
    settings.run_dir.mkdir(parents=True)
    tracker = open_tracker(settings, settings.run_dir)
    tracker.run("", settings.name, "study", {}, {"study": study})
    trials = {f"trial-{trial:03d}": curves(study, trial) for trial in range(TRIALS)}
    for key in trials:
        tracker.run(key, key, "trial", {}, {"of": f"{study}/{key}"})
        tracker.follow(key, settings.run_dir / f"{key}.jsonl")
    for step in range(1, STEPS + 1):
        for key, curve in trials.items():
            metrics = {metric: values[step] for metric, values in curve.items()}
            with (settings.run_dir / f"{key}.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": step, "time": 1.8e9 + step, "metrics": metrics}) + "\n")
    for key in trials:
        tracker.artifacts(key, settings.run_dir / f"{key}.jsonl")
        tracker.tags(key, {"outcome": "finished"})
        tracker.finish(key, "FINISHED")
    tracker.model("", "best-movies", Path(model), "text-classification")
    tracker.register("", "best-movies", "shared-movies")
    tracker.finish("", "FINISHED")
    outcome = tracker.close(timeout_s=200)
    return outcome.points_sent, outcome.points_lost, outcome.operations_lost


def assert_trials_are_whole(client: MlflowClient, run: Run, study: int, folder: Path) -> None:
    """A trial's run has all that was logged, once."""
    key = str(run.info.run_name)
    assert run.data.params == {"of": f"{study}/{key}"}
    assert (run.data.tags["outcome"], run.info.status) == ("finished", "FINISHED")
    for metric, values in curves(study, int(key[-3:])).items():
        history = client.get_metric_history(run.info.run_id, metric)
        assert sorted((point.step, point.value) for point in history) == sorted(values.items())
    (artifact,) = client.list_artifacts(run.info.run_id)
    kept = client.download_artifacts(run.info.run_id, artifact.path, str(folder))
    assert len(Path(kept).read_text().splitlines()) == STEPS


def test_trackers_in_several_processes_lose_nothing(folder: Path, tiny_model: TinyModel) -> None:
    model = tiny_model("bert", ("bad", "good"))
    with shared_server(folder) as (server, uri):
        below = descendants(server.process.pid)
        assert any("postgres" in title for title in below.values())
        with ProcessPoolExecutor(STUDIES, mp_context=multiprocessing.get_context("spawn")) as processes:
            asked = [
                processes.submit(record, study, str(folder), uri, str(model)) for study in range(STUDIES)
            ]
            assert [one.result() for one in asked] == [(STEPS * TRIALS * 2, 0, 0)] * STUDIES

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("shared")
        assert experiment is not None
        assert experiment.artifact_location.startswith("mlflow-artifacts:")
        runs = client.search_runs([experiment.experiment_id])
        studies = {
            run.info.run_id: int(run.data.params["study"]) for run in runs if "study" in run.data.params
        }
        trials = [run for run in runs if run.info.run_id not in studies]
        assert sorted(studies.values()) == list(range(STUDIES))
        assert len(trials) == STUDIES * TRIALS
        for run in trials:
            assert_trials_are_whole(client, run, studies[run.data.tags["mlflow.parentRunId"]], folder)

        versions = client.search_model_versions("name = 'shared-movies'")
        assert {version.run_id for version in versions} == set(studies)
        logged, *others = client.search_logged_models([experiment.experiment_id])
        assert len(others) == STUDIES - 1
        files = {file.path for file in client.list_logged_model_artifacts(logged.model_id, "model")}
        assert files == {f"model/{file.name}" for file in model.iterdir()}

    assert server.process.returncode == 0, server.output
    wait_until(lambda: not alive(below), lambda: f"left behind: {alive(below)}", 30)


def test_the_cluster_is_found_again_and_asks_for_its_password(folder: Path) -> None:
    import psycopg

    def connect(where: str, password: str) -> psycopg.Connection:
        host, port = where.split(":")
        return psycopg.connect(host=host, port=port, user="mlflow", password=password, dbname="mlflow")

    with postgres(folder / "postgres") as first, connect(first.where, first.password) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    with postgres(folder / "postgres") as second:
        assert second.password == first.password
        with connect(second.where, second.password) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(second.where, "wrong")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
def test_a_folder_out_of_reach_is_an_error_of_two_lines(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="initdb made no PostgreSQL cluster") as refused:
        make_cluster(find_postgres(), tmp_path / "closed" / "postgres", server_user())
    assert "--folder" in refused.value.remedy
