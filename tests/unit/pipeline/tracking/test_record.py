"""What the stages record, on a tracker that keeps what it gets. MLflow itself: test_tracker.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.resolved import jobs_of, student_settings
from pipeline.errors import StoppedError
from pipeline.tracking import record
from pipeline.tracking.tracker import Status
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.hand_results import hand_report
from tests.unit.pipeline.tracked import Kept, config


def test_a_student_and_its_baseline_have_runs_with_their_own_settings(tmp_path: Path) -> None:
    settings, tracker = config(tmp_path, "first"), Kept()
    for job in jobs_of(settings):
        own = student_settings(settings, job.student, facts_of(settings))
        record.job_began(tracker, settings, job, own, tmp_path / f"{job.name}.jsonl")
    name, role, tags, params = tracker.runs["half-distilled"]
    assert (name, role, tags["teachers"], tags["mode"]) == ("half-distilled", "student", "big", "distilled")
    assert (params["loss.tasks.movies.soft"], params["train.epochs"], params["student.init_from"]) == (
        0.7,
        60,
        "big",
    )
    _, role, tags, params = tracker.runs["half-supervised"]
    assert role == "baseline"
    assert "teachers" not in tags
    assert not any(key.startswith("loss.") for key in params)
    assert tracker.followed["half-supervised"] == tmp_path / "half-supervised.jsonl"


def test_test_scores_stand_on_each_run_and_the_ensembles_on_the_parent() -> None:
    tracker = Kept()
    report = hand_report(74, 72, 78, n=100)
    retention, ece = 0.74 / 0.78, report.tasks["movies"].students["half"].ece
    record.test_scores(tracker, report)
    assert tracker.logged == {
        "": {
            "test/macro/ensemble": 0.78,
            "test/macro/half": 0.74,
            "retention/half": retention,
            "test/movies/ensemble": 0.78,
        },
        "half-distilled": {
            "test/macro/score": 0.74,
            "retention/macro": retention,
            "test/movies/accuracy": 0.74,
            "retention/movies": retention,
            "test/movies/ece": ece,
            "latency_ms/movies": 1.25,
            "times_faster": 4.0,
        },
        "half-supervised": {"test/macro/score": 0.72, "test/movies/accuracy": 0.72},
    }


def test_without_a_baseline_no_run_is_made_for_it() -> None:
    tracker = Kept()
    record.test_scores(tracker, hand_report(74, None, 78, n=100))
    assert set(tracker.logged) == {"", "half-distilled"}


def test_scores_of_the_weights_kept_stand_beside_those_by_epoch() -> None:
    scores = {"macro/score": 0.8, "movies/nll": 0.4}
    assert record.best_metrics(scores) == {"best/macro/score": 0.8, "best/movies/nll": 0.4}
    assert record.best_metrics({}) == {}


@pytest.mark.parametrize("version", [None, "ours"])
def test_an_exported_student_is_a_model_where_transformers_can_open_it(
    tmp_path: Path, version: str | None
) -> None:
    tracker, notes = Kept(), list[str]()
    folder = tmp_path / "movies"
    record.exported_student(tracker, "half", "movies", folder, "text-classification", version, notes.append)
    record.exported_student(tracker, "half", "questions", folder, None, version, notes.append)
    assert tracker.models == [("half-distilled", "half-movies")]
    assert tracker.files == [("half-distilled", "movies", "models/questions")]
    assert tracker.registered == ([] if version is None else ["ours"])
    assert len(notes) == (0 if version is None else 2)  # a kind that cannot be registered is named


def test_pictures_lie_in_a_folder_of_their_own() -> None:
    tracker = Kept()
    record.written_files(tracker, [Path("report.md"), Path("scores.png")])
    assert tracker.files == [("", "report.md", None), ("", "scores.png", "figures")]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (StoppedError("stopped", "again"), "KILLED"), (ValueError(), "FAILED")],
)
def test_the_parent_run_ends_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, status: Status
) -> None:
    tracker = Kept()
    monkeypatch.setattr(record, "open_tracker", lambda config, run_dir: tracker)
    settings = config(tmp_path, "first")

    def command() -> None:
        with record.recorded_run(settings, "parent", "several", print) as opened:
            assert opened is tracker
            if error is not None:
                raise error

    if error is None:
        command()
    else:
        with pytest.raises(type(error)):
            command()
    assert tracker.ended == {"": status}
    _, role, tags, params = tracker.runs[""]
    assert (role, tags, params["name"]) == ("parent", {"tasks": "movies", "group": "several"}, "first")
    json.dumps(dict(params))  # plain values
