"""A folder behind a URL and its copy on this machine, kept equal both ways while something works in the copy.

So code that reads and writes files needs no shared file system. A file has one writer at a time: the driver, a fine-tuning, or the first of
the workers that train. A file that says that others are complete is JSON and lies above or beside them, so JSON is sent last, and what lies
deepest first; it is deleted first. Names that begin with a dot are not sent: they are those of locks and of files in the making.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from pipeline.errors import ExhaustedError, LockedError
from pipeline.urls import COPY_BYTES, copy_file, make_folder_of, open_url, read_file, without_secrets

logger = logging.getLogger(__name__)
SYNC_S = 2.0
"""Seconds between two looks for changes; a signal to stop takes about twice as long to reach another machine."""
BEAT_S = 4.0
"""Seconds between two signs of life of a lease's holder."""
GONE_S = 20.0
"""Seconds without a sign of life after which a holder is taken to be dead."""


class Facts(NamedTuple):
    """What tells that a file has changed. time: nanoseconds here, seconds behind a URL, whose listings know no more."""

    size: int
    time: int


class UrlFolder:
    """The files behind a URL, by their names below it."""

    def __init__(self, url: str) -> None:
        self.shown = without_secrets(url)
        self._fs, self._root = open_url(url, "runs_dir")

    def facts(self) -> dict[str, Facts]:
        """All files, in folders of any depth, but those whose names begin with a dot."""
        from pyarrow import fs

        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        infos = [info for info in self._fs.get_file_info(selector) if info.is_file]
        names = {posixpath.relpath(info.path, self._root): info for info in infos}
        return {name: _facts(info) for name, info in names.items() if not _hidden(name)}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._fs.get_file_info(self._at(name)).is_file)

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        return read_file(self._fs, self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        make_folder_of(self._fs, self._at(name))
        with self._fs.open_output_stream(self._at(name)) as stream:
            stream.write(data)

    def fetch(self, name: str, file: Path, time_s: int) -> None:
        """Copies a file to this machine, whole or not at all, and gives it its time there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
        try:
            with part.open("xb") as target:
                copy_file(self._fs, self._at(name), target)
            os.utime(part, (time_s, time_s))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def send(self, file: Path, name: str) -> Facts:
        """Copies a file of this machine; what then stands there."""
        make_folder_of(self._fs, self._at(name))
        with file.open("rb") as source, self._fs.open_output_stream(self._at(name)) as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
        return _facts(self._fs.get_file_info(self._at(name)))

    def delete(self, name: str) -> None:
        """Deletes a file; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self._fs.delete_file(self._at(name))

    def delete_folder(self, name: str) -> None:
        """Deletes a folder with all that is in it; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self._fs.delete_dir(self._at(name))

    def storage(self, name: str) -> tuple[str, Any]:
        """Path and pyarrow file system of a folder, for Ray Train."""
        return self._at(name), self._fs

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)


class Synced:
    """A folder behind a URL and a copy of it on this machine, with the files that `wanted` names."""

    def __init__(self, url: str, copy: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        self.url = UrlFolder(url)
        self.copy, self._wanted = copy, wanted
        self._agreed: dict[str, tuple[Facts | None, Facts | None]] = {}  # here and there, when last equal

    def pull(self) -> None:
        """Makes the copy what lies behind the URL: fetches what differs, deletes what is not there."""
        theirs = self._theirs()
        for name in self._ours().keys() - theirs.keys():
            self._delete_here(name)
        for name in _in_order(theirs):
            ours = _facts_here(self.copy / name)
            if ours is None or ours.size != theirs[name].size or ours.time // 10**9 != theirs[name].time:
                self._fetch(name, theirs[name])
            else:
                self._agreed[name] = ours, theirs[name]

    def sync(self) -> None:
        """Sends what has changed here since the two were equal, fetches what has changed there, and deletes likewise."""
        ours, theirs = self._ours(), self._theirs()
        gone_here, gone_there = list[str](), list[str]()
        for name in _in_order({*ours, *theirs, *self._agreed}):
            here, there = self._agreed.get(name, (None, None))
            if ours.get(name) != here:
                if name in ours:
                    self._send(name, ours[name])
                else:
                    gone_here.append(name)
            elif theirs.get(name) != there:
                if name in theirs:
                    self._fetch(name, theirs[name])
                else:
                    gone_there.append(name)
        for name in reversed(gone_here):
            self.url.delete(name)
            del self._agreed[name]
        for name in reversed(gone_there):
            self._delete_here(name)

    def _send(self, name: str, facts: Facts) -> None:
        with suppress(FileNotFoundError):  # deleted since
            self._agreed[name] = facts, self.url.send(self.copy / name, name)

    def _fetch(self, name: str, facts: Facts) -> None:
        with suppress(FileNotFoundError):
            self.url.fetch(name, self.copy / name, facts.time)
            self._agreed[name] = _facts_here(self.copy / name), facts

    def _delete_here(self, name: str) -> None:
        file = self.copy / name
        file.unlink(missing_ok=True)
        self._agreed.pop(name, None)
        for folder in file.parents:  # an empty folder of a checkpoint would be taken for a damaged one
            if folder == self.copy or any(folder.iterdir()):
                break
            folder.rmdir()

    def _ours(self) -> dict[str, Facts]:
        present = dict[str, Facts]()
        for root, folders, files in os.walk(self.copy):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in (Path(root, name) for name in files if not name.startswith(".")):
                name = file.relative_to(self.copy).as_posix()
                if self._wanted(name) and (facts := _facts_here(file)) is not None:
                    present[name] = facts
        return present

    def _theirs(self) -> dict[str, Facts]:
        return {name: facts for name, facts in self.url.facts().items() if self._wanted(name)}


@contextmanager
def kept_equal(
    folders: Sequence[Synced], also: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], None]]:
    """Pulls the folders, then keeps them equal from a thread, and a last time at the end. Gives a function that makes them equal now.

    also: called after each time. That function, and the end of the block, raise `ExhaustedError` where the URL cannot be read or written;
    an error of the block comes first.
    """
    for folder in folders:
        folder.pull()
    ended, one_at_a_time = threading.Event(), threading.Lock()

    def once() -> None:
        with one_at_a_time:
            for folder in folders:
                folder.sync()
            also()

    def now() -> None:
        try:
            once()
        except Exception as error:  # pyarrow's own and the operating system's
            raise ExhaustedError(
                f"{folders[0].url.shown} cannot be brought up to date: {_line(error)}",
                "Mend the access to it and run the same command again; it goes on from what is there.",
            ) from error

    def follow() -> None:
        failing = False
        while not ended.wait(SYNC_S):
            try:
                once()
                failing = False
            except Exception as error:
                if not failing:
                    logger.warning("%s: not in step: %s; trying again", folders[0].url.shown, _line(error))
                failing = True

    thread = threading.Thread(target=follow, name="sync", daemon=True)
    thread.start()
    try:
        yield now
    except BaseException:
        ended.set()
        thread.join()
        with suppress(Exception):
            once()
        raise
    ended.set()
    thread.join()
    now()


def _end() -> None:
    logger.error("another launch has taken over, because this one gave no sign of life for too long; ending")
    os._exit(4)


@contextmanager
def leased(
    url: str, note: Callable[[str], None] = lambda line: None, lost: Callable[[], None] = _end
) -> Iterator[None]:
    """Holds a folder behind a URL for this process, by signs of life in its file ``.lease``.

    No clocks are compared: a lease counts while its content changes. So one that a killed process has left costs `GONE_S` once.
    note: gets a line where that is waited for · lost: called where another process took the lease, because this one gave no sign of life
    for too long; by default it ends this process, which must not write there any more. Raises `LockedError` where another process holds it. Two that begin within the same second may both be refused.
    """
    folder, own = UrlFolder(url), uuid4().hex
    if (seen := _lease(folder)) is not None:
        note(f"{folder.shown}: a launch has not given it back; waiting {GONE_S:g} s for a sign of life")
        until = time.monotonic() + GONE_S
        while time.monotonic() < until and (now := _lease(folder)) is not None:
            if now != seen:
                raise _held(folder)
            time.sleep(0.5)
    _beat(folder, own, 0)
    time.sleep(1)
    if (_lease(folder) or [""])[0] != own:
        raise _held(folder)
    ended = threading.Event()

    def live() -> None:
        beats = 0
        while not ended.wait(BEAT_S):
            with suppress(Exception):  # pyarrow's own and the operating system's: the next beat may succeed
                if (_lease(folder) or [own])[0] != own:
                    lost()
                    return
                _beat(folder, own, beats := beats + 1)

    thread = threading.Thread(target=live, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            if (_lease(folder) or [""])[0] == own:
                folder.delete(".lease")


def _held(folder: UrlFolder) -> LockedError:
    return LockedError(
        f"another launch is using {folder.shown}",
        "Wait for it or stop it, or give this run another name: name=…",
    )


def _lease(folder: UrlFolder) -> list[Any] | None:
    """The holder's mark and number of beats; None where nobody holds the folder."""
    try:
        lease: list[Any] = json.loads(folder.read(".lease"))
    except FileNotFoundError:
        return None
    except ValueError:
        return ["", -1]  # being written
    return lease


def _beat(folder: UrlFolder, own: str, beats: int) -> None:
    folder.write(".lease", json.dumps([own, beats]).encode())


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.endswith(".json"), -name.count("/"), name))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _facts(info: Any) -> Facts:
    return Facts(int(info.size), int(info.mtime_ns or 0) // 10**9)


def _facts_here(file: Path) -> Facts | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        status = file.stat()
        return Facts(status.st_size, status.st_mtime_ns)
    return None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
