"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ExhaustedError
from pipeline.files import write_atomically


def test_write_atomically_replaces_whole(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "config.yaml"
    write_atomically(file, "naïve\n")
    write_atomically(file, "second\n")
    assert file.read_text(encoding="utf-8") == "second\n"
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]


def test_write_atomically_leaves_the_old_one_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    write_atomically(file, "first")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExhaustedError, match="no room in"):
        write_atomically(file, "second")
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
