"""Two trainings that begin alike train their first stage once, and end as if each had trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.recipe import Patience
from pipeline.losses import LossWeights
from pipeline.training import first_stage
from pipeline.training.feed import TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, Stage
from tests.unit.pipeline.small_training import (
    StopAfter,
    curve,
    same_bits,
    settings,
    task_set,
    trainer_of,
    two_tasks,
    weights_of,
    with_hidden,
)

HIDDEN = LossPlan(others=LossWeights({"hidden": 1.0}, 1.0))
FIRST = Stage(HIDDEN, 2, 5e-3, 2e-2)


def last(soft: float = 0.5, epochs: int = 2, rate: float = 2e-3) -> Stage:
    return Stage(LossPlan(others=LossWeights({"hard": 1 - soft, "soft": soft}, 2.0)), epochs, rate, rate)


def trained(folder: Path, stages: Sequence[Stage], shared: Path | None, **options: Any) -> Trainer:
    folder.mkdir()
    sets = [with_hidden(each) for each in two_tasks()]
    trainer = trainer_of(folder, sets, stages=stages, first_stages=shared, **options)
    trainer.fit()
    return trainer


def test_the_next_training_takes_the_steps_of_its_last_stage_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    trained(tmp_path / "a", [FIRST, last()], shared)
    other = [FIRST, last(soft=0.1, epochs=3, rate=4e-3)]
    alone = trained(tmp_path / "alone", other, None)
    steps = StopAfter(10**6)
    together = trained(tmp_path / "b", other, shared, should_stop=steps)
    assert 10**6 - steps.left == 3 * together.feed.steps_per_epoch
    assert same_bits(weights_of(alone.student), weights_of(together.student))
    assert together.progress.kept == alone.progress.kept
    assert len(together.progress.epoch_seconds) == 5
    for name in ("validation/hidden/mood", "loss/hidden/mood", "macro/score"):
        assert curve(tmp_path / "b", name) == curve(tmp_path / "alone", name)


def test_an_interrupted_first_stage_is_trained_on_and_left_to_others(tmp_path: Path) -> None:
    shared, stages = tmp_path / "shared", [FIRST, last()]
    trained(tmp_path / "a", stages, shared, should_stop=StopAfter(5))
    assert not shared.exists()
    sets = [with_hidden(each) for each in two_tasks()]
    trainer_of(tmp_path / "a", sets, stages=stages, first_stages=shared).fit()
    assert len(list(shared.iterdir())) == 1
    # what is there does not replace a training's own checkpoint
    trained(tmp_path / "b", stages, None, should_stop=StopAfter(5))
    steps = StopAfter(10**6)
    trainer = trainer_of(tmp_path / "b", sets, stages=stages, first_stages=shared, should_stop=steps)
    trainer.fit()
    assert 10**6 - steps.left == trainer.total_steps - 5


def digest(
    stage: Stage = FIRST, sets: Sequence[TaskSet] | None = None, seed: int = 0, **changes: Any
) -> str | None:
    sets = sets or [with_hidden(each) for each in two_tasks()]
    trainer = trainer_of(Path(), sets, settings(**changes), stages=[stage, last()], seed=seed)
    return first_stage.digest_of(trainer.student, trainer.feed, trainer.config, stage, trainer.focused)


def test_what_decides_a_first_stage() -> None:
    own = digest()
    assert own is not None
    same = [
        digest(epochs=7, learning_rate=0.5, head_learning_rate=0.5, early_stopping=Patience(patience=1)),
        digest(stage=replace(FIRST, losses=LossPlan(others=LossWeights({"hard": 0.0, "hidden": 1.0}, 7.0)))),
    ]
    assert same == [own, own]
    sets = [with_hidden(each) for each in two_tasks()]
    assert sets[0].hidden is not None
    others = [
        digest(stage=replace(FIRST, epochs=3)),
        digest(stage=replace(FIRST, learning_rate=1e-3)),
        digest(stage=replace(FIRST, unfreeze="gradual")),
        digest(stage=replace(FIRST, losses=LossPlan(others=LossWeights({"hidden": 1.0}, 1.0, task=2.0)))),
        digest(seed=1),
        digest(dropout=0.3),
        digest(warmup=0.7),
        digest(batch_size=7),
        digest(sets=sets[:1]),
        digest(sets=[with_hidden(task_set(count=30)), sets[1]]),
        digest(sets=[replace(sets[0], hidden=replace(sets[0].hidden, weights=torch.ones(9, 2))), sets[1]]),
        digest(sets=[replace(each, ensemble_skill=0.5) for each in sets]),
    ]
    assert len({own, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    "losses",
    [
        LossPlan(others=LossWeights({"hidden": 0.5, "soft": 0.5}, 1.0)),
        LossPlan({"mood": LossWeights({"hard": 1.0}, 1.0)}, others=LossWeights({"hidden": 1.0}, 1.0)),
        LossPlan(others=LossWeights({"hidden": 1.0}, 1.0), annealing="linear"),
    ],
)
def test_a_stage_with_another_loss_is_not_shared(losses: LossPlan, tmp_path: Path) -> None:
    assert digest(stage=replace(FIRST, losses=losses)) is None
    trained(tmp_path / "a", [replace(FIRST, losses=losses), last()], tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_a_few_beginnings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "KEPT", 2)
    shared = tmp_path / "shared"
    for number in range(4):
        trained(tmp_path / str(number), [replace(FIRST, epochs=1 + number), last(epochs=1)], shared)
    assert len(list(shared.iterdir())) == 2
    assert not first_stage.take(shared / "removed", tmp_path / "new")
    steps = StopAfter(10**6)
    trainer = trained(
        tmp_path / "again", [replace(FIRST, epochs=4), last(epochs=1)], shared, should_stop=steps
    )
    assert 10**6 - steps.left == trainer.feed.steps_per_epoch
