"""What decides which examples a task has, known without reading them: where nothing of it has changed, they are taken from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.config.schema import TaskConfig
from pipeline.data.files import FORMATS, files_of, source_of
from pipeline.disk_cache import is_cached
from pipeline.errors import DataError

NO_PART = frozenset({"transfer", "augment", "aggregation", "token_targets"})
"""Keys of a task that its own examples do not depend on."""


def facts_of(name: str, config: TaskConfig) -> dict[str, Any] | None:
    """The task's config and path, size and times of each of its files; None where it has data of the hub or behind a URL, or
    recordings, which have files of their own.

    Raises `DataError` where a file does not exist.
    """
    if config.declared.audio:
        return None
    where, data = f"tasks.{name}.data", config.data
    sources = [(where, data)]
    if data.unlabelled is not None:
        sources.append((f"{where}.unlabelled", source_of(data.unlabelled)))
    files: list[tuple[str, int, int, int]] = []
    for key, source in sources:
        for file in _files(key, source):
            if not file.is_file():
                return None
            facts = file.stat()
            files.append((str(file.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
        if not files:
            return None
    return {"task": name, "config": config.model_dump(mode="json", exclude=set(NO_PART)), "files": files}


def _files(where: str, data: DataConfig) -> Iterator[Path]:
    """The files of a data set; a path that is no file where it has others than local ones."""
    folder = Path(data.path)
    if data.data_files:
        for entry in files_of(where, data).values():
            yield from map(Path, entry)
    elif folder.is_dir():
        yield from sorted(filter(Path.is_file, folder.rglob("*")))
    elif data.path not in FORMATS.values():
        yield folder


def is_read(name: str, config: TaskConfig) -> bool:
    """Whether the task's examples are on disk as its files are now."""
    with suppress(DataError):  # a file that does not exist
        facts = facts_of(name, config)
        return facts is not None and is_cached(cache_name(name), facts)
    return False


def cache_name(task: str) -> str:
    """The name of a task's examples on disk."""
    return f"examples-of-{task}"
