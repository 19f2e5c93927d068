"""Which URIs MLflow can keep runs at, and the command that shows them."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.tracking.tracker import open_tracker
from pipeline.tracking.uri import runs_page, ui_command
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


def test_the_runs_page_is_the_experiments(launch: Launch, settings: RunConfig) -> None:
    assert runs_page(settings, 5001) == "http://127.0.0.1:5001/#/experiments"
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    experiment = tracker.close(timeout_s=60).experiment_id
    page = f"http://127.0.0.1:5001/#/experiments/{experiment}/runs"
    assert runs_page(settings, 5001) == page
    settings.run_dir.rename(
        settings.run_dir.with_name(f"{settings.name}-study")
    )  # a search has no other folder
    assert runs_page(settings, 5001) == page
    other = settings.run_dir.with_name(f"{settings.name}-study").rename(settings.run_dir.with_name("other"))
    assert other.exists()
    assert runs_page(settings, 5001) == "http://127.0.0.1:5001/#/experiments"
