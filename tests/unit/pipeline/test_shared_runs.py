"""Runs behind a URL: where a run's files lie, which process has a copy of which, models by content, the stop file, the lock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import synced
from pipeline.config.schema import RunConfig
from pipeline.errors import LockedError, TeacherError
from pipeline.models import fingerprint, resolve
from pipeline.run_folder import CONFIG, FAILURE, stop_file
from pipeline.shared_runs import (
    Behind,
    behind,
    fetch_weights,
    held,
    model_source,
    of_trial,
    of_worker,
    pull_reports,
    pull_teacher,
    remove_weights_behind,
    send_models,
    send_weights,
    teacher_sources,
    to_stop,
    url_of,
    worked_on,
)
from pipeline.training.fine_tune import TEACHER
from tests.conftest import TinyModel

CHECKPOINT = "checkpoints/small-distilled/step-00000004/model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(synced, "SYNC_S", 0.05)
    monkeypatch.setattr(synced, "BEAT_S", 0.1)
    monkeypatch.setattr(synced, "GONE_S", 1.0)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder behind the URL."""
    return tmp_path / "there"


def config(runs_dir: str, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "first",
            "runs_dir": runs_dir,
            "tasks": {"mood": {"kind": "text-classification", "data": {"path": "csv"}}},
            "teachers": {"only": {"task": "mood", "model": "bert"}},
            "students": {"small": {"init_from": "only"}},
            **sections,
        }
    )


@pytest.fixture
def shared(there: Path) -> RunConfig:
    return config(there.as_uri())


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_paths_of_a_folder_and_of_a_url(shared: RunConfig, there: Path, tmp_path: Path) -> None:
    plain = config("somewhere/runs")
    assert (plain.runs_url, plain.run_dir) == (None, Path("somewhere/runs/first"))
    assert plain.store_path == str(Path("somewhere/runs/_store").absolute())
    assert shared.runs_url == there.as_uri()
    assert shared.run_dir.is_relative_to(tmp_path / "cache")
    assert shared.store_path == f"{there.as_uri()}/_store"
    assert str(tmp_path / "cache") in shared.tracking_uri  # a database cannot lie behind a URL
    other = config("s3://bucket/runs?region=us-east-1", store={"path": "s3://other/store"})
    assert other.store_path == "s3://other/store"
    assert (
        config("s3://bucket/runs?region=us-east-1").store_path == "s3://bucket/runs/_store?region=us-east-1"
    )


def test_a_folder_needs_none_of_it(tmp_path: Path) -> None:
    plain = config(str(tmp_path / "runs"))
    with held(plain):
        assert names(plain.run_dir) == {".lock"}
    assert behind(plain, "first") is None
    assert model_source(plain, tmp_path) is None
    send_models(plain, [tmp_path])
    with worked_on(None, tmp_path / "runs" / "first", tmp_path / "STOP") as paths:
        assert paths == (tmp_path / "runs" / "first", tmp_path / "STOP")


def test_urls_of_what_lies_below_the_runs(shared: RunConfig, there: Path, tmp_path: Path) -> None:
    trials = shared.runs_path / "first-study" / "trials"
    assert url_of(shared, trials) == f"{there.as_uri()}/first-study/trials"
    plain = config(str(tmp_path / "runs"))
    assert url_of(plain, plain.run_dir) is None
    query = config("s3://bucket/runs?region=us-east-1")
    assert url_of(query, query.run_dir) == "s3://bucket/runs/first?region=us-east-1"


def test_a_trials_weights_become_a_runs(shared: RunConfig, there: Path) -> None:
    """What the driver has no copy of is fetched for it, and takes the place of what the run had."""
    training, own = "checkpoints/small-distilled", shared.run_dir / "checkpoints/small-distilled"
    put(there / "first-study/trials/003", CHECKPOINT, f"{training}/metrics.jsonl")
    put(there / "first", f"{training}/step-00000002/model.safetensors")
    trial = shared.runs_path / "first-study/trials/003" / training
    fetch_weights(shared, trial)
    assert names(trial) == {"metrics.jsonl", "step-00000004/model.safetensors"}
    put(own, "step-00000004/model.safetensors", "metrics.jsonl")
    send_weights(shared, own)
    assert names(there / "first") == {CHECKPOINT, f"{training}/metrics.jsonl"}


def test_weights_behind_a_url_are_removed_and_nothing_else(shared: RunConfig, there: Path) -> None:
    put(
        there / "trials",
        f"003/{CHECKPOINT}",
        f"004/fold-1/{CHECKPOINT}",
        "003/trial.json",
        "003/x/result.json",
    )
    remove_weights_behind(f"{there.as_uri()}/trials/003")
    assert names(there / "trials") == {f"004/fold-1/{CHECKPOINT}", "003/trial.json", "003/x/result.json"}
    remove_weights_behind(f"{there.as_uri()}/trials")
    assert names(there / "trials") == {"003/trial.json", "003/x/result.json"}
    remove_weights_behind(f"{there.as_uri()}/nothing")
    remove_weights_behind(None)


def test_a_trial_leaves_the_searchs_record_alone(shared: RunConfig, there: Path, tmp_path: Path) -> None:
    put(there / "trials/003", "trial.json", CHECKPOINT, "STOP")
    urls = Behind(f"{there.as_uri()}/trials/003", f"{there.as_uri()}/trials/003")
    with worked_on(urls, tmp_path / "003", tmp_path / "003" / "STOP", of_trial) as (copy, _):
        assert names(copy) == {CHECKPOINT, "STOP"}
        put(copy, "checkpoints/small-distilled/result.json")
    assert "checkpoints/small-distilled/result.json" in names(there / "trials/003")
    assert (there / "trials/003/trial.json").read_text() == "trial.json"


def test_teachers_are_found_by_every_node(shared: RunConfig, tmp_path: Path, tiny_model: TinyModel) -> None:
    folder = tiny_model("bert")
    plain = config(str(tmp_path / "runs"))
    assert teacher_sources(plain, {"only": folder}) == {"only": str(folder)}
    assert teacher_sources(shared, {"only": folder}) == {
        "only": f"{shared.runs_url}/_models/{fingerprint(folder)}"
    }


def test_the_driver_has_all_but_checkpoints(shared: RunConfig, there: Path) -> None:
    put(there / "first", CHECKPOINT, "checkpoints/small-distilled/metrics.jsonl", "ray/state.json", "STOP")
    with held(shared) as now:
        assert "checkpoints/small-distilled/metrics.jsonl" in names(shared.run_dir)
        put(shared.run_dir, "report.json")
        put(there / "first", "students/small/mood/config.json")
        now()
        assert "students/small/mood/config.json" in names(shared.run_dir)
        assert not {CHECKPOINT, "ray/state.json", "STOP"} & names(shared.run_dir)
        with pytest.raises(LockedError), held(shared):
            pass
    assert {CHECKPOINT, "report.json"} < names(there / "first")
    assert not {"STOP", ".lease"} & names(there / "first")  # of a launch that was killed, and of this one


@pytest.mark.parametrize("server", [True, False])
def test_what_mlflow_has_been_sent_is_known_where_its_database_is(there: Path, server: bool) -> None:
    tracking = {"uri": "http://mlflow:5000"} if server else {}
    own = config(there.as_uri(), tracking=tracking)
    with held(own):
        put(own.run_dir, "mlflow.json")
    assert ("mlflow.json" in names(there / "first")) == server


def test_what_a_worker_has_a_copy_of() -> None:
    files = [
        CHECKPOINT,
        "checkpoints/small-distilled/result.json",
        "checkpoints/small-supervised/longer/metrics.jsonl",
        "students/small/mood/config.json",
        f"{FAILURE}x.json",
    ]
    others = ["report.json", "config.yaml", "STOP"]
    first, second = of_worker(0), of_worker(1)
    assert [name for name in [*files, *others] if first(name)] == files
    assert [name for name in [*files, *others] if second(name)] == [files[1], files[4]]


def test_a_worker_works_in_a_copy_that_goes_with_it(shared: RunConfig, there: Path, tmp_path: Path) -> None:
    put(there / "first", CHECKPOINT)
    with worked_on(behind(shared, "first"), shared.run_dir, stop_file(shared.run_dir), of_worker(0)) as paths:
        folder, stop = paths
        assert (folder / CHECKPOINT).exists()
        assert not folder.is_relative_to(tmp_path)
        put(folder, "checkpoints/small-distilled/result.json")
        assert not stop.exists()
        put(there / "first", "STOP")
        until = time.monotonic() + 10
        while not stop.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    assert not folder.exists()
    assert "checkpoints/small-distilled/result.json" in names(there / "first")
    assert to_stop(behind(shared, "first"), stop)


def test_models_are_sent_once_and_found_by_their_content(
    shared: RunConfig, there: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("bert")
    (there / "_models" / fingerprint(model)).mkdir(
        parents=True
    )  # of a launch that was killed while it sent them
    send_models(shared, [model, model])
    source = model_source(shared, model)
    assert source is not None
    monkeypatch.setattr(
        synced.UrlFolder, "send", lambda self, file, name: pytest.fail(f"{name} is sent again")
    )
    send_models(shared, [model])
    fetched = resolve(source, None, "teachers.only")
    assert fetched != model
    assert fingerprint(fetched) == fingerprint(model)
    monkeypatch.setattr(
        synced.UrlFolder, "fetch", lambda self, name, file, time_s: pytest.fail(f"{name} is fetched again")
    )
    assert resolve(source, None, "teachers.only") == fetched


def test_a_fine_tuned_teacher_is_found_where_it_was_made(
    shared: RunConfig, there: Path, tiny_model: TinyModel
) -> None:
    name, model = "only-0123456789abcdef", tiny_model("bert", ("bad", "good"))
    for file in model.iterdir():
        target = there / "_teachers" / name / TEACHER / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    put(there / "_teachers" / name, "work/step-00000004/model.safetensors")
    folder = shared.teachers_dir / name
    pull_teacher(shared, folder)
    assert fingerprint(folder / TEACHER) == fingerprint(model)
    assert not (folder / "work").exists()
    source = model_source(shared, folder / TEACHER)
    assert source == f"{there.as_uri()}/_teachers/{name}/{TEACHER}"
    assert fingerprint(resolve(source, None, "teachers.only")) == fingerprint(model)


def test_a_url_without_a_model_is_refused(there: Path) -> None:
    with pytest.raises(TeacherError, match=r"^teachers.only: no model at file://"):
        resolve(there.as_uri(), None, "teachers.only")


def test_reports_of_all_runs_are_pulled_and_nothing_else(there: Path) -> None:
    put(there, f"first/{CONFIG}", "first/report.json", f"first/{CHECKPOINT}", "_store/aa/report.json")
    assert names(pull_reports(there.as_uri())) == {f"first/{CONFIG}", "first/report.json"}
