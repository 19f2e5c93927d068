"""The store's files on the local disk or behind a file system URL: written whole or not at all, read memory-mapped."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.files import write_atomically
from pipeline.urls import cache_folder, is_url, make_folder_of, open_url, read_file, without_secrets


class StoreFiles:
    """The store's files by their names under its root, on the local disk or on any pyarrow file system."""

    def __init__(self, path: str, cache: Path | None, filesystem: fs.FileSystem | None) -> None:
        self.shown = without_secrets(path)
        self._fs, self._root = _open_root(path, filesystem)
        self._local = isinstance(self._fs, fs.LocalFileSystem)
        self._cache = cache or cache_folder(path)

    def list(self, folder: str) -> dict[str, Any]:
        """File name → pyarrow `FileInfo` of the files in `folder`; empty if the folder does not exist."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True)
        return {info.base_name: info for info in self._fs.get_file_info(selector) if info.is_file}

    def folders(self) -> Sequence[str]:
        """Names of the folders under the root; none if it does not exist."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return [
            info.base_name for info in self._fs.get_file_info(selector) if info.type == fs.FileType.Directory
        ]

    def read_object(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; empty if the file is gone or damaged."""
        try:
            value = json.loads(self.read(name))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        return read_file(self._fs, self._at(name))

    def put(self, name: str, data: pa.Buffer | bytes) -> None:
        """Write a whole file: by rename on the local disk, as one object elsewhere."""
        if self._local:
            write_atomically(Path(self._at(name)), data)
            return
        make_folder_of(self._fs, self._at(name))
        with self._fs.open_output_stream(self._at(name)) as stream:
            stream.write(data)

    def map(self, name: str, again: bool) -> pa.Buffer:
        """The file, memory-mapped; if not local, from the cache: copied there first if absent or `again`.

        Raises FileNotFoundError.
        """
        path = Path(self._at(name)) if self._local else self._cache / name
        if not self._local and (again or not path.exists()):
            write_atomically(path, self.read(name))
        with pa.memory_map(str(path)) as file:  # the buffer keeps the mapping, and no file stays open
            return file.read_buffer()

    def set_aside(self, name: str) -> None:
        """Rename to ``*.corrupt``. An error is ignored: another process may have renamed it first."""
        with suppress(OSError):
            self._fs.move(self._at(name), f"{self._at(name)}.corrupt")

    def delete(self, name: str) -> None:
        """Delete a file. An error is ignored: another process may have deleted it first."""
        with suppress(OSError):
            self._fs.delete_file(self._at(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it."""
        self._fs.delete_dir(self._at(name))

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)


def _open_root(path: str, filesystem: fs.FileSystem | None) -> tuple[fs.FileSystem, str]:
    """The file system of a store and the store's path on it."""
    if filesystem is not None:
        return filesystem, path
    if not is_url(path):
        return fs.LocalFileSystem(), str(Path(path).absolute())
    return open_url(path, "the store")
