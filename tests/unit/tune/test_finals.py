"""Which trainings the finals need, what is reused, and the choice from the predictions on disk. No Ray here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.batch import Examples, Ragged
from pipeline.data.splits import TaskData
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from pipeline.training.result import PREDICTIONS, write_result
from tests.unit.tune.studies import search_of, trial_of
from tune.finals import Finals, decides
from tune.study import DEFAULT, Trial

N = 300
SPACE: dict[str, Any] = {"loss.temperature": {"uniform": [1, 8]}}
OWN = {"loss.temperature": 2.0}
GOLD = {
    "movies": np.random.default_rng(0).integers(0, 2, N),
    "stars": np.random.default_rng(1).normal(size=N),
}
TASKS = {
    "movies": text_classification("movies", ("no", "yes"), 16),
    "stars": regression("stars", 16, center=0.0, scale=1.0),
}
DATA = {
    name: TaskData(
        task,
        {
            "validation": Examples(
                name, np.arange(N, dtype=np.uint64), {"text": [""] * N}, Ragged.single(GOLD[name])
            )
        },
    )
    for name, task in TASKS.items()
}


def finals_of(run: dict[str, Any] | None = None, **tune: Any) -> Finals:
    return Finals(search_of(SPACE, run, **{"metric": "macro/skill", **tune}), DATA, OWN)


def some_trials() -> list[Trial]:
    """The default, four others that ran to their end, one that did not."""
    scores = [0.5, 0.6, 0.9, 0.7, 0.8, 0.99]
    trials = [
        trial_of(n, values={"loss.temperature": 2.0 + n}, scores={"macro/skill": score})
        for n, score in enumerate(scores)
    ]
    trials[5].status = "early-stopped"
    return trials


def trained(folder: Path, strength: float, seed: int) -> Path:
    """A finished training's folder: its predictions know the labels with `strength`."""
    noise = np.random.default_rng(seed)
    movies = strength * np.eye(2)[GOLD["movies"]] + noise.normal(size=(N, 2))
    stars = strength * GOLD["stars"][:, None] + noise.normal(size=(N, 1))
    values = {"movies": movies.astype(np.float32), "stars": stars.astype(np.float32)}
    write_result(folder, {}, values)
    return folder


@pytest.mark.parametrize(
    ("metric", "there_are"),
    [
        ("macro/skill", True),
        ("macro/score", True),
        ("movies/skill", True),
        ("movies/accuracy", True),
        ("movies/macro_f1", False),  # no function of sums that anything selects by
        ("movies/nll", False),
        (["movies/accuracy", "stars/pearson"], False),
    ],
)
def test_there_are_finals_where_gains_have_an_error(metric: Any, there_are: bool) -> None:
    assert decides(search_of(SPACE, metric=metric, scheduler="none")) == there_are


def test_a_tasks_own_metric_has_finals() -> None:
    assert decides(search_of(SPACE, {"tasks.movies.metric": "macro_f1"}, metric="movies/macro_f1"))


def test_without_seeds_the_trials_themselves_are_compared() -> None:
    finals = finals_of()
    assert list(finals.candidates(some_trials())) == [0, 2, 4, 3]
    assert finals.points(some_trials(), []) == []


def test_each_finalist_is_trained_under_each_other_seed() -> None:
    points = finals_of({"seeds": [0, 1, 2]}).points(some_trials(), [])
    assert [(one["repeats"], one["seed"]) for one in points] == [(n, s) for n in (0, 2, 4, 3) for s in (1, 2)]
    assert [one["number"] for one in points] == list(range(8))
    assert points[2]["values"] == {"loss.temperature": 4.0}


def test_a_default_that_is_no_trial_is_trained_under_every_seed() -> None:
    trials = some_trials()[1:]
    points = finals_of({"seeds": [0, 1]}).points(trials, [])
    assert [(one["repeats"], one["seed"]) for one in points][:2] == [(DEFAULT, 0), (DEFAULT, 1)]
    assert points[0]["values"] == {}


def test_a_population_is_trained_again_with_its_last_values_from_the_start() -> None:
    run = {"train.early_stopping": None}
    points = finals_of(run, scheduler="pbt", algorithm="random", trials=5, concurrency=5).points(
        some_trials(), []
    )
    assert [(one["repeats"], one["seed"]) for one in points] == [(n, 0) for n in (0, 2, 4, 3)]


def test_finals_go_on_where_they_stopped_also_with_other_finalists() -> None:
    finals, trials = finals_of({"seeds": [0, 1]}), some_trials()
    begun = [
        Trial(0, {}, "finished", seed=1, repeats=0),
        Trial(1, {}, "interrupted", seed=1, repeats=2),
        Trial(2, {}, "finished", seed=1, repeats=1),  # no finalist any more
    ]
    points = finals.points(trials, begun)
    assert [(one["number"], one["repeats"]) for one in points] == [(1, 2), (3, 4), (4, 3)]


def test_a_candidates_trainings_are_its_trial_and_its_finals(tmp_path: Path) -> None:
    finals, trials = finals_of({"seeds": [0, 1, 2]}), some_trials()
    done = [
        Trial(0, {}, "finished", seed=1, repeats=0),
        Trial(1, {}, "interrupted", seed=2, repeats=0),
        Trial(2, {}, "finished", seed=1, repeats=2),
    ]
    of_trials = {one.number: tmp_path / f"trial-{one.number}" for one in trials}
    of_finals = {one.number: tmp_path / f"final-{one.number}" for one in done}
    places = finals.places(trials, done, of_trials, of_finals)
    assert {place: folder.name for place, folder in places.items()} == {
        (0, 0): "trial-0",
        (0, 1): "final-0",
        (2, 0): "trial-2",
        (2, 1): "final-2",
        (3, 0): "trial-3",
        (4, 0): "trial-4",
    }


def test_no_finals_without_a_finished_trial() -> None:
    assert finals_of().candidates([trial_of(0, status="failed")]) == {}
    assert finals_of().choice([], [], {}, {}) is None


def test_a_better_trial_wins_and_an_equal_one_does_not(tmp_path: Path) -> None:
    trials = some_trials()
    strengths = {0: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}
    folders = {
        one.number: trained(tmp_path / str(one.number), strengths.get(one.number, 1.0), seed=one.number)
        for one in trials
    }
    choice = finals_of().choice(trials, [], folders, {})
    assert choice is not None
    assert (choice.winner, choice.default, choice.stays) == (4, 0, False)
    assert set(choice.gains) == {2, 3, 4}
    assert choice.gains[4].looks == 4  # trials that ran to their end, without the default
    equal = {number: trained(tmp_path / "equal" / str(number), 1.0, seed=number) for number in folders}
    stays = finals_of().choice(trials, [], equal, {})
    assert stays is not None
    assert stays.stays


def test_a_gain_that_other_seeds_do_not_confirm_is_none(tmp_path: Path) -> None:
    trials = [one for one in some_trials() if one.number in (0, 4)]
    folders = {0: trained(tmp_path / "0", 1.0, 0), 4: trained(tmp_path / "4", 1.8, 4)}
    assert finals_of().choice(trials, [], folders, {}).winner == 4  # type: ignore[union-attr]
    finals = finals_of({"seeds": [0, 1]})
    again = [Trial(0, {}, "finished", seed=1, repeats=0), Trial(1, {}, "finished", seed=1, repeats=4)]
    places = {0: trained(tmp_path / "f0", 1.0, 10), 1: trained(tmp_path / "f1", 0.6, 11)}
    choice = finals.choice(trials, again, folders, places)
    assert choice is not None
    assert choice.stays
    assert choice.seeds == (0, 1)


def test_a_finalist_that_failed_is_out_and_a_failed_default_leaves_no_choice(tmp_path: Path) -> None:
    trials = [one for one in some_trials() if one.number in (0, 4)]
    folders = {0: trained(tmp_path / "0", 1.0, 0), 4: trained(tmp_path / "4", 2.0, 4)}
    finals = finals_of({"seeds": [0, 1]})
    lost = [Trial(0, {}, "finished", seed=1, repeats=0), Trial(1, {}, "failed", seed=1, repeats=4)]
    places = {0: trained(tmp_path / "f0", 1.0, 10), 1: tmp_path / "nowhere"}
    choice = finals.choice(trials, lost, folders, places)
    assert choice is not None
    assert (choice.stays, choice.gains) == (True, {})
    assert finals.choice(trials, [lost[1]], folders, places) is None


def test_gains_of_the_trials_are_known_while_they_run(tmp_path: Path) -> None:
    trials = [one for one in some_trials() if one.number in (0, 2, 4, 5)]
    folders = {one.number: trained(tmp_path / str(one.number), 1.0 + one.number, 7) for one in trials}
    finals = finals_of()
    gains = finals.gains(trials, folders)
    assert list(gains) == [2, 4]
    assert gains[4].mean > gains[2].mean > 0
    assert finals.gains(trials[1:], folders) == {}
    (folders[2] / PREDICTIONS).unlink()
    assert list(finals.gains(trials, folders)) == [2, 4]  # read once
    assert list(finals_of().gains(trials, folders)) == [4]
