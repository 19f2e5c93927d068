"""What took long to make is read again as it was, never as something else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import disk_cache
from pipeline.batch import Examples, Ragged
from pipeline.disk_cache import UNUSED_DAYS, cached, is_cached
from pipeline.strings import Strings

TEXTS = [f"text {i} ç日" for i in range(500)]
VALUE = Examples(
    "mood",
    np.arange(500, dtype=np.uint64),
    {"text": Strings.of(TEXTS), "words": [["a", "b"]] * 500},
    Ragged.single(np.full(500, -1)),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tutelage" / "kept"


class Made:
    """Counts how often a value is made."""

    def __init__(self, value: Any = VALUE) -> None:
        self.value, self.count = value, 0

    def __call__(self) -> Any:
        self.count += 1
        return self.value


def kept_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_it_is_made_once_and_read_as_it_was() -> None:
    make = Made()
    assert not is_cached("examples", {"a": 1})
    values = [cached("examples", {"a": 1}, make, worth=0) for _ in range(3)]
    assert make.count == 1
    assert is_cached("examples", {"a": 1})
    for value in values:
        assert value.inputs["text"] == TEXTS
        assert value.inputs["words"] == VALUE.inputs["words"]
        np.testing.assert_array_equal(value.keys, VALUE.keys)
        assert value.keys.dtype == np.uint64
        np.testing.assert_array_equal(value.labels.values, VALUE.labels.values)


def test_arrays_and_texts_are_not_copied() -> None:
    cached("examples", 1, Made(), worth=0)
    value = cached("examples", 1, Made(), worth=0)
    assert not value.keys.flags.owndata
    assert not value.keys.flags.writeable, "another process reads the same memory"


def test_none_and_an_empty_array_are_values_too() -> None:
    odd: tuple[Any, ...] = (None, np.empty(0), [])
    for number, value in enumerate(odd):
        make = Made(value)
        again = [cached("odd", number, make, worth=0) for _ in range(2)]
        assert make.count == 1
        np.testing.assert_array_equal(again[1], value)


def test_what_is_made_fast_is_not_kept(folder: Path) -> None:
    make = Made()
    for _ in range(2):
        cached("examples", 1, make)
    assert make.count == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("facts", [{"a": 2}, {"a": 1, "b": None}, {"a": "1"}])
def test_other_facts_are_another_value(facts: object) -> None:
    cached("examples", {"a": 1}, Made(), worth=0)
    make = Made("another")
    assert cached("examples", facts, make, worth=0) == "another"
    assert make.count == 1


def test_other_code_makes_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cached("examples", 1, Made(), worth=0)
    monkeypatch.setattr(disk_cache, "_software", lambda: ("changed",))
    make = Made()
    cached("examples", 1, make, worth=0)
    assert make.count == 1


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-100], lambda whole: whole[:1000], lambda whole: b"", flipped],
    ids=["end missing", "most missing", "empty", "one bit"],
)
def test_a_damaged_file_is_made_anew(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    cached("examples", 1, Made(), worth=0)
    file = kept_file(folder)
    file.write_bytes(damage(file.read_bytes()))
    make = Made()
    assert cached("examples", 1, make, worth=0).inputs["text"] == TEXTS
    assert make.count == 1
    cached("examples", 1, make, worth=0)
    assert make.count == 1, "it is whole again"


def test_damage_anywhere_is_never_an_error_nor_another_value(folder: Path) -> None:
    """Each byte near the end, where Arrow has the schema, and some of the others."""
    small = np.arange(20)
    cached("examples", 1, Made(small), worth=0)
    whole = kept_file(folder).read_bytes()
    end = len(whole)
    for place in [*range(0, end, 7), *range(max(0, end - 600), end)]:
        kept_file(folder).write_bytes(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        np.testing.assert_array_equal(cached("examples", 1, Made(small)), small)


def test_a_file_of_another_user_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cached("examples", 1, Made(), worth=0)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    make = Made("mine")
    assert cached("examples", 1, make) == "mine"


def test_nobody_else_may_write_into_the_folder(folder: Path) -> None:
    cached("examples", 1, Made(), worth=0)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_written_costs_only_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make = Made()
    for _ in range(2):
        assert cached("examples", 1, make, worth=0) is VALUE
    assert make.count == 2


def test_of_two_at_once_one_makes_it(folder: Path) -> None:
    make, values = Made(), list[Any]()

    def slow() -> Any:
        time.sleep(0.3)
        return make()

    threads = [
        threading.Thread(target=lambda: values.append(cached("examples", 1, slow, worth=0))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.count == 1
    assert all(value.inputs["text"] == TEXTS for value in values)
    assert [file.suffix for file in folder.iterdir()] == [".arrow"], "no lock is left behind"


def test_an_error_is_raised_each_time_and_nothing_is_kept(folder: Path) -> None:
    def fail() -> None:
        raise RuntimeError("bad row")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="bad row"):
            cached("examples", 1, fail, worth=0)
    assert list(folder.iterdir()) == []


def test_what_nobody_reads_is_removed(folder: Path) -> None:
    cached("old", 1, Made(), worth=0)
    cached("used", 1, Made(), worth=0)
    before = time.time() - (UNUSED_DAYS + 1) * 86400
    for file in folder.iterdir():
        os.utime(file, (before, before))
    cached("used", 1, Made(), worth=0)  # is read
    cached("new", 1, Made(), worth=0)  # is written, which removes others
    assert not is_cached("old", 1)
    assert is_cached("used", 1)
    assert is_cached("new", 1)


def test_a_file_cannot_run_code(folder: Path, tmp_path: Path) -> None:
    """Whoever could write into the folder."""

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was-run"),)

    cached("examples", 1, Made([Malicious()]), worth=0)
    assert is_cached("examples", 1)
    assert not (tmp_path / "was-run").exists()
    make = Made("own")
    assert cached("examples", 1, make) == "own"
    assert not (tmp_path / "was-run").exists()
