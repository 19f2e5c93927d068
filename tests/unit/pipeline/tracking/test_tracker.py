"""Runs in a real sqlite store: what is logged can be read back, once, and MLflow never holds anyone up."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.config.view import flatten
from pipeline.report.page import overview, verdict
from pipeline.report.schema import Advice
from pipeline.tracking import record
from pipeline.tracking.calls import DataSet
from pipeline.tracking.spool import Ledger
from pipeline.tracking.tracker import NullTracker, TrackingOutcome, open_tracker
from pipeline.tracking.uri import pages
from pipeline.tracking.views import View
from tests.unit.pipeline.hand_results import hand_report
from tests.unit.pipeline.tracked import Launch, Stored, close, config

pytestmark = pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b")


def line(step: int, at: float, **metrics: float) -> str:
    """One line of a metrics.jsonl."""
    return json.dumps({"step": step, "time": at, "metrics": metrics}) + "\n"


# ---------------------------------------------------------------- what is logged can be read


def test_children_nest_under_the_parent(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, flatten(settings))
    tracker.run("half", "half", "student", {"task": "movies", "teachers": "big"}, {"layers": 3})
    tracker.finish("half", "FINISHED")
    tracker.finish("", "FINISHED")
    stored = close(tracker, settings)

    parent, child = stored.run(""), stored.run("half")
    assert parent.info.run_name == settings.name
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {tag: child.data.tags[tag] for tag in ("role", "task", "teachers")} == {
        "role": "student",
        "task": "movies",
        "teachers": "big",
    }
    assert parent.data.tags["role"] == "parent"
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.info.experiment_id == stored.outcome.experiment_id
    assert stored.client.get_experiment(parent.info.experiment_id).name == settings.experiment


def test_params_are_the_flat_config(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    long = {f"long.{i}": "x" * 7000 for i in range(150)}
    tracker.run("", settings.name, "parent", {}, {**flatten(settings), **long, "odd key!": None})
    params = close(tracker, settings).run("").data.params
    assert params["tasks.movies.kind"] == "text-classification"
    assert params["train.weight_decay"] == "0.01"
    assert params["tracking.enabled"] == "true"
    assert params["odd key_"] == "null"
    assert params["long.149"] == "x" * 6000


def test_secrets_never_reach_params_tags_or_outcome(launch: Launch, settings: RunConfig) -> None:
    store = {"path": "s3://me:hunter2@bucket/store"}
    data = {**settings.model_dump(mode="json"), "store": store}
    tracker = launch()
    params = {**flatten(parse_config(data)), "hub.token": "hunter2", "url": "https://me:hunter2@host/x"}
    tracker.run(
        "", settings.name, "parent", {"password": "hunter2", "from": "http://me:hunter2@host"}, params
    )
    stored = close(tracker, settings)
    run = stored.run("")
    assert run.data.params["store.path"] == "s3://***@bucket/store"
    assert run.data.params["hub.token"] == "***"
    assert "hunter2" not in repr((run.data.params, run.data.tags))
    assert "hunter2" not in (settings.run_dir / "mlflow.json").read_text()


def test_artifacts_keep_their_names(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.svg").write_text("<svg/>")
    (tmp_path / "report.md").write_text("# Report")
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.artifacts("", tmp_path / "report.md")
    tracker.artifacts("", tmp_path / "figures")
    tracker.artifacts("", tmp_path / "report.md", under="copies")
    stored = close(tracker, settings)
    run_id = stored.outcome.run_ids[""]

    def names(folder: str | None = None) -> set[str]:
        return {file.path for file in stored.client.list_artifacts(run_id, folder)}

    assert names() == {"report.md", "figures", "copies"}
    assert names("figures") == {"figures/loss.svg"}
    assert names("copies") == {"copies/report.md"}
    assert str(settings.runs_dir) + "/_mlflow/artifacts" in stored.run("").info.artifact_uri


def test_values_are_logged_once(launch: Launch, settings: RunConfig) -> None:
    values: dict[str, float] = {f"task{i}/accuracy": i / 1100 for i in range(1100)}  # more than one batch
    values["macro/accuracy"] = np.float32(0.25)  # type: ignore[assignment]
    for _ in range(2):
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.metrics("", values, step=3)
        stored = close(tracker, settings)
    assert stored.outcome.points_sent == 0
    assert stored.history("", "macro/accuracy") == [(3, 0.25)]
    assert stored.history("", "task1099/accuracy") == [(3, 1099 / 1100)]


def test_tags_are_added_and_replaced(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "study", {}, {})
    tracker.run("trial-000", "trial-000", "trial", {"outcome": "running"}, {})
    tracker.tags("trial-000", {"outcome": "early-stopped", "hub_token": "hunter2", "long": "x" * 9000})
    tracker.finish("trial-000", "FINISHED")
    tracker.tags("trial-000", {"best": "yes"})  # which it is shows when all are done
    tags = close(tracker, settings).run("trial-000").data.tags
    assert {tag: tags[tag] for tag in ("role", "outcome", "best", "hub_token")} == {
        "role": "trial",
        "outcome": "early-stopped",
        "best": "yes",
        "hub_token": "***",
    }
    assert tags["long"] == "x" * 8000


def test_advice_is_a_tag_and_the_description_of_its_runs(launch: Launch, settings: RunConfig) -> None:
    given = (
        Advice(code="student-undertrained", text="It improved.", key="students.half.train.epochs", value=6),
        Advice(code="class-missed", text="Nobody is right.", key="tasks.movies.data", value=None),
    )
    report = hand_report(74, 72, 78, n=100)
    for advice in (given, ()):  # the second launch has none left
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.run("half-distilled", "half", "student", {}, {})
        record.described(tracker, settings, report.model_copy(update={"advice": advice}))
        stored = close(tracker, settings)
        parent, student = (stored.run(key).data.tags for key in ("", "half-distilled"))
        if advice:
            assert parent["advice"] == "student-undertrained,class-missed"
            assert student["advice"] == "student-undertrained"
            line = "- It improved. Try `students.half.train.epochs: 6`."
            whole = f"{verdict(report)}\n\n{overview(report)}"
            advised = f"{whole}\n\nAdvice:\n\n{line}\n- Nobody is right. Key: `tasks.movies.data`."
            assert parent["mlflow.note.content"].endswith(advised)
            assert student["mlflow.note.content"] == f"Advice:\n\n{line}"
        else:
            assert (parent["advice"], student["advice"]) == ("none", "none")
            assert parent["mlflow.note.content"].endswith(whole)
            assert student["mlflow.note.content"] == ""


def test_data_sets_are_logged_once(launch: Launch, settings: RunConfig) -> None:
    data = [DataSet("movies", "0123456789abcdef", {"train": 20, "test": 5}, "local", {"uri": "movies.csv"})]
    for _ in range(2):
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.inputs("", data)
        stored = close(tracker, settings)
    inputs = stored.run("").inputs
    assert inputs is not None
    (one,) = inputs.dataset_inputs
    assert (one.dataset.name, one.dataset.digest) == ("movies", "0123456789abcdef")
    assert json.loads(str(one.dataset.profile)) == {"train": 20, "test": 5}
    assert [(tag.key, tag.value) for tag in one.tags] == [("mlflow.data.context", "training")]
    ledger = Ledger(settings.run_dir / "mlflow.json", settings.tracking_uri, settings.experiment)
    assert ledger.runs[""].inputs == {"movies": "0123456789abcdef"}


def test_data_sets_of_a_run_never_begun_are_counted_as_lost(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.inputs("nobody", [])
    assert tracker.close(timeout_s=60).operations_lost == 1


def test_views_are_saved_once_and_again_when_they_change(launch: Launch, settings: RunConfig) -> None:
    saved = []
    for order in ("first", "first", "second"):
        tracker = launch()
        tracker.experiment("Ours: about.", "Ours", [View("mine", "Mine", False, {"orderByKey": order})])
        stored = close(tracker, settings)
        tags = stored.client.get_experiment(str(stored.outcome.experiment_id)).tags
        saved.append(json.loads(tags["mlflow.sharedViewState.mine"]))
    assert [json.loads(one["state"])["orderByKey"] for one in saved] == ["first", "first", "second"]
    assert saved[0] == saved[1]  # not sent again: its time is the first launch's
    assert tags["mlflow.note.content"] == "Ours: about."
    addresses = pages(settings, "http://here")
    assert list(addresses) == ["Mine", f"All runs of {settings.name}"]
    assert addresses["Mine"].endswith("/runs?workflowType=machine_learning&viewStateShareKey=mine")


def test_a_persons_description_of_the_experiment_stays(launch: Launch, settings: RunConfig) -> None:
    for theirs, kept in ((None, "Ours: old."), ("Ours: older.", "Ours: old."), ("Mine.", "Mine.")):
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        stored = close(tracker, settings)
        experiment = str(stored.outcome.experiment_id)
        if theirs is not None:
            stored.client.set_experiment_tag(experiment, "mlflow.note.content", theirs)
        tracker = launch()
        tracker.experiment("Ours: old.", "Ours", [])
        close(tracker, settings)
        assert stored.client.get_experiment(experiment).tags["mlflow.note.content"] == kept


def test_children_have_the_run_and_group_of_their_parent(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "parent", {"run": "one", "group": "several", "tasks": "movies"}, {})
    tracker.run("half", "half", "student", {"mode": "distilled"}, {})
    tags = close(tracker, settings).run("half").data.tags
    assert {tag: tags.get(tag) for tag in ("run", "group", "mode", "tasks")} == {
        "run": "one",
        "group": "several",
        "mode": "distilled",
        "tasks": None,
    }


def test_points_are_renamed_and_sent_once(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = {"step": 1, "time": 1.8e9, "metrics": {"movies/accuracy": 0.5}}
    file.write_text(json.dumps(line) + "\n")
    for _ in range(2):
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.follow("", file, lambda name: f"validation/{name.partition('/')[0]}")
        tracker.finish("", "FINISHED")
        stored = close(tracker, settings)
    assert stored.history("", "validation/movies") == [(1, 0.5)]
    assert stored.history("", "movies/accuracy") == []


def test_tags_of_a_run_never_begun_are_counted_as_lost(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "study", {}, {})
    tracker.tags("nobody", {"outcome": "finished"})
    assert tracker.close(timeout_s=60).operations_lost == 1


# ---------------------------------------------------------------- followed files


def test_points_arrive_once_over_two_launches(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(step, 1000.0 + step, loss=step / 10) for step in range(1, 9)))
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.run("half", "half", "student", {}, {"a": 1})
    tracker.follow("half", file)
    first = close(tracker, settings)
    assert first.outcome.points_sent == 8
    assert first.run("half").info.status == "KILLED"

    # resumed from the checkpoint of step 5: later lines were cut, steps 6-8 are done again, two are new
    lines = file.read_text().splitlines(keepends=True)[:5]
    file.write_text(
        "".join(lines) + "".join(line(step, 2000.0 + step, loss=step / 10) for step in range(6, 11))
    )
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.run("half", "half", "student", {}, {"a": 2})
    tracker.follow("half", file)
    tracker.finish("half", "FINISHED")
    second = close(tracker, settings)
    assert second.outcome.run_ids == first.outcome.run_ids
    assert second.outcome.points_sent == 2
    assert second.history("half", "loss") == [(step, step / 10) for step in range(1, 11)]
    assert second.run("half").info.status == "FINISHED"
    assert second.run("half").data.params == {"a": "1"}


def test_a_file_that_grows_and_is_cut_meanwhile(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.follow("", file)  # not there yet
    with file.open("w") as stream:
        stream.write(line(1, 1.0, loss=0.1, acc=0.5) + line(2, 2.0, loss=0.2))
        stream.write('{"step": 3, "time": 3.0, "metr')  # half a line
        stream.flush()
        wait_until(lambda: read_sent(settings, "") == {"loss": 2, "acc": 1})
        stream.write('ics": {"loss": 0.3}}\n')
        stream.flush()
        wait_until(lambda: read_sent(settings, "") == {"loss": 3, "acc": 1})
    # cut back to step 1, and grown past its old length before the next look
    file.write_text(
        line(1, 1.0, loss=0.1, acc=0.5) + "".join(line(s, 10.0 + s, loss=s / 10) for s in range(2, 9))
    )
    tracker.finish("", "FINISHED")
    stored = close(tracker, settings)
    assert stored.history("", "loss") == [(step, step / 10) for step in range(1, 9)]
    assert stored.history("", "acc") == [(1, 0.5)]
    assert stored.outcome.points_sent == 9


def test_nan_is_a_value_and_a_broken_line_is_counted(
    launch: Launch, settings: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(1, 1.0, loss=float("nan")) + "not json\n[1]\n" + line(2, 2.0, loss=0.5))
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.follow("", file)
    outcome = tracker.close(timeout_s=60)
    assert (outcome.points_sent, outcome.points_lost) == (2, 2)


def test_a_large_backlog_is_sent_in_batches(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(step, 1.0 + step, a=0.0, b=1.0, c=2.0) for step in range(1200)))
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.follow("", file)
    tracker.follow("", file)  # twice is once
    stored = close(tracker, settings)
    assert stored.outcome.points_sent == 3600
    assert len(stored.history("", "b")) == 1200


def read_sent(settings: RunConfig, key: str) -> dict[str, int]:
    """Last step by metric that the ledger says was sent."""
    file = settings.run_dir / "mlflow.json"
    sent: dict[str, int] = json.loads(file.read_text())["runs"][key]["followed"] if file.exists() else {}
    return sent


def wait_until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# ---------------------------------------------------------------- resuming


def test_new_runs_where_the_old_ones_are_gone(launch: Launch, settings: RunConfig) -> None:
    def begin() -> Stored:
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.metrics("", {"loss": 1.0})
        return close(tracker, settings)

    first = begin()
    first.client.delete_run(first.outcome.run_ids[""])
    second = begin()
    assert second.outcome.run_ids[""] != first.outcome.run_ids[""]
    assert second.history("", "loss") == [(0, 1.0)]  # a new run gets its points anew

    ledger = settings.run_dir / "mlflow.json"
    ledger.write_text(
        ledger.read_text().replace(second.outcome.run_ids[""], "0" * 32).replace('"mark": "', '"mark": "x')
    )
    third = begin()  # an id that MLflow does not know
    assert third.outcome.run_ids[""] not in (first.outcome.run_ids[""], second.outcome.run_ids[""])

    ledger.unlink()  # the run folder was deleted
    fourth = begin()
    assert fourth.outcome.run_ids[""] != third.outcome.run_ids[""]

    ledger.write_text("{")
    fifth = begin()
    assert fifth.outcome.run_ids[""] != fourth.outcome.run_ids[""]


def test_a_run_made_by_a_lost_answer_is_found_again(launch: Launch, settings: RunConfig) -> None:
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    first = close(tracker, settings)
    ledger = settings.run_dir / "mlflow.json"
    ledger.write_text(json.dumps({**json.loads(ledger.read_text()), "runs": {}}))
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    assert close(tracker, settings).outcome.run_ids == first.outcome.run_ids


# ---------------------------------------------------------------- MLflow is down, slow or says no


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("port", ["closed_port", "deaf_port"])
def test_down_at_start(
    port: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://me:hunter2@127.0.0.1:{request.getfixturevalue(port)}"
    settings = config(tmp_path, "down", uri=uri)
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(1, 1.0, loss=0.1, acc=0.2) + line(2, 2.0, loss=0.1))
    (tmp_path / "report.md").touch()
    with caplog.at_level(logging.WARNING):
        tracker = open_tracker(settings, settings.run_dir)
        calls: list[Callable[[], None]] = [
            lambda: tracker.run("", "down", "parent", {}, flatten(settings)),
            lambda: tracker.follow("", file),
            lambda: tracker.metrics("", {"macro/accuracy": 0.5, "macro/f1": 0.5}),
            lambda: tracker.artifacts("", tmp_path / "report.md"),
            lambda: tracker.model("", "half", tmp_path, "text-classification"),
            lambda: tracker.register("", "half", "down"),
            lambda: tracker.tags("", {"outcome": "finished"}),
            lambda: tracker.finish("", "FINISHED"),
        ]
        for call in calls:
            assert seconds(call) < 0.05
        outcome: list[TrackingOutcome] = []
        assert seconds(lambda: outcome.append(tracker.close(timeout_s=1.5))) < 2.0
        assert tracker.close() is outcome[0]
    assert outcome[0].points_sent == 0
    assert outcome[0].points_lost == 3 + 2
    assert outcome[0].operations_lost == 6  # run, artifact, model, version, tags, end
    assert outcome[0].run_ids == {}
    (warning,) = [
        record.getMessage() for record in caplog.records if record.name == "pipeline.tracking.tracker"
    ]
    assert "tracking.uri" in warning
    assert "hunter2" not in warning + str(outcome[0].uri) + caplog.text


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_what_mlflow_refuses_is_counted_and_the_rest_goes_on(
    launch: Launch, settings: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(1, 1.0, **{"bad|name": 1.0}) + line(2, 2.0, loss=0.2))
    tracker = launch()
    tracker.run("", settings.name, "parent", {}, {})
    tracker.artifacts("", tmp_path / "missing.md")
    tracker.artifacts("nobody", file)
    tracker.metrics("", {"bad|name": 1.0})
    tracker.metrics("", {"good": 1.0})
    outcome = tracker.close(timeout_s=60)
    assert (outcome.points_sent, outcome.points_lost, outcome.operations_lost) == (1, 1, 2)
    stored = Stored(MlflowClient(tracking_uri=settings.tracking_uri), outcome)
    assert stored.history("", "good") == [(0, 1.0)]
    assert stored.run("").info.status == "KILLED"
    assert "missing.md" in caplog.text


# ---------------------------------------------------------------- opening, and the page that shows the runs


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, pipeline.tracking.tracker; sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'ray')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_disabled_tracking_does_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(config(tmp_path, "off", enabled=False), tmp_path / "off")
    assert isinstance(tracker, NullTracker)
    tracker.run("", "off", "parent", {}, {})
    tracker.tags("", {"outcome": "finished"})
    tracker.register("", "half", "off")
    tracker.finish("", "FINISHED")
    assert tracker.close() == TrackingOutcome()
    assert list(tmp_path.iterdir()) == []
