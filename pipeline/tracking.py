"""Runs recorded in MLflow, so that MLflow can neither stall nor kill a step.

Training code never talks to MLflow: it appends lines to a `metrics.jsonl`, one a step::

    {"step": 12, "time": 1700000000.25, "metrics": {"loss/hard/movies": 0.31}}

The driver owns one `Tracker`. Its calls only queue; a single background thread imports MLflow, makes every
call to it in the order given, and tails those files. While MLflow is down the points wait in their files, the
other operations in memory, and both are sent when it is back.

A metric is logged once a step: `<run_dir>/mlflow.json` remembers each run's id and the last step sent, so a
resumed command goes on in the same runs, even if the training loop cut the file back to its checkpoint.

Not covered: operations still queued when the process dies (the resumed driver queues them again).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.redact import redact
from pipeline.spool import Ledger, Point, Record, Tail, unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

Role = Literal["parent", "teacher", "student", "baseline", "trial"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Tags = Mapping[str, str]
Params = Mapping[str, Any]
T = TypeVar("T")

POLL_S = 2.0
LONGEST_BACKOFF_S = 30.0
PATIENCE = 8  # failures in a row of one operation, while MLflow answers otherwise, before it is given up
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # MLflow's limits
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 8000
SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REFUSALS = (  # MLflow answered and said no: trying again would not help
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_IMPLEMENTED",
    "INVALID_STATE",
)
BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")  # a locked sqlite file, too
QUIET = {  # before MLflow is imported; what the user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what fails is said here, in one line
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries by itself, and must notice when to stop
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # `tutelage ui` shows runs; its job runners are not needed
}


@dataclass(frozen=True)
class TrackingOutcome:
    """What reached MLflow and what did not. `points` are single values of a metric at a step."""

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
        """Start the run `key`, or go on with it where an earlier launch left it."""

    def follow(self, key: str, file: Path) -> None:
        """Send what is and will be written to a `metrics.jsonl`, until `finish` or `close`."""

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log values. Those that an earlier launch logged at the same step are not logged again."""

    def artifacts(self, key: str, path: Path, under: str | None = None) -> None:
        """Upload a file or a folder, under its own name, into the artifact folder `under`."""

    def model(self, key: str, name: str, folder: Path, task: str) -> None:
        """Log a Hugging Face folder as a model that `mlflow.transformers` and `mlflow.pyfunc` load.

        `task` is the transformers pipeline's, e.g. ``text-classification``.
        """

    def finish(self, key: str, status: Status) -> None:
        """Send the rest of the run's followed files, then end it."""

    def close(self, timeout_s: float = 30.0) -> TrackingOutcome:
        """Send what waits, for at most `timeout_s`; runs that were not finished end as KILLED."""
        raise NotImplementedError


class NullTracker:
    """Records nothing."""

    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None: ...
    def follow(self, key: str, file: Path) -> None: ...
    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifacts(self, key: str, path: Path, under: str | None = None) -> None: ...
    def model(self, key: str, name: str, folder: Path, task: str) -> None: ...
    def finish(self, key: str, status: Status) -> None: ...
    def close(self, timeout_s: float = 30.0) -> TrackingOutcome:
        return TrackingOutcome()


def open_tracker(config: RunConfig, run_dir: Path) -> Tracker:
    """The run's tracker; it starts to connect in the background. Raises `ConfigError` on a URI of no use."""
    if not config.tracking.enabled:
        return NullTracker()
    return MlflowTracker(config.tracking_uri, config.experiment, run_dir, artifact_root(config))


def artifact_root(config: RunConfig) -> Path | None:
    """Folder of the artifacts: beside a sqlite file, else beside the runs; None where a server decides."""
    uri = config.tracking_uri
    scheme = urlsplit(uri).scheme.split("+")[0] or uri
    if scheme in SERVERS:
        return None
    if scheme not in DATABASES:
        raise ConfigError(
            f"tracking.uri: MLflow keeps no runs in {redact('uri', uri)!r}",
            "Give http://host:port or sqlite:///file, or leave it null for a file beside the runs.",
        )
    if scheme == "sqlite":
        return Path(uri.split(":///", 1)[-1].split("?")[0]).absolute().parent / "artifacts"
    return Path(config.runs_dir).absolute() / "_mlflow" / "artifacts"


def ui_command(config: RunConfig, port: int = 5000) -> list[str]:
    """The command that shows the run's store in a browser, on loopback, at `port` or the next free one.

    Sets the environment that keeps MLflow quiet, for the command to inherit. Raises `ConfigError` where the
    store is a server, which has a page of its own.
    """
    root = artifact_root(config)
    if root is None:
        raise ConfigError(
            "tracking.uri is a server, and shows its runs itself",
            f"Open {redact('uri', config.tracking_uri)} in a browser.",
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    _quieten()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", config.tracking_uri]
    command += ["--default-artifact-root", str(root), "--workers", "1"]
    return [*command, "--host", "127.0.0.1", "--port", str(_free_port(port))]


def _free_port(first: int) -> int:
    """`first` or the next port of loopback that nothing listens on."""
    for port in (*range(first, min(first + 100, 65536)), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise AssertionError("port 0 always binds")


# ---------------------------------------------------------------- the MLflow tracker


@dataclass
class _Operation:
    """Something to do in MLflow; `points` of metrics are in it, 0 for anything else."""

    what: str
    points: int
    do: Callable[[], None]


class MlflowTracker:
    """See `Tracker`. Only the thread touches `_client`, `_open` and what lies below them."""

    def __init__(self, uri: str, experiment: str, run_dir: Path, artifacts: Path | None = None) -> None:
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._shown_uri: str = redact("uri", uri)
        self._ledger = Ledger(run_dir / "mlflow.json", self._shown_uri, experiment)
        self._queue: deque[_Operation] = deque()
        self._tails: list[Tail] = []
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._outcome: TrackingOutcome | None = None
        self._warned = False
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._open: dict[str, str] = {}  # key → run id, of the runs begun by this launch and not finished
        self._failures = 0
        self._points_sent = self._points_lost = self._operations_lost = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the driver's side: queue and return

    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None:
        clean_tags = {"role": role, **{tag: str(redact(tag, value)) for tag, value in tags.items()}}
        clean_params = {path: redact(path, value) for path, value in params.items()}
        self._put(f"run {name}", partial(self._begin, key, name, clean_tags, clean_params))

    def follow(self, key: str, file: Path) -> None:
        if not any(tail.key == key and tail.file == file for tail in self._tails):
            self._tails.append(Tail(key, file))
            self._wake.set()

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        points = [Point(name, value, step, int(time.time() * 1000)) for name, value in values.items()]
        for batch in _batches(points, METRICS_A_BATCH):
            self._put(f"metrics of {key!r}", partial(self._log_direct, key, batch), points=len(batch))

    def artifacts(self, key: str, path: Path, under: str | None = None) -> None:
        self._put(f"artifact {path.name}", partial(self._log_artifact, key, path, under))

    def model(self, key: str, name: str, folder: Path, task: str) -> None:
        self._put(f"model {name}", partial(self._log_model, key, name, folder, task))

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
        """Counts, with all that still waits taken as lost."""
        waiting = list(self._queue)
        left = 0
        for tail in self._tails:
            record = self._ledger.runs.get(tail.key)
            points, broken = unsent(Tail(tail.key, tail.file).read_all(), record.followed if record else {})
            left += len(points) + broken
        outcome = TrackingOutcome(
            points_sent=self._points_sent,
            points_lost=self._points_lost + sum(operation.points for operation in waiting) + left,
            operations_lost=self._operations_lost + sum(operation.points == 0 for operation in waiting),
            uri=self._shown_uri,
            experiment_id=self._experiment_id,
            run_ids={key: record.run_id for key, record in dict(self._ledger.runs).items()},
        )
        if waiting or left:
            self._warn("had no time to take everything")
        return outcome

    # ------------------------------------------------------------ the thread: keep trying

    def _work(self) -> None:
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # asked first: what was queued before `close` is in this round
            try:
                self._round()
                if closing:
                    for key in list(self._open):
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
        """Do all that waits. Raises where MLflow is down; what was not done stays."""
        if self._client is None:
            self._client = self._connect()
        try:
            while self._queue and not self._abandoned.is_set():
                self._attempt(self._queue[0])
                self._queue.popleft()
            for tail in list(self._tails):
                self._send(tail)
        finally:
            self._ledger.save()

    def _attempt(self, operation: _Operation) -> None:
        """Do it; what MLflow refuses is counted as lost. Raises where MLflow is down."""
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
        """Whether trying again is useless: a clear no, or failure after failure while MLflow answers otherwise."""
        code = str(getattr(error, "error_code", ""))
        if code in REFUSALS or isinstance(error, (FileNotFoundError, NotADirectoryError, LookupError)):
            return True
        if code in BUSY or self._failures + 1 < PATIENCE or self._experiment_id is None:
            return False
        try:
            self._mlflow.get_experiment(self._experiment_id)
        except Exception:
            return False
        return True

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow at %s %s; training goes on and its metrics wait in their files. "
                "Start the server or correct tracking.uri; the same command sends later what is missing.",
                self._shown_uri,
                what,
            )

    # ------------------------------------------------------------ the thread: calls to MLflow

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None, "_round connects first"
        return self._client

    def _connect(self) -> MlflowClient:
        """A client, once the experiment is there.

        The first use of a database makes its tables; two launches that do so at once would spoil it, so one waits.
        """
        _quieten()
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._artifacts is not None:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._artifacts.with_name("mlflow.lock"))
        with lock:
            client = MlflowClient(tracking_uri=self._uri)
            self._experiment_id = self._find_experiment(client)
        return client

    def _find_experiment(self, client: MlflowClient) -> str:
        """Id of the experiment, made where there was none."""
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            location = None if self._artifacts is None else self._artifacts.as_uri()
            tags = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on training runs
            return str(client.create_experiment(self._experiment, artifact_location=location, tags=tags))
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _run_id(self, key: str) -> str:
        if key not in self._open:
            raise LookupError(f"its run {key!r} was not begun")
        return self._open[key]

    def _begin(self, key: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        run = self._known_run(key) or self._new_run(key, name)
        run_id = self._open[key] = run.info.run_id
        if run.info.status != "RUNNING":
            self._mlflow.update_run(run_id, status="RUNNING")
        if key and "" in self._open:
            tags = {**tags, "mlflow.parentRunId": self._open[""]}
        self._mlflow.log_batch(run_id, tags=[RunTag(tag, value[:LONGEST_TAG]) for tag, value in tags.items()])
        texts = {
            re.sub(r"[^\w.\-/ :]", "_", path)[:LONGEST_KEY]: _text(value) for path, value in params.items()
        }
        for path in run.data.params:  # one that is set cannot change: a resumed run keeps its first launch's
            texts.pop(path, None)
        for batch in _batches([Param(*item) for item in texts.items()], PARAMS_A_BATCH):
            self._mlflow.log_batch(run_id, params=batch)

    def _known_run(self, key: str) -> Run | None:
        """The run that an earlier launch began, unless MLflow has lost or deleted it."""
        from mlflow.exceptions import MlflowException

        if (record := self._ledger.runs.get(key)) is None:
            return None
        try:
            run = self._mlflow.get_run(record.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        active = run.info.lifecycle_stage == "active" and run.info.experiment_id == self._experiment_id
        return run if active else None

    def _new_run(self, key: str, name: str) -> Run:
        """A new run, or the one that was made by a call whose answer got lost."""
        assert self._experiment_id is not None
        mark = f"{self._ledger.mark}/{key}"
        made = self._mlflow.search_runs(
            [self._experiment_id], f"tags.`tutelage.key` = '{mark}'", max_results=1
        )
        tags = {"tutelage.key": mark, "mlflow.source.name": "tutelage", "mlflow.source.type": "LOCAL"}
        run: Run = made[0] if made else self._mlflow.create_run(self._experiment_id, tags=tags, run_name=name)
        self._ledger.runs[key] = Record(run.info.run_id)
        self._ledger.save()
        return run

    def _send(self, tail: Tail) -> None:
        """Log what is new in a followed file, once its run exists."""
        if tail.key not in self._open:
            return
        sent = self._ledger.runs[tail.key].followed
        while (lines := tail.read()) and not self._abandoned.is_set():
            points, broken = unsent(lines, sent)
            for batch in _batches(points, METRICS_A_BATCH):
                what = f"{len(batch)} points of {tail.file.name}"
                self._attempt(_Operation(what, len(batch), partial(self._log_points, tail.key, batch)))
                sent.update((point.metric, point.step) for point in batch)
            if broken:
                log.warning("%s: %d lines are not metrics; MLflow goes without them.", tail.file, broken)
                self._points_lost += broken
            tail.advance(lines)

    def _log_points(self, key: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        self._mlflow.log_batch(
            self._run_id(key),
            metrics=[Metric(point.metric, point.value, point.time_ms, point.step) for point in points],
        )
        self._points_sent += len(points)

    def _log_direct(self, key: str, points: Sequence[Point]) -> None:
        self._run_id(key)
        direct = self._ledger.runs[key].direct
        points = [point._replace(value=float(point.value)) for point in points]  # it may be NumPy's
        new = [point for point in points if direct.get(f"{point.metric}@{point.step}") != point.value]
        if new:
            self._log_points(key, new)
        direct.update((f"{point.metric}@{point.step}", point.value) for point in new)

    def _log_artifact(self, key: str, path: Path, under: str | None) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        self._mlflow.log_artifact(self._run_id(key), str(path), under)

    def _log_model(self, key: str, name: str, folder: Path, task: str) -> None:
        """Upload the folder as it is, then what MLflow needs beside it.

        `mlflow.transformers.log_model` is not used: it takes no folder with transformers 5, would import torch
        and load the model in the driver, and asks the hub for a card of whatever has the folder's name.
        """
        from mlflow.entities import LoggedModelOutput

        assert self._experiment_id is not None
        run_id, digest = self._run_id(key), _digest(folder)
        models = self._ledger.runs[key].models
        if (known := models.get(name)) is None or known["digest"] != digest:
            made = self._mlflow.create_logged_model(
                self._experiment_id, _model_name(name), source_run_id=run_id, tags={"task": task}
            )
            known = models[name] = {"id": made.model_id, "digest": digest, "status": "PENDING"}
            self._ledger.save()
        if known["status"] == "READY":
            return
        with tempfile.TemporaryDirectory(prefix="tutelage-model-") as scratch:
            _describe_model(Path(scratch), folder, _model_name(name), task, run_id, known["id"])
            self._mlflow.log_model_artifacts(known["id"], str(folder), "model")
            self._mlflow.log_model_artifacts(known["id"], scratch)
        self._mlflow.log_outputs(run_id, [LoggedModelOutput(known["id"], step=0)])
        self._mlflow.finalize_logged_model(known["id"], "READY")
        known["status"] = "READY"

    def _end(self, key: str, status: Status) -> None:
        run_id = self._run_id(key)
        for tail in [tail for tail in self._tails if tail.key == key]:
            self._send(tail)
            self._tails.remove(tail)
        self._mlflow.set_terminated(run_id, status)
        del self._open[key]


def _quieten() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


# ---------------------------------------------------------------- a Hugging Face folder as an MLflow model

WEIGHTS = (".safetensors", ".onnx", ".bin")
OUTPUTS = {
    "text-classification": (("label", "string"), ("score", "double")),
    "token-classification": ((None, "string"),),
}


def _describe_model(target: Path, folder: Path, name: str, task: str, run_id: str, model_id: str) -> None:
    """Write what makes an MLflow model of `folder`, uploaded as `model/`: MLmodel, tokenizer, requirements."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    tokenizer = target / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in WEIGHTS:
            shutil.copyfile(file, tokenizer / file.name)
    packages = {package: version(package).split("+")[0] for package in ("mlflow", "torch", "transformers")}
    (target / "requirements.txt").write_text(
        "".join(f"{package}=={number}\n" for package, number in packages.items())
    )
    environment = f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n"
    (target / "python_env.yaml").write_text(environment)
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.add_flavor(
        "transformers",
        task=task,
        instance_type="".join(word.title() for word in task.split("-")) + "Pipeline",
        pipeline_model_type=json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0],
        source_model_name=name,
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        transformers_version=packages["transformers"],
        code=None,
    )
    if task in OUTPUTS:
        outputs = Schema([ColSpec(kind, name=column) for column, kind in OUTPUTS[task]])
        model.signature = ModelSignature(inputs=Schema([ColSpec("string")]), outputs=outputs)
        pyfunc.add_to_model(model, loader_module="mlflow.transformers", python_env="python_env.yaml")
    model.save(str(target / "MLmodel"))


def _digest(folder: Path) -> str:
    """Names and contents of the folder's files, hashed."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}")
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(folder)}\0".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "blake2b").digest())
    return total.hexdigest()


def _model_name(name: str) -> str:
    return re.sub(r"[/:.%\"']", "-", name)


# ---------------------------------------------------------------- small things


def _text(value: Any) -> str:
    """A param as the YAML config would spell it, cut where MLflow would refuse it (artifacts hold the whole)."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST_PARAM]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _shown(error: Exception) -> str:
    """The error's first line, short, no user info of a URL in it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"//[^/@\s]+@", "//***@", line)[:200]
