"""Starts an MLflow server with PostgreSQL, for runs of several machines or many concurrent trials.

::

    python examples/mlflow_server.py                        # until Ctrl-C; prints the tracking.uri to use
    python examples/mlflow_server.py --folder DIR --port 5000

The folder (default: runs/_server) has all data, so the next start continues with the same runs::

    postgres/      a PostgreSQL cluster of its own: data, password, log
    artifacts/     artifacts and models, uploaded through the server
    mlflow.log

Both listen on loopback only; PostgreSQL requires a password, which this script makes once. The system's own PostgreSQL,
if it runs, is not touched. PostgreSQL refuses to run as root: started by root, it runs as the user `postgres`, who must
have access to the folder. Needs PostgreSQL's programs (Debian: `apt-get install postgresql`) and `pip install -e '.[postgres]'`.

Not covered: access from other machines, which need `ssh -L` or a proxy with authentication, since this MLflow has none.
SIGKILL to this script leaves both servers running; SIGTERM and Ctrl-C stop them.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError, ExhaustedError, TutelageError
from pipeline.tracking.uri import free_port, quieten

ROLE = DATABASE = "mlflow"
PATIENCE_S = 300.0
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}


@dataclass(frozen=True)
class Served:
    """A running server; `where`: its address."""

    where: str
    process: subprocess.Popen[bytes]
    password: str = ""


# ---------------------------------------------------------------- PostgreSQL


def find_postgres() -> Path:
    """The folder of PostgreSQL's server programs; the newest of several. Raises `ConfigError`."""
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # Debian keeps them off the path
    versions = sorted(installed, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
    if not versions:
        raise ConfigError("PostgreSQL is not installed", "Install it, e.g. apt-get install postgresql.")
    return versions[-1].parent


def server_user() -> str | None:
    """The user that PostgreSQL runs as: None for the current one, another where that is root. Raises `ConfigError`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ConfigError("PostgreSQL does not run as root, and there is no user postgres", "Use another user.")


def make_cluster(programs: Path, folder: Path, user: str | None) -> str:
    """Makes a PostgreSQL cluster in `folder`/data, unless there is one; returns its password. Raises `ConfigError`."""
    data, making, password = folder / "data", folder / "data.making", folder / "password"
    if data.exists():
        return password.read_text().strip()
    shutil.rmtree(making, ignore_errors=True)  # of an interrupted start
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    password.write_text(secrets.token_hex(16))
    password.chmod(0o600)
    if user is not None:
        for path in (folder, password):
            shutil.chown(path, user)
    command = [
        str(programs / "initdb"),
        "--pgdata",
        str(making),
        "--username",
        ROLE,
        "--pwfile",
        str(password),
    ]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
    made = subprocess.run(command, capture_output=True, text=True, user=user, cwd="/")
    if made.returncode != 0:
        last = (made.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(
            f"initdb made no PostgreSQL cluster in {folder}: {last}",
            f"Give a --folder that {'the user ' + user if user else 'you'} can reach and write to.",
        )
    making.rename(data)
    return password.read_text()


@contextmanager
def postgres(folder: Path) -> Iterator[Served]:
    """PostgreSQL on loopback, with the database, for the length of the block.

    Raises `ConfigError` where it cannot be started, `ExhaustedError` where it does not answer in time.
    """
    programs, user, port = find_postgres(), server_user(), free_port(5433)
    password = make_cluster(programs, folder, user)
    options = [word for item in {**SETTINGS, "port": port}.items() for word in ("-c", "{}={}".format(*item))]
    command = [str(programs / "postgres"), "-D", str(folder / "data"), *options]
    log = folder / "postgres.log"
    with running(
        command, log, lambda pid: os.kill(pid, signal.SIGINT), user=user
    ) as process:  # a fast shutdown
        wait_for(lambda: is_database_there(port, password), process, "PostgreSQL", log)
        yield Served(f"127.0.0.1:{port}", process, password)


def is_database_there(port: int, password: str) -> bool:
    """Whether PostgreSQL answers; creates the database where it is missing."""
    import psycopg

    try:
        server = psycopg.connect(
            host="127.0.0.1", port=port, user=ROLE, password=password, dbname="postgres", autocommit=True
        )
    except psycopg.OperationalError:
        return False
    with server:
        if not server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            server.execute(f"CREATE DATABASE {DATABASE}")
    return True


# ---------------------------------------------------------------- MLflow


@contextmanager
def mlflow_server(folder: Path, port: int, workers: int, database: Served) -> Iterator[Served]:
    """MLflow on loopback, for the length of the block. Raises what `postgres` raises."""
    quieten()
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", str(workers)]
    # in its environment, not on its command line, which every user of the machine can read
    uri = f"postgresql+psycopg://{ROLE}@{database.where}/{DATABASE}"
    environment = {"MLFLOW_BACKEND_STORE_URI": uri, "PGPASSWORD": database.password}
    address, log = f"http://127.0.0.1:{port}", folder / "mlflow.log"
    # ends all of its processes: the first one alone would not end its workers
    with running(command, log, lambda pid: os.killpg(pid, signal.SIGTERM), environment) as process:
        wait_for(lambda: is_well(address), process, "MLflow", log)
        yield Served(address, process)


def is_well(address: str) -> bool:
    """Whether an MLflow server answers at `address` that it is healthy."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# ---------------------------------------------------------------- processes


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    end: Callable[[int], None],
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own session: a terminal's Ctrl-C reaches this script alone, which then ends the process.

    end: ends the process, given its id · log: gets its output · environment: added to this process's.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            user=user,
            cwd="/" if user else None,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            end(process.pid)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Waits for the condition. Raises `ConfigError` if the process ends first, `ExhaustedError` after `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ConfigError(f"{name} does not start: {last}", f"See {log}.")
        if time.monotonic() > end:
            raise ExhaustedError(f"{name} did not answer within {PATIENCE_S:g} s", f"See {log}.")
        time.sleep(0.2)


# ---------------------------------------------------------------- the script


def serve(folder: Path, port: int, workers: int) -> None:
    """Serves until a signal raises `KeyboardInterrupt`."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ConfigError("psycopg is not installed", "pip install -e '.[postgres]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "postgres"
    with postgres(data) as database, mlflow_server(folder, port, workers, database) as mlflow:
        print(f"MLflow      {mlflow.where}, artifacts and log in {folder}")
        print(f"PostgreSQL  {database.where}, in {data}")
        print(f"use it by   tracking.uri={mlflow.where}", flush=True)
        while (ended := database.process.poll()) is None and mlflow.process.poll() is None:
            time.sleep(0.5)
    name, log = ("MLflow", folder / "mlflow.log") if ended is None else ("PostgreSQL", data / "postgres.log")
    raise ExhaustedError(f"{name} ended by itself", f"See {log}; the same command starts both again.")


def interrupt(*_: object) -> NoReturn:
    """Signal handler: raises `KeyboardInterrupt`, which stops both servers; further signals are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/_server"), help="default: %(default)s")
    parser.add_argument("--port", type=int, default=5000, help="or the next free one; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="MLflow's processes; default: %(default)s")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        serve(arguments.folder.absolute(), arguments.port, arguments.workers)
    except KeyboardInterrupt:
        print("stopped")
    except TutelageError as error:
        print(f"error: {error.cause}\n  {error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
