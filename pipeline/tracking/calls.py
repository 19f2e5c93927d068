"""Every call that the tracker makes to MLflow.

Not covered: waiting, queueing and retrying, which `pipeline.tracking.tracker` does. All methods raise MLflow's errors,
and `LookupError` for a run that was never begun or a model that was never logged.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.tracking.database import database_lock, ensure_database
from pipeline.tracking.model import describe_model, digest, logged_name, registered_name
from pipeline.tracking.spool import Ledger, Point, Record
from pipeline.tracking.uri import quieten
from pipeline.tracking.views import TAG, View

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # MLflow's limits
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 8000
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's pages show as a description, in Markdown
INHERITED = ("run", "group")  # tags of the command's own run that its children get too
LINKS = "mlflow.modelVersions"  # tag of a logged model: the registered versions made from it, JSON


@dataclass(frozen=True)
class DataSet:
    """A task's data as MLflow shows it. digest: hash of the examples, at most 36 characters · sizes: examples by split
    · source_type, source: where it comes from, as MLflow names kinds of sources: ``local``, ``hugging_face``, …"""

    name: str
    digest: str
    sizes: Mapping[str, int]
    source_type: str
    source: Mapping[str, str]


class Calls:
    """MLflow's client for one experiment; runs are named by the tracker's keys. Not thread-safe.

    `open`         key → run id of the runs that this launch began and has not finished
    `begun`        key → run id of the runs that this launch began
    `points_sent`  number of values sent; one value is one metric at one step
    """

    def __init__(self, uri: str, experiment: str, ledger: Ledger, artifacts: Path | None = None) -> None:
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._ledger = ledger
        self._client: MlflowClient | None = None
        self.experiment_id: str | None = None
        self.open: dict[str, str] = {}
        self.begun: dict[str, str] = {}
        self.points_sent = 0
        self._inherited: dict[str, str] = {}

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None, "_round connects first"
        return self._client

    def connect(self) -> None:
        """Opens a client and finds or creates the experiment; does nothing when called again.

        The first use of a database creates its tables. Two launches that do so at once would damage it, so one waits.
        """
        if self._client is not None:
            return
        quieten()
        from mlflow import MlflowClient

        lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._artifacts is not None:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            lock = database_lock(self._artifacts)
        with lock:
            ensure_database(self._uri)
            client = MlflowClient(tracking_uri=self._uri)
            self.experiment_id = self._ledger.experiment_id = self._find_experiment(client)
        self._client = client

    def answers(self) -> bool:
        """Whether MLflow answers a small query that always succeeds while it is up."""
        if self.experiment_id is None:
            return False
        try:
            self._mlflow.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True

    def _find_experiment(self, client: MlflowClient) -> str:
        """Id of the experiment, which is created where there was none."""
        from mlflow.exceptions import MlflowException

        if (experiment := client.get_experiment_by_name(self._experiment)) is None:
            location = None if self._artifacts is None else self._artifacts.as_uri()
            tags = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on training runs
            try:
                return str(client.create_experiment(self._experiment, artifact_location=location, tags=tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another launch was quicker
                    raise
            experiment = client.get_experiment_by_name(self._experiment)
        assert experiment is not None, "it existed, or another launch has created it"
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _run_id(self, key: str) -> str:
        if key not in self.begun:
            raise LookupError(f"its run {key!r} was not begun")
        return self.begun[key]

    def begin(self, key: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Start the run, or continue it; params that it already has keep their values."""
        from mlflow.entities import Param

        run = self._known_run(key) or self._new_run(key, name)
        run_id = self.open[key] = self.begun[key] = run.info.run_id
        if run.info.status != "RUNNING":
            self._mlflow.update_run(run_id, status="RUNNING")
        if not key:
            self._inherited = {tag: tags[tag] for tag in INHERITED if tag in tags}
        elif "" in self.begun:
            tags = {**self._inherited, **tags, "mlflow.parentRunId": self.begun[""]}
        self.set_tags(key, tags)
        texts = {
            re.sub(r"[^\w.\-/ :]", "_", path)[:LONGEST_KEY]: _text(value) for path, value in params.items()
        }
        for path in run.data.params:  # MLflow's params cannot change: a resumed run keeps its first launch's
            texts.pop(path, None)
        for batch in batches([Param(*item) for item in texts.items()], PARAMS_A_BATCH):
            self._mlflow.log_batch(run_id, params=batch)

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Set tags; one that the run already has gets the new value."""
        from mlflow.entities import RunTag

        batch = [RunTag(tag, value[:LONGEST_TAG]) for tag, value in tags.items()]
        self._mlflow.log_batch(self._run_id(key), tags=batch)

    def describe_experiment(self, text: str, mark: str) -> None:
        """Describe the experiment in Markdown, unless a person has written another description.

        mark: with what every description of this program begins.
        """
        assert self.experiment_id is not None
        before = self._mlflow.get_experiment(self.experiment_id).tags.get(DESCRIPTION, "")
        if before != text and (not before or before.startswith(mark)):
            self._mlflow.set_experiment_tag(self.experiment_id, DESCRIPTION, text)

    def save_view(self, view: View) -> None:
        """Save a view of the experiment, unless an earlier launch did and it has not changed."""
        assert self.experiment_id is not None
        contents = blake2b(view.tag(0).encode(), digest_size=8).hexdigest()
        known = self._ledger.views.get(view.key)
        if known is not None and known["digest"] == contents:
            return
        self._mlflow.set_experiment_tag(self.experiment_id, TAG + view.key, view.tag(int(time.time() * 1000)))
        self._ledger.views[view.key] = {"title": view.title, "charts": view.charts, "digest": contents}

    def log_inputs(self, key: str, data: Sequence[DataSet]) -> None:
        """Log the data sets of a run, each once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        run_id = self._run_id(key)
        logged = self._ledger.runs[key].inputs
        new = [one for one in data if logged.get(one.name) != one.digest]
        if new:
            context = InputTag("mlflow.data.context", "training")
            self._mlflow.log_inputs(
                run_id,
                [
                    DatasetInput(
                        Dataset(
                            name=one.name,
                            digest=one.digest,
                            source_type=one.source_type,
                            source=json.dumps(dict(one.source)),
                            profile=json.dumps(dict(one.sizes)),
                        ),
                        [context],
                    )
                    for one in new
                ],
            )
        logged.update({one.name: one.digest for one in new})

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
        active = run.info.lifecycle_stage == "active" and run.info.experiment_id == self.experiment_id
        return run if active else None

    def _new_run(self, key: str, name: str) -> Run:
        """A new run, or the run of an earlier call whose response was lost."""
        assert self.experiment_id is not None
        mark = f"{self._ledger.mark}/{key}"
        made = self._mlflow.search_runs(
            [self.experiment_id], f"tags.`tutelage.key` = '{mark}'", max_results=1
        )
        tags = {"tutelage.key": mark, "mlflow.source.name": "tutelage", "mlflow.source.type": "LOCAL"}
        run: Run = made[0] if made else self._mlflow.create_run(self.experiment_id, tags=tags, run_name=name)
        self._ledger.runs[key] = Record(run.info.run_id)
        self._ledger.save()
        return run

    def log_points(self, key: str, points: Sequence[Point]) -> None:
        """Log at most `METRICS_A_BATCH` values."""
        from mlflow.entities import Metric

        self._mlflow.log_batch(
            self._run_id(key),
            metrics=[Metric(point.metric, point.value, point.time_ms, point.step) for point in points],
        )
        self.points_sent += len(points)

    def log_direct(self, key: str, points: Sequence[Point]) -> None:
        """Log those values that were not logged before at the same step."""
        self._run_id(key)
        direct = self._ledger.runs[key].direct
        points = [point._replace(value=float(point.value)) for point in points]  # it may be NumPy's
        new = [point for point in points if direct.get(f"{point.metric}@{point.step}") != point.value]
        if new:
            self.log_points(key, new)
        direct.update((f"{point.metric}@{point.step}", point.value) for point in new)

    def log_artifact(self, key: str, path: Path, under: str | None) -> None:
        """Upload a file or a folder. Raises `FileNotFoundError`."""
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        self._mlflow.log_artifact(self._run_id(key), str(path), under)

    def log_model(self, key: str, name: str, folder: Path, task: str) -> None:
        """Upload the folder as it is, then the files that MLflow needs beside it.

        `mlflow.transformers.log_model` is not used. It takes no folder with transformers 5, it would import torch
        and load the model in the driver, and it requests a model card from the hub under the folder's name.
        """
        from mlflow.entities import LoggedModelOutput

        assert self.experiment_id is not None
        run_id, contents = self._run_id(key), digest(folder)
        models = self._ledger.runs[key].models
        if (known := models.get(name)) is None or known["digest"] != contents:
            made = self._mlflow.create_logged_model(
                self.experiment_id, logged_name(name), source_run_id=run_id, tags={"task": task}
            )
            known = models[name] = {"id": made.model_id, "digest": contents, "status": "PENDING"}
            self._ledger.save()
        if known["status"] == "READY":
            return
        with tempfile.TemporaryDirectory(prefix="tutelage-model-") as scratch:
            describe_model(Path(scratch), folder, logged_name(name), task, run_id, known["id"])
            self._mlflow.log_model_artifacts(known["id"], str(folder), "model")
            self._mlflow.log_model_artifacts(known["id"], scratch)
        self._mlflow.log_outputs(run_id, [LoggedModelOutput(known["id"], step=0)])
        self._mlflow.finalize_logged_model(known["id"], "READY")
        known["status"] = "READY"

    def register(self, key: str, model: str, name: str) -> None:
        """Make the run's logged model the newest version of the registered model `name`, if it is none yet."""
        from mlflow.exceptions import MlflowException

        run_id, name = self._run_id(key), registered_name(name)
        known = self._ledger.runs[key].models.get(model)
        if known is None or known["status"] != "READY":
            raise LookupError(f"its model {model!r} was not logged")
        if f"version of {name}" in known:
            return
        try:
            self._mlflow.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # not `models:/<id>`: beside a database MLflow would look that up in its global store, not in this one
        source = self._mlflow.get_logged_model(known["id"]).artifact_location
        version = self._version_from(source, name)  # from an earlier call whose response was lost
        if version is None:
            made = self._mlflow.create_model_version(
                name, source, run_id, await_creation_for=0, model_id=known["id"]
            )
            version = str(made.version)
        self._link_version(known["id"], name, version)
        known[f"version of {name}"] = version

    def _version_from(self, source: str, name: str) -> str | None:
        """The version of the registered model `name` that was made from `source`."""
        quoted = name.replace("'", "''")
        for version in self._mlflow.search_model_versions(f"name = '{quoted}'"):
            if version.source == source:
                return str(version.version)
        return None

    def _link_version(self, model_id: str, name: str, version: str) -> None:
        """Link the logged model's page to its registered version; an MLflow server does so by itself."""
        links = json.loads(self._mlflow.get_logged_model(model_id).tags.get(LINKS, "[]"))
        if not any((link["name"], str(link["version"])) == (name, version) for link in links):
            links.append({"name": name, "version": version})
            self._mlflow.set_logged_model_tags(model_id, {LINKS: json.dumps(links)})

    def end(self, key: str, status: str) -> None:
        """End the run with `status`."""
        self._mlflow.set_terminated(self._run_id(key), status)
        self.open.pop(key, None)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in pieces of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _text(value: Any) -> str:
    """A param as in the YAML config, cut to MLflow's longest value (the config artifact has the whole)."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST_PARAM]
