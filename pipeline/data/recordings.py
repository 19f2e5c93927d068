"""A column of recordings → references to their files (`pipeline.tasks.recording`), each file checked.

A recording is a path, the bytes of a file, or what the `Audio` feature of datasets has of both. Bytes are written once to this machine's cache, by content.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data.files import files_of
from pipeline.disk_cache import cached
from pipeline.errors import DataError
from pipeline.files import write_atomically
from pipeline.shown import counted
from pipeline.tasks.recording import Probe, Recording, check_packages, digest_of, probe
from pipeline.urls import cache_base, is_url

SplitT = TypeVar("SplitT", bound=str)
SHOWN = 3
"""Files with a fault that an error names."""
AT_ONCE = 1000
"""Rows whose bytes are in memory at once."""
RATE = 16_000
"""Samples a second that nearly all models of speech read."""
RESAMPLED = f"resampled from another rate than {RATE:,} samples a second"
MIXED = "mixed to one channel"


@dataclass(frozen=True)
class Place:
    """Where a recording is. row: in its table · name: as the data has it · path: of the file."""

    row: int
    name: str
    path: Path


def with_recordings(
    task: str, data: DataConfig, tables: Mapping[SplitT, Any], column: str
) -> tuple[dict[SplitT, Any], list[str]]:
    """The tables by split, with references in `column` and without silent recordings, and notes that count what was left out, and what is resampled
    or mixed when it is read.

    Raises `DataError` with the names of files that are missing, empty, damaged or have no samples.
    """
    check_packages()
    read, counts, every = dict[SplitT, Any](), Counter[str](), ", ".join(tables)
    for split, table in tables.items():
        places = list(_places(task, split, table, column, _folders(task, data, split)))
        probes = _probes(task, split, [place.path for place in places])
        _refuse_faulty(task, split, places, probes)
        silent = np.array([one.silent for one in probes], dtype=bool)
        counts[f"of {split} left out as silent"] = int(silent.sum())
        counts[f"of {every} {RESAMPLED}"] += sum(one.rate != RATE for one in probes)
        counts[f"of {every} {MIXED}"] += sum(one.channels > 1 for one in probes)
        references = [
            Recording(one.digest, one.seconds, str(place.path)).reference
            for place, one in zip(places, probes, strict=True)
        ]
        table = table.remove_columns(column).add_column(column, references)
        read[split] = table.select(np.flatnonzero(~silent)) if silent.any() else table
    return read, [f"{counted(count, 'recording')} {what}" for what, count in counts.items() if count]


def _folders(task: str, data: DataConfig, split: str) -> list[Path]:
    """Where the paths of a split's recordings begin: in the folders of its data files, then the working directory."""
    files = files_of(f"tasks.{task}.data", data)
    own = files.get(split) or [file for some in files.values() for file in some]
    folders = [Path(file).absolute().parent for file in own if not is_url(str(file))]
    if Path(data.path).is_dir():
        folders.append(Path(data.path).absolute())
    return list(dict.fromkeys([*folders, Path.cwd()]))


def _places(task: str, split: str, table: Any, column: str, folders: Sequence[Path]) -> Iterator[Place]:
    """Where each row's recording is. Raises `DataError` for a cell that is none."""
    import datasets

    if isinstance(table.features[column], datasets.Audio):
        table = table.cast_column(column, datasets.Audio(decode=False))
    rows = table.select_columns([column]).with_format("arrow")
    for start in range(0, len(table), AT_ONCE):
        for row, cell in enumerate(rows[start : start + AT_ONCE][column].to_pylist(), start):
            place = _place(row, cell, folders)
            if place is None:
                shown = f"{cell!r:.200}" if not isinstance(cell, bytes) else "empty"
                raise DataError(
                    f"tasks.{task}: row {row} of {split}: audio is {shown}, no recording",
                    "Give a path, the bytes of a file, or a column of the Audio feature.",
                )
            yield place


def _place(row: int, cell: Any, folders: Sequence[Path]) -> Place | None:
    if isinstance(cell, Mapping):
        given, path = cell.get("bytes"), cell.get("path")
        cell = given or path
        if given:
            return Place(row, path or f"row {row}", _written(given))
    if isinstance(cell, bytes) and cell:
        return Place(row, f"row {row}", _written(cell))
    if not isinstance(cell, str) or not cell.strip() or is_url(cell):
        return None
    path = Path(cell).expanduser()
    tried = [path] if path.is_absolute() else [folder / path for folder in folders]
    return Place(row, cell, next((one for one in tried if one.is_file()), tried[0]))


def _written(data: bytes) -> Path:
    """The file of some bytes in this machine's cache."""
    digest = digest_of(data)
    file = cache_base() / "recordings" / digest[:2] / digest
    if not (file.is_file() and file.stat().st_size == len(data)):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)
    return file


def _probes(task: str, split: str, paths: Sequence[Path]) -> list[Probe]:
    """What is known of each file; of files that have not changed it is taken from disk."""
    facts = [(str(path), *_state(path)) for path in paths]
    make: Callable[[], list[Probe]] = lambda: _probed(paths)  # noqa: E731
    return cached(f"recordings-of-{task}-{split}", facts, make)


def _probed(paths: Sequence[Path]) -> list[Probe]:
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:
        return list(threads.map(probe, paths))


def _state(path: Path) -> tuple[int, ...]:
    """What changes where a file does."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _refuse_faulty(task: str, split: str, places: Sequence[Place], probes: Sequence[Probe]) -> None:
    """Raises `DataError` for the files that cannot be read."""
    faulty = [(place, one) for place, one in zip(places, probes, strict=True) if one.fault is not None]
    if not faulty:
        return
    shown = "; ".join(f"row {place.row}: {place.name}: {one.fault}" for place, one in faulty[:SHOWN])
    more = f"; and {len(faulty) - SHOWN} more" if len(faulty) > SHOWN else ""
    raise DataError(
        f"tasks.{task}: {len(faulty)} of {len(places)} recordings of {split} cannot be read: {shown}{more}",
        "Mend the files or remove their rows; paths begin in the folder of the data file, or in the working directory.",
    )
