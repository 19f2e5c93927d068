"""The schedules of a baseline. Trained by them: tests/unit/pipeline/test_problems.py."""

from __future__ import annotations

import pytest

from pipeline.config.recipe import Patience, StudentRecipe
from pipeline.training.baseline import (
    LONGER,
    PLAIN,
    SHORTER,
    baseline_schedules,
    best_schedule,
    schedule_note,
)


def recipe(epochs: int, patience: int | None = None) -> StudentRecipe:
    stopping = None if patience is None else Patience(patience=patience)
    return StudentRecipe(epochs=epochs, learning_rate=1e-3, head_learning_rate=1e-3, early_stopping=stopping)


@pytest.mark.parametrize(("every", "epochs"), [(100, 6), (130, 7), (1000, 60), (59, 3)])
def test_the_longer_schedule_has_at_most_the_students_steps(every: int, epochs: int) -> None:
    train = recipe(3)
    schedules = baseline_schedules(train, 50, every)
    assert schedules[PLAIN] == train
    if epochs == 3:  # not even one more epoch fits
        assert list(schedules) == [PLAIN, SHORTER]
        return
    assert schedules[LONGER] == train.model_copy(update={"epochs": epochs})
    assert 0 <= train.epochs * every - epochs * 50 < 50


@pytest.mark.parametrize(("epochs", "shorter"), [(30, 10), (8, 3), (4, 1), (3, 1), (2, 1)])
def test_a_third_of_the_students_epochs_is_tried_too(epochs: int, shorter: int) -> None:
    train = recipe(epochs, patience=2)
    schedules = baseline_schedules(train, 50, 50)
    assert schedules == {PLAIN: train, SHORTER: train.model_copy(update={"epochs": shorter})}


def test_one_epoch_has_no_shorter_schedule() -> None:
    assert baseline_schedules(recipe(1), 50, 50) == {PLAIN: recipe(1)}


def test_early_stopping_is_as_patient_in_steps() -> None:
    longer = baseline_schedules(recipe(3, patience=2), 50, 500)[LONGER]
    assert longer.early_stopping is not None
    assert (longer.epochs, longer.early_stopping.patience) == (30, 20)


def test_the_better_score_is_kept_and_the_first_of_equals() -> None:
    assert best_schedule({PLAIN: 0.725, LONGER: 0.707}) == PLAIN
    assert best_schedule({PLAIN: 0.7, LONGER: 0.8}) == LONGER
    assert best_schedule({PLAIN: 0.7, LONGER: 0.7}) == PLAIN


def test_the_report_says_what_was_tried() -> None:
    tried = [{"name": PLAIN, "epochs": 1, "score": 0.725}, {"name": LONGER, "epochs": 30, "score": 0.707}]
    assert schedule_note("half-supervised", PLAIN, tried) == (
        "half-supervised: the plain schedule over the labelled examples is kept by validation score "
        "(plain, 1 epoch: 72.5 · longer, 30 epochs: 70.7)"
    )
