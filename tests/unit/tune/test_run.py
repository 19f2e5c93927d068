"""The configs that a study makes, and what keeps two searches apart. The study itself: tests/integration/test_tune.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.config.load import load_config
from pipeline.config.resolved import student_loss
from pipeline.config.schema import RunConfig
from pipeline.config.view import differences, to_yaml
from pipeline.errors import ConfigError
from pipeline.files import write_atomically
from pipeline.report.schema import TrialStatus
from tests.unit.pipeline.tracked import Kept
from tests.unit.tune.studies import SPACE, search_of, trial_of, with_facts
from tune.run import _refuse_another_search, _Study, best_config, study_config
from tune.space import with_values
from tune.trial import Shared

VALUES = {"loss.temperature": 4.5, "loss.task_weights.movies": 2.0, "students.half.layers": [0, 3]}


# ---------------------------------------------------------------- the winner's config


def test_the_winner_is_a_plain_run_of_the_searched_student() -> None:
    config = best_config(search_of(), VALUES)
    assert (config.name, config.experiment) == ("run-best", "run")
    assert list(config.students) == ["half"]
    assert config.students["half"].layers == (0, 3)
    assert config.loss.temperature == 4.5
    assert student_loss(config, "half")[0].task_weights == pytest.approx({"movies": 4 / 3, "stars": 2 / 3})
    assert config.tune is None
    assert config.baselines == ("supervised",)


def test_nothing_but_the_values_is_changed() -> None:
    """Else the comparison with the default weights would be of two things at once."""
    plain = search_of(run={"seeds": [1, 2]})
    mine = best_config(plain, VALUES)
    changed = {line.split(":")[0] for line in differences(plain, mine)}
    assert {path for path in changed if not path.startswith("students.tiny")} == {"name", *VALUES}
    assert mine.seeds == (1, 2)


def test_best_yaml_is_read_back_as_it_was(tmp_path: Path) -> None:
    chosen = best_config(search_of(run={"seeds": [1, 2], "runs_dir": "elsewhere"}), VALUES)
    file = tmp_path / "best.yaml"
    file.write_text(f"# a comment\n{to_yaml(chosen)}")
    assert load_config(file) == chosen


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        best_config(search_of(), {"loss.heat": 1})


# ---------------------------------------------------------------- what MLflow is told of a trial


@pytest.mark.parametrize("status", ["finished", "early-stopped"])
def test_a_trial_has_the_scores_of_the_weights_it_keeps_once_it_has_ended(
    tmp_path: Path, status: TrialStatus
) -> None:
    """The same columns for all: trials are compared by them."""
    config, tracker = search_of(), Kept()
    parts = SimpleNamespace(
        config=config,
        run=SimpleNamespace(config=study_config(config), tracker=tracker),
        shared=Shared(*with_facts(config), tmp_path, {}, {}, {}, 1.0),
        student="half",
        ensemble={"macro/score": 0.9, "movies/accuracy": 0.8},
        _tracked=set(),
    )
    study = cast(_Study, parts)
    _Study._track(study, trial_of(3, 0.72, "running"))
    assert tracker.logged == {}
    _Study._track(study, trial_of(3, 0.72, status, epochs=2))
    assert tracker.logged["trial/3"] == pytest.approx(
        {
            "best/macro": 0.72,
            "best/movies": 0.72,
            "best/retention/macro": 0.8,
            "best/retention/movies": 0.9,
        }
    )


# ---------------------------------------------------------------- the study's own config


def test_a_study_has_a_folder_of_its_own_in_the_same_experiment() -> None:
    config = search_of(run={"seeds": [1, 2]})
    own = study_config(config)
    assert own.run_dir == Path("runs/run-study")
    assert own.experiment == config.experiment == "run"
    assert own.store_path == config.store_path
    assert own.seeds == ()
    assert own.tune == config.tune
    named = search_of(run={"tracking.experiment": "mine"})
    assert study_config(named).experiment == best_config(named, VALUES).experiment == "mine"


def launched(config: RunConfig) -> RunConfig:
    """The study's config, once a launch has begun with it."""
    own = study_config(config)
    write_atomically(own.run_dir / "config.yaml", to_yaml(own))
    return own


def again(tmp_path: Path, **tune: Any) -> RunConfig:
    return study_config(search_of(run={"runs_dir": str(tmp_path)}, **tune))


def test_the_first_launch_is_not_refused(tmp_path: Path) -> None:
    _refuse_another_search(again(tmp_path))


@pytest.mark.parametrize(
    "tune",
    [{}, {"trials": 99}, {"concurrency": 7}, {"time_budget_s": 60.0}, {"retries": 0}, {"mode": None}],
)
def test_the_same_search_goes_on_also_with_more_trials(tmp_path: Path, tune: dict[str, Any]) -> None:
    launched(search_of(run={"runs_dir": str(tmp_path)}))
    _refuse_another_search(again(tmp_path, **tune))


@pytest.mark.parametrize(
    ("tune", "difference"),
    [
        ({"seed": 1}, "tune.seed differ"),
        ({"algorithm": "random"}, "tune.algorithm differ"),
        ({"scheduler": "none", "grace_epochs": 2}, "tune.scheduler, tune.grace_epochs differ"),
        ({"space": {**SPACE, "loss.temperature": {"uniform": [1, 9]}}}, "tune.space differ"),
        ({"metric": "movies/accuracy"}, "tune.metric differ"),
    ],
)
def test_another_search_in_its_folder_is_refused(
    tmp_path: Path, tune: dict[str, Any], difference: str
) -> None:
    """Its trials would be told to a search over other values."""
    launched(search_of(run={"runs_dir": str(tmp_path)}))
    with pytest.raises(ConfigError) as caught:
        _refuse_another_search(again(tmp_path, **tune))
    assert caught.value.cause == f"{tmp_path / 'run-study'} is the study of another search: {difference}"
    assert "name=…" in caught.value.remedy
    assert str(tmp_path / "run-study") in caught.value.remedy


def test_a_plain_run_is_no_study(tmp_path: Path) -> None:
    own = again(tmp_path)
    write_atomically(own.run_dir / "config.yaml", to_yaml(own.model_copy(update={"tune": None})))
    with pytest.raises(ConfigError, match=r"tune\.space"):
        _refuse_another_search(own)


def test_the_longest_name_that_is_taken_can_go_on(tmp_path: Path) -> None:
    config = search_of(run={"runs_dir": str(tmp_path), "name": "x" * 58})
    _refuse_another_search(launched(config))
    assert with_values(best_config(config, VALUES), {}).name == f"{'x' * 58}-best"
