"""Two workers, real processes that meet by gloo, against one: same losses, same weights, same stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.training.loop import Trainer
from pipeline.training.step import Workers
from tests.unit.pipeline.small_training import curve, finish, largest_difference, points, python, same_bits
from tests.unit.pipeline.training import two_workers

Training = Callable[[Path, Workers], Trainer]
WITHOUT_DROPOUT = (
    two_workers.sgd,
    two_workers.adamw,
    two_workers.accumulated,
    two_workers.fewer_rows_than_workers,
    two_workers.nan_on_one_worker,
    two_workers.sharded,
    two_workers.sharded_adamw,
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two workers did, side by side."""
    folder = tmp_path_factory.mktemp("two")
    processes = [python(two_workers.worker, rank, 2, folder) for rank in range(2)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    return folder


def outcome(folder: Path, training: Training, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{training.__name__}-{rank}.safetensors")


def facts(folder: Path, training: Training, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{training.__name__}-{rank}.json").read_text())
    return found


@pytest.mark.parametrize("training", two_workers.TRAININGS, ids=lambda training: str(training.__name__))
def test_both_workers_hold_the_same_student(two: Path, training: Training) -> None:
    assert same_bits(outcome(two, training, 0), outcome(two, training, 1))
    assert facts(two, training, 0) == facts(two, training, 1)


@pytest.mark.parametrize("training", WITHOUT_DROPOUT, ids=lambda training: str(training.__name__))
def test_two_workers_train_as_one(two: Path, tmp_path: Path, training: Training) -> None:
    # The sums of gradients and losses are taken in another order. Measured over all steps: weights of SGD within
    # 2e-8, losses and logits within 2e-7. AdamW divides by gradients that may be rounding alone: its weights came
    # within 2e-7 and may be further off elsewhere, so it is compared by losses and logits only.
    alone = two_workers.run(training, tmp_path, Workers())
    found = outcome(two, training)
    torch.testing.assert_close(found["says"], alone["says"], atol=1e-5, rtol=0)
    if training not in (two_workers.adamw, two_workers.sharded_adamw):
        assert largest_difference(found, alone) < 1e-6
    mine, theirs = points(tmp_path / training.__name__), points(two / training.__name__)
    assert len(theirs) == len(mine)
    for a, b in zip(theirs, mine, strict=True):
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-5)


def test_a_nan_on_one_worker_skips_the_step_on_both(two: Path) -> None:
    assert [facts(two, two_workers.nan_on_one_worker, rank)["skipped"] for rank in range(2)] == [2, 2]
    assert all(tensor.isfinite().all() for tensor in outcome(two, two_workers.nan_on_one_worker).values())


@pytest.mark.parametrize(
    ("whole", "resumed"),
    [
        (two_workers.with_dropout, two_workers.interrupted),
        (two_workers.sharded_with_dropout, two_workers.sharded_interrupted),
    ],
    ids=["ddp", "fsdp"],
)
def test_a_stop_asked_of_one_worker_stops_both_and_resuming_changes_no_bit(
    two: Path, whole: Training, resumed: Training
) -> None:
    assert same_bits(outcome(two, resumed), outcome(two, whole))
    assert points(two / resumed.__name__) == points(two / whole.__name__)


def test_sharded_parameters_train_as_whole_ones(two: Path) -> None:
    """AdamW's and dropout's bits are those of DDP as far as sums in another order let them be."""
    whole, parts = outcome(two, two_workers.with_dropout), outcome(two, two_workers.sharded_with_dropout)
    torch.testing.assert_close(parts["says"], whole["says"], atol=1e-4, rtol=0)


def test_workers_draw_dropout_of_their_own(two: Path, tmp_path: Path) -> None:
    alone = two_workers.run(two_workers.with_dropout, tmp_path, Workers())
    assert largest_difference(outcome(two, two_workers.with_dropout), alone) > 1e-4
    one, both = (curve(folder / "with_dropout", "loss/total") for folder in (tmp_path, two))
    assert both == pytest.approx(one, rel=0.25)  # other dropout, same training
