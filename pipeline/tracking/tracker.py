"""Runs recorded in MLflow, so that MLflow can neither stall nor kill a step.

Training code never talks to MLflow: it appends lines to a `metrics.jsonl`, one a step::

    {"step": 12, "time": 1700000000.25, "metrics": {"loss/hard/movies": 0.31}}

The driver owns one `Tracker`. Its methods only queue. A single background thread imports MLflow, makes all calls in
the order of the queue, and tails those files. While MLflow is down, points wait in their files and other operations
in memory; both are sent when it is back.

Each metric is logged once per step: `<run_dir>/mlflow.json` records each run's id and the last step sent. So a resumed
command continues the same runs, even where the training loop cut the file back to its checkpoint.

The calls to MLflow are in `pipeline.tracking.calls`; the place where MLflow keeps runs is in `pipeline.tracking.uri`.

Not covered: operations still queued when the process dies (the resumed driver queues them again).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config.redact import redact, redact_text
from pipeline.config.schema import RunConfig
from pipeline.run_folder import LEDGER
from pipeline.tracking.calls import METRICS_A_BATCH, Calls, DataSet, batches
from pipeline.tracking.spool import Ledger, Point, Rename, Tail, unsent
from pipeline.tracking.uri import artifact_root
from pipeline.tracking.views import View

log = logging.getLogger(__name__)

Role = Literal["parent", "teacher", "ensemble", "student", "baseline", "study", "trial", "final"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Tags = Mapping[str, str]
Params = Mapping[str, Any]

POLL_S = 2.0
LONGEST_BACKOFF_S = 30.0
PATIENCE = 8  # failures in a row after which an operation is dropped although MLflow answers other calls
REFUSALS = (  # error codes of requests that MLflow refuses: a retry would not help
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_IMPLEMENTED",
    "INVALID_STATE",
)
BUSY = (
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "DEADLINE_EXCEEDED",
)  # also for a locked sqlite file


@dataclass(frozen=True)
class TrackingOutcome:
    """Counts of what reached MLflow and what did not. One of `points` is one metric's value at one step."""

    points_sent: int = 0
    points_lost: int = 0
    operations_lost: int = 0
    uri: str | None = None
    experiment_id: str | None = None
    run_ids: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    """Records runs by key: "" is the parent run, every other key one of its children.

    Every method but `close` returns at once and raises nothing. Files named here are read later: leave them
    in place until `close`.
    """

    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None:
        """Start the run `key`, or continue the one that an earlier launch began."""

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None until MLflow has answered for the first time."""

    def experiment(self, text: str, mark: str, views: Sequence[View]) -> None:
        """Describe the experiment in Markdown, where no person has, and save views of its page.

        mark: with what every description of this program begins.
        """

    def inputs(self, key: str, data: Sequence[DataSet]) -> None:
        """Log the data sets of a run."""

    def follow(self, key: str, file: Path, rename: Rename = str) -> None:
        """Send the points of a `metrics.jsonl`, present and future, until `finish` or `close`.

        rename: the name in MLflow of a metric in the file.
        """

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log values, except those that an earlier launch logged at the same step."""

    def artifacts(self, key: str, path: Path, under: str | None = None) -> None:
        """Upload a file or a folder, under its own name, into the artifact folder `under`."""

    def model(self, key: str, name: str, folder: Path, task: str) -> None:
        """Log a Hugging Face folder as a model that `mlflow.transformers` and `mlflow.pyfunc` load.

        `task` is the transformers pipeline's, e.g. ``text-classification``.
        """

    def register(self, key: str, model: str, name: str) -> None:
        """Make the run's logged model `model` a new version of `name` in the model registry.

        A model that an earlier launch registered, and that has not changed since, gets no new version.
        """

    def tags(self, key: str, tags: Tags) -> None:
        """Set tags on a run that was begun, finished or not; one that it already has gets the new value."""

    def finish(self, key: str, status: Status) -> None:
        """Send the rest of the run's followed files, then end it."""

    def close(self, timeout_s: float = 30.0) -> TrackingOutcome:
        """Send what is queued, for at most `timeout_s`; runs that were not finished end as KILLED."""
        raise NotImplementedError


class NullTracker:
    """Records nothing."""

    experiment_id: str | None = None

    def experiment(self, text: str, mark: str, views: Sequence[View]) -> None: ...
    def inputs(self, key: str, data: Sequence[DataSet]) -> None: ...
    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None: ...
    def follow(self, key: str, file: Path, rename: Rename = str) -> None: ...
    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifacts(self, key: str, path: Path, under: str | None = None) -> None: ...
    def model(self, key: str, name: str, folder: Path, task: str) -> None: ...
    def register(self, key: str, model: str, name: str) -> None: ...
    def tags(self, key: str, tags: Tags) -> None: ...
    def finish(self, key: str, status: Status) -> None: ...
    def close(self, timeout_s: float = 30.0) -> TrackingOutcome:
        return TrackingOutcome()


def open_tracker(config: RunConfig, run_dir: Path) -> Tracker:
    """The run's tracker; it connects in the background. Raises `ConfigError` for a URI that cannot be used."""
    if not config.tracking.enabled:
        return NullTracker()
    return MlflowTracker(config.tracking_uri, config.experiment, run_dir, artifact_root(config))


# ---------------------------------------------------------------- the MLflow tracker


@dataclass
class _Operation:
    """One queued call to MLflow. points: number of metric values in it, 0 for other operations."""

    what: str
    points: int
    do: Callable[[], None]


class MlflowTracker:
    """See `Tracker`. Only the thread touches `_calls` and what lies below it."""

    def __init__(self, uri: str, experiment: str, run_dir: Path, artifacts: Path | None = None) -> None:
        self._shown_uri: str = redact("uri", uri)
        self._ledger = Ledger(run_dir / LEDGER, self._shown_uri, experiment)
        self._calls = Calls(uri, experiment, self._ledger, artifacts)
        self._queue: deque[_Operation] = deque()
        self._tails: list[Tail] = []
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._outcome: TrackingOutcome | None = None
        self._warned = False
        self._failures = 0
        self._points_lost = self._operations_lost = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the driver's side: queue and return

    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None:
        clean_params = {path: redact(path, value) for path, value in params.items()}
        self._put(
            f"run {name}", partial(self._calls.begin, key, name, {"role": role, **_clean(tags)}, clean_params)
        )

    @property
    def experiment_id(self) -> str | None:
        return self._ledger.experiment_id

    def experiment(self, text: str, mark: str, views: Sequence[View]) -> None:
        self._put("description of the experiment", partial(self._calls.describe_experiment, text, mark))
        for view in views:
            self._put(f"view {view.title!r}", partial(self._calls.save_view, view))

    def inputs(self, key: str, data: Sequence[DataSet]) -> None:
        self._put(f"data sets of {key!r}", partial(self._calls.log_inputs, key, data))

    def follow(self, key: str, file: Path, rename: Rename = str) -> None:
        if not any(tail.key == key and tail.file == file for tail in self._tails):
            self._tails.append(Tail(key, file, rename))
            self._wake.set()

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        points = [Point(name, value, step, int(time.time() * 1000)) for name, value in values.items()]
        for batch in batches(points, METRICS_A_BATCH):
            self._put(f"metrics of {key!r}", partial(self._calls.log_direct, key, batch), points=len(batch))

    def artifacts(self, key: str, path: Path, under: str | None = None) -> None:
        self._put(f"artifact {path.name}", partial(self._calls.log_artifact, key, path, under))

    def model(self, key: str, name: str, folder: Path, task: str) -> None:
        self._put(f"model {name}", partial(self._calls.log_model, key, name, folder, task))

    def register(self, key: str, model: str, name: str) -> None:
        self._put(f"version of {name}", partial(self._calls.register, key, model, name))

    def tags(self, key: str, tags: Tags) -> None:
        self._put(f"tags of {key!r}", partial(self._calls.set_tags, key, _clean(tags)))

    def finish(self, key: str, status: Status) -> None:
        self._put(f"end of {key!r}", partial(self._end, key, status))

    def close(self, timeout_s: float = 30.0) -> TrackingOutcome:
        if self._outcome is None:
            self._closing.set()
            self._wake.set()
            self._thread.join(timeout_s)
            self._abandoned.set()
            self._outcome = self._reckon()
        return self._outcome

    def _put(self, what: str, do: Callable[[], None], points: int = 0) -> None:
        self._queue.append(_Operation(what, points, do))
        self._wake.set()

    def _reckon(self) -> TrackingOutcome:
        """The counts; everything that is still queued counts as lost."""
        waiting = list(self._queue)
        left = 0
        for tail in self._tails:
            record = self._ledger.runs.get(tail.key)
            again, sent = Tail(tail.key, tail.file), record.followed if record else {}
            points, broken = unsent(again.read_all(), sent, tail.rename)
            left += len(points) + broken
        outcome = TrackingOutcome(
            points_sent=self._calls.points_sent,
            points_lost=self._points_lost + sum(operation.points for operation in waiting) + left,
            operations_lost=self._operations_lost + sum(operation.points == 0 for operation in waiting),
            uri=self._shown_uri,
            experiment_id=self._calls.experiment_id,
            run_ids={key: record.run_id for key, record in dict(self._ledger.runs).items()},
        )
        if waiting or left:
            self._warn("had no time to take everything")
        return outcome

    # ------------------------------------------------------------ the thread: keep trying

    def _work(self) -> None:
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # read first: operations queued before `close` are in this round
            try:
                self._round()
                if closing:
                    for key in list(self._calls.open):
                        self._attempt(_Operation(f"end of {key!r}", 0, partial(self._end, key, "KILLED")))
                    return
            except Exception as error:  # whatever MLflow raises, training must go on
                self._failures += 1
                self._warn(f"does not answer ({_shown(error)})")
                if closing:
                    self._abandoned.wait(0.5)
                else:
                    self._closing.wait(min(2.0 ** (self._failures - 1), LONGEST_BACKOFF_S))
            else:
                self._wake.wait(POLL_S)
                self._wake.clear()

    def _round(self) -> None:
        """Do all queued operations. Raises where MLflow is down; operations that are not done stay queued."""
        self._calls.connect()
        try:
            while self._queue and not self._abandoned.is_set():
                self._attempt(self._queue[0])
                self._queue.popleft()
            for tail in list(self._tails):
                self._send(tail)
        finally:
            self._ledger.save()

    def _attempt(self, operation: _Operation) -> None:
        """Do one operation; count it as lost if MLflow refuses it. Raises where MLflow is down."""
        try:
            operation.do()
        except Exception as error:
            if not self._refused(error):
                raise
            if operation.points:
                self._points_lost += operation.points
            else:
                self._operations_lost += 1
            log.warning("MLflow lacks %s: %s. Training is not affected.", operation.what, _shown(error))
        self._failures = 0

    def _refused(self, error: Exception) -> bool:
        """Whether a retry is useless: MLflow refuses the request, or it keeps failing while other calls work."""
        code = str(getattr(error, "error_code", ""))
        if code in REFUSALS or isinstance(error, (FileNotFoundError, NotADirectoryError, LookupError)):
            return True
        if code in BUSY or self._failures + 1 < PATIENCE:
            return False
        return self._calls.answers()

    def _send(self, tail: Tail) -> None:
        """Log the new points of a followed file, once its run exists."""
        if tail.key not in self._calls.begun:
            return
        sent = self._ledger.runs[tail.key].followed
        while (lines := tail.read()) and not self._abandoned.is_set():
            points, broken = unsent(lines, sent, tail.rename)
            for batch in batches(points, METRICS_A_BATCH):
                what = f"{len(batch)} points of {tail.file.name}"
                self._attempt(_Operation(what, len(batch), partial(self._calls.log_points, tail.key, batch)))
                sent.update((point.metric, point.step) for point in batch)
            if broken:
                log.warning("%s: %d lines are not metrics; MLflow goes without them.", tail.file, broken)
                self._points_lost += broken
            tail.advance(lines)

    def _end(self, key: str, status: Status) -> None:
        """Send the remaining points of the run's files, then end the run."""
        for tail in [tail for tail in self._tails if tail.key == key]:
            self._send(tail)
            self._tails.remove(tail)
        self._calls.end(key, status)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow at %s %s; training goes on and its metrics wait in their files. "
                "Start the server or correct tracking.uri; the same command sends later what is missing.",
                self._shown_uri,
                what,
            )


def _clean(tags: Tags) -> dict[str, str]:
    """Tags without secrets."""
    return {tag: str(redact(tag, value)) for tag, value in tags.items()}


def _shown(error: Exception) -> str:
    """The error's first line, shortened, without secrets."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return redact_text(line)[:200]
