"""A real MLflow server that comes up after the run began, and goes down and up again in the middle of it."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from examples.mlflow_server import is_well
from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.config.view import to_yaml
from pipeline.tracking.tracker import open_tracker
from pipeline.tracking.uri import ui_command
from tests.integration.command import TUTELAGE, Command, all_processes, descendants, started, wait_until
from tests.integration.serving import serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
]


def config(folder: Path, uri: str | None) -> RunConfig:
    return parse_config(
        {
            "name": "served",
            "runs_dir": str(folder / "runs"),
            "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
            "teachers": {"big": {"task": "movies", "model": "big"}},
            "students": {"half": {"init_from": "big"}},
            "tracking": {"uri": uri},
        }
    )


def append(file: Path, steps: range) -> None:
    with file.open("a") as stream:
        for step in steps:
            stream.write(
                json.dumps({"step": step, "time": 1000.0 + step, "metrics": {"loss": step / 10}}) + "\n"
            )


def listening_elsewhere(port: int) -> list[str]:
    """Addresses other than loopback at which something listens on `port`, in the kernel's notation."""
    tables = [
        table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()
    ]  # Linux only
    sockets = "".join(table.read_text() for table in tables)
    addresses = [line.split()[1] for line in sockets.splitlines() if line.split()[3] == "0A"]
    return [a for a in addresses if a.endswith(f":{port:04X}") and not a.startswith("0100007F:")]


def test_points_are_replayed_when_the_server_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ui_command(config(tmp_path, uri=None), port=5600)
    port = int(command[-1])
    url = f"http://127.0.0.1:{port}"
    settings = config(tmp_path, uri=url)
    file, report = tmp_path / "metrics.jsonl", tmp_path / "report.md"
    report.write_text("# Report")
    append(file, range(1, 4))

    tracker = open_tracker(settings, settings.run_dir)  # nothing listens there yet
    tracker.run("", "served", "parent", {}, {"a": 1})
    tracker.run("half", "half", "student", {"task": "movies"}, {})
    tracker.follow("half", file)
    tracker.artifacts("", report)
    time.sleep(3)
    ledger = settings.run_dir / "mlflow.json"
    assert not ledger.exists() or json.loads(ledger.read_text())["runs"] == {}

    def sent() -> int:
        runs = json.loads(ledger.read_text())["runs"] if ledger.exists() else {}
        return int(runs["half"]["followed"].get("loss", 0)) if "half" in runs else 0

    with serving(command, url, tmp_path / "server.log"):
        wait_until(lambda: sent() == 3, lambda: "points of before the server were not replayed", 120)
        assert listening_elsewhere(port) == []
    append(file, range(4, 7))  # while it is down again
    time.sleep(3)
    assert sent() == 3
    with serving(command, url, tmp_path / "server.log"):
        wait_until(lambda: sent() == 6, lambda: "points of the outage were not replayed", 120)
        tracker.finish("half", "FINISHED")
        outcome = tracker.close(timeout_s=60)
        assert (outcome.points_sent, outcome.points_lost, outcome.operations_lost) == (6, 0, 0)
        client = MlflowClient(tracking_uri=url)
        history = client.get_metric_history(outcome.run_ids["half"], "loss")
        assert [(point.step, point.value) for point in history] == [(step, step / 10) for step in range(1, 7)]
        assert client.get_run(outcome.run_ids["half"]).info.status == "FINISHED"
        assert capsys.readouterr().out == "", "MLflow prints nothing among the progress"
        assert client.get_run(outcome.run_ids[""]).info.status == "KILLED"
        assert [artifact.path for artifact in client.list_artifacts(outcome.run_ids[""])] == ["report.md"]


def test_a_signal_to_the_command_ends_its_server(tmp_path: Path) -> None:
    """The whole server: MLflow starts processes of its own below the one that the command starts."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path, uri=None)))
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with started(TUTELAGE, "ui", file.name, cwd=tmp_path) as command:
            pids: set[int] = set()

            def serves(command: Command = command, pids: set[int] = pids) -> bool:
                pids.update(descendants(command.process.pid))
                address = re.search(r"http://127\.0\.0\.1:\d+", command.output)
                return command.ended() or (address is not None and is_well(address[0]))

            wait_until(serves, lambda: command.output, 120)
            assert len(pids) > 1, command.output
            command.send(number)
            assert command.wait(30) == code, command.output
            wait_until(
                lambda pids=pids: not pids & all_processes().keys(),  # type: ignore[misc]
                lambda pids=pids: str([all_processes().get(pid) for pid in pids]),  # type: ignore[misc]
                10,
            )
            assert "Traceback" not in command.output
