"""group.json and group.md out of made-up reports of several seeds."""

from __future__ import annotations

import re

import pytest

from pipeline.report.build import build as build_report
from pipeline.report.group import advice_lines, build, markdown, verdict
from pipeline.report.json_file import to_json
from pipeline.report.schema import Advice, GroupReport
from tests.unit.pipeline.hand_results import hand_task, seeds_of, some_facts, some_run


def group_of(*pairs: tuple[int, int | None], ensemble: int = 900) -> GroupReport:
    """One task of 1,000 examples; per seed, how many the student and its baseline have right."""
    reports = [
        build_report({"movies": hand_task(student, supervised, ensemble, 1000)}, facts)
        for (student, supervised), facts in zip(
            pairs, seeds_of(some_facts(["large"], ["half"]), len(pairs)), strict=True
        )
    ]
    return build("several", reports)


def test_numbers_by_hand() -> None:
    group = group_of((810, 800), (830, 800), (820, 810))
    assert (group.name, group.seeds) == ("several", (0, 1, 2))
    assert group.runs == ("several-seed0", "several-seed1", "several-seed2")
    assert group.p_floor == 0.25
    task = group.tasks["movies"]
    assert task.metric == "accuracy"
    assert task.teachers["large"].by_seed == (0.9,) * 3
    row = task.students["half"]
    assert row.score.by_seed == (0.81, 0.83, 0.82)
    assert row.score.mean == pytest.approx(0.82)
    assert row.score.sd == pytest.approx(0.01)
    assert (row.score.lowest, row.score.highest) == (0.81, 0.83)
    assert row.delta is not None
    assert row.delta.by_seed == pytest.approx([0.01, 0.03, 0.01])
    assert row.delta.p == 0.25
    assert row.retention == pytest.approx(0.82 / 0.9)
    assert row.gap_recovered == pytest.approx((0.82 - 2.41 / 3) / (0.9 - 2.41 / 3))
    assert group.macro.students["half"] == row  # of a single task


def test_it_is_json() -> None:
    tasks, facts = some_run()
    group = build("several", [build_report(tasks, one) for one in seeds_of(facts, 2)])
    assert GroupReport.model_validate_json(to_json(group)) == group
    assert list(group.tasks) == ["movies", "tweets"]
    assert group.macro.students.keys() == {"half", "tiny"}


# ---------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(810, 800)] * 3, "1.0 points above its supervised baseline (80.0; p = 0.25): too few seeds"),
        ([(810, 800)] * 8, "(80.0; p = 0.0078): the teachers helped."),
        ([(790, 800)] * 8, "1.0 points below its supervised baseline (80.0; p = 0.0078): here the teachers did harm."),
        ([(810, 800), (791, 800)] * 4, "which may be chance."),
        ([(800, 800)] * 8, "level with its supervised baseline (80.0; p = 1). Nothing here shows"),
        ([(810, None)] * 8, "no supervised baseline"),
        ([(810, 800)], "1.0 points above its supervised baseline (80.0): too few seeds"),
    ],
)  # fmt: skip
def test_verdict(pairs: list[tuple[int, int | None]], words: str) -> None:
    (text,) = verdict(group_of(*pairs))
    assert words in text
    assert f"over {len(pairs)} seed" in text


def test_verdict_names_spread_and_retention() -> None:
    (text,) = verdict(group_of((810, 800), (830, 810)))
    assert text.startswith(
        "**half** keeps 91.1% of the ensemble: 82.0 ± 1.4 points against 90.0, over 2 seeds."
    )


def test_best_student_first() -> None:
    tasks, facts = some_run()
    texts = verdict(build("several", [build_report(tasks, one) for one in seeds_of(facts, 2)]))
    assert [text.split()[0] for text in texts] == ["**half**", "**tiny**"]


# ---------------------------------------------------------------- the page


def test_page() -> None:
    page = markdown(group_of((810, 800), (830, 800), (820, 810)))
    assert "| large | 90.0 | 90.0 | – | – | – | – | – | – |" in page
    half = "| **half** | 82.0 ± 1.0 | 81.0-83.0 | 80.3 ± 0.6 | +1.7 ± 1.2 | +1.0 +3.0 +1.0 | 0.25 | 91.1% | 17.2% |"
    assert page.count(half) == 2  # of all tasks, and of the one
    assert "[several-seed1](../several-seed1/report.md)" in page
    assert "With 3 pairs p cannot fall below 0.25: p < 0.05 needs 6" in page
    for table in re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_enough_seeds_need_no_note_on_the_floor() -> None:
    assert "cannot fall below" in markdown(group_of(*[(810, 800)] * 5))
    assert "cannot fall below" not in markdown(group_of(*[(810, 800)] * 6))


# ---------------------------------------------------------------- advice


def test_advice_that_most_seeds_have_is_the_groups() -> None:
    longer, soft = (
        Advice(
            code="student-undertrained", text="It was improving.", key="students.half.train.epochs", value=6
        ),
        Advice(
            code="student-below-baseline", text="It is behind.", key="students.half.loss.soft", value=0.35
        ),
    )
    plain = [
        build_report({"movies": hand_task(810, 800, 900, 1000)}, facts)
        for facts in seeds_of(some_facts(["large"], ["half"]), 3)
    ]
    given: list[tuple[Advice, ...]] = [(), (longer, soft), (longer.model_copy(update={"value": 8}),)]
    reports = [one.model_copy(update={"advice": advice}) for one, advice in zip(plain, given, strict=True)]
    group = build("several", reports)

    assert [(one.code, one.seeds, one.value) for one in group.advice] == [("student-undertrained", (1, 2), 6)]
    line = "It was improving. Try `students.half.train.epochs: 6`. (2 of 3 seeds)"
    assert advice_lines(group) == [line]
    page = markdown(group)
    assert (
        page.index(verdict(group)[-1]) < page.index(f"## Advice\n\n- {line}\n") < page.index("## All tasks")
    )
    assert "Advice" not in markdown(build("several", plain))
