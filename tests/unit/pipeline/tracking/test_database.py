"""MLflow's sqlite file: killed while it is made, damaged, of another version, made by two at once."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking.database import database_lock, ensure_database, sqlite_file
from pipeline.tracking.tracker import open_tracker
from tests.unit.pipeline.tracked import close, config

pytestmark = pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b")

KILLED_AT_TABLE = """
import os, signal, sys
import sqlalchemy
from pathlib import Path

tables = 0

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global tables
    tables += statement.strip().upper().startswith("CREATE TABLE")
    if tables == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
"""
BY_MLFLOW = """
from mlflow import MlflowClient
MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}")
"""
BY_US = """
from pipeline.tracking.database import database_lock, ensure_database
with database_lock(Path(sys.argv[1]).parent / "artifacts"):
    ensure_database(f"sqlite:///{sys.argv[1]}")
"""


def killed(code: str, file: Path, table: int) -> None:
    """Runs `code` on the database `file`, with kill -9 once it has made `table` tables."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", KILLED_AT_TABLE + code, str(file), str(table)], check=False)
    assert done.returncode == -signal.SIGKILL


def tables(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all tables and no runs."""
    file = tmp_path_factory.mktemp("whole") / "mlflow.db"
    ensure_database(f"sqlite:///{file}")
    return file


def track(runs_dir: Path) -> None:
    """One metric of one run through the tracker; nothing may be lost."""
    settings = config(runs_dir, "after")
    tracker = open_tracker(settings, settings.run_dir)
    tracker.run("", "after", "parent", {}, {})
    tracker.metrics("", {"score": 0.5})
    assert close(tracker, settings).history("", "score") == [(0, 0.5)]


@pytest.mark.parametrize("table", [20, 55])
def test_a_database_that_mlflow_left_half_made_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: int
) -> None:
    file = sqlite_file(config(tmp_path, "after").tracking_uri)
    assert file is not None
    killed(BY_MLFLOW, file, table)
    half = tables(file)
    track(tmp_path)
    assert len(half) < len(tables(file))
    assert tables(file.with_name(f"{file.name}.corrupt")) == half
    assert f"{file} lacked tables" in caplog.text


def test_a_kill_while_the_database_is_made_leaves_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = sqlite_file(config(tmp_path, "after").tracking_uri)
    assert file is not None
    killed(BY_US, file, 40)
    assert not file.exists()
    track(tmp_path)
    assert not caplog.messages
    assert not list(file.parent.glob(".*.part*"))


def no_database(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 100)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def without_a_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("DELETE FROM alembic_version")
        database.commit()


@pytest.mark.parametrize("damage", [no_database, empty, without_a_version])
def test_a_damaged_database_without_runs_is_set_aside(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = Path(shutil.copy(whole, tmp_path / "mlflow.db"))
    damage(file)
    damaged = file.read_bytes()
    ensure_database(f"sqlite:///{file}")
    assert tables(file) == tables(whole)
    assert (tmp_path / "mlflow.db.corrupt").read_bytes() == damaged


def test_a_whole_database_is_left_alone(whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(whole, tmp_path / "mlflow.db"))
    for version in (None, "later"):
        if version is not None:
            with closing(sqlite3.connect(file)) as database:
                database.execute("UPDATE alembic_version SET version_num = ?", (version,))
                database.commit()
        before = file.read_bytes()
        ensure_database(f"sqlite:///{file}")
        assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_an_earlier_version_with_runs_is_upgraded_after_a_copy(whole: Path, tmp_path: Path) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    track(tmp_path)
    file = sqlite_file(config(tmp_path, "after").tracking_uri)
    assert file is not None
    command.downgrade(_get_alembic_config(f"sqlite:///{file}"), "-1")  # type: ignore[no-untyped-call]
    with closing(sqlite3.connect(file)) as database:
        (earlier,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    ensure_database(f"sqlite:///{file}")
    for path, upgraded in ((file, True), (file.with_name(f"{file.name}.before-upgrade"), False)):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
            (version,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        assert (version != earlier) == upgraded


def test_two_may_make_it_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    code = "import sys\nfrom pathlib import Path\n" + BY_US
    makers = [subprocess.Popen([sys.executable, "-c", code, str(file)]) for _ in range(2)]
    assert [maker.wait(timeout=120) for maker in makers] == [0, 0]
    assert [path.name for path in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]
    with database_lock(tmp_path / "artifacts"):
        ensure_database(f"sqlite:///{file}")


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "postgresql://host/name", "sqlite:///:memory:", "sqlite://"]
)
def test_other_stores_are_left_to_mlflow(uri: str) -> None:
    assert sqlite_file(uri) is None
    ensure_database(uri)
