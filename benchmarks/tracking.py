"""MLflow's share of a student's step time, and the fate of metric points while its server is slow or down.

    python -m benchmarks.tracking [--runs 9]

Goal: at most 1 %, whatever the server does. The training loop appends a line to metrics.jsonl every ten steps and does
not use MLflow. The run's driver, another process, reads the file and makes every call to MLflow. So two things are
measured:

- the time that the loop spends on its log ÷ the time of an epoch's optimiser steps;
- an epoch with a driver beside it ÷ one without, for the driver's share of the machine. Epochs alternate, and each
  starts when MLflow has all points of the one before.

Three drivers: with a sqlite file, the default of a run · with an `mlflow server` behind a proxy that delays every request
by a second · with a server that is down. Server and proxy run on this machine, so their share counts as well. At the end
each driver reports the points that arrived and those that it counts as lost. Then the server that was down starts, and
its driver is started again, as the same command would do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from benchmarks.epoch import filled_store, one_epoch, trainer
from examples.mlflow_server import is_well
from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.config.view import flatten
from pipeline.tracking.spool import Ledger
from pipeline.tracking.tracker import TrackingOutcome, open_tracker
from pipeline.tracking.uri import free_port, ui_command
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import Trainer

SPAWN = multiprocessing.get_context("spawn")
STUDENT, DONE = "student", "done"
DELAY_S, PATIENCE_S = 1.0, 120.0
EXAMPLES = 3000  # of each of two tasks: an epoch of some seconds, several rounds of the driver's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    print(f"{machine()}; {runs} paired epochs, median (range)")
    server, slow, down = (free_port(first) for first in (5600, 5700, 5800))
    places = {"sqlite": None, "slow": address(slow), "down": address(down)}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(mlflow_server(server, scratch))
        stack.enter_context(proxy(slow, server, DELAY_S))
        pool = stack.enter_context(ProcessPoolExecutor(len(places), mp_context=SPAWN))
        plain, *students = trainers(scratch, 1 + len(places))
        drivers = {
            name: Driver(pool, student, tracked(scratch / name, uri), waits=name != "down")
            for student, (name, uri) in zip(students, places.items(), strict=True)
        }
        for driver in drivers.values():
            stack.callback(driver.stop)
        show_share(plain, drivers, runs)
        for name, driver in drivers.items():
            print(f"{name}: {driver.finish()}")
        stack.enter_context(proxy(down, server, 0))
        drivers["down"].start()
        print(f"down, started again with the server up: {drivers['down'].finish()}")


def trainers(scratch: Path, count: int) -> list[Trainer]:
    """Identical trainers of the demo's tiny student."""
    data = [demo_task(name, EXAMPLES) for name in ("movies", "tweets")]
    store = filled_store(scratch / "store", data)
    return [
        trainer(ASSETS / "bert-tiny", None, data, "distilled", store, store, scratch) for _ in range(count)
    ]


def show_share(plain: Trainer, drivers: Mapping[str, Driver], runs: int) -> None:
    """Prints epochs with each driver ÷ epochs without one, and the log's share of the latter."""
    shares: list[float] = []
    measures: list[Callable[[], float]] = [partial(logged_epoch, plain, shares)]
    measures += [driver.epoch for driver in drivers.values()]
    alone, *followed = paired(runs, *measures)
    print(f"the loop's own log: {spread(shares[1:])} % of an epoch of {spread(alone)} s")
    for name, seconds in zip(drivers, followed, strict=True):
        print(f"{name}: epoch with the driver ÷ without {spread(ratios(seconds, alone))}")


def logged_epoch(student: Trainer, shares: list[float]) -> float:
    """Seconds of the next epoch; appends to `shares` the per cent of them that the loop spent on its log."""
    write, log_seconds = student._log, 0.0

    def log(values: Mapping[str, float], epoch: int) -> None:
        nonlocal log_seconds
        started = time.perf_counter()
        write(values, epoch)
        log_seconds += time.perf_counter() - started

    student._log = log  # type: ignore[method-assign]
    seconds = one_epoch(student)
    student._log = write  # type: ignore[method-assign]
    shares.append(100 * log_seconds / seconds)
    return seconds


# ---------------------------------------------------------------- the driver


class Driver:
    """A run's driver in its own process, which follows a student that is trained in this one.

    waits: whether `epoch` returns only when MLflow has the epoch's points.
    """

    def __init__(
        self, pool: ProcessPoolExecutor, student: Trainer, config: RunConfig, *, waits: bool
    ) -> None:
        self.pool, self.student, self.config, self.waits = pool, student, config, waits
        self.file = student.folder / METRICS
        self.start()

    def start(self) -> None:
        """Starts the driver, which continues where an earlier one stopped."""
        (self.config.run_dir / DONE).unlink(missing_ok=True)
        self.outcome: Future[TrackingOutcome] = self.pool.submit(drive, self.config, self.file)

    def epoch(self) -> float:
        """Trains the student's next epoch; returns the seconds of its optimiser steps."""
        seconds = one_epoch(self.student)
        if self.waits:
            wait_until(
                lambda: self.sent_step() == self.student.progress.step, "its points did not reach MLflow"
            )
        return seconds

    def sent_step(self) -> int:
        """The last step whose points MLflow has; 0 without any."""
        file = self.config.run_dir / "mlflow.json"
        ledger = Ledger(file, self.config.tracking_uri, self.config.experiment)
        return max(ledger.runs[STUDENT].followed.values(), default=0) if STUDENT in ledger.runs else 0

    def stop(self) -> None:
        """Makes the driver end, by a file."""
        self.config.run_dir.mkdir(parents=True, exist_ok=True)
        (self.config.run_dir / DONE).touch()

    def finish(self) -> str:
        """Ends the driver as a run does; returns a line on the points that arrived and those that are lost."""
        self.stop()
        points = sum(len(line["metrics"]) for line in read_metrics(self.file))
        outcome = self.outcome.result()
        lost = f"{outcome.points_lost} and {outcome.operations_lost} other calls counted as lost"
        return f"{outcome.points_sent} of {points} points arrived, {lost}"


def drive(config: RunConfig, file: Path) -> TrackingOutcome:
    """Does what a run's driver does for MLflow while its student trains; returns the totals."""
    tracker = open_tracker(config, config.run_dir)
    tracker.run("", config.name, role="parent", tags={}, params=flatten(config))
    tracker.run(STUDENT, STUDENT, role="student", tags={}, params={})
    tracker.follow(STUDENT, file)
    while not (config.run_dir / DONE).exists():
        time.sleep(0.5)
    tracker.finish(STUDENT, "FINISHED")
    tracker.finish("", "FINISHED")
    return tracker.close()


def tracked(folder: Path, uri: str | None) -> RunConfig:
    """A config for the tracker, with its runs in `folder` and MLflow at `uri`; None: a sqlite file."""
    return parse_config(
        {
            "name": "tracked",
            "runs_dir": str(folder),
            "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
            "teachers": {"t": {"task": "movies", "model": "m"}},
            "students": {"s": {"init_from": "t"}},
            "tracking": {"uri": uri},
        }
    )


# ---------------------------------------------------------------- the server


@contextmanager
def mlflow_server(port: int, scratch: Path) -> Iterator[None]:
    """A real MLflow server on `port`, started as `tutelage ui` starts it, for the length of the block."""
    command = ui_command(tracked(scratch / "server", None), port)
    with (scratch / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: is_well(address(port)), "the server did not come up")
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@contextmanager
def proxy(port: int, server: int, delay_s: float) -> Iterator[None]:
    """A proxy process on `port` that passes every request to the port `server` after `delay_s`."""
    process = SPAWN.Process(target=serve, args=(port, server, delay_s), daemon=True)
    process.start()
    try:
        wait_until(lambda: is_well(address(port)), "the proxy did not come up")
        yield
    finally:
        process.terminate()
        process.join()


def serve(port: int, server: int, delay_s: float) -> None:
    """Runs the proxy; never returns."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            time.sleep(delay_s)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = HTTPConnection("127.0.0.1", server)
            upstream.request(self.command, self.path, body, {"Content-Type": "application/json"})
            response = upstream.getresponse()
            content = response.read()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        do_GET = do_POST = forward  # noqa: N815 - the base class's names

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def address(port: int) -> str:
    """The URL of a port on this machine."""
    return f"http://127.0.0.1:{port}"


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Checks the condition five times a second. Raises `TimeoutError` with `message` after `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(message)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
