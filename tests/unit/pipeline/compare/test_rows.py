"""Which rows a comparison has, read from the JSON files of runs, groups and searches."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.rows import Row, load
from pipeline.errors import DataError
from pipeline.report.build import build
from pipeline.report.json_file import to_json
from pipeline.report.rounds import Made
from pipeline.report.rounds import build as build_rounds
from pipeline.report.schema import Report
from tests.unit.pipeline.hand_results import (
    hand_task,
    save_group,
    save_run,
    save_study,
    seeds_of,
    some_facts,
    some_latencies,
    some_run,
    some_study,
    teachers_of,
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished runs, one unfinished, and the folder that teachers share."""
    facts = some_facts(["large"], ["half"])
    save_run(tmp_path / "first", build({"movies": hand_task(80, 70, 90, 100)}, facts))
    save_run(tmp_path / "second", build({"movies": hand_task(85, None, 90, 100)}, facts))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "_teachers").mkdir()
    return tmp_path


def score(row: Row) -> float | None:
    return row.macro.score.mean if row.macro else None


def test_every_finished_run_best_first(runs: Path) -> None:
    second, first = load(runs_dir=runs)
    assert [(row.run, row.student, score(row)) for row in (second, first)] == [
        ("second", "half", 0.85),
        ("first", "half", 0.8),
    ]
    assert second.macro is not None
    assert (second.macro.supervised, second.macro.delta, second.macro.gap_recovered) == (None, None, None)
    assert first.macro is not None
    assert first.macro.delta is not None
    assert first.macro.delta.mean == pytest.approx(0.1)
    assert first.macro.retention == pytest.approx(8 / 9)
    assert first.macro.gap_recovered == pytest.approx(0.5)
    assert list(first.tasks) == ["movies/accuracy"]
    assert first.tasks["movies/accuracy"].score.by_seed == (0.8,)
    assert (first.parameters, first.latency_ms, first.seeds, first.split) == (4_000_000, 1.25, 1, "test")
    (teacher,) = first.teachers
    assert (teacher.task, teacher.name, teacher.score) == ("movies/accuracy", "large", 0.9)
    assert (teacher.parameters, teacher.latency_ms) == (20_000_000, 5.0)


def test_ratios_are_those_of_the_report(runs: Path) -> None:
    report = build(*some_run())
    for row in load([save_run(runs / "third", report)]):
        macro = report.macro.students[row.student]
        assert row.macro is not None
        assert (row.macro.retention, row.macro.gap_recovered) == (macro.retention, macro.gap_recovered)
        for task, outcome in row.tasks.items():
            told = report.tasks[task.split("/")[0]].students[row.student]
            assert (outcome.retention, outcome.gap_recovered) == (told.retention, told.gap_recovered)


def test_folder_or_file_and_a_line_a_student(runs: Path) -> None:
    save_run(runs / "third", build(*some_run()))
    rows = load([runs / "third", runs / "first" / "report.json", runs / "third" / "report.json"])
    assert sorted((row.run, row.student) for row in rows) == [
        ("first", "half"),
        ("third", "half"),
        ("third", "tiny"),
    ]
    scores = [score(row) for row in rows]
    assert scores == sorted(scores, key=lambda one: -(one or 0))


def test_a_run_is_called_by_its_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "first")
    assert load([Path()])[0].run == "first"
    assert load([Path("report.json")])[0].run == "first"


def test_a_report_without_sizes(runs: Path) -> None:
    report = build({"movies": hand_task(80, 70, 90, 100)}, some_facts(["large"], []))
    (row,) = load([save_run(runs / "bare", report)])
    assert (row.run, row.parameters, row.latency_ms) == ("bare", None, None)


# ---------------------------------------------------------------- groups


@pytest.fixture
def group(runs: Path) -> Path:
    """Three seeds of two students beside the other runs."""
    tasks, facts = some_run()
    reports = []
    for one in seeds_of(facts, 3):
        latency = some_latencies(teachers_of(tasks), student_ms=1.0 + one.seed)
        reports.append(_better(build(tasks, replace(one, latency=latency)), one.seed / 100))
    return save_group(runs / "several", reports)


def _better(report: Report, by: float) -> Report:
    """The report with a higher score of one student everywhere."""
    content = report.model_dump(mode="json")
    for section in (content["macro"], *content["tasks"].values()):
        section["students"]["half"]["score"] += by
    return Report.model_validate_json(json.dumps(content))


def test_seeds_of_a_group_are_one_row_a_student(group: Path) -> None:
    rows = [row for row in load(runs_dir=group.parent) if row.run == "several"]
    assert [(row.student, row.seeds) for row in rows] == [("half", 3), ("tiny", 3)]
    half = rows[0]
    assert half.macro is not None
    by_seed = half.macro.score.by_seed
    assert by_seed[2] - by_seed[0] == pytest.approx(0.02)
    assert half.macro.p == 0.25
    assert half.tasks["movies/accuracy"].delta is not None
    assert len(half.tasks["movies/accuracy"].delta.by_seed) == 3
    assert half.latency_ms == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["several", "several/group.json"])
def test_a_group_by_its_folder(group: Path, name: str) -> None:
    rows = load([group.parent / name])
    assert [(row.run, row.student, row.seeds) for row in rows] == [
        ("several", "half", 3),
        ("several", "tiny", 3),
    ]
    assert load([group, *group.parent.glob("several-seed*")]) == rows  # none counts twice


def test_rounds_by_their_folder_are_rows_of_their_own(runs: Path) -> None:
    made = []
    for number, right in enumerate((80, 85)):
        facts = replace(some_facts(["large"], ["half"]), name=f"r-round{number}")
        report = build({"movies": hand_task(right, 70, 90, 100)}, facts)
        save_run(runs / report.name, report)
        made.append(Made([report], {"half": [{"macro/score": right / 100, "movies/accuracy": right / 100}]}))
    (runs / "r").mkdir()
    (runs / "r" / "rounds.json").write_text(to_json(build_rounds("r", made)))
    assert [row.run for row in load([runs / "r"])] == ["r-round1", "r-round0"]


def test_one_seed_alone_is_a_run(group: Path) -> None:
    rows = load([group.parent / "several-seed1"])
    assert {(row.run, row.seeds) for row in rows} == {("several-seed1", 1)}


def test_groups_of_one_name_elsewhere_are_others(group: Path, tmp_path: Path) -> None:
    tasks, facts = some_run()
    other = save_group(tmp_path / "elsewhere" / "several", [build(tasks, one) for one in seeds_of(facts, 2)])
    assert sorted(row.seeds for row in load([group, other])) == [2, 2, 3, 3]


def test_seeds_of_other_tasks_make_no_group(runs: Path) -> None:
    facts = seeds_of(some_facts(["large"], ["half"]), 2)
    save_run(runs / "several-seed0", build({"movies": hand_task(80, 70, 90, 100)}, facts[0]))
    save_run(runs / "several-seed1", build({"films": hand_task(80, 70, 90, 100)}, facts[1]))
    assert {row.run for row in load([*runs.glob("several-*")])} == {"several-seed0", "several-seed1"}


def test_a_seed_that_is_gone_is_named(group: Path) -> None:
    (group.parent / "several-seed1" / "report.json").unlink()
    with pytest.raises(DataError, match=r"several-seed1/report.json: there is no report"):
        load([group])


# ---------------------------------------------------------------- searches


def test_trials_are_rows_scored_on_validation(runs: Path) -> None:
    study = save_study(runs / "search", some_study())
    rows = load([study, runs / "first"])
    assert [(row.run, row.split, row.trial and row.trial.number) for row in rows] == [
        ("first", "test", None),  # first, although its score is lower
        ("search", "validation", 2),
        ("search", "validation", 1),
        ("search", "validation", 0),
        ("search", "validation", 3),  # it failed
    ]
    best, *_, failed = rows[1:]
    assert best.trial is not None
    assert (best.trial.best, best.trial.status, best.trial.epochs, best.trial.seconds) == (
        True,
        "finished",
        3,
        21.0,
    )
    assert best.trial.values == {"loss.temperature": 3.0, "loss.annealing": "constant"}
    assert (score(best), best.tasks["movies/accuracy"].score.mean) == pytest.approx((0.82, 0.84))
    assert best.macro is not None
    assert (best.macro.retention, best.macro.p, best.teachers, best.parameters) == (None, None, (), None)
    assert (failed.macro, failed.tasks) == (None, {})


def test_a_trial_is_shown_by_what_was_searched_for_and_the_tasks_own_metrics(runs: Path) -> None:
    study = some_study()
    for trial in study["trials"]:
        trial["scores"] |= {"movies/macro_f1": 0.7, "movies/nll": 0.4, "movies/ece": 0.1}
    (row, *_) = load([save_study(runs / "search", study)])
    assert list(row.tasks) == ["movies/accuracy"]
    (row, *_) = load([save_study(runs / "other", {**study, "metrics": ["macro/score", "movies/ece"]})])
    assert list(row.tasks) == ["movies/accuracy", "movies/ece"]


def test_the_front_is_told_where_there_are_several_metrics(runs: Path) -> None:
    study = some_study()

    def told(found: dict[str, Any], name: str) -> list[bool | None]:
        return [row.trial.pareto for row in load([save_study(runs / name, found)]) if row.trial]

    assert told(study, "search") == [None] * 4
    assert told({**study, "metrics": ["macro/score", "movies/ece"]}, "other") == [True, False, False, False]


def test_a_search_is_named_by_its_file_too(runs: Path) -> None:
    study = save_study(runs / "search", some_study())
    assert load([study / "study.json"]) == load([study])


def test_without_names_trials_are_left_out(runs: Path) -> None:
    save_study(runs / "search", some_study())
    assert {row.run for row in load(runs_dir=runs)} == {"first", "second"}


# ---------------------------------------------------------------- names and experiments


@pytest.fixture
def named(group: Path) -> Path:
    """Configs that say which experiment a run belongs to."""
    runs = group.parent
    (runs / "first" / "config.yaml").write_text("name: first\ntracking: {experiment: ours}\n")
    (runs / "second" / "config.yaml").write_text("name: second\ntracking: {experiment: null}\n")
    for seed in range(3):
        folder = runs / f"several-seed{seed}"
        (folder / "config.yaml").write_text(f"name: {folder.name}\ntracking: {{experiment: ours}}\n")
    (runs / "unfinished" / "config.yaml").write_text("name: unfinished\ntracking: {experiment: ours}\n")
    save_study(runs / "search", some_study())
    (runs / "search" / "config.yaml").write_text("name: search\ntracking:\n  experiment: theirs\n")
    return runs


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ours", {"first", "several"}),  # what has not finished is left out
        ("theirs", {"search"}),
        ("second", {"second"}),
        ("several", {"several"}),
        ("search", {"search"}),
    ],
)
def test_a_name_stands_for_all_that_have_it(named: Path, name: str, found: set[str]) -> None:
    assert {row.run for row in load([name], named)} == found


def test_a_folder_comes_before_a_name(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(named)
    save_run(named / "ours", build({"movies": hand_task(99, 70, 90, 100)}, some_facts(["large"], ["half"])))
    assert {row.run for row in load(["ours"], named)} == {"ours"}


def test_a_folder_of_something_else_does_not_hide_a_name(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "theirs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert {row.run for row in load(["theirs"], named)} == {"search"}


def test_an_unknown_name_gets_the_nearest(named: Path) -> None:
    with pytest.raises(DataError, match="no finished run or experiment 'our'") as caught:
        load(["our"], named)
    assert caught.value.remedy == "Did you mean 'ours'?"


def test_a_config_that_cannot_be_read_hides_nothing(named: Path) -> None:
    (named / "second" / "config.yaml").write_text("name: [")
    assert {row.run for row in load(["ours"], named)} == {"first", "several"}
    assert {row.run for row in load(["second"], named)} == {"second"}


# ---------------------------------------------------------------- what cannot be read


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run under") as caught:
        load(runs_dir=tmp_path / "runs")
    assert "tutelage train" in caught.value.remedy


@pytest.mark.parametrize("name", ["unfinished", "missing", "missing/report.json"])
def test_a_missing_report(runs: Path, name: str) -> None:
    with pytest.raises(DataError, match="there is no report"):
        load([runs / name])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"report_version": 2}',
        b'{"report_version": 2, "macro": {"students": ["half"]}}',
    ],
)
def test_a_corrupt_report_is_named(runs: Path, content: bytes) -> None:
    file = runs / "first" / "report.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is not a report") as caught:
        load([runs / "first"])
    assert str(file) in caught.value.cause
    assert "\n" not in caught.value.cause


def test_a_corrupt_report_does_not_hide_the_others(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = {row.run for row in load(runs_dir=runs)}
    (runs / "first" / "report.json").write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert {row.run for row in load(runs_dir=runs)} == every - {"first"}
    assert "is not a report" in caplog.text
    assert "it is left out" in caplog.text


def test_a_run_that_is_not_finished_is_said_to_be(named: Path) -> None:
    (named / "waiting").mkdir()
    (named / "waiting" / "config.yaml").write_text("name: waiting")
    with pytest.raises(DataError, match="has no report yet: it is not finished"):
        load(["waiting"], named)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("group.json", '{"report_version": 2, "runs": 3}'),
        ("study.json", "[]"),
        ("study.json", '{"report_version": 2, "name": "search", "trials": [{"number": 1}]}'),
        ("study.json", "{"),
    ],
)
def test_a_corrupt_group_or_study_is_named(runs: Path, name: str, content: str) -> None:
    file = runs / "unfinished" / name
    file.write_text(content)
    with pytest.raises(DataError, match="is not a report") as caught:
        load([runs / "unfinished"])
    assert str(file) in caught.value.cause


def test_an_unreadable_report(runs: Path) -> None:
    (runs / "unfinished" / "report.json").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        load([runs / "unfinished"])
