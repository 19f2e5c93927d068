"""Trainings that one worker or two take part in; run by test_workers.py in processes of their own and in its own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from pipeline.batch import Drawn
from pipeline.config.schema import WorkerStrategy
from pipeline.soft import Dense
from pipeline.training.feed import TaskSet
from pipeline.training.jobs import train_jobs
from pipeline.training.loop import Trainer
from pipeline.training.step import Workers, predict
from tests.unit.pipeline.small_training import (
    FixedTargets,
    StopAfter,
    settings,
    task_of,
    task_set,
    trainer_of,
    two_tasks,
    weights_of,
)

SGD = settings(epochs=2, optimizer="sgd", learning_rate=0.05)
ADAMW = settings(epochs=2)
ROWS = settings(epochs=2, optimizer="sgd", learning_rate=0.05, batch_size=1)  # one row a step
POISONED_ROW = 3


@dataclass
class NanAt(FixedTargets):
    """NaN on one row."""

    def targets(self, batch: Drawn) -> Dense:
        soft = super().targets(batch)
        soft.values[batch.rows == POISONED_ROW] = np.nan
        return soft


def poisoned() -> TaskSet:
    sets = task_set(teachers=1)
    sources = [NanAt(source.logits) for source in sets.sources if isinstance(source, FixedTargets)]
    return replace(sets, sources=sources)


def sgd(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, two_tasks(), SGD, dropout=0.0, workers=workers)


def adamw(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, two_tasks(), ADAMW, dropout=0.0, workers=workers)


def accumulated(folder: Path, workers: Workers) -> Trainer:
    """Steps of four rows in up to four parts."""
    parts = SGD.model_copy(update={"tokens_per_forward": 12})
    return trainer_of(folder, two_tasks(), parts, dropout=0.0, workers=workers)


def fewer_rows_than_workers(folder: Path, workers: Workers) -> Trainer:
    sets = [task_set(count=8, teachers=2), task_set(task_of("tone", ("a", "b", "c")), count=6, teachers=1)]
    return trainer_of(folder, sets, ROWS, dropout=0.0, workers=workers)


def nan_on_one_worker(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, [poisoned()], SGD, dropout=0.0, workers=workers)


def with_dropout(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, two_tasks(), ADAMW, workers=workers)


def interrupted(folder: Path, workers: Workers, strategy: WorkerStrategy = "ddp") -> Trainer:
    """`with_dropout`, of which the last worker alone is asked to stop, twice."""
    for calls in (3, 9):
        stop: Callable[[], bool] = StopAfter(calls) if workers.rank == workers.world - 1 else lambda: False
        trainer = trainer_of(folder, two_tasks(), ADAMW, workers=workers, should_stop=stop, strategy=strategy)
        assert trainer.fit().status == "interrupted"
        torch.manual_seed(calls)
    return trainer_of(folder, two_tasks(), ADAMW, workers=workers, strategy=strategy)


def sharded(folder: Path, workers: Workers) -> Trainer:
    """FSDP, steps of four rows in up to four parts."""
    parts = SGD.model_copy(update={"tokens_per_forward": 12})
    return trainer_of(folder, two_tasks(), parts, dropout=0.0, workers=workers, strategy="fsdp")


def sharded_adamw(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, two_tasks(), ADAMW, dropout=0.0, workers=workers, strategy="fsdp")


def sharded_with_dropout(folder: Path, workers: Workers) -> Trainer:
    return trainer_of(folder, two_tasks(), ADAMW, workers=workers, strategy="fsdp")


def sharded_interrupted(folder: Path, workers: Workers) -> Trainer:
    return interrupted(folder, workers, "fsdp")


TRAININGS = (
    sgd,
    adamw,
    accumulated,
    fewer_rows_than_workers,
    nan_on_one_worker,
    with_dropout,
    interrupted,
    sharded,
    sharded_adamw,
    sharded_with_dropout,
    sharded_interrupted,
)


def run(training: Callable[[Path, Workers], Trainer], folder: Path, workers: Workers) -> dict[str, Tensor]:
    """Trains; returns weights and, as ``says``, the student's logits on its first task's validation split."""
    trainer = training(folder / training.__name__, workers)
    progress = trainer.fit()
    first = next(iter(trainer.feed.sets.values()))
    says = predict(trainer.student, first.task, first.validation, 20, workers)
    facts = {**asdict(progress), "epoch_seconds": []}
    if workers.world > 1:
        file = folder / f"{training.__name__}-{workers.rank}.json"
        file.write_text(json.dumps(facts))
    return {**weights_of(trainer.student), "says": torch.from_numpy(says)}


def jobs_worker(rank: str, world: str, folder: str) -> None:
    """One worker of `world`, in a process of its own: the trainings of the plan in `folder`/plan.pickle."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=int(world)
    )
    plan = pickle.loads(Path(folder, "plan.pickle").read_bytes())  # noqa: S301  # our own, of this test
    train_jobs(plan, Workers(int(rank), int(world)))
    dist.destroy_process_group()


def worker(rank: str, world: str, folder: str) -> None:
    """One worker of `world`, in a process of its own: all trainings, their outcomes saved in `folder`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=int(world)
    )
    for training in TRAININGS:
        found = run(training, Path(folder), Workers(int(rank), int(world)))
        save_file(found, Path(folder, f"{training.__name__}-{rank}.safetensors"))
    dist.destroy_process_group()
