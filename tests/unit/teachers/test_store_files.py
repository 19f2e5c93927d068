"""Files by name, whole or not at all, on any file system. What a store makes of them: test_store.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest
from pyarrow import fs

from pipeline.errors import ConfigError, ExhaustedError
from teachers.store_files import StoreFiles


def local(folder: Path) -> StoreFiles:
    return StoreFiles(str(folder / "store"), None, None)


def by_url(folder: Path) -> StoreFiles:
    return StoreFiles((folder / "store").as_uri(), None, None)


def in_memory(folder: Path) -> StoreFiles:
    return StoreFiles(f"fsspec+memory:///{uuid4().hex}/store", folder / "cache", None)


def subtree(folder: Path) -> StoreFiles:
    return StoreFiles(
        "store", folder / "cache", fs.SubTreeFileSystem(str(folder / "root"), fs.LocalFileSystem())
    )


@pytest.mark.parametrize("make", [local, by_url, in_memory])
def test_a_file_is_put_listed_read_mapped_and_deleted(
    tmp_path: Path, make: Callable[[Path], StoreFiles]
) -> None:
    files = make(tmp_path)
    assert files.list("teacher") == {}
    files.put("teacher/a.json", b"first")
    files.put("teacher/b.arrow", pa.py_buffer(b"second"))
    assert {name: info.size for name, info in files.list("teacher").items()} == {"a.json": 5, "b.arrow": 6}
    assert files.read("teacher/a.json") == b"first"
    assert files.map("teacher/b.arrow", again=False).to_pybytes() == b"second"
    files.delete("teacher/a.json")
    files.delete("teacher/a.json")  # another process may have been first
    files.set_aside("teacher/absent.json")
    assert list(files.list("teacher")) == ["b.arrow"]
    with pytest.raises(FileNotFoundError):
        files.read("teacher/a.json")


def test_what_is_set_aside_can_be_looked_at(tmp_path: Path) -> None:
    files = local(tmp_path)
    files.put("teacher/a.json", b"torn")
    files.set_aside("teacher/a.json")
    assert files.read("teacher/a.json.corrupt") == b"torn"


def test_a_remote_file_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    files = subtree(tmp_path)
    files.put("teacher/a.arrow", b"one")
    assert files.map("teacher/a.arrow", again=False).to_pybytes() == b"one"
    files.put("teacher/a.arrow", b"other")
    assert files.map("teacher/a.arrow", again=False).to_pybytes() == b"one"
    assert files.map("teacher/a.arrow", again=True).to_pybytes() == b"other"
    assert (tmp_path / "cache/teacher/a.arrow").read_bytes() == b"other"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = local(tmp_path)
    files.put("teacher/a.json", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExhaustedError, match="no room in"):
        files.put("teacher/a.json", b"new")
    assert {name: files.read(f"teacher/{name}") for name in files.list("teacher")} == {"a.json": b"old"}


def test_a_url_that_cannot_be_opened_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="nowhere://host/store cannot be opened") as caught:
        StoreFiles("nowhere://me:hunter2@host/store?token=abc", None, None)
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)
