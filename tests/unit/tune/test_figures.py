"""A study's figures: there, of the right size, not blank, whatever the trials have become."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import matplotlib
import pytest
from matplotlib.image import imread

from pipeline.config.search import TuneConfig
from pipeline.report.figures import DPI, WIDTH
from pipeline.report.schema import TrialStatus
from tests.unit.tune.studies import search_of, trial_of
from tune.figures import draw
from tune.study import Trial, best

SPACE: dict[str, Any] = {
    "loss.temperature": {"loguniform": [1, 8]},
    "train.warmup": {"quniform": [0, 0.5, 0.1]},
    "train.epochs": {"randint": [1, 5]},
    "students.half.layers": {"choice": [1, [0, 3], None]},
}
TASKS = ("movies/accuracy", "stars/pearson")
EVERY = {"parallel.png", "cost.png", "importance.png", "pareto.png", "curves.png"}


def tune_of(**tune: Any) -> TuneConfig:
    tune_config = search_of(SPACE, **tune).tune
    assert tune_config is not None
    return tune_config


def some_trials() -> list[Trial]:
    """One of every status; the failed one has scores of the epochs before."""
    ends = {
        "loss.temperature": (1.0, 8.0, 2.0, 3.0, 4.0),
        "train.warmup": (0.0, 0.5, 0.3, 0.1, 0.2),
        "train.epochs": (1, 4, 2, 3, 3),
        "students.half.layers": (1, None, [0, 3], 1, None),
    }
    return [
        replace(
            trial_of(
                number, 0.7 + number / 50, status, values={path: own[number] for path, own in ends.items()}
            ),
            scores={
                "macro/score": 0.7 + number / 50,
                TASKS[0]: 0.7 + number / 25,
                TASKS[1]: 0.9 - number / 10,
            },
            epochs=number + 1,
            seconds=10.0 * number,
        )
        for number, status in enumerate(get_args(TrialStatus))
    ]


def curves_of(trials: Sequence[Trial]) -> dict[int, list[dict[str, Any]]]:
    return {
        trial.number: [
            {"epoch": e + 1, "metrics": {**trial.scores, "macro/score": 0.5}} for e in range(trial.epochs)
        ]
        for trial in trials
    }


def drawn(
    trials: Sequence[Trial],
    importance: Mapping[str, float] | None = None,
    curves: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    tasks: Sequence[str] = TASKS,
    **tune: Any,
) -> dict[str, bytes]:
    settings = tune_of(**tune)
    winner = best(trials, settings.metrics, ["max"] * len(settings.metrics))
    return draw(
        tune=settings,
        mode="max",
        trials=trials,
        winner=winner,
        importance=importance or {},
        curves=curves_of(trials) if curves is None else curves,
        task_metrics=tasks,
    )


def ink(png: bytes) -> float:
    """Share of pixels that are not white."""
    image = imread(io.BytesIO(png), format="png")
    return float((image[..., :3].min(axis=2) < 0.9).mean())


def test_every_figure_is_drawn_and_matplotlib_left_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    shares = {"loss.temperature": 0.9, "train.warmup": 0.1, "students.half.layers": 0.0}
    figures = drawn(some_trials(), shares)
    assert set(figures) == EVERY
    for name, png in figures.items():
        assert ink(png) > 0.005, f"{name} is blank"
    assert dict(matplotlib.rcParams) == before
    for name in ("importance.png", "curves.png", "cost.png"):
        assert imread(io.BytesIO(figures[name]), format="png").shape[1] == pytest.approx(WIDTH * DPI, abs=1)


def test_the_winner_is_drawn_differently() -> None:
    trials = some_trials()
    other = [
        replace(trial, scores={**trial.scores, "macro/score": 0.99 - trial.number / 9}) for trial in trials
    ]
    with_winner, without = (
        draw(
            tune=tune_of(),
            mode="max",
            trials=trials,
            winner=winner,
            importance={},
            curves=curves_of(trials),
            task_metrics=TASKS,
        )
        for winner in (other[1], None)
    )
    for name in ("parallel.png", "curves.png"):
        assert with_winner[name] != without[name]


def test_the_better_is_the_darker_of_an_error_too() -> None:
    trials = some_trials()
    figures = [
        draw(
            tune=tune_of(),
            mode=mode,
            trials=trials,
            winner=None,
            importance={},
            curves={},
            task_metrics=TASKS,
        )["parallel.png"]
        for mode in ("max", "min", "max")
    ]
    assert figures[0] == figures[2]
    assert figures[0] != figures[1]


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn([]) == {}
    assert drawn([trial_of(0, status="failed", values={}), trial_of(1, status="running")]) == {}


def test_figures_that_have_nothing_to_show_are_left_out() -> None:
    trials = some_trials()
    assert set(drawn(trials, tasks=TASKS[:1])) == {"parallel.png", "cost.png", "curves.png"}
    assert set(drawn(trials, curves={0: [], 1: []})) == {"parallel.png", "cost.png", "pareto.png"}


def test_one_trial_alone() -> None:
    (trial, *_) = some_trials()
    figures = drawn([replace(trial, seconds=0.0)])
    assert set(figures) == EVERY - {"importance.png"}
    assert all(ink(png) > 0.002 for png in figures.values())


def test_trials_without_scores_are_in_the_cost_alone() -> None:
    lost = trial_of(9, status="failed", values={})
    figures = drawn([*some_trials(), lost])
    alone = drawn(some_trials())
    assert figures["parallel.png"] == alone["parallel.png"]
    assert figures["cost.png"] != alone["cost.png"]


def test_several_pairs_of_tasks_and_a_metric_of_ones_own() -> None:
    trials = some_trials()
    third = [replace(trial, scores={**trial.scores, "x" * 60: 0.1 * trial.number}) for trial in trials]
    figures = drawn(third, tasks=(*TASKS, "x" * 60), metric="movies/accuracy")
    assert ink(figures["pareto.png"]) > 0.005
    assert ink(figures["curves.png"]) > 0.002


def test_choices_with_dollar_signs_are_no_formulas() -> None:
    models = ["/data/$5_{", "/data/$x^$", "模型"]
    tune = search_of(
        {"students.half.model": {"choice": models}}, {"students.half": {"model": models[0]}}, algorithm="grid"
    ).tune
    assert tune is not None
    trials = [trial_of(n, 0.5 + n / 10, values={"students.half.model": one}) for n, one in enumerate(models)]
    figures = draw(
        tune=tune,
        mode="max",
        trials=trials,
        winner=trials[0],
        importance={"students.half.model": 1.0},
        curves={},
        task_metrics=["movies/accuracy"],
    )
    assert all(ink(png) > 0.002 for png in figures.values())
