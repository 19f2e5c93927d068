"""A study's trials on disk, its winner, its Pareto front, and what `tutelage compare` reads of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare.columns import select
from pipeline.compare.rows import load as compared
from pipeline.report.schema import TrialStatus
from tests.unit.pipeline.hand_results import save_study, some_study
from tests.unit.tune.studies import trial_of
from tune.study import Trial, best, folder_of, load, pareto_front, records, save

MACRO = ("macro/score",)
PAIR = ("movies/accuracy", "movies/ece")


def winner_of(*trials: Trial, mode: str = "max") -> int | None:
    winner = best(trials, MACRO, [mode])
    return None if winner is None else winner.number


# ---------------------------------------------------------------- on disk


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trials = [
        trial_of(0, 0.8, values={"students.half.layers": [0, 3], "train.dropout": None}, epochs=3, seconds=9),
        trial_of(7, status="failed", failures=2, error="lost"),
        trial_of(12, 0.5, "early-stopped", epochs=1),
        trial_of(1000, 0.6, "interrupted"),
    ]
    for trial in reversed(trials):
        save(tmp_path, trial)
    assert load(tmp_path) == trials
    assert folder_of(tmp_path, 7) == tmp_path / "007"


def test_a_trial_that_ran_when_the_study_was_killed_goes_on(tmp_path: Path) -> None:
    save(tmp_path, trial_of(0, 0.5, "running", epochs=2))
    (trial,) = load(tmp_path)
    assert (trial.status, trial.ended, trial.epochs) == ("interrupted", False, 2)


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("running", False),
        ("interrupted", False),
        ("finished", True),
        ("early-stopped", True),
        ("failed", True),
    ],
)
def test_which_trials_are_not_gone_on_with(status: TrialStatus, ended: bool) -> None:
    assert trial_of(0, status=status).ended == ended


def test_a_later_versions_record_can_be_read(tmp_path: Path) -> None:
    file = folder_of(tmp_path, 3) / "trial.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**asdict(trial_of(3, 0.7)), "flavour": "new"}))
    assert load(tmp_path) == [trial_of(3, 0.7)]


def test_folders_without_a_record_are_none_of_its_trials(tmp_path: Path) -> None:
    (tmp_path / "000" / "checkpoints").mkdir(parents=True)
    assert load(tmp_path) == []
    assert load(tmp_path / "absent") == []


# ---------------------------------------------------------------- the winner


def test_the_best_score_wins() -> None:
    trials = [trial_of(0, 0.6), trial_of(1, 0.9), trial_of(2, 0.7)]
    assert winner_of(*trials) == 1
    assert winner_of(*trials, mode="min") == 0


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_earlier_one_wins_a_tie(mode: str) -> None:
    trials = [trial_of(2, 0.9), trial_of(0, 0.9), trial_of(1, 0.9)]
    assert winner_of(*trials, mode=mode) == 0


def test_a_failed_trial_never_wins() -> None:
    assert winner_of(trial_of(0, 0.9, "failed"), trial_of(1, 0.5)) == 1
    assert winner_of(trial_of(0, 0.9, "failed")) is None


def test_trials_that_ran_to_their_end_come_first() -> None:
    """A student that stopped halfway has a learning rate yet to fall; its score is of another training."""
    half = [trial_of(0, 0.95, "early-stopped"), trial_of(1, 0.9, "interrupted")]
    assert winner_of(*half, trial_of(2, 0.5)) == 2
    assert winner_of(*half) == 0


def test_without_scores_there_is_no_winner() -> None:
    assert winner_of() is None
    assert winner_of(trial_of(0), trial_of(1, status="interrupted")) is None
    assert best([trial_of(0, 0.9)], ["movies/nll"], ["min"]) is None


def test_of_several_metrics_the_front_counts_and_then_the_macro_score() -> None:
    def trial(number: int, accuracy: float, ece: float, macro: float) -> Trial:
        return trial_of(number, scores={"movies/accuracy": accuracy, "movies/ece": ece, "macro/score": macro})

    trials = [
        trial(0, 0.8, 0.2, 0.99),
        trial(1, 0.8, 0.1, 0.7),
        trial(2, 0.9, 0.3, 0.8),
        trial(3, 0.9, 0.3, 0.8),
    ]
    winner = best(trials, PAIR, ["max", "min"])
    assert winner is trials[2]  # 0 is beaten by 1, and 2 equals 3
    assert [one.number for one in pareto_front(trials, PAIR, ["max", "min"])] == [1, 2, 3]


# ---------------------------------------------------------------- the front


@given(
    scores=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8),
    modes=st.tuples(st.sampled_from(["max", "min"]), st.sampled_from(["max", "min"])),
)
@settings(max_examples=150, deadline=None)
def test_the_front_is_what_no_trial_beats(scores: list[tuple[int, int]], modes: tuple[str, str]) -> None:
    trials = [
        trial_of(number, scores=dict(zip(PAIR, map(float, pair), strict=True)))
        for number, pair in enumerate(scores)
    ]
    signs = [1 if mode == "max" else -1 for mode in modes]

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        gains = [sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    wanted = [n for n, own in enumerate(scores) if not any(beats(other, own) for other in scores)]
    assert [trial.number for trial in pareto_front(trials, PAIR, modes)] == wanted
    assert bool(wanted) == bool(scores)


def test_what_has_no_score_is_not_on_the_front() -> None:
    trials = [trial_of(0, 0.9, "failed"), trial_of(1), trial_of(2, 0.5), trial_of(3, 0.4)]
    assert [trial.number for trial in pareto_front(trials, MACRO, ["max"])] == [2]


# ---------------------------------------------------------------- what compare reads


def study_of(trials: list[Trial]) -> dict[str, Any]:
    """study.json's content."""
    rows = [one.model_dump(mode="json") for one in records(trials, MACRO, ["max"], 1, {})]
    return {**some_study("run-study"), "trials": rows}


def test_compare_reads_what_a_study_says(tmp_path: Path) -> None:
    trials = [
        trial_of(
            0,
            0.8,
            epochs=4,
            seconds=10.123456,
            values={"loss.temperature": 2.0, "students.half.layers": [0, 3]},
        ),
        trial_of(1, 0.9, epochs=4),
        trial_of(2, 0.7, "early-stopped", epochs=1),
        trial_of(3, status="failed", error="lost", values={}),
    ]
    rows = compared([save_study(tmp_path / "run-study", study_of(trials))])
    assert [(row.run, row.student, row.split) for row in rows] == [("run-study", "half", "validation")] * 4
    trial_rows = [row.trial for row in rows if row.trial]
    assert [one.number for one in trial_rows] == [1, 0, 2, 3]  # best first, the failed one last
    assert [one.best for one in trial_rows] == [True, False, False, False]
    assert [one.status for one in trial_rows] == ["finished", "finished", "early-stopped", "failed"]
    assert trial_rows[1].values == {"loss.temperature": 2.0, "students.half.layers": [0, 3]}
    assert (trial_rows[1].epochs, trial_rows[1].seconds) == (4, 10.12)
    (best_row,) = select(rows, ["best=yes"])
    assert best_row.macro is not None
    assert best_row.macro.score.mean == 0.9
    assert list(best_row.tasks) == ["movies/accuracy"]


def test_records_say_which_are_best_and_on_the_front() -> None:
    trials = [trial_of(0, 0.8), trial_of(1, 0.9), replace(trial_of(2, 0.9), failures=1)]
    rows = records(trials, MACRO, ["max"], 1, {})
    assert [(row.number, row.best, row.pareto) for row in rows] == [
        (0, False, False),
        (1, True, True),
        (2, False, True),
    ]
    assert rows[2].failures == 1
    assert records([], MACRO, ["max"], None, {}) == ()


def test_a_score_that_is_no_number_costs_no_study() -> None:
    trial = trial_of(0, 0.8)
    trial.scores["movies/nll"] = float("nan")
    (row,) = records([trial], MACRO, ["max"], 0, {})
    assert "movies/nll" not in row.scores
    assert row.scores["macro/score"] == 0.8
