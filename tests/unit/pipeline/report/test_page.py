"""report.md against report.json; the verdict in plain words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pipeline.data.splits import Variants
from pipeline.report.build import build
from pipeline.report.page import advice_line, links_section, markdown, overview, verdict
from pipeline.report.results import variants_record
from pipeline.report.schema import (
    Advice,
    LossRecord,
    Size,
    Sizes,
    StageRecord,
    StudentRecord,
    TaskStudentScores,
)
from pipeline.shown import percent, points, recovered, signed
from tests.unit.pipeline.hand_results import (
    hand_report,
    hand_task,
    numbers_and_marks,
    some_facts,
    some_latencies,
    some_run,
    teachers_of,
)

# ---------------------------------------------------------------- the verdict


def test_verdict_of_a_clear_gain() -> None:
    text = verdict(hand_report(900, 800, 1000, n=1000))
    assert text == (
        "**half** keeps 90.0% of the ensemble: 90.0 points against 100.0 (accuracy on movies). It is 5.0 times smaller "
        "than its teacher and 4.0 times faster than a task's teacher. It is 10.0 points above its supervised "
        "baseline (80.0; standard error of the difference 1.0), recovering 50.0% of the gap to the ensemble."
    )


def test_verdict_within_noise_claims_nothing() -> None:
    text = verdict(hand_report(81, 80, 90, n=100))
    assert (
        "1.0 points above its supervised baseline (80.0), which is within the noise of this test set" in text
    )
    assert "not yet evidence that the teachers helped" in text
    assert "recovering" not in text


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (80, "it is level with it (standard error of the difference 0.0). Nothing here shows"),
        (79, "it is 1.0 points below (standard error of the difference 1.0). Nothing here shows"),
        (60, "it is 20.0 points below (standard error of the difference 3.9). Here the teachers did harm"),
    ],
)
def test_verdict_says_when_the_baseline_wins(student: int, words: str) -> None:
    text = verdict(hand_report(student, 80, 90, n=100))
    assert "It does not beat its supervised baseline (80.0)" in text
    assert words in text


def test_verdict_names_tasks_that_lose_although_the_mean_gains() -> None:
    tasks = {"a": hand_task(95, 60, 99, 100), "b": hand_task(70, 72, 90, 100)}
    text = verdict(build(tasks, some_facts(teachers_of(tasks), ["half"])))
    assert "16.5 points above" in text
    assert "On b (−2.0) it does not beat it." in text


def test_verdict_without_a_baseline_and_above_the_ensemble() -> None:
    text = verdict(hand_report(95, None, 90, n=100))
    assert "**half** reaches 105.6% of the ensemble" in text
    assert "no supervised baseline in this run" in text


def test_verdict_above_the_ensemble_claims_no_share_of_the_gap() -> None:
    report = hand_report(950, 850, 900, n=1000)
    assert "10.0 points above its supervised baseline (85.0; standard error of the difference 1.0), and above the ensemble." in verdict(report)  # fmt: skip
    assert "| above ensemble |" in markdown(report)


def test_a_student_far_below_its_baseline_recovers_nothing() -> None:
    page = markdown(hand_report(700, 890, 900, n=1000))
    assert "−1900" not in page
    assert "| below baseline |" in page


def test_verdict_of_a_student_that_is_no_lighter() -> None:
    tasks = {"movies": hand_task(80, 70, 90, 100)}
    facts = some_facts(["large"], ["half"])
    heavy = {"half": Size(parameters=40_000_000, bytes=160_000_000)}
    facts = replace(
        facts,
        size=Sizes(students=heavy, teachers=facts.size.teachers),
        latency=some_latencies({"movies": ["large"]}, ["half"], student_ms=10.0),
    )
    assert "It is 2.0 times larger than its teacher and 2.0 times slower" in verdict(build(tasks, facts))
    alike = replace(
        facts,
        size=Sizes(students={"half": facts.size.teachers["large"]}, teachers=facts.size.teachers),
        latency=some_latencies({"movies": ["large"]}, ["half"], student_ms=4.9),
    )
    level = verdict(build(tasks, alike))
    assert "It is about as large as its teacher and about as fast as a task's teacher." in level


def test_verdict_leads_with_the_best_student_and_keeps_the_others() -> None:
    tasks, facts = some_run(students=("small", "big"))
    report = build(tasks, facts)
    ranked = sorted(report.macro.students, key=lambda name: -report.macro.students[name].score)
    text = verdict(report)
    assert text.startswith(f"**{ranked[0]}** keeps")
    assert f" **{ranked[1]}** scores" in text
    assert "\n" not in text


# ---------------------------------------------------------------- report.md


def test_how_students_were_trained_is_a_row_a_stage() -> None:
    both = {
        "movies": LossRecord(hard=0.3, soft=0.7, temperature=2.0, derived={}),
        "tags": LossRecord(hard=0.5, soft=0.5, temperature=1.0, derived={}),
    }
    hidden = {name: LossRecord(hard=0, soft=0, hidden=1, temperature=1, derived={}) for name in both}
    plain = StudentRecord(
        epochs=6,
        batch_size=32,
        learning_rate=3e-4,
        head_learning_rate=9e-3,
        patience=3,
        derived={},
        loss=both,
    )
    parts = [
        StageRecord(epochs=2, learning_rate=5e-4, head_learning_rate=1e-2, loss=hidden),
        StageRecord(epochs=4, learning_rate=3e-4, head_learning_rate=9e-3, loss=both),
    ]
    recipes = {"tiny": plain, "half": plain.model_copy(update={"stages": tuple(parts)})}
    facts = replace(some_facts(["large"], ["half"]), recipes=recipes)
    rows = markdown(build({"movies": hand_task(80, 70, 90, 100)}, facts)).splitlines()
    losses = "movies: 0.3 hard + 0.7 soft at temperature 2; tags: 0.5 hard + 0.5 soft at temperature 1"
    assert f"| tiny | 6 | 32 | 0.0003 | 0.009 | {losses} |" in rows
    assert "| half, stage 1 | 2 | 32 | 0.0005 | 0.01 | 1 hidden |" in rows
    assert f"| half, stage 2 | 4 | 32 | 0.0003 | 0.009 | {losses} |" in rows


def test_variants_are_counted_and_a_few_shown() -> None:
    shown = (("a good film", "a | <b>fine</b> film"), ("x" * 500, "short\ntwo"))
    made = Variants(1234, {"duplicates": 3, "in validation or test": 2}, 61.234, 0, shown)
    task = replace(hand_task(8, 7, 9), variants={"masked": variants_record(made)})
    report = build({"movies": task}, some_facts(["large"], ["half"]))
    assert report.tasks["movies"].variants["masked"].dropped == {"duplicates": 3, "in validation or test": 2}
    page = markdown(report)
    assert "| masked | 1,234 | 5 | 61.2 | 0 |" in page
    assert r"| masked | a good film | a \| &lt;b&gt;fine&lt;/b&gt; film |" in page
    assert f"| masked | {'x' * 239}… | short two |" in page
    assert "variant" not in markdown(hand_report(8, 7, 9))


def test_page_holds_every_number() -> None:
    report = build(*some_run())
    page = markdown(report)
    for task in report.tasks.values():
        models = task.metrics
        for group in (models.teachers, models.students, models.supervised, {"": models.ensemble}):
            for one in group.values():
                shown = [
                    points(one["accuracy"]),
                    points(one["macro_f1"]),
                    f"{one['nll']:.3f}",
                    f"{one['ece']:.3f}",
                ]
                assert " | ".join(shown) in page
        assert f"standard error is {points(task.standard_error)} points" in page
        assert f"an answer that never changes scores at best {points(task.majority)}" in page
        assert ", ".join(f"{count:,} {split}" for split, count in task.examples.items()) in page
    for rows in [report.macro.students, *(task.students for task in report.tasks.values())]:
        for name, row in rows.items():
            assert row.supervised is not None
            assert row.delta_error is not None
            delta = f"{signed(row.score - row.supervised)} ± {points(row.delta_error)}"
            cells = [points(row.score), points(row.supervised), delta, percent(row.retention)]
            line = " | ".join([f"**{name}**", *cells, recovered(row.gap_recovered)])
            if isinstance(row, TaskStudentScores):
                line += f" | {percent(row.agreement)} | {row.ece:.3f} |"
            assert line in page
    assert points(report.macro.ensemble) in page
    assert "| **half** | 4,000,000 | 16.0 | 20.0× |" in page
    assert "| tweets-base | 20,000,000 | 80.0 | – |" in page
    assert "| tweets | **half** | 1.25 | 1.38 | 8.0× |" in page
    assert "| tweets | tweets-base | 5.00 | 5.50 | – |" in page
    assert "| mean | **half** | – | – | 8.0× |" in page
    assert "busy" not in page
    assert "| movies-large | 1,300 | 2,600 |" in page
    assert "(examples × teachers): 0.50." in page
    assert all(f"| {stage} | {seconds:.1f} |" in page for stage, seconds in report.timings_s.items())
    assert "| total | 381.8 |" in page
    assert "| torch | 2.13.0 |" in page
    assert "Seed 7." in page
    assert "Note: 40 texts were truncated" in page
    assert page.count("Note: the ensemble is scored by mean: confidence needs labels") == 2
    assert "¹ (student − supervised) ÷ (ensemble − supervised). Left out" in page


def test_every_table_is_square() -> None:
    page = markdown(build(*some_run()))
    tables = re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE)
    assert len(tables) == 10
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_page_has_only_what_a_kind_has() -> None:
    report = build(*numbers_and_marks())
    page = markdown(report)
    stars, moods = page.split("## stars")[1].split("## moods")
    movies = page.split("## movies")[1].split("## stars")[0]
    assert "ECE" in movies
    assert "ECE" not in stars
    assert "labels" not in stars
    assert "| model | pearson | spearman | mse | mae |" in stars
    mse = report.tasks["stars"].metrics.ensemble["mse"]
    assert f" | {mse:.3f} | " in stars  # no share of a hundred
    assert "3 labels" in moods.split("## ")[0]


def test_a_busy_machine_is_named_where_speed_is_claimed() -> None:
    tasks, facts = some_run()
    busy = facts.latency.model_copy(update={"busy": "the load average was 9.0 on 2 cores"})
    report = build(tasks, replace(facts, latency=busy))
    for text in (verdict(report), markdown(report).split("## Size and latency")[1]):
        assert (
            "the machine was busy while latencies were measured: the load average was 9.0 on 2 cores" in text
        )


# ---------------------------------------------------------------- advice

LONGER = Advice(
    code="student-undertrained", text="half was still improving.", key="students.half.train.epochs", value=6
)
WEIGHTS = Advice(
    code="ensemble-below-teacher",
    text="The ensemble is behind.",
    key="tasks.movies.aggregation.teacher_weights",
    value={"large": 0.75, "base": 0.25},
)
LABELS = Advice(code="class-missed", text="Nobody gets it right.", key="tasks.movies.data", value=None)


def test_advice_stands_behind_the_verdict() -> None:
    report = hand_report(900, 800, 1000, n=1000)
    assert "Advice" not in markdown(report)
    page = markdown(report.model_copy(update={"advice": (LONGER, WEIGHTS, LABELS)}))
    assert page.index(verdict(report)) < page.index("## Advice") < page.index("## All tasks")
    assert "- half was still improving. Try `students.half.train.epochs: 6`.\n" in page
    assert (
        "- The ensemble is behind. Try `tasks.movies.aggregation.teacher_weights: {large: 0.75, base: 0.25}`.\n"
        in page
    )
    assert "- Nobody gets it right. Key: `tasks.movies.data`.\n" in page


def test_suggested_values_are_valid_in_a_config_file() -> None:
    from omegaconf import OmegaConf

    line = advice_line(WEIGHTS).split("`")[1]
    assert OmegaConf.create(line) == {WEIGHTS.key: WEIGHTS.value}


def test_the_overview_has_ensemble_students_and_baselines_best_first() -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in overview(build(*some_run())).splitlines()
    ]
    head, _, *rows = lines
    assert head[:2] == ["model", "mean"]
    assert head[-4:] == ["Δ", "retention", "parameters", "ms an example"]
    assert sorted(row[0] for row in rows) == [
        "**half**",
        "**tiny**",
        "ensemble",
        "half, supervised",
        "tiny, supervised",
    ]
    means = [float(row[1]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert all(len(row) == len(head) for row in rows)
    one_task, *_ = overview(hand_report(74, None, 78, n=100)).splitlines()
    assert "mean" not in one_task
    assert "movies, accuracy" in one_task


def test_addresses_stand_at_the_end_or_why_they_do_not() -> None:
    report = hand_report(74, 72, 78, n=100)
    assert "## MLflow" not in markdown(report)  # nothing is recorded
    assert "had not answered" in markdown(report, links={})
    text = markdown(report, links={"Students": "http://127.0.0.1:5000/#/experiments/1"})
    assert "- [Students](http://127.0.0.1:5000/#/experiments/1)" in text
    assert "`tutelage ui`" in links_section({"Students": "http://127.0.0.1:5000/#/x"})[-1]
    assert "`tutelage ui`" not in links_section({"Students": "https://mlflow.example/#/x"})[-1]
