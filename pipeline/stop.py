"""SIGINT and SIGTERM while a run is under way: a checkpoint first, then the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from pipeline.errors import InterruptedRunError, StoppedError, TutelageError
from pipeline.run_folder import stop_file


class StopSignals:
    """A context manager. The first SIGINT or SIGTERM creates the stop file, on which trainings write a checkpoint and
    end; a second one ends the process at once.

    May be entered within another one (a group's). It then starts with the other one's state, so that a signal that
    came while the inner run was being prepared is not lost.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = stop_file(run_dir)
        self._signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        self._file.unlink(missing_ok=True)
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        for handler in self._before.values():
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignals) and outer._signal is not None:
                self._signal = outer._signal
                self._file.touch()
        return self

    def listen(self) -> None:
        """Installs the signal handlers. Call it again after Ray's start: Ray installs its own, which abort on SIGTERM."""
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._file.unlink(missing_ok=True)

    def __call__(self) -> bool:
        """Whether a signal to stop has come."""
        return self._signal is not None

    def check(self) -> None:
        """Raises `InterruptedRunError` or `StoppedError` if a signal to stop has come."""
        if self._signal is None:
            return
        remedy = "What is done is kept; the same command goes on from here."
        error: TutelageError = (
            InterruptedRunError("interrupted", remedy)
            if self._signal == signal.SIGINT
            else StoppedError("stopped by SIGTERM", remedy)
        )
        raise error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            kill_descendants()
            os._exit(130 if number == signal.SIGINT else 75)
        self._signal = number
        self._file.touch()
        print("\nstopping as soon as what is done is kept (again: at once)", file=sys.stderr, flush=True)


def kill_descendants() -> None:
    """Kills the descendants of this process: two agents of a private Ray would outlive their driver by a minute."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["ps", "-A", "-o", "pid=,ppid="]
        listing = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
        parents = [(int(pid), int(parent)) for pid, parent in map(str.split, listing.splitlines())]
        family = children = {os.getpid()}
        while children := {pid for pid, parent in parents if parent in children} - family:
            family = family | children
        for pid in family - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
