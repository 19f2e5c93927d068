"""What the tests of tracking share: a small config, and what a store holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.tracking.calls import DataSet
from pipeline.tracking.spool import Rename
from pipeline.tracking.tracker import NullTracker, Params, Role, Status, Tags, Tracker, TrackingOutcome
from pipeline.tracking.views import View

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Launch = Callable[[], Tracker]


def config(runs_dir: Path, name: str, **tracking: Any) -> RunConfig:
    """A small config whose runs lie in `runs_dir`."""
    return parse_config(
        {
            "name": name,
            "runs_dir": str(runs_dir),
            "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
            "teachers": {"big": {"task": "movies", "model": "big"}},
            "students": {"half": {"init_from": "big", "layers": 3}},
            "tracking": tracking,
        }
    )


class Stored(NamedTuple):
    """What the store holds, asked through MLflow's own client."""

    client: MlflowClient
    outcome: TrackingOutcome

    def run(self, key: str) -> Run:
        run: Run = self.client.get_run(self.outcome.run_ids[key])
        return run

    def history(self, key: str, metric: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client.get_metric_history(self.outcome.run_ids[key], metric)]


class Kept(NullTracker):
    """A tracker that keeps its calls."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[str, Role, Tags, Params]] = {}
        self.followed: dict[str, Path] = {}
        self.renamed: dict[str, Rename] = {}
        self.views: list[View] = []
        self.data: dict[str, list[DataSet]] = {}
        self.tagged: dict[str, dict[str, str]] = {}
        self.logged: dict[str, dict[str, float]] = {}
        self.models: list[tuple[str, str]] = []
        self.registered: list[str] = []
        self.files: list[tuple[str, str, str | None]] = []
        self.ended: dict[str, Status] = {}

    def run(self, key: str, name: str, role: Role, tags: Tags, params: Params) -> None:
        self.runs[key] = (name, role, tags, params)

    def follow(self, key: str, file: Path, rename: Rename = str) -> None:
        self.followed[key] = file
        self.renamed[key] = rename

    def experiment(self, text: str, mark: str, views: Sequence[View]) -> None:
        self.views += views

    def inputs(self, key: str, data: Sequence[DataSet]) -> None:
        self.data.setdefault(key, []).extend(data)

    def tags(self, key: str, tags: Tags) -> None:
        self.tagged.setdefault(key, {}).update(tags)

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        self.logged.setdefault(key, {}).update(values)

    def artifacts(self, key: str, path: Path, under: str | None = None) -> None:
        self.files.append((key, path.name, under))

    def model(self, key: str, name: str, folder: Path, task: str) -> None:
        self.models.append((key, name))

    def register(self, key: str, model: str, name: str) -> None:
        self.registered.append(name)

    def finish(self, key: str, status: Status) -> None:
        self.ended[key] = status


def close(tracker: Tracker, settings: RunConfig) -> Stored:
    """Close the tracker, see that nothing was lost, and open the store."""
    from mlflow import MlflowClient  # late: not every test of the folder shall wait for it

    outcome = tracker.close(timeout_s=60)
    assert (outcome.points_lost, outcome.operations_lost) == (0, 0)
    return Stored(MlflowClient(tracking_uri=settings.tracking_uri), outcome)
