"""The one atomic writer: a file appears whole or not at all, and survives a power cut. And the reader of JSON files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from pipeline.errors import CorruptError, ExhaustedError


def write_atomically(file: Path, content: str | bytes | Any) -> Path:
    """Replaces `file` by `content` (text, bytes or any buffer) and returns its path; see `written_whole`."""
    data = content.encode() if isinstance(content, str) else content
    with written_whole(file) as stream:
        stream.write(data)
    return file


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces `file` at the end of the block; nothing changes where the block raises.

    Writes and syncs a temporary file in the same folder, then renames it. Raises `ExhaustedError` where the disk is
    full; the old file is then unchanged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ExhaustedError(
            f"no room in {file.parent} for {file.name}",
            "Free some disk space and run the same command again.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(file.parent)  # the new name, too, must survive a power cut


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `file`. Raises `CorruptError` with `remedy` for a truncated file or other content."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptError(f"{file} cannot be read: {error}", remedy) from None
    if not isinstance(value, dict):
        raise CorruptError(f"{file} cannot be read: it holds no JSON object", remedy)
    return value


def sync(path: Path) -> None:
    """Makes the operating system write a file, or a folder's list of names, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
