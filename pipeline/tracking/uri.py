"""The place where MLflow keeps the runs, and the command that shows them; does not import MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config.redact import redact
from pipeline.config.schema import RunConfig, name_of_seed
from pipeline.errors import ConfigError
from pipeline.run_folder import LEDGER
from pipeline.tracking.spool import Ledger
from pipeline.tracking.views import page

SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
FIRST_PORT = 5000  # that `tutelage ui` tries first
STOP_S = 10.0  # from SIGTERM until the server must have ended
QUIET = {  # set before MLflow is imported; variables that the user has set stay
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # the tracker reports failures itself, in one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with a server: two lines for each run that ends
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries by itself, and must notice when to stop
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # `tutelage ui` shows runs; its job runners are not needed
}


def artifact_root(config: RunConfig) -> Path | None:
    """Folder of the artifacts: beside a sqlite file, else beside the runs; None where the server chooses it."""
    uri = config.tracking_uri
    scheme = urlsplit(uri).scheme.split("+")[0] or uri
    if scheme in SERVERS:
        return None
    if scheme not in DATABASES:
        raise ConfigError(
            f"tracking.uri: MLflow keeps no runs in {redact('uri', uri)!r}",
            "Give http://host:port or sqlite:///file, or leave it null for a file beside the runs.",
        )
    if scheme == "sqlite":
        return Path(uri.split(":///", 1)[-1].split("?")[0]).absolute().parent / "artifacts"
    return config.runs_path.absolute() / "_mlflow" / "artifacts"


def ui_command(config: RunConfig, port: int = FIRST_PORT) -> list[str]:
    """The command that shows the run's store in a browser, on loopback, at `port` or the next free one.

    Sets the environment that keeps MLflow quiet; the command inherits it. Raises `ConfigError` where the store is a
    server, which has its own page.
    """
    root = artifact_root(config)
    if root is None:
        raise ConfigError(
            "tracking.uri is a server, and shows its runs itself",
            f"Open {redact('uri', config.tracking_uri)} in a browser.",
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    quieten()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", config.tracking_uri]
    command += ["--default-artifact-root", str(root), "--workers", "1"]
    return [*command, "--host", "127.0.0.1", "--port", str(free_port(port))]


def serve(command: Sequence[str], once_up: Callable[[], object] = lambda: None) -> int:
    """Runs the server of `ui_command` until it ends; returns its exit code.

    once_up: called once, as soon as the server accepts connections.

    SIGTERM and SIGHUP return 75, SIGINT returns 130. Each of these signals ends all of the server's processes, which
    have their own process group: they get SIGTERM, on which the server ends without a traceback, and SIGKILL if they
    still run `STOP_S` later.
    """
    signals: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in numbers}
    server = subprocess.Popen(command, start_new_session=True)
    try:
        waiting, port = True, int(command[-1])
        while server.poll() is None and not signals:
            time.sleep(0.2)
            if waiting and _accepts(port):
                waiting = False
                once_up()
        _signal_group(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=STOP_S)
    finally:
        _signal_group(server.pid, signal.SIGKILL)
        code = server.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if not signals else 130 if signals[0] == signal.SIGINT else 75


def _accepts(port: int) -> bool:
    """Whether something listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def server_page(config: RunConfig, port: int = FIRST_PORT) -> str | None:
    """Address of the MLflow server that shows the run's store: its own, or that of `tutelage ui` at `port`; None for a
    store that has no page of this kind. Without user and password."""
    parts = urlsplit(config.tracking_uri)
    if parts.scheme in ("http", "https"):
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return None if parts.scheme in SERVERS else f"http://127.0.0.1:{port}"


def pages(config: RunConfig, base: str) -> dict[str, str]:
    """Addresses by title: the saved views of the config's run, of its rounds and seeds, and of its search, as far as they were
    sent, then all runs of its experiment. Of MLflow's list of experiments where nothing was sent yet. base: see
    `server_page`."""
    uri, name = redact("uri", config.tracking_uri), config.name
    rounds = range(config.rounds.count + 1) if config.rounds is not None and config.in_rounds else ()
    groups = [name, *map(config.name_of_round, rounds)]
    runs = [run for group in groups for run in (group, *(name_of_seed(group, seed) for seed in config.seeds))]
    runs += [f"{name}-study", f"{name}-best", *(f"{name}-best-seed{seed}" for seed in config.seeds)]
    addresses: dict[str, str] = {}
    experiment = None
    for run in runs:
        ledger = Ledger(config.runs_path / run / LEDGER, uri, config.experiment)
        if (known := ledger.experiment_id) is not None:
            experiment = known
            for key, view in ledger.views.items():
                addresses[view["title"]] = f"{base}/{page(known, key, view['charts'])}"
    if experiment is None:
        return {"MLflow": f"{base}/#/experiments"}
    return {**addresses, f"All runs of {config.experiment}": f"{base}/{page(experiment)}"}


def opens_browser(environment: Mapping[str, str], platform: str, *, terminal: bool) -> bool:
    """Whether a person at this terminal expects a page to open by itself.

    That is where the machine's own display can show it, or where BROWSER names a program for it, as editors that reach
    a machine over ssh do. Over ssh alone it is not: a display would be forwarded slowly, and without one Python would
    open a text browser in the terminal.
    """
    if not terminal:
        return False
    if environment.get("BROWSER"):
        return True
    if any(environment.get(name) for name in ("SSH_CONNECTION", "SSH_TTY")):
        return False
    return platform in ("darwin", "win32") or any(
        environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def free_port(first: int) -> int:
    """`first`, or the next port of the loopback interface that nothing listens on."""
    for port in (*range(first, min(first + 100, 65536)), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise AssertionError("port 0 always binds")


def quieten() -> None:
    """Silence MLflow: environment variables (those that the user has set stay), warnings and logs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    migrations = r"[0-9a-f]{12}_\w+"  # modules named by their revision
    warnings.filterwarnings("ignore", module=rf"(mlflow|alembic|sqlalchemy|{migrations})\b")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
