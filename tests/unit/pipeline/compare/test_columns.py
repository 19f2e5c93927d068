"""Columns of a comparison; rows filtered and sorted by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compare.columns import columns, select
from pipeline.compare.rows import Row, load
from pipeline.errors import ConfigError, DataError
from pipeline.report.build import build
from tests.unit.pipeline.hand_results import (
    hand_task,
    save_group,
    save_run,
    save_study,
    seeds_of,
    some_facts,
    some_latencies,
    some_study,
)

PLAIN = ["run", "student", "macro/score", "macro/supervised", "macro/delta", "macro/retention"]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three runs, best first: quick 85 (no baseline), Slow 83 (two seeds), first 80."""
    facts = some_facts(["large"], ["half"])
    quick = build({"movies": hand_task(85, None, 90, 100)}, facts)
    fast = replace(facts, latency=some_latencies({"movies": []}, ["half"], student_ms=0.5))
    first = build({"movies": hand_task(80, 70, 90, 100)}, fast)
    seeds = [
        build({"movies": hand_task(82 + 2 * one.seed, 81, 90, 100)}, one)
        for one in seeds_of(facts, 2, "Slow")
    ]
    folders = [save_run(tmp_path / "quick", quick), save_run(tmp_path / "first", first)]
    return load([*folders, save_group(tmp_path / "Slow", seeds)])


@pytest.fixture
def trials(tmp_path: Path) -> list[Row]:
    return load([save_study(tmp_path / "search", some_study())])


def names(rows: list[Row], csv: bool = False) -> list[str]:
    return [column.name for column in columns(rows, csv)]


def runs_of(rows: list[Row]) -> list[str]:
    return [row.run for row in rows]


# ---------------------------------------------------------------- which there are


def test_columns_of_single_runs(rows: list[Row]) -> None:
    single = [row for row in rows if row.seeds == 1]
    rest = ["macro/gap_recovered", "movies/accuracy", "parameters", "latency_ms"]
    assert names(single) == [*PLAIN, *rest]
    assert set(names(single, csv=True)) - set(names(single)) == {
        *("split", "macro/ensemble", "movies/accuracy/ensemble", "movies/accuracy/supervised")
    }


def test_seeds_add_their_columns(rows: list[Row]) -> None:
    assert set(names(rows)) - {*PLAIN} == {
        *("seeds", "macro/p", "macro/gap_recovered", "movies/accuracy", "parameters", "latency_ms")
    }
    assert {"macro/sd", "movies/accuracy/sd", "movies/accuracy/p"} <= set(names(rows, csv=True))


def test_trials_have_settings_and_no_baseline(trials: list[Row]) -> None:
    assert names(trials) == [
        *("run", "student", "trial", "best", "macro/score", "movies/accuracy"),
        *("status", "epochs", "loss.temperature", "loss.annealing"),
    ]
    assert {"split", "seconds"} <= set(names(trials, csv=True))
    assert "pareto" not in names(trials, csv=True)


def test_runs_and_trials_together_say_what_they_are_scored_on(rows: list[Row], trials: list[Row]) -> None:
    assert "split" in names([*rows, *trials])


def test_trials_of_several_metrics_say_who_is_on_the_front(tmp_path: Path) -> None:
    study = some_study()
    study["trials"][0] |= {"pareto": True, "scores": {"macro/score": 0.8, "movies/ece": 0.1234}}
    found = load([save_study(tmp_path / "both", {**study, "metrics": ["macro/score", "movies/ece"]})])
    known = {column.name: column for column in columns(found)}
    assert [known["pareto"].show(row) for row in found] == ["yes", "–", "yes", "–"]
    assert [known["movies/ece"].show(row) for row in found] == ["–", "–", "0.123", "–"]
    assert [row.trial.number for row in select(found, ["pareto=yes"]) if row.trial] == [2, 0]


def test_values_and_how_they_are_shown(rows: list[Row]) -> None:
    slow = rows[1]
    values = {column.name: column.value(slow) for column in columns(rows, csv=True)}
    shown = {column.name: column.show(slow) for column in columns(rows, csv=True)}
    assert {name: values[name] for name in ("seeds", "macro/p", "parameters", "latency_ms")} == {
        "seeds": 2,
        "macro/p": 0.5,
        "parameters": 4_000_000,
        "latency_ms": 1.25,
    }
    assert values["macro/sd"] == pytest.approx(0.0141421, rel=1e-4)
    assert values["macro/delta"] == pytest.approx(0.02)
    assert {name: shown[name] for name in values if name.startswith("macro/")} == {
        "macro/score": "83.0 ± 1.4",
        "macro/sd": "1.4",
        "macro/ensemble": "90.0",
        "macro/supervised": "81.0",
        "macro/delta": "+2.0 ± 1.4",
        "macro/p": "0.5",
        "macro/retention": "92.2%",
        "macro/gap_recovered": "22.2%",
    }
    assert [shown[name] for name in ("seeds", "parameters", "latency_ms")] == ["2", "4.0M", "1.25"]
    quick = rows[0]
    assert [column.show(quick) for column in columns(rows) if column.value(quick) is None] == ["–"] * 5


def test_settings_of_any_type(trials: list[Row]) -> None:
    trial = trials[0].trial
    assert trial is not None
    values = {"a": 0.00012345, "b": True, "c": [1, 2], "d": None, "e": 8, "f": "linear"}
    row = Row("search", "half", None, {}, trial=trial.__class__(**{**vars(trial), "values": values}))
    shown = {column.name: column.show(row) for column in columns([row]) if column.name in values}
    assert shown == {"a": "0.0001234", "b": "true", "c": "[1, 2]", "d": "–", "e": "8", "f": "linear"}


# ---------------------------------------------------------------- sort


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("macro/score", ["quick", "Slow", "first"]),
        ("-macro/score", ["first", "Slow", "quick"]),
        ("macro", ["quick", "Slow", "first"]),  # the title
        ("score", ["quick", "Slow", "first"]),
        ("Δ points", ["first", "Slow", "quick"]),  # none has no place but the last
        ("-delta", ["Slow", "first", "quick"]),
        ("movies/accuracy", ["quick", "Slow", "first"]),
        ("latency_ms", ["first", "quick", "Slow"]),  # the fastest first
        ("-latency_ms", ["quick", "Slow", "first"]),
        ("MS an Example", ["first", "quick", "Slow"]),
        ("run", ["first", "quick", "Slow"]),
        ("-run", ["Slow", "quick", "first"]),
        ("p", ["Slow", "quick", "first"]),
        ("movies/accuracy/sd", ["Slow", "quick", "first"]),
    ],
)
def test_sort(rows: list[Row], sort: str, order: list[str]) -> None:
    assert runs_of(select(rows, sort=sort)) == order


def test_sort_trials_by_a_setting(trials: list[Row]) -> None:
    def numbers(sort: str) -> list[int]:
        return [row.trial.number for row in select(trials, sort=sort) if row.trial]

    assert numbers("loss.temperature") == [0, 1, 2, 3]
    assert numbers("-loss.temperature") == [3, 2, 1, 0]
    assert numbers("trial") == [0, 1, 2, 3]
    assert numbers("loss.annealing") == [2, 0, 1, 3]  # what is alike stays as it was: best first


def test_a_sort_does_not_mix_splits(rows: list[Row], trials: list[Row]) -> None:
    for sort in ("macro", "-macro", "run"):
        splits = [row.split for row in select([*trials, *rows], sort=sort)]
        assert splits == ["test"] * len(rows) + ["validation"] * len(trials)
    assert [row.split for row in select([*trials, *rows], ["split=test"])] == ["test"] * len(rows)


def test_rows_come_as_they_are_without_a_sort(rows: list[Row]) -> None:
    assert select(rows) == rows


# ---------------------------------------------------------------- filter


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["student=half"], ["quick", "Slow", "first"]),
        (["run=quick"], ["quick"]),
        (["run!=quick"], ["Slow", "first"]),
        (["run~SLO"], ["Slow"]),
        ([" macro/score >= 0.83 "], ["quick", "Slow"]),
        (["macro/score>0.83"], ["quick"]),
        (["score<.83"], ["first"]),
        (["score<=0.8"], ["first"]),
        (["movies/accuracy=0.85"], ["quick"]),
        (["movies/accuracy!=0.85"], ["Slow", "first"]),
        (["supervised>0"], ["Slow", "first"]),  # without a baseline there is nothing to compare
        (["seeds=2"], ["Slow"]),
        (["p<=0.5"], ["Slow"]),
        (["parameters<5e6", "latency_ms<1"], ["first"]),  # all must hold
        (["retention>0.9", "run~s"], ["Slow"]),
    ],
)
def test_filter(rows: list[Row], filters: list[str], left: list[str]) -> None:
    assert runs_of(select(rows, filters)) == left


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("best=yes", [2]),
        ("status!=finished", [1, 3]),
        ("loss.annealing=linear", [1, 3]),
        ("loss.temperature>=3", [2, 3]),
        ("trial=0", [0]),
        ("split=validation", [2, 1, 0, 3]),
    ],
)
def test_filter_trials(trials: list[Row], text: str, numbers: list[int]) -> None:
    assert [row.trial.number for row in select(trials, [text]) if row.trial] == numbers


def test_nothing_left_is_said(rows: list[Row]) -> None:
    with pytest.raises(DataError, match=r"none of 3 students passes 'retention>95' and 'run~s'") as caught:
        select(rows, ["retention>95", "run~s"])
    assert "shares" in caught.value.remedy


@pytest.mark.parametrize(
    ("filters", "sort", "cause", "remedy"),
    [
        (["student"], None, "filter 'student' is not COLUMN", "student=half"),
        (["=half"], None, "filter '=half' is not COLUMN", "student=half"),
        (["studnet=half"], None, "these rows have no column 'studnet'", "Did you mean 'student'?"),
        (["xyzzy=1"], None, "no column 'xyzzy'", "There are run, student, "),
        (["score>much"], None, "'much' is no number, > compares numbers", "retention>=0.95"),
        (["run>3"], None, "run holds words, > compares numbers", "run~quick"),
        ([], "retenton", "no column 'retenton'", "Did you mean 'macro/retention'?"),
        ([], "-latency", "no column 'latency'", "Did you mean 'latency_ms'?"),
        ([], "", "no column ''", "There are run"),
    ],
)
def test_what_cannot_be_asked(
    rows: list[Row], filters: list[str], sort: str | None, cause: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        select(rows, filters, sort)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_numbers_before_words_where_a_setting_has_both(trials: list[Row]) -> None:
    assert all(row.trial for row in trials)
    mixed = [
        Row(
            row.run,
            row.student,
            None,
            {},
            trial=row.trial.__class__(**{**vars(row.trial), "values": {"k": v}}),
        )
        for row, v in zip(trials, ["auto", 8, 2, None], strict=True)
        if row.trial
    ]
    ordered = select(mixed, sort="k")
    assert [row.trial.values["k"] for row in ordered if row.trial] == [2, 8, "auto", None]
    with pytest.raises(ConfigError, match="k holds words"):
        select(mixed, ["k>1"])
