"""MLflow's sqlite file: it appears with all its tables or not at all, and a half-made one is repaired.

MLflow creates the tables one by one in the file itself. A process that is killed meanwhile leaves only some of them.
From then on MLflow refuses the file ("table … already exists").
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.files import sync
from pipeline.tracking.uri import quieten

log = logging.getLogger(__name__)
BUSY_S = 20.0
KEPT = ("runs", "registered_models", "trace_info")  # tables whose rows a user may want to keep


def sqlite_file(uri: str) -> Path | None:
    """The file of a ``sqlite:///`` URI; None for any other store, and for one in memory."""
    name = uri.partition(":///")[2].split("?")[0]
    if urlsplit(uri).scheme.split("+")[0] != "sqlite" or name in ("", ":memory:"):
        return None
    return Path(name).absolute()


def database_lock(artifacts: Path) -> FileLock:
    """The lock to hold while a database is first opened: two launches must not create its tables at once."""
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(artifacts.with_name("mlflow.lock"))


def ensure_database(uri: str) -> None:
    """Creates the sqlite file of `uri` where there is none, and repairs one that lacks tables.

    Does nothing for other stores. The caller holds `database_lock`. Raises the errors of sqlite and MLflow.
    """
    file = sqlite_file(uri)
    if file is None:
        return
    quieten()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        if _is_whole(file):
            return
        if _has_rows(file):
            _upgrade(file)
            return
        aside = file.with_name(f"{file.name}.corrupt")
        _move(file, aside)
        log.warning(
            "%s lacked tables of MLflow's and held no runs; it is set aside as %s and made anew",
            file,
            aside.name,
        )
    _make(file)


def _is_whole(file: Path) -> bool:
    """Whether the file has all tables of this version of MLflow, in the form of its last migration."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _get_alembic_config  # this module brings in the models of every table

    try:
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            tables = {name for (name,) in rows}
            if not tables >= {*Base.metadata.tables, "alembic_version"}:
                return False
            versions = {name for (name,) in database.execute("SELECT version_num FROM alembic_version")}
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        return False
    scripts = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    behind = {script.revision for script in scripts.walk_revisions()} - set(scripts.get_heads())
    return bool(versions) and not versions & behind  # an unknown version belongs to a later MLflow


def _has_rows(file: Path) -> bool:
    """Whether the file has runs, models or traces."""
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
        for table in KEPT:
            with contextlib.suppress(sqlite3.DatabaseError):  # no such table, or no database
                if database.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                    return True
    return False


def _upgrade(file: Path) -> None:
    """Copies the file, then upgrades the tables of an earlier MLflow version, as `mlflow db upgrade` does."""
    copy = file.with_name(f"{file.name}.before-upgrade")
    if not copy.exists():
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
    log.warning("%s lacks tables of this version of MLflow: it is upgraded; %s is as it was", file, copy.name)
    _migrate(file, first=False)


def _make(file: Path) -> None:
    """Creates all tables in a file with another name, then renames it to `file`."""
    part = file.with_name(f".{file.name}.part")
    for leftover in (part, part.with_name(f"{part.name}-journal")):
        leftover.unlink(missing_ok=True)
    _migrate(part, first=True)
    sync(part)
    part.replace(file)
    sync(file.parent)


def _migrate(file: Path, *, first: bool) -> None:
    """Creates (`first`) or upgrades the tables.

    MLflow's public way is its command line, which would cost another process and another import.
    """
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db

    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(file)))
    try:
        (_initialize_tables if first else _upgrade_db)(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()


def _move(file: Path, aside: Path) -> None:
    """Renames a database with its journals: a new database of the old name must not read the old journals."""
    for suffix in ("-journal", "-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            file.with_name(file.name + suffix).replace(aside.with_name(aside.name + suffix))
