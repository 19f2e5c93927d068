"""The schedules of a baseline where some text is unlabelled. Trained by them: tests/unit/pipeline/test_problems.py."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.schema import EarlyStoppingConfig, TrainConfig
from pipeline.training.baseline import LONGER, PLAIN, baseline_schedules, best_schedule, schedule_note
from pipeline.training.schedule import Schedule


def lengths(count: int) -> dict[str, NDArray[np.int64]]:
    """A task of `count` examples of 10 tokens."""
    return {"mood": np.full(count, 10)}


def steps(train: TrainConfig, count: int) -> int:
    return train.epochs * Schedule(lengths(count), train.batch_size, 1.0, 0).steps_per_epoch


@pytest.mark.parametrize(("every", "epochs"), [(100, 6), (130, 7), (1000, 60), (59, 3)])
def test_the_longer_schedule_has_at_most_the_students_steps(every: int, epochs: int) -> None:
    train = TrainConfig(epochs=3, batch_size=1)
    schedules = baseline_schedules(train, lengths(50), lengths(every), 0)
    assert schedules[PLAIN] == train
    if epochs == 3:  # not even one more epoch fits
        assert list(schedules) == [PLAIN]
        return
    longer = schedules[LONGER]
    assert longer == train.model_copy(update={"epochs": epochs})
    assert 0 <= steps(train, every) - steps(longer, 50) < 50


def test_early_stopping_is_as_patient_in_steps() -> None:
    train = TrainConfig(epochs=3, batch_size=1, early_stopping=EarlyStoppingConfig(patience=2))
    longer = baseline_schedules(train, lengths(50), lengths(500), 0)[LONGER]
    assert longer.early_stopping is not None
    assert (longer.epochs, longer.early_stopping.patience) == (30, 20)


def test_the_better_score_is_kept_and_the_first_of_equals() -> None:
    assert best_schedule({PLAIN: 0.725, LONGER: 0.707}) == PLAIN
    assert best_schedule({PLAIN: 0.7, LONGER: 0.8}) == LONGER
    assert best_schedule({PLAIN: 0.7, LONGER: 0.7}) == PLAIN


def test_the_report_says_what_was_tried() -> None:
    tried = [{"name": PLAIN, "epochs": 3, "score": 0.725}, {"name": LONGER, "epochs": 30, "score": 0.707}]
    assert schedule_note("half-supervised", PLAIN, tried) == (
        "half-supervised: the plain schedule over the labelled examples is kept by validation score "
        "(plain, 3 epochs: 72.5 · longer, 30 epochs: 70.7)"
    )
