"""What the stages record, on a tracker that keeps what it gets. MLflow itself: test_tracker.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.data import DataConfig
from pipeline.config.load import parse_config
from pipeline.config.resolved import jobs_of, student_settings
from pipeline.config.search import TuneConfig
from pipeline.data.transfer import load_tasks
from pipeline.errors import StoppedError
from pipeline.report.page import overview, verdict
from pipeline.report.schema import VariantsRecord
from pipeline.tracking import record
from pipeline.tracking.calls import DESCRIPTION
from pipeline.tracking.tracker import Status
from pipeline.tracking.views import views_of_run
from tests.conftest import CsvTask
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


def test_scores_of_an_epoch_are_renamed_on_their_way(tmp_path: Path) -> None:
    settings, tracker = config(tmp_path, "first"), Kept()
    record.training_began(tracker, settings, "trial/1", "trial-001", "trial", {}, {}, tmp_path / "m.jsonl")
    rename = tracker.renamed["trial/1"]
    assert [rename(name) for name in ("movies/accuracy", "movies/nll", "macro/score", "loss/total")] == [
        "validation/movies",
        "validation/nll/movies",
        "validation/macro",
        "loss/total",
    ]


def test_test_scores_stand_on_each_models_run_and_the_means_on_the_parent() -> None:
    tracker = Kept()
    report = hand_report(74, 72, 78, n=100)
    retention, ece = 0.74 / 0.78, report.tasks["movies"].students["half"].ece
    record.test_scores(tracker, report)
    assert tracker.logged == {
        "": {"test/macro/ensemble": 0.78, "test/macro/half": 0.74, "retention/macro/half": retention},
        "half-distilled": {
            "test/macro": 0.74,
            "test/movies": 0.74,
            "test/ece/movies": ece,
            "retention/macro": retention,
            "retention/movies": retention,
            "latency_ms/movies": 1.25,
            "cost/latency_ms": 1.25,
            "cost/parameters": 4e6,
            "cost/times_faster": 4.0,
            "cost/times_smaller": 5.0,
        },
        "half-supervised": {"test/macro": 0.72, "test/movies": 0.72, "cost/parameters": 4e6},
        "ensemble": {"test/macro": 0.78, "test/movies": 0.78},
        "teacher/large": {"test/movies": 0.78, "cost/parameters": 20e6, "cost/latency_ms": 5.0},
    }
    assert {key: run[:2] for key, run in tracker.runs.items()} == {
        "ensemble": ("ensemble", "ensemble"),
        "teacher/large": ("large", "teacher"),  # also of a teacher that was not trained in this launch
    }
    assert tracker.ended == {"ensemble": "FINISHED", "teacher/large": "FINISHED"}


def test_without_a_baseline_no_run_is_made_for_it() -> None:
    tracker = Kept()
    record.test_scores(tracker, hand_report(74, None, 78, n=100))
    assert set(tracker.logged) == {"", "half-distilled", "ensemble", "teacher/large"}


def test_variants_are_counted_by_method_and_task() -> None:
    tracker, report = Kept(), hand_report(74, 72, 78, n=100)
    made = VariantsRecord(count=70, dropped={"duplicates": 3}, seconds=1.5, asked=9, examples=())
    task = report.tasks["movies"].model_copy(update={"variants": {"masked": made}})
    record.test_scores(tracker, report.model_copy(update={"tasks": {"movies": task}}))
    assert tracker.logged[""]["variants/masked/movies"] == 70


def test_scores_of_the_weights_kept_stand_beside_those_by_epoch(tmp_path: Path) -> None:
    scores = {"macro/score": 0.8, "movies/nll": 0.4, "movies/accuracy": 0.8}
    settings = config(tmp_path, "first")
    assert record.best_metrics(settings, scores) == {
        "best/macro": 0.8,
        "best/nll/movies": 0.4,
        "best/movies": 0.8,
    }
    assert record.best_metrics(settings, {}) == {}


def test_data_sets_have_the_digest_and_sizes_of_what_was_loaded(tmp_path: Path, csv_task: CsvTask) -> None:
    settings = parse_config(
        {
            "name": "first",
            "runs_dir": str(tmp_path),
            "tasks": {"mood": csv_task(train=20, validation=10, test=12)},
            "teachers": {"big": {"task": "mood", "model": "big"}},
            "students": {"half": {"init_from": "big", "layers": 3}},
        }
    )
    loaded = load_tasks(settings)
    (one,) = record.data_sets(settings, loaded)
    assert (one.name, one.digest) == ("mood", loaded["mood"].fingerprint())
    assert one.sizes == {"train": 20, "validation": 10, "test": 12}
    assert one.source_type == "local"
    assert "train.csv" in one.source["uri"]
    hub = record._source(DataConfig(path="stanfordnlp/sst2", name="plain"))
    assert hub == ("hugging_face", {"path": "stanfordnlp/sst2", "config_name": "plain"})


def test_a_run_saves_the_views_of_its_students_and_a_study_those_of_its_trials(tmp_path: Path) -> None:
    run, study = Kept(), Kept()
    settings = config(tmp_path, "first")
    record.run_began(run, settings, "parent", "several")
    assert [view.key for view in run.views] == ["students-several", "compared-several"]
    assert (run.runs[""][2]["run"], run.runs[""][2]["group"]) == ("first", "several")
    tune = TuneConfig.model_validate({"space": {"loss.soft": {"uniform": [0, 1]}}})
    record.run_began(study, settings.model_copy(update={"tune": tune}), "study")
    assert [view.key for view in study.views] == ["trials-first", "values-first"]


def test_a_description_has_the_table_of_students_and_addresses_once_mlflow_has_answered(
    tmp_path: Path,
) -> None:
    settings, report, tracker = config(tmp_path, "first"), hand_report(74, 72, 78, n=100), Kept()
    record.described(tracker, settings, report)
    assert tracker.tagged[""][DESCRIPTION] == f"{verdict(report)}\n\n{overview(report)}"
    assert record.links(tracker, settings, views_of_run(settings, None)) == {}
    tracker.experiment_id = "7"
    record.described(tracker, settings, report)
    address = "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=students-first"
    assert tracker.tagged[""][DESCRIPTION].startswith(f"[Students of first, by test score]({address})")
    links = record.links(tracker, settings, views_of_run(settings, None))
    assert links is not None
    assert links["Students of first, by test score"] == f"http://127.0.0.1:5000/{address}"
    away = config(tmp_path, "first", uri="https://me:hunter2@mlflow.example/base/")
    (first, *_) = (record.links(tracker, away, views_of_run(away, None)) or {}).values()
    assert first == f"https://mlflow.example/base/{address}"
    off = config(tmp_path, "first", enabled=False)
    assert record.links(tracker, off, views_of_run(off, None)) is None


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
    assert (role, params["name"]) == ("parent", "first")
    assert tags == {"tasks": "movies", "run": "first", "group": "several"}
    json.dumps(dict(params))  # plain values
