"""The words at the head of a comparison, and how sure they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compare.rows import Row, load
from pipeline.compare.verdict import gain_of, verdict
from pipeline.report.build import build
from pipeline.significance import Outcome
from tests.unit.pipeline.hand_results import (
    hand_task,
    save_group,
    save_run,
    save_study,
    seeds_of,
    some_facts,
    some_study,
)


def row(scores: list[float], supervised: list[float], error: float | None = None, run: str = "first") -> Row:
    outcome = Outcome.of(scores, supervised, [0.9] * len(scores))
    return Row(run, "half", outcome, {"movies/accuracy": outcome}, seeds=len(scores), delta_error=error)


@pytest.mark.parametrize(
    ("supervised", "low", "high", "judgement"),
    [
        (0.70, 0.0608, 0.1392, "the teachers helped"),
        (0.79, -0.0292, 0.0492, "not yet evidence either way"),
        (0.90, -0.1392, -0.0608, "the teachers did harm"),
    ],
)
def test_the_interval_of_one_seed_is_of_the_test_sample(
    supervised: float, low: float, high: float, judgement: str
) -> None:
    gain = gain_of(row([0.8], [supervised], error=0.02))
    assert gain is not None
    assert [gain.low, gain.high] == pytest.approx([low, high], abs=1e-4)
    assert gain.judgement == judgement


def test_the_interval_of_seeds_is_students_t() -> None:
    gain = gain_of(row([0.80, 0.81, 0.82], [0.70, 0.70, 0.70]))
    assert gain is not None
    reach = 4.302653 * 0.01 / 3**0.5  # t of 2 degrees of freedom × sd ÷ √n
    assert [gain.low, gain.high] == pytest.approx([0.11 - reach, 0.11 + reach])
    assert gain.seeds == 3


def test_without_a_baseline_or_its_error_there_is_no_interval() -> None:
    assert gain_of(replace(row([0.8], [0.7]), macro=Outcome.of([0.8], [None], [0.9]))) is None
    assert gain_of(row([0.8], [0.7], error=None)) is None


def test_a_runs_error_is_its_reports(tmp_path: Path) -> None:
    facts = some_facts(["large"], ["half"])
    report = build({"movies": hand_task(80, 70, 90, 100)}, facts)
    (one,) = load([save_run(tmp_path / "first", report)])
    assert one.delta_error == report.macro.students["half"].delta_error
    assert one.delta_error is not None
    several = [build({"movies": hand_task(80 + one.seed, 70, 90, 100)}, one) for one in seeds_of(facts, 3)]
    (group,) = load([save_group(tmp_path / "several", several)])
    assert group.delta_error is None


def test_the_best_student_stands_first() -> None:
    first, second = verdict([row([0.7], [0.69], 0.02), row([0.8], [0.7], 0.02, run="second")])
    assert first == (
        "half of second: the highest score, 80.0 points, 88.9% of its ensemble. Δ +10.0 points over its supervised "
        "baseline, 95% interval of the test sample, one seed: +6.1 to +13.9: the teachers helped."
    )
    assert second.startswith("half of first: 70.0 points")
    assert "not yet evidence" in second


def test_other_tasks_are_not_ranked_and_trials_not_judged(tmp_path: Path) -> None:
    other = replace(row([0.9], [0.7], 0.02), tasks={"tweets/accuracy": Outcome.of([0.9], [0.7], [0.9])})
    assert not any("highest" in sentence for sentence in verdict([row([0.8], [0.7], 0.02), other]))
    assert verdict(load([save_study(tmp_path / "search", some_study())])) == []
