"""How much each value mattered: on scores made of one value alone."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.search import TuneConfig
from tests.unit.tune.studies import search_of, trial_of, with_facts
from tune.importance import FEWEST, importance
from tune.space import points
from tune.study import Trial

SPACE: dict[str, Any] = {
    "loss.temperature": {"uniform": [1, 8]},
    "train.warmup": {"quniform": [0, 0.7, 0.1]},
    "students.half.train.epochs": {"lograndint": [1, 9]},
    "loss.annealing": {"choice": ["constant", "linear"]},
}


def known(count: int = 24, space: dict[str, Any] = SPACE) -> tuple[TuneConfig, list[Trial]]:
    """Random trials whose score is their temperature, which is best small."""
    config = search_of(space, trials=count, algorithm="random")
    assert config.tune is not None
    all_points = points(*with_facts(config))
    assert all_points is not None
    trials = [
        trial_of(number, scores={"movies/nll": point["loss.temperature"]}, values=point)
        for number, point in enumerate(all_points)
    ]
    return config.tune, trials


def test_the_value_that_makes_the_score_matters_most() -> None:
    tune, trials = known()
    shares = importance(tune, trials, "movies/nll")
    assert shares.keys() == SPACE.keys()
    assert next(iter(shares)) == "loss.temperature"
    assert shares["loss.temperature"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_same_trials_give_the_same_shares() -> None:
    tune, trials = known()
    assert importance(tune, trials, "movies/nll") == importance(tune, trials, "movies/nll")


def test_few_trials_say_nothing() -> None:
    tune, trials = known()
    assert importance(tune, trials[: FEWEST - 1], "movies/nll") == {}
    assert importance(tune, trials[:FEWEST], "movies/nll")


def test_failed_trials_and_those_without_a_score_do_not_count() -> None:
    tune, trials = known(FEWEST + 1)
    trials[0].status = "failed"
    assert importance(tune, trials, "movies/nll")
    trials[1].scores.clear()
    assert importance(tune, trials, "movies/nll") == {}
    assert importance(tune, trials, "macro/score") == {}


def test_trials_ended_early_count_with_their_last_score() -> None:
    tune, trials = known(FEWEST)
    trials[0].status = "early-stopped"
    assert importance(tune, trials, "movies/nll")


def test_equal_scores_say_nothing() -> None:
    tune, trials = known()
    for trial in trials:
        trial.scores["movies/nll"] = 0.5
    assert importance(tune, trials, "movies/nll") == {}


def test_a_value_that_never_changed_explains_nothing() -> None:
    tune, trials = known(
        8, {"loss.temperature": {"uniform": [1, 8]}, "loss.annealing": {"choice": ["linear"]}}
    )
    assert importance(tune, trials, "movies/nll") == {"loss.temperature": 1.0, "loss.annealing": 0.0}
