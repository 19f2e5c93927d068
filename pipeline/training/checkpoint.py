"""Atomic checkpoints: safetensors for tensors, JSON for the rest, a checksum over each.

A checkpoint is a folder ``step-00000200``. It is written under a hidden name, synced, then renamed, so that
one with its proper name is whole; ``checkpoint.json`` holds the state, every file's size and checksum, and a
checksum of its own. Where teachers are trained on beside a student, its checkpoints have their states in a folder of their own,
so that both are always of the same step.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import ExhaustedError
from pipeline.files import sync

logger = logging.getLogger(__name__)
INDEX = "checkpoint.json"
BESIDE = "teachers"
KEEP = 2  # the newest, and the one before it in case the newest is damaged


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: groups of named tensors, and the JSON state.

    beside: the folder with the states of its teachers, checked and not loaded; empty where there are none.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    beside: Path = Path()


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Writes `folder`/step-<step>, then drops all but the last `KEEP`. Raises `ExhaustedError` if the disk is full.

    beside: writes the states of the teachers into the folder that it is given.
    """
    final = folder / f"step-{step:08d}"
    part = folder / f".part-{step:08d}"
    needed = sum(t.nbytes for group in tensors.values() for t in group.values())
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, group in tensors.items():
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()},
                part / f"{name}.safetensors",
            )
        if beside is not None:
            (part / BESIDE).mkdir()
            beside(part / BESIDE)
        written = sorted(path for path in part.rglob("*") if path.is_file())
        files = {path.relative_to(part).as_posix(): _checksum(path) for path in written}
        index = {"state": dict(state), "files": files}
        (part / INDEX).write_text(json.dumps({**index, "checksum": _index_checksum(index)}))
        for path in (*part.rglob("*"), part):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        if errno_of(error) in (errno.ENOSPC, errno.EDQUOT):
            raise ExhaustedError(
                f"the disk is full: a checkpoint in {folder} needs {needed} bytes; the previous one is intact",
                "Free some space and run the same command again; it resumes.",
            ) from None
        raise
    for old in _finished(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None.

    Removes the incomplete folders of killed writes. Renames a checkpoint that does not match its checksums to
    ``*.corrupt``, logs a warning and loads the checkpoint before it.
    """
    for orphan in folder.glob(".part-*"):
        shutil.rmtree(orphan)
    for path in reversed(_finished(folder)):
        try:
            index = json.loads((path / INDEX).read_text())
            whole = index["checksum"] == _index_checksum(index)
            if whole and all(_checksum(path / name) == checksum for name, checksum in index["files"].items()):
                own = [name for name in index["files"] if not name.startswith(f"{BESIDE}/")]
                tensors = {Path(name).stem: load_file(path / name) for name in own}
                return Checkpoint(tensors, index["state"], path / BESIDE)
            reason = "checksum mismatch"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"unreadable: {error}"
        aside = path.with_name(f"{path.name}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("checkpoint %s: %s; set aside as %s, going one back", path, reason, aside.name)
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder of the newest checkpoint in `folder`, or None."""
    return max(_finished(folder), default=None)


def keep_newest(folder: Path) -> None:
    """Removes all checkpoints in `folder` but the newest: that of a training that has ended."""
    for path in _finished(folder)[:-1]:
        shutil.rmtree(path)


def adopt_checkpoint(source: Path, folder: Path) -> None:
    """Puts a copy of another training's checkpoint, a folder of any name, in place of those in `folder`."""
    incoming = folder / ".part-incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming)
    step = json.loads((incoming / INDEX).read_text())["state"]["progress"]["step"]
    remove_checkpoints(folder)
    incoming.rename(folder / f"step-{step:08d}")


def remove_unsent(root: Path) -> None:
    """Removes the checkpoints below `root` whose index is missing: of a copy, they were not sent whole before their writer died."""
    for path in root.rglob("step-*"):
        if path.is_dir() and not (path / INDEX).exists():
            shutil.rmtree(path)


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints in `folder`."""
    for path in folder.glob("step-*"):
        shutil.rmtree(path)


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix == "")


def _checksum(file: Path) -> str:
    """Size and CRC-32, against damage alone: a cryptographic hash took most of a checkpoint's time."""
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            value = crc32(chunk, value)
    return f"{file.stat().st_size}:{value:08x}"


def _index_checksum(index: Mapping[str, Any]) -> str:
    text = json.dumps([index["state"], index["files"]], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def errno_of(error: OSError | SafetensorError) -> int | None:
    """The operating system's number for an error; safetensors only mentions it."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None
