"""Commands as a person runs them, each in a session of its own, so that what they leave behind can be told and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
TUTELAGE = str(BIN / "tutelage")
QUIET = {  # the numbers must not depend on the machine, and nobody is told of the tests
    "COLUMNS": "200",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class Command:
    """A command under way or done; `ever` gathers the titles of the processes seen in its session."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)
    ever: set[str] = field(default_factory=set)

    @property
    def output(self) -> str:
        """What it has printed so far, stdout and stderr in one."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals, group: bool = False) -> None:
        """A signal to the command alone or, as a terminal's Ctrl-C, to all of its process group."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, timeout_s: float = 400) -> int:
        """Its exit code. Fails with its output when that takes too long."""
        wait_until(self.ended, lambda: f"still running after {timeout_s:g} s:\n{self.output}", timeout_s)
        return self.process.returncode

    def ended(self) -> bool:
        """Whether the command itself is over."""
        self.ever |= set(processes_of(self.process.pid).values())
        return self.process.poll() is not None

    def left(self) -> list[str]:
        """Titles of the processes of its session that still run."""
        return sorted(processes_of(self.process.pid).values())


@contextmanager
def started(*arguments: str, cwd: Path, environment: Mapping[str, str] = QUIET) -> Iterator[Command]:
    """A command running from the folder `cwd`, and none of its processes after the block.

    It sees none of the settings that this process has made for its own Ray.
    """
    log = cwd / "command.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env={**inherited, **QUIET, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Command(process, log)
    finally:
        for pid in processes_of(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)


def tutelage(
    *arguments: str, cwd: Path, environment: Mapping[str, str] = QUIET, timeout_s: float = 400
) -> Command:
    """`tutelage` with `arguments`, run to its end."""
    with started(TUTELAGE, *arguments, cwd=cwd, environment=environment) as command:
        command.wait(timeout_s)
        if command.process.returncode == 0:
            assert_none_left(command)
    return command


def assert_none_left(command: Command, within_s: float = 10) -> None:
    """No process of the command's, Ray's included, outlives it by more than `within_s`."""
    wait_until(lambda: not command.left(), lambda: f"left behind: {command.left()}", within_s)


def processes_of(session: int) -> dict[int, str]:
    """Process id → title of every live process in a session."""
    found = {}
    for pid, (_, state, title) in all_processes().items():
        with suppress(ProcessLookupError, PermissionError):
            if not state.startswith("Z") and os.getsid(pid) == session:
                found[pid] = title
    return found


def listening(session: int) -> set[str]:
    """Addresses, in the kernel's notation, at which the processes of a session listen for TCP; on Linux only."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if state == "0A":
                sockets[f"socket:[{rest[5]}]"] = address
    addresses = set()
    for pid in processes_of(session):
        with suppress(FileNotFoundError, PermissionError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    addresses |= {sockets.get(str(descriptor.readlink()), "")} - {""}
    return addresses


def all_processes() -> dict[int, tuple[int, str, str]]:
    """Process id → parent's id, state and title, of every process there is."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True
    )
    found = {}
    for line in listing.stdout.splitlines():
        pid, parent, state, *title = line.split(None, 3)
        found[int(pid)] = (int(parent), state, title[0] if title else "")
    return found


def descendants(pid: int) -> dict[int, str]:
    """Process id → title of the live processes below `pid`."""
    processes = all_processes()
    found: dict[int, str] = {}
    below = {pid}
    while below:
        below = {child for child, (parent, _, _) in processes.items() if parent in below}
        found |= {child: processes[child][2] for child in below if not processes[child][1].startswith("Z")}
    return found


def wait_until(true: Callable[[], bool], otherwise: Callable[[], str], timeout_s: float) -> None:
    """Looks 5 times a second; fails with what `otherwise` says when it takes longer than `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.2)
