"""One trial: its config is what `tutelage train` would make of the same values; what it tells Tune; what it takes over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.tune
import yaml

from pipeline.config.load import load_config
from pipeline.config.view import differences
from pipeline.training.checkpoint import load_checkpoint, newest_checkpoint
from pipeline.training.log import METRICS
from tests.unit.pipeline.small_training import StopAfter, points, same_bits, task_set, trainer_of, weights_of
from tests.unit.tune.studies import plain, search_of, with_facts
from tune.study import trial_name
from tune.trial import (
    TAKEOVERS,
    Shared,
    _take_over,
    curve,
    report_to_tune,
    run_trial,
    trial_config,
    trial_job,
)

# ---------------------------------------------------------------- its config


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loss.temperature": 4.5, "loss.task_weights.movies": 0.3333333333333333},
        {"students.half.layers": [0, 3], "students.half.loss.soft": 1.0},
        {"train.early_stopping.patience": 3, "train.dropout": None, "train.learning_rate": 1e-05},
        {"aggregation.teacher_weights.movies-big": 0.1, "tasks.stars.aggregation.strategy": "best"},
    ],
)
def test_a_trial_is_what_train_makes_of_the_same_values(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(plain()))
    overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    wanted = load_config(file, overrides)
    config = trial_config(search_of(), tmp_path / "trials", 7, values)
    apart = {"name", "runs_dir", "students", "baselines", "tune"}
    assert config.model_dump(exclude=apart) == wanted.model_dump(exclude=apart)
    assert config.students == {"half": wanted.students["half"]}
    assert not [
        line for line in differences(wanted, config) if line.startswith(("loss", "train", "aggregation"))
    ]


def test_a_trial_is_one_training_in_the_studys_folder(tmp_path: Path) -> None:
    config = trial_config(search_of(run={"seeds": [1, 2]}), tmp_path, 7, {})
    assert config.run_dir == tmp_path / "007"
    assert trial_name(1234) == "1234"
    assert (config.baselines, config.tune) == ((), None)
    assert trial_job(search_of()).name == "half-distilled"


# ---------------------------------------------------------------- what it tells Tune


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Path | None]]:
    """What is reported to Tune, which has no session here."""
    reports: list[tuple[dict[str, Any], Path | None]] = []

    def report(metrics: Mapping[str, Any], checkpoint: ray.tune.Checkpoint | None = None) -> None:
        reports.append((dict(metrics), Path(checkpoint.path) if checkpoint else None))

    monkeypatch.setattr(ray.tune, "report", report)
    return reports


def test_an_epoch_is_told_with_what_has_been_kept(
    tmp_path: Path, reported: list[tuple[dict[str, Any], Path | None]]
) -> None:
    report_to_tune(None, 2, {"macro/score": 0.5, "movies/nll": 0.7})
    assert reported == [({"epoch": 2, "macro/score": 0.5, "movies/nll": 0.7}, None)]


def test_a_population_is_told_of_the_checkpoint_of_that_epoch(
    tmp_path: Path, reported: list[tuple[dict[str, Any], Path | None]]
) -> None:
    trainer = trainer_of(tmp_path, [task_set(teachers=1)])
    trainer.report = lambda epochs, scores: report_to_tune(tmp_path, epochs, scores)
    trainer.fit()
    a_pass = trainer.feed.steps_per_epoch
    assert [(metrics["epoch"], path) for metrics, path in reported] == [
        (epoch, tmp_path / f"step-{epoch * a_pass:08d}") for epoch in (1, 2, 3)
    ]


# ---------------------------------------------------------------- what it takes over


def offered(monkeypatch: pytest.MonkeyPatch, checkpoint: Path | None) -> None:
    """Makes Tune offer a checkpoint, as it does to a trial that it starts again."""
    latest = None if checkpoint is None else ray.tune.Checkpoint.from_directory(str(checkpoint))
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: latest)


def begun(folder: Path, epochs: int, seed: int) -> Path:
    """A training's folder, stopped in the middle of an epoch after `epochs`; its last checkpoint."""
    sets = [task_set(teachers=1, seed=seed)]
    steps = trainer_of(folder, sets).feed.steps_per_epoch
    trainer_of(folder, sets, should_stop=StopAfter(epochs * steps + 1)).fit()
    newest = newest_checkpoint(folder)
    assert newest is not None
    return newest


def test_a_trial_that_starts_has_taken_nothing_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, None)
    folder = tmp_path / "trials" / "half-distilled"
    _take_over(folder, 0)
    assert json.loads((folder / TAKEOVERS).read_text()) == 0


def test_a_trial_that_takes_over_has_another_ones_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on exactly as the other one would have, from there, even where the new values are its old ones."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    offered(monkeypatch, None)
    _take_over(mine, 0)
    begun(mine, 2, seed=0)
    source = begun(theirs, 1, seed=3)
    sets = [task_set(teachers=1, seed=3)]

    offered(monkeypatch, source)
    _take_over(mine, 1)
    assert json.loads((mine / TAKEOVERS).read_text()) == 1
    assert [path.name for path in mine.glob("step-*")] == [source.name]
    loaded = load_checkpoint(mine)
    assert loaded is not None
    assert loaded.state == json.loads((source / "checkpoint.json").read_text())["state"]

    ends = [trainer_of(folder, sets) for folder in (mine, theirs)]
    for trainer in ends:
        assert trainer.fit().status == "done"
    assert same_bits(weights_of(ends[0].student), weights_of(ends[1].student))
    steps = [point["step"] for point in points(mine)]
    assert steps == sorted(steps), "what came after the other one's checkpoint is trained again"


@pytest.mark.parametrize("offer", [True, False])
def test_a_trial_that_took_nothing_over_since_keeps_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offer: bool
) -> None:
    """A trial that failed is started again by Tune, which offers what it knows: its own folder is newer."""
    mine = tmp_path / "mine"
    offered(monkeypatch, None)
    _take_over(mine, 1)
    own = begun(mine, 2, seed=0)
    source = begun(tmp_path / "theirs", 1, seed=3)
    offered(monkeypatch, source if offer else None)
    _take_over(mine, 1)
    assert newest_checkpoint(mine) == own


def test_a_resumed_study_offers_nothing_and_the_weights_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    offered(monkeypatch, None)
    _take_over(mine, 2)
    own = begun(mine, 1, seed=0)
    _take_over(mine, 0)
    assert newest_checkpoint(mine) == own
    assert json.loads((mine / TAKEOVERS).read_text()) == 0, "the next one is the first of this launch"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_is_to_stop_starts_nothing(tmp_path: Path, workers: int) -> None:
    """Neither a training nor a worker group; without data either would fail."""
    shared = Shared(*with_facts(search_of(run={"train.workers": workers})), tmp_path, {}, {}, {}, 1.0)
    (tmp_path / "004").mkdir()
    (tmp_path / "004/STOP").touch()
    run_trial({"number": 4, "values": {}}, shared=shared)
    assert [path.name for path in (tmp_path / "004").iterdir()] == ["STOP"]


# ---------------------------------------------------------------- its curve


def test_trials_of_a_study_behind_a_url_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, facts = with_facts(search_of(run={"runs_dir": "s3://bucket/runs?region=eu"}))
    shared = Shared(config, facts, config.runs_path / "movies-study" / "trials", {}, {}, {}, 1.0)
    assert shared.url == "s3://bucket/runs/movies-study/trials?region=eu"
    assert shared.study_url == "s3://bucket/runs/movies-study?region=eu"
    assert shared.first_stages.is_relative_to(tmp_path / "cache"), "every machine has its own"
    finals = replace(shared, folder=config.runs_path / "movies-study" / "finals")
    assert finals.first_stages == shared.first_stages
    plain = Shared(*with_facts(search_of()), tmp_path / "study" / "trials", {}, {}, {}, 1.0)
    assert (plain.url, plain.study_url) == (None, None)
    assert plain.first_stages == tmp_path / "study" / "first-stages"


def test_a_curve_is_its_validation_points(tmp_path: Path) -> None:
    trainer_of(tmp_path, [task_set(teachers=1)]).fit()
    points = curve(tmp_path)
    assert [point["epoch"] for point in points] == [1, 2, 3]
    assert all("mood/accuracy" in point["metrics"] for point in points)
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 99, "metrics": {"macro/sc')  # cut short by a kill
    assert curve(tmp_path) == points
    assert curve(tmp_path / "absent") == []
