"""Being asked to stop: with real processes and real signals."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InterruptedRunError, StoppedError, TutelageError
from pipeline.run_folder import stop_file
from pipeline.stop import StopSignals

LONG_S = 120
Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that need not import everything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.stop"])
    return context


@pytest.fixture
def start(processes: ForkServerContext) -> Iterator[Start]:
    """Starts `target(ready, *args)` in a process of its own and waits until it is ready."""
    started: list[BaseProcess] = []

    def launch(target: Callable[..., None], *args: object) -> BaseProcess:
        ready = processes.Event()
        process = processes.Process(target=target, args=(ready, *args))
        process.start()
        started.append(process)
        assert ready.wait(LONG_S)
        return process

    yield launch
    for process in started:
        process.kill()
        process.join()
        process.close()


def send(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "error_class", "exit_code"),
    [(signal.SIGINT, InterruptedRunError, 130), (signal.SIGTERM, StoppedError, 75)],
)
def test_the_first_signal_asks(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    error_class: type[TutelageError],
    exit_code: int,
) -> None:
    before = signal.getsignal(number)
    with StopSignals(tmp_path) as stop:
        stop.check()
        assert not stop()
        assert not stop_file(tmp_path).exists()
        signal.raise_signal(number)
        assert stop()
        assert stop_file(tmp_path).exists()
        assert "stopping as soon as" in capsys.readouterr().err
        with pytest.raises(error_class) as caught:
            stop.check()
        assert caught.value.exit_code == exit_code
        assert "the same command goes on" in caught.value.remedy
    assert signal.getsignal(number) is before
    assert not stop_file(tmp_path).exists()


def test_signals_are_given_back_after_an_error(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), StopSignals(tmp_path):
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_stale_request_is_forgotten(tmp_path: Path) -> None:
    stop_file(tmp_path).touch()
    with StopSignals(tmp_path) as stop:
        assert not stop()
        assert not stop_file(tmp_path).exists()


def test_signals_are_taken_back_from_who_claims_them(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(tmp_path) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does when it starts
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_within_another_takes_over_what_came_before_it(tmp_path: Path) -> None:
    group, run = tmp_path / "group", tmp_path / "run"
    group.mkdir()
    run.mkdir()
    with StopSignals(group) as outer:
        with StopSignals(run) as inner:
            assert not inner()
        signal.raise_signal(signal.SIGTERM)  # while the next run is being prepared
        assert outer()
        with StopSignals(run) as inner:
            assert stop_file(run).exists()
            with pytest.raises(StoppedError):
                inner.check()
    assert not stop_file(run).exists()


def busy(ready: Any, run_dir: Path) -> None:
    with StopSignals(run_dir):
        ready.set()
        while True:  # a step that takes its time
            time.sleep(0.1)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_second_signal_ends_at_once(
    start: Start, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    process = start(busy, tmp_path)
    send(process, number)
    deadline = time.monotonic() + LONG_S
    while not stop_file(tmp_path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.is_alive()
    asked = time.monotonic()
    send(process, number)
    process.join(LONG_S)
    assert process.exitcode == exit_code
    assert time.monotonic() - asked < 5
    with StopSignals(tmp_path) as stop:  # what it left behind does not stop the next launch
        assert not stop()
