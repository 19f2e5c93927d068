"""Names of metrics in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking.names import Part, metrics_of, shown_name
from tests.unit.pipeline.tracked import config

METRICS = {"movies": ("accuracy", "macro_f1", "nll"), "loss": ("f1", "accuracy")}


@pytest.mark.parametrize(
    ("part", "metric", "name"),
    [
        ("validation", "macro/score", "validation/macro"),
        ("validation", "movies/accuracy", "validation/movies"),
        ("validation", "movies/nll", "validation/nll/movies"),
        ("validation", "loss/accuracy", "validation/accuracy/loss"),  # a task may be called loss
        ("validation", "loss/total", "loss/total"),
        ("validation", "loss/hard/movies", "loss/hard/movies"),
        ("validation", "train/learning_rate", "train/learning_rate"),
        ("best", "movies/accuracy", "best/movies"),
        ("best", "macro/score", "best/macro"),
        ("best", "train/skipped_steps", "best/train/skipped_steps"),
    ],
)
def test_a_name_ends_with_the_task(part: Part, metric: str, name: str) -> None:
    assert shown_name(part, metric, METRICS) == name


def test_the_tasks_own_metric_comes_first(tmp_path: Path) -> None:
    assert metrics_of(config(tmp_path, "first")) == {
        "movies": ("accuracy", "macro_f1", "nll", "ece", "skill")
    }
