"""Which URIs MLflow can keep runs at, and the command that shows them."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pipeline.config.rounds import RoundsConfig
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.tracking.tracker import open_tracker
from pipeline.tracking.uri import opens_browser, pages, server_page, ui_command
from pipeline.tracking.views import View
from tests.unit.pipeline.tracked import Launch, config

pytestmark = pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b")


@pytest.mark.parametrize("uri", ["file:///mlruns", "mlruns", "ftp://me:hunter2@host"])
def test_a_uri_of_no_use_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri") as refused:
        open_tracker(config(tmp_path, "bad", uri=uri), tmp_path / "bad")
    assert "hunter2" not in str(refused.value)


def test_ui_command_is_loopback_and_finds_a_free_port(tmp_path: Path) -> None:
    settings = config(tmp_path, "ui")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = int(busy.getsockname()[1])
        command = ui_command(settings, port=taken)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert int(options["--port"]) != taken
    assert options["--backend-store-uri"] == settings.tracking_uri
    assert options["--default-artifact-root"] == str(tmp_path / "_mlflow" / "artifacts")


def test_ui_of_a_server_is_the_servers_own() -> None:
    with pytest.raises(ConfigError, match="server") as refused:
        ui_command(config(Path("runs"), "ui", uri="http://127.0.0.1:1"))
    assert "http://127.0.0.1:1" in refused.value.remedy


def test_the_server_page_is_the_servers_own_without_its_password(tmp_path: Path) -> None:
    assert server_page(config(tmp_path, "first"), 5001) == "http://127.0.0.1:5001"
    away = config(tmp_path, "first", uri="https://me:hunter2@mlflow.example:8443/base/")
    assert server_page(away) == "https://mlflow.example:8443/base"
    assert server_page(config(tmp_path, "first", uri="databricks://profile")) is None


def test_pages_are_those_of_the_run_its_seeds_and_its_search(launch: Launch, settings: RunConfig) -> None:
    base = "http://127.0.0.1:5001"
    assert pages(settings, base) == {"MLflow": f"{base}/#/experiments"}
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.experiment("Ours.", "Ours", [View("mine", "Mine", True, {})])
    experiment = tracker.close(timeout_s=60).experiment_id
    runs = f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    wanted = {
        "Mine": f"{runs}&compareRunsMode=CHART&viewStateShareKey=mine",
        f"All runs of {settings.name}": runs,
    }
    assert pages(settings, base) == wanted
    study = settings.run_dir.rename(settings.run_dir.with_name(f"{settings.name}-study"))
    assert pages(settings, base) == wanted  # a search that was stopped has no other folder
    study.rename(settings.run_dir.with_name("other"))
    assert pages(settings, base) == {"MLflow": f"{base}/#/experiments"}


def test_pages_of_a_config_in_rounds_are_those_of_its_rounds(launch: Launch, settings: RunConfig) -> None:
    """As they are of each seed of a round."""
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.experiment("Ours.", "Ours", [View("mine", "Mine", True, {})])
    tracker.close(timeout_s=60)
    rounds = settings.model_copy(update={"rounds": RoundsConfig(count=2), "seeds": (3,)})
    for name in ("round1", "round2-seed3"):
        there = settings.run_dir.rename(settings.run_dir.with_name(f"{settings.name}-{name}"))
        assert "Mine" in pages(rounds, "http://127.0.0.1:5001")
        there.rename(settings.run_dir)


@pytest.mark.parametrize(
    ("environment", "platform", "terminal", "opens"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, True),
        ({}, "linux", True, False),  # Python would open a text browser in the terminal
        ({}, "darwin", True, True),
        ({"DISPLAY": ":0"}, "linux", False, False),  # a pipe, or a service
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a 1 b 22"}, "linux", True, False),
        ({"SSH_TTY": "/dev/pts/0"}, "darwin", True, False),
        ({"BROWSER": "code-browser", "SSH_CONNECTION": "a 1 b 22"}, "linux", True, True),  # opens at home
    ],
)
def test_a_browser_opens_where_a_person_expects_it(
    environment: dict[str, str], platform: str, terminal: bool, opens: bool
) -> None:
    assert opens_browser(environment, platform, terminal=terminal) == opens
