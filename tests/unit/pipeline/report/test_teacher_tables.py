"""What `tutelage teachers` prints, of every kind, at any width."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from pipeline.batch import ABSENT
from pipeline.report.ensembles import TaskTeachers
from pipeline.report.teacher_tables import teacher_tables
from pipeline.tasks.text_classification import text_classification
from tests.unit.pipeline.report.teacher_samples import KINDS, N, of, strong_and_weak, texts, topics


def printed(teachers: TaskTeachers, size: int = N, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in teacher_tables(teachers, size):
        console.print(part, soft_wrap=True)
        console.print()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_worth_is_said_with_its_interval_or_not_at_all() -> None:
    text = printed(strong_and_weak())
    assert "task: teachers on 400 validation examples, aggregation mean" in text
    assert "strong: worth +40.0 points of accuracy (+3" in text
    assert (
        "weak: worth" not in text or "no measurable difference in accuracy on 400 validation examples" in text
    )
    assert "90% interval" in text


def test_a_teacher_that_harms_its_ensemble_is_named() -> None:
    gold = np.arange(N) % 2
    liar = np.where(gold % 2, 0, gold)  # says no to all, very surely
    task = text_classification("task", ("no", "yes"), 16)
    text = printed(of(task, texts(gold), {"good": np.eye(2)[gold], "liar": 9 * np.eye(2)[liar]}))
    assert "liar: worth −50.0 points of accuracy" in text
    assert "; the ensemble is better without it" in text


def test_part_of_validation_and_a_strategy_that_needs_labels_are_named() -> None:
    text = printed(replace(strong_and_weak(), strategy="confidence"), size=9000)
    assert "400 of 9,000 validation examples" in text
    assert "confidence needs labels, so the ensemble is scored by its weighted mean" in text


def test_labels_that_a_teacher_lacks_are_named() -> None:
    text = printed(topics([[0, 4, ABSENT]] * 4))
    assert "It lacks c: alone it has no skill" in text
    assert "Without it no teacher has c." in text


def test_a_single_teacher_is_said_to_be_one() -> None:
    teachers = topics()
    single = replace(teachers, predictions={"one": teachers.predictions["one"]}, weights={"one": 1.0})
    text = printed(single)
    assert "one is the only teacher: there is nothing to leave out." in text
    assert "Agreement" not in text


def test_weights_of_0_are_said() -> None:
    text = printed(strong_and_weak(strong=1.0, weak=0.0))
    assert "weak: weight 0, it is not in the ensemble." in text
    assert "strong: no other teacher has any weight" in text


@pytest.mark.parametrize("width", [60, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_printed(kind: str, width: int) -> None:
    text = printed(KINDS[kind](), width=width)
    assert ("Correlation" if kind == "numbers" else "Agreement") in text
    assert "Examples on which teachers are furthest apart" in text
