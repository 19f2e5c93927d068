"""Worst task first: gaps, factors, and the share of the training that they give."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.losses import LossWeights
from pipeline.training import loop
from pipeline.training.feed import Feed
from pipeline.training.focus import Focus, relative_gaps, remaining
from pipeline.training.schedule import Schedule
from pipeline.training.step import accumulate
from tests.unit.pipeline.small_training import DISTIL, points, settings, trainer_of, two_tasks


@pytest.mark.parametrize(
    ("skill", "ensemble", "gap"),
    [(0.3, 0.6, 0.5), (0.6, 0.6, 0.0), (0.7, 0.6, 0.0), (-0.1, 0.6, 1.0), (0.0, 0.0, 0.0), (0.2, -0.1, 0.0)],
)
def test_the_gap_is_the_share_of_the_ensembles_skill_that_is_missing(
    skill: float, ensemble: float, gap: float
) -> None:
    assert remaining(skill, ensemble) == pytest.approx(gap)


def test_gaps_are_smoothed_over_epochs() -> None:
    focus = Focus()
    focus.measure({"a": 0.25, "b": 0.5}, {"a": 0.5, "b": 0.5})
    assert focus.gaps == {"a": 0.5, "b": 0.0}
    focus.measure({"a": 0.5, "b": 0.0}, {"a": 0.5, "b": 0.5})
    assert focus.gaps == {"a": 0.25, "b": 0.5}


def test_factors_are_bounded_and_their_squares_go_with_the_gaps() -> None:
    assert relative_gaps({"a": 0.1, "b": 0.3}) == pytest.approx({"a": 0.5, "b": 1.5})
    assert relative_gaps({"a": 0.0, "b": 0.3}) == {"a": 0.25, "b": 2.0}
    assert relative_gaps({"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 1.0}
    assert relative_gaps({}) == {}
    factors = Focus(gaps={"a": 0.1, "b": 0.3}).factors()
    assert {task: factor**2 for task, factor in factors.items()} == pytest.approx({"a": 0.5, "b": 1.5})


def schedule(sampling: float = 1.0) -> Schedule:
    return Schedule({"a": np.full(80, 8), "b": np.full(40, 8), "c": np.full(2, 8)}, 4, sampling, seed=0)


@pytest.mark.parametrize(
    "factors", [{"a": 0.5, "b": 2.0, "c": 1.0}, {"a": 2.0, "b": 0.5, "c": 0.5}, {"a": 9.0}]
)
def test_steps_go_with_size_and_factor_and_their_number_stays(factors: dict[str, float]) -> None:
    one = schedule()
    quotas = one.quotas_of(factors)
    assert sum(quotas.values()) == one.steps_per_epoch == 31
    assert min(quotas.values()) >= 1
    weight = {task: size * factors.get(task, 1.0) for task, size in {"a": 20, "b": 10, "c": 1}.items()}
    for task in ("a", "b"):
        assert abs(quotas[task] - 31 * weight[task] / sum(weight.values())) < 2


def test_passes_run_on_where_the_shares_change() -> None:
    """Every example of a task comes once before any comes twice, whatever the shares of the epochs."""
    one, focus, seen = schedule(), Focus(), Counter[int]()
    for epoch, gaps in enumerate([{}, {"a": 0.9, "b": 0.1, "c": 0.1}, {"a": 0.1, "b": 0.9, "c": 0.1}, {}]):
        focus.gaps = gaps
        steps = one.epoch(epoch, focus.factors(), focus.drawn)
        for step in steps:
            if step.task == "a":
                seen.update(step.rows.tolist())
        for task, quota in one.quotas_of(focus.factors()).items():
            focus.drawn[task] = focus.drawn.get(task, 0) + quota
    assert max(seen.values()) - min(seen.get(row, 0) for row in range(80)) <= 1


def test_a_training_attends_to_the_task_that_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [replace(one, ensemble_skill=0.5) for one in two_tasks()]
    first, second = (one.task.name for one in sets)
    skills = iter([0.5, 0.0] * 3)  # the first task has no gap, the second all of it
    monkeypatch.setattr(loop, "skill", lambda _: next(skills))
    weights: list[tuple[str, float]] = []

    def watched(student, task, batches, loss: LossWeights, **others):  # type: ignore[no-untyped-def]
        weights.append((task.name, loss.task))
        return accumulate(student, task, batches, loss, **others)

    monkeypatch.setattr(loop, "accumulate", watched)
    trainer = trainer_of(tmp_path, sets, settings(epochs=3), DISTIL)
    trainer.fit()
    steps = trainer.feed.steps_per_epoch
    epochs = [weights[epoch * steps : (epoch + 1) * steps] for epoch in range(3)]
    assert len(weights) == 3 * steps
    assert {weight for _, weight in epochs[0]} == {1.0}
    assert dict(epochs[1]) == pytest.approx({first: 0.5, second: 2**0.5})
    counts = [Counter(task for task, _ in epoch) for epoch in epochs]
    assert counts[1][second] > counts[0][second]
    gaps = [line["metrics"] for line in points(tmp_path) if f"gap/{second}" in line["metrics"]]
    assert [(line[f"gap/{first}"], line[f"gap/{second}"]) for line in gaps] == [(0.0, 1.0)] * 3


def test_without_a_focus_the_shares_are_fixed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, two_tasks(), settings(epochs=2), DISTIL)
    trainer.fit()
    assert trainer.progress.focus == Focus()
    feed = Feed(two_tasks(), 4, 99)
    assert [step.task for step in feed.epoch(1)] == [step.task for step in feed.epoch(1, focus=Focus())]
