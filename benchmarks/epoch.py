"""Warm distilled epoch ÷ supervised epoch: the same student, the same batches, two teachers' targets from the store.

    python -m benchmarks.epoch [--runs 7]

Goal: at most 1.05. An epoch is its optimiser steps, without validation and checkpoints.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from pipeline.batch import Ragged
from pipeline.config.recipe import StudentRecipe
from pipeline.data.splits import TaskData
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.soft import Dense, SoftTargets
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from students.student import build_student
from teachers.store import Store

TEACHERS = ("aa", "bb")
STUDENTS = {"tiny (2 layers, 128)": ("bert-tiny", None), "half (3 layers, 384)": ("minilm-l6", 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"{machine()}; {runs} paired epochs, median (range)")
    data = [demo_task("movies", 1000), demo_task("tweets", 1000)]
    with tempfile.TemporaryDirectory() as scratch:
        store = filled_store(Path(scratch) / "store", data)
        for name, (folder, layers) in STUDENTS.items():
            trainers = [
                trainer(ASSETS / folder, layers, data, store if distilled else None, Path(scratch))
                for distilled in (True, False)
            ]
            measures = [partial(one_epoch, t) for t in trainers]
            distilled, supervised = paired(runs, *measures)
            print(f"{name}: distilled ÷ supervised {spread(ratios(distilled, supervised))}", end="; ")
            print(f"seconds an epoch: distilled {spread(distilled)}, supervised {spread(supervised)}")


def filled_store(path: Path, data: list[TaskData]) -> Store:
    """A store with random soft targets of two teachers for every training example: real ones cost as much to read."""
    store, rng = Store(str(path)), np.random.default_rng(0)
    for task_data in data:
        keys = np.unique(task_data.splits["train"].keys)
        for teacher in TEACHERS:
            logits = rng.normal(size=(len(keys), len(task_data.task.reading.labels))).astype(np.float32)
            store.append(
                teacher + task_data.task.name.encode().hex(),
                SoftTargets(keys, Dense(Ragged.single(logits), task_data.task.reading.labels)),
            )
    return store


def trainer(
    folder: Path, layers: int | None, data: list[TaskData], store: Store | None, scratch: Path
) -> Trainer:
    tokenizer = open_tokenizer(folder)
    sets = []
    for task_data in data:
        if store is None:
            sets.append(TaskSet.of(task_data, tokenizer))
            continue
        task, train = task_data.task, task_data.splits["train"]
        stored = [
            store.view(teacher + task.name.encode().hex(), train.keys, task.reading.labels)
            for teacher in TEACHERS
        ]
        aggregation = Aggregation("confidence", torch.tensor([0.5, 0.5]))
        sets.append(TaskSet.of(task_data, tokenizer, sources=stored, aggregation=aggregation))
    student = build_student(folder, [s.task for s in sets], layers=layers)
    losses = LossPlan() if store is None else LossPlan(others=LossWeights({"hard": 0.3, "soft": 0.7}, 2.0))
    config = StudentRecipe(
        epochs=1000, learning_rate=1e-4, head_learning_rate=1e-4, early_stopping=None, checkpoint_steps=10**9
    )
    feed = Feed(sets, config.batch_size, config.tokens_per_forward)
    return Trainer(student, feed, config, one_stage(config, losses), Path(tempfile.mkdtemp(dir=scratch)))


def one_epoch(trainer: Trainer) -> float:
    """Seconds for the optimiser steps of the trainer's next epoch."""
    return trainer.run_epoch(trainer.progress.step // trainer.feed.steps_per_epoch)


if __name__ == "__main__":
    main()
