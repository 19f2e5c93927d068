"""The summary of `tutelage check`: what is derived, with the reasons, and nothing of what is given."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.check import summary
from pipeline.config.load import parse_config
from pipeline.prepare import prepare
from tests.conftest import TinyRun


def lines_of(run: dict[str, Any]) -> list[str]:
    config = parse_config(run)
    return [" ".join(line.split()) for line in summary(config, prepare(config))]


@pytest.fixture
def bare(tiny_run: TinyRun) -> dict[str, Any]:
    """A config that names tasks, teachers and students, and nothing else that decides a result."""
    run = tiny_run(train={}, loss={})
    for teacher in run["teachers"].values():
        teacher["fine_tune"] = {}
    return run


def test_what_is_derived_stands_with_its_reason(bare: dict[str, Any]) -> None:
    lines = lines_of(bare)
    rate = "learning_rate 0.001: width 32 head_learning_rate 0.02: 30 × learning_rate, no more than 0.02"
    assert (
        f"fine-tune mood-bert epochs 30: 300 steps at 2 a pass, no more {rate} "
        "early_stopping.patience 15: epochs ÷ 2, at least 3"
    ) in lines
    assert (
        f"train cut epochs 60: 2,121 steps (1,500 × √2) at 4 a pass, no more {rate} "
        "early_stopping.patience 30: epochs ÷ 2, at least 3"
    ) in lines
    assert not any(line.startswith("stage ") for line in lines)  # 240 steps are too few for two parts
    assert (
        "loss tone temperature 2 hard 0.3 soft 0.7 temperature, hard, soft: 3 labels, the most frequent 33 %"
    ) in lines
    assert sum(line.startswith(("train ", "fine-tune ", "loss ")) for line in lines) == 3 + 2 + 2


def test_given_values_have_no_reason(bare: dict[str, Any]) -> None:
    bare["students"]["cut"] |= {"train": {"epochs": 3, "early_stopping": None}, "loss": {"soft": 0.4}}
    lines = lines_of(bare)
    (line,) = [line for line in lines if line.startswith("train cut ")]
    assert line.startswith("train cut epochs 3 learning_rate 0.001: width 32 ")
    assert line.endswith(" early_stopping.patience none")
    derived = "3 labels, the most frequent 33 %"
    assert f"loss tone of cut temperature 2 hard 0.429 soft 0.571 temperature, hard: {derived}" in lines
    assert f"loss tone of bare temperature 2 hard 0.3 soft 0.7 temperature, hard, soft: {derived}" in lines


def test_a_config_that_gives_all_has_no_such_lines(tiny_run: TinyRun) -> None:
    lines = lines_of(tiny_run())
    assert not any(line.startswith(("train ", "fine-tune ", "loss ")) for line in lines)


def test_texts_of_other_tasks_are_counted_and_lengthen_what_students_take_alone(bare: dict[str, Any]) -> None:
    before = lines_of(bare)
    bare["tasks"]["mood"]["transfer"] = "all"
    lines = lines_of(bare)
    assert "note: mood: 48 texts of other tasks join train without labels: tone 48" in lines
    assert "task mood text-classification 96 train, 16 validation, 16 test 2 labels: bad, good" in lines
    (line,) = [line for line in lines if line.startswith("train cut ")]
    assert line.startswith("train cut epochs 60: 2,121 steps (1,500 × √2) at 5 a pass, no more ")
    for start in ("fine-tune ", "loss "):
        assert [line for line in lines if line.startswith(start)] == [
            line for line in before if line.startswith(start)
        ]


def test_tasks_of_students_are_shown_where_they_are_not_all(bare: dict[str, Any]) -> None:
    assert not any("no student learns it" in line or line.endswith(" of mood") for line in lines_of(bare))
    for name in ("cut", "bare"):
        bare["students"][name]["tasks"] = ["mood"]
    lines = lines_of(bare)
    assert sum(line.startswith("student ") and line.endswith(" of mood") for line in lines) == 2
    assert "note: tone: no student learns it" in lines
    (line,) = [line for line in lines if line.startswith("train cut ")]
    assert line.startswith("train cut epochs 60: 1,500 steps at 2 a pass, no more ")
