"""report.json against hand-computed cases; the files of a report."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.resolved import Mode
from pipeline.report.build import build, write
from pipeline.report.group import build as build_group
from pipeline.report.group import verdict as verdict_of_group
from pipeline.report.json_file import read
from pipeline.report.page import markdown, overview, verdict
from pipeline.report.schema import Latencies, Report, Sizes
from pipeline.report.types import RunFacts, TaskResults
from pipeline.shown import NOTHING, points
from pipeline.tasks.scores import agreement, scores, softmax
from tests.unit.pipeline.hand_results import (
    answers,
    examples_of,
    hand_report,
    hand_task,
    numbers_and_marks,
    seeds_of,
    some_facts,
    some_latencies,
    some_run,
    some_task,
    teachers_of,
)

# ---------------------------------------------------------------- numbers


def test_a_run_knows_its_group() -> None:
    tasks, facts = some_run()
    assert build(tasks, facts).group is None
    report = build(tasks, replace(facts, group="eight"))
    assert report.group == "eight"
    assert "group.md of eight has the others" in markdown(report)


def test_scores_of_students_alone_stand_in_the_table_of_all_metrics() -> None:
    forced: dict[Mode, dict[str, dict[str, float]]] = {
        "distilled": {"half": {"token_accuracy": 0.61}},
        "supervised": {"half": {"token_accuracy": 0.52}},
    }
    tasks = {"movies": replace(some_task(), forced=forced)}
    metrics = build(tasks, some_run()[1]).tasks["movies"].metrics
    assert metrics.students["half"]["token_accuracy"] == 0.61
    assert metrics.supervised["half"]["token_accuracy"] == 0.52
    assert "token_accuracy" not in metrics.students["tiny"]
    page = markdown(build(tasks, some_run()[1]))
    assert re.search(r"\| \*\*half\*\* \|[^\n]* 61\.0 \|\n", page)
    assert re.search(rf"\| ensemble \|[^\n]* {NOTHING} \|\n", page)


def test_hand_case() -> None:
    report = hand_report(student=8, supervised=7, ensemble=9)
    task = report.tasks["movies"]
    row = task.students["half"]
    assert (task.ensemble, task.teachers) == (0.9, {"large": 0.9})
    assert (row.score, row.supervised) == (0.8, 0.7)
    assert row.retention == pytest.approx(8 / 9)
    assert row.gap_recovered == pytest.approx(1 / 2)
    assert row.agreement == 0.9  # they differ on the ninth example alone
    # one example of ten differs: variance 0.1 − 0.01, over n; the bootstrap is exact to 3%
    assert row.delta_error == pytest.approx(math.sqrt(0.09 / 10), rel=0.1)
    # all right or wrong with the same confidence e³/(e³+1): one bin
    assert row.ece == pytest.approx(math.exp(3) / (math.exp(3) + 1) - 0.8)
    assert task.majority == 0.5
    # the largest of ensemble, student and baseline: that of 0.7
    assert task.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 10), rel=0.1)


def test_macro_is_the_plain_mean_and_its_ratios_are_of_means() -> None:
    tasks = {"a": hand_task(8, 6, 10), "b": hand_task(5, 5, 6)}
    report = build(tasks, some_facts(teachers_of(tasks), ["half"]))
    row = report.macro.students["half"]
    assert report.macro.ensemble == pytest.approx(0.8)
    assert row.score == pytest.approx(0.65)
    assert row.supervised == pytest.approx(0.55)
    assert row.retention == pytest.approx(0.65 / 0.8)
    assert row.gap_recovered == pytest.approx((0.65 - 0.55) / (0.8 - 0.55))
    errors = [report.tasks[task].students["half"].delta_error or 0 for task in tasks]
    assert row.delta_error == pytest.approx(math.hypot(*errors) / 2)


def test_each_model_has_a_standard_error_of_its_own() -> None:
    tasks = {"a": hand_task(8, 6, 10), "b": hand_task(5, None, 6)}
    report = build(tasks, some_facts(teachers_of(tasks), ["half"]))
    first, second = (report.tasks[task].standard_errors for task in tasks)
    assert first.ensemble == 0  # it is right on every example
    assert first.students["half"] == pytest.approx(math.sqrt(0.8 * 0.2 / 10), rel=0.1)
    assert first.supervised["half"] == pytest.approx(math.sqrt(0.6 * 0.4 / 10), rel=0.1)
    assert second.supervised == {}
    macro = report.macro.standard_errors
    assert macro.ensemble == pytest.approx(second.ensemble / 2)
    both = first.students["half"], second.students["half"]
    assert macro.students["half"] == pytest.approx(math.hypot(*both) / 2)
    assert macro.supervised == {}  # it has no mean over the tasks either


@pytest.mark.parametrize(
    ("supervised", "ensemble", "recovered"),
    [
        (700, 706, pytest.approx(50 / 6)),  # 0.6 points to recover
        (700, 704, None),  # 0.4 points: none to speak of
        (700, 700, None),
        (760, 700, None),  # the ensemble is below: a ratio of negatives would read as praise
        (None, 700, None),
    ],
)
def test_gap_recovered_needs_a_gap(supervised: int | None, ensemble: int, recovered: float | None) -> None:
    report = hand_report(750, supervised, ensemble, n=1000)
    assert report.tasks["movies"].students["half"].gap_recovered == recovered
    assert report.macro.students["half"].gap_recovered == recovered


def test_retention_over_nothing_is_nothing() -> None:
    assert hand_report(5, 4, 0).tasks["movies"].students["half"].retention is None


def test_every_number_of_the_report_comes_from_evaluate() -> None:
    tasks, facts = some_run()
    report = build(tasks, facts)
    for name, results in tasks.items():
        task = report.tasks[name]
        for student, logits in results.students.items():
            expected = scores(softmax(logits), results.test.labels.values)
            row = task.students[student]
            assert task.metrics.students[student] == expected
            assert (row.score, row.ece) == (expected[results.metric], expected["ece"])
            assert row.agreement == agreement(logits, results.ensemble)
        together = scores(softmax(results.ensemble), results.test.labels.values)
        assert task.ensemble == together[results.metric]
        assert task.metrics.supervised.keys() == results.supervised.keys()


def test_no_baseline_anywhere() -> None:
    report = build(*some_run(supervised=False))
    for rows in [report.macro.students, *(task.students for task in report.tasks.values())]:
        assert {(row.supervised, row.gap_recovered, row.delta_error) for row in rows.values()} == {
            (None, None, None)
        }


def test_a_baseline_in_some_tasks_only_gives_no_macro_baseline() -> None:
    tasks, facts = some_run()
    tasks["tweets"] = replace(tasks["tweets"], supervised={})
    report = build(tasks, facts)
    assert report.tasks["movies"].students["half"].supervised is not None
    assert report.macro.students["half"].supervised is None


def test_size_and_speed_against_the_teachers() -> None:
    ratios = build(*some_run()).versus_teachers["half"]
    assert ratios.times_smaller == 4 * 20 / 4
    assert ratios.times_faster == 2 * 5.0 / 1.25
    assert ratios.times_faster_by_task == {"movies": 8.0, "tweets": 8.0}


def test_speed_is_compared_task_by_task() -> None:
    """Long texts take everyone longer: a student's time on short ones says nothing about teachers of long ones."""
    tasks, facts = some_run()
    short, long = (
        some_latencies({task: list(tasks[task].teachers)}, student_ms=own, teacher_ms=theirs)
        for task, own, theirs in (("movies", 1.0, 4.0), ("tweets", 10.0, 20.0))
    )
    latency = Latencies(tasks={**short.tasks, **long.tasks}, busy=None)
    report = build(tasks, replace(facts, latency=latency))
    ratios = report.versus_teachers["half"]
    assert ratios.times_faster_by_task == {"movies": 2 * 4.0 / 1.0, "tweets": 2 * 20.0 / 10.0}
    assert ratios.times_faster == pytest.approx((8.0 + 4.0) / 2)  # on the first task's time alone: 24
    assert report.latency.student_ms("half") == pytest.approx(5.5)
    assert report.latency.teacher_ms("tweets-base", "tweets") == 20.0


def test_a_missing_size_or_time_is_left_out_and_not_guessed() -> None:
    tasks, facts = some_run()
    teachers = {name: size for name, size in facts.size.teachers.items() if name != "movies-base"}
    of_half = some_latencies({"movies": ["movies-base", "movies-large"]}, ["half"])
    report = build(
        tasks,
        replace(facts, size=Sizes(students=facts.size.students, teachers=teachers), latency=of_half),
    )
    half, tiny = report.versus_teachers["half"], report.versus_teachers["tiny"]
    assert (half.times_smaller, half.times_faster) == (None, None)
    assert half.times_faster_by_task == {"movies": 8.0}
    assert (tiny.times_smaller, tiny.times_faster, tiny.times_faster_by_task) == (None, None, {})
    assert report.latency.student_ms("tiny") is None
    assert "smaller" not in verdict(report)


def test_forwards_ratio() -> None:
    assert build(*some_run()).forwards_ratio == 0.5
    tasks, facts = some_run()
    assert build(tasks, replace(facts, soft_targets={}, teacher_forwards={})).forwards_ratio is None


def test_names_that_do_not_fit_are_refused() -> None:
    tasks, facts = some_run()
    odd = replace(tasks["tweets"], supervised={"other": tasks["tweets"].students["half"]})
    with pytest.raises(ValueError, match="tweets: baselines of"):
        build({**tasks, "tweets": odd}, facts)


def some_of_them() -> tuple[dict[str, TaskResults], RunFacts]:
    """`tiny` learns movies alone."""
    tasks, facts = some_run()
    tweets = tasks["tweets"]
    del tweets.students["tiny"], tweets.supervised["tiny"]
    return tasks, facts


def test_a_student_of_some_tasks_is_compared_over_these() -> None:
    whole, report = build(*some_run()), build(*some_of_them())
    assert report.macro.students["half"] == whole.macro.students["half"]
    assert report.macro.ensemble == whole.macro.ensemble
    alone, own = report.tasks["movies"].students["tiny"], report.macro.students["tiny"]
    assert (own.tasks, list(report.tasks_of("tiny"))) == (("movies",), ["movies"])
    assert (own.score, own.ensemble, own.supervised) == (alone.score, alone.ensemble, alone.supervised)
    assert (own.retention, own.gap_recovered) == (alone.retention, alone.gap_recovered)
    assert own.ensemble == report.tasks["movies"].ensemble != report.macro.ensemble
    errors, movies = report.macro.standard_errors, report.tasks["movies"].standard_errors
    assert errors.students["tiny"] == pytest.approx(movies.students["tiny"])
    assert errors.supervised["tiny"] == pytest.approx(movies.supervised["tiny"])
    assert errors.students["half"] == pytest.approx(whole.macro.standard_errors.students["half"])
    large, small = (len(one.tasks["movies"].teachers) for one in (whole, report))
    assert large == small
    cost = report.versus_teachers["tiny"]
    assert cost.times_smaller == pytest.approx(5 * large)  # each teacher has five times its parameters
    assert cost.times_faster_by_task.keys() <= {"movies"}


def test_pages_of_a_student_of_some_tasks() -> None:
    tasks, facts = some_of_them()
    report = build(tasks, facts)
    page = markdown(report)
    assert "**tiny** ²" in page
    assert "² tiny learns only movies" in page
    assert "accuracy on movies" in page
    assert page.index("**half**") < page.index("**tiny**"), "who learns more comes first"
    (line,) = [line for line in overview(report).splitlines() if line.startswith("| **tiny** ")]
    assert NOTHING in line
    group = build_group("several", [build(tasks, one) for one in seeds_of(facts, 2)])
    own = report.tasks["movies"].ensemble
    assert group.macro.students["tiny"].ensemble.mean == pytest.approx(own)
    assert f"against {points(own)}" in next(text for text in verdict_of_group(group) if "**tiny**" in text)


def test_nothing_to_report_is_refused() -> None:
    with pytest.raises(ValueError, match="no task"):
        build({}, some_facts([]))


def test_the_standard_error_is_the_metrics_own() -> None:
    accuracy, f1 = (
        some_task(metric, labels=("a", "b", "c", "d"), n=80) for metric in ("accuracy", "macro_f1")
    )
    facts = some_facts(list(accuracy.teachers))
    errors = [build({"movies": task}, facts).tasks["movies"].standard_error for task in (accuracy, f1)]
    assert errors[0] != pytest.approx(errors[1], rel=1e-3)
    assert errors[1] == pytest.approx(errors[0], rel=0.3)


def test_kinds_differ_in_their_metrics() -> None:
    report = build(*numbers_and_marks())
    stars, moods = report.tasks["stars"], report.tasks["moods"]
    assert (stars.metric, moods.metric) == ("pearson", "micro_f1")
    assert (stars.labels, moods.labels) == ((), ("calm", "glad", "loud"))
    assert stars.majority == 0
    assert 0 < moods.majority < 1
    assert {row.ece for row in stars.students.values()} == {None}
    assert all(0 <= (row.ece or -1) <= 1 for row in moods.students.values())
    assert list(stars.metrics.ensemble) == ["pearson", "spearman", "mse", "mae"]
    for task in (stars, moods):
        for row in task.students.values():
            assert row.supervised is not None
            assert row.score > row.supervised
            assert 0.5 < row.agreement <= 1
            assert row.delta_error is not None
            assert row.delta_error > 0
    together = np.mean([task.students["half"].score for task in report.tasks.values()])
    assert report.macro.students["half"].score == pytest.approx(together)


def test_a_paired_error_is_smaller_than_an_unpaired_one() -> None:
    report = build(*some_run())
    for task in report.tasks.values():
        for row in task.students.values():
            assert 0 < (row.delta_error or 0) < math.sqrt(2) * task.standard_error


# ---------------------------------------------------------------- files


def test_write_makes_the_run_folder_complete(tmp_path: Path) -> None:
    tasks, facts = some_run()
    report = build(tasks, facts)
    folder = tmp_path / "runs" / "quickstart"
    written = write(report, tasks, facts, folder)
    assert read(folder / "report.json", Report) == report
    page = (folder / "report.md").read_text()
    embedded = re.findall(r"!\[[^]]+\]\((figures/[^)]+)\)", page)
    assert {folder / name for name in embedded} == set((folder / "figures").iterdir())
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == set(written)  # nothing temporary is left
    assert written[-1].name == "report.json"  # the last, so that it vouches for the rest


def test_a_failing_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, facts = {"movies": hand_task(8, 7, 9)}, some_facts(["large"], ["half"])
    report = build(tasks, facts)
    (tmp_path / "report.json").write_text("old")

    def full(path: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write(report, tasks, facts, tmp_path)
    assert (tmp_path / "report.json").read_text() == "old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["report.json"]


def test_three_classes_with_one_absent() -> None:
    task = replace(
        some_task(labels=("a", "b", "c"), students=("half",)),
        test=examples_of("movies", np.zeros(400, dtype=np.int64)),
        students={"half": answers(np.zeros(400, dtype=np.int64), 3)},
    )
    report = build({"movies": task}, some_facts(list(task.teachers), ["half"]))
    assert report.tasks["movies"].students["half"].score == 1
    assert report.tasks["movies"].majority == 1
