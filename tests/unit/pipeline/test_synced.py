"""A folder behind a URL and its copy. Here the URL is `file://`; against S3: tests/integration/test_shared_runs.py."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline import synced
from pipeline.errors import ExhaustedError, LockedError
from pipeline.synced import Synced, UrlFolder, kept_equal, leased


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def copy_of(there: Path, name: str = "copy") -> Synced:
    return Synced(there.as_uri(), there.parent / name)


def files(folder: Path) -> dict[str, str]:
    """Content by name of all files, empty folders with a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def write(folder: Path, **content: str) -> None:
    for name, text in content.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_changes_and_deletions_go_both_ways(there: Path) -> None:
    write(there, a="1", deep__b="2")
    one = copy_of(there)
    one.pull()
    assert files(one.copy) == {"a": "1", "deep/b": "2"}

    write(one.copy, a="1 more", new__c="3")
    write(there, deep__d="4")
    one.sync()
    assert files(one.copy) == files(there) == {"a": "1 more", "deep/b": "2", "deep/d": "4", "new/c": "3"}

    (one.copy / "new" / "c").unlink()
    (there / "deep" / "b").unlink()
    (there / "deep" / "d").unlink()
    one.sync()
    assert files(one.copy) == {
        "a": "1 more",
        "new/": "",
    }  # an empty folder that this side has made stays its own
    assert {name for name in files(there) if not name.endswith("/")} == {"a"}
    one.sync()
    assert files(one.copy)["a"] == files(there)["a"]


def test_pulling_makes_a_stale_copy_what_lies_there(there: Path) -> None:
    write(there, kept="1", changed="22")
    copy_of(there).pull()
    copy = there.parent / "copy"
    write(copy, step__left="over")
    write(copy, changed="2")
    copy_of(there).pull()
    assert files(copy) == {"kept": "1", "changed": "22"}


def test_what_is_equal_is_not_fetched_again(there: Path) -> None:
    write(there, a="1")
    copy_of(there).pull()
    before = (there.parent / "copy" / "a").stat().st_ino
    again = copy_of(there)
    again.pull()
    again.sync()
    assert (there.parent / "copy" / "a").stat().st_ino == before


def test_files_in_the_making_and_others_are_left_alone(there: Path) -> None:
    one = Synced(there.as_uri(), there.parent / "copy", lambda name: not name.startswith("step-"))
    write(there, **{"step-1__model": "theirs"})
    one.pull()
    write(one.copy, **{".part-7__model": "1", ".x.tmp": "1", "step-2__model": "ours", "a": "1"})
    one.sync()
    assert files(there) == {"a": "1", "step-1/model": "theirs"}


def test_what_says_that_others_are_whole_goes_last(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, deleted = list[str](), list[str]()
    send, delete = UrlFolder.send, UrlFolder.delete

    def sending(self: UrlFolder, file: Path, name: str) -> synced.Facts:
        sent.append(name)
        return send(self, file, name)

    def deleting(self: UrlFolder, name: str) -> None:
        deleted.append(name)
        delete(self, name)

    monkeypatch.setattr(UrlFolder, "send", sending)
    monkeypatch.setattr(UrlFolder, "delete", deleting)
    one = copy_of(there)
    names = ["c__step-1__checkpoint.json", "c__step-1__model", "c__result.json", "s__x__y__config.json"]
    write(one.copy, **dict.fromkeys([*names, "s__x__y__weights", "metrics"], "1"))
    one.sync()
    assert sent == [
        "s/x/y/weights",
        "c/step-1/model",
        "metrics",
        "s/x/y/config.json",
        "c/step-1/checkpoint.json",
        "c/result.json",
    ]
    for name in ("model", "checkpoint.json"):
        (one.copy / "c" / "step-1" / name).unlink()
    one.sync()
    assert deleted == ["c/step-1/checkpoint.json", "c/step-1/model"]


def test_a_file_that_grows_while_it_is_sent_is_sent_again(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, send = copy_of(there), UrlFolder.send
    write(one.copy, log="1")

    def growing(self: UrlFolder, file: Path, name: str) -> synced.Facts:
        facts = send(self, file, name)
        with file.open("a") as stream:
            stream.write("2")
        return facts

    monkeypatch.setattr(UrlFolder, "send", growing)
    one.sync()
    monkeypatch.setattr(UrlFolder, "send", send)
    one.sync()
    assert files(there) == {"log": "12"}


def test_two_copies_follow_each_other(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synced, "SYNC_S", 0.05)
    one, other = copy_of(there, "one"), copy_of(there, "other")
    with kept_equal([one]) as now, kept_equal([other]):
        write(one.copy, a="1")
        until = time.monotonic() + 10
        while not (other.copy / "a").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        write(other.copy, b="2")
        until = time.monotonic() + 10
        while not (there / "b").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        now()
        assert files(one.copy) == {"a": "1", "b": "2"}
        write(one.copy, last="3")
    assert files(there) == {"a": "1", "b": "2", "last": "3"}


def test_what_cannot_be_sent_at_the_end_is_an_error_and_others_come_first(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: UrlFolder, file: Path, name: str) -> synced.Facts:
        raise OSError("no such bucket")

    def changed(error: Exception | None) -> None:
        with kept_equal([copy_of(there)]):
            write(there.parent / "copy", a="1")
            if error is not None:
                raise error

    monkeypatch.setattr(UrlFolder, "send", fail)
    with pytest.raises(ExhaustedError, match="cannot be brought up to date: no such bucket"):
        changed(None)
    with pytest.raises(ZeroDivisionError):
        changed(ZeroDivisionError())


# --- leases


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synced, "BEAT_S", 0.1)
    monkeypatch.setattr(synced, "GONE_S", 2.0)


@pytest.mark.usefixtures("quick")
def test_one_process_at_a_time_holds_a_folder(there: Path) -> None:
    with leased(there.as_uri()):
        assert (there / ".lease").exists()
        with pytest.raises(LockedError, match="another launch is using"), leased(there.as_uri()):
            pass
    assert not (there / ".lease").exists()
    with leased(there.as_uri()):
        pass


@pytest.mark.usefixtures("quick")
def test_the_lease_of_a_killed_process_is_waited_out_once(there: Path) -> None:
    write(there, **{".lease": '["killed", 7]'})
    lines = list[str]()
    begun = time.monotonic()
    with leased(there.as_uri(), lines.append):
        assert time.monotonic() - begun > 2
    assert len(lines) == 1
    assert "waiting 2 s" in lines[0]


@pytest.mark.usefixtures("quick")
def test_who_has_lost_the_lease_is_told_and_leaves_it_to_the_other(there: Path) -> None:
    told = threading.Event()
    with leased(there.as_uri(), lost=told.set):
        write(there, **{".lease": '["another", 1]'})
        assert told.wait(10)
    assert (there / ".lease").read_text() == '["another", 1]'


def test_a_url_folder_names_itself_without_secrets(tmp_path: Path) -> None:
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    assert UrlFolder("s3://key:secret@bucket/runs?region=us-east-1&scheme=http").shown == "s3://bucket/runs"
