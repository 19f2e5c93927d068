"""Warm distilled epoch ÷ supervised epoch: the same student, the same batches, two teachers' targets from the store.

    python -m benchmarks.epoch [--runs 7]

Goal: at most 1.05 with soft targets, at most 1.15 with the hidden targets of one teacher of width 384. An epoch is its
optimiser steps, without validation and checkpoints. Seconds are CPU seconds of this process, which other work on the
machine changes less than the time on the wall. The store's bytes a word of hidden targets are counted as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from pipeline.batch import Encoded, Ragged, offsets_of
from pipeline.config.recipe import StudentRecipe
from pipeline.data.splits import TaskData
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.soft import Dense, Layer, SoftTargets
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.hidden import HiddenMatch
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from students.student import build_student
from teachers.store import Store

TEACHERS = ("aa", "bb")
HIDDEN = Layer(384, 3)
STUDENTS = {"tiny (2 layers, 128)": ("bert-tiny", None), "half (3 layers, 384)": ("minilm-l6", 3)}
LOSSES = {
    "supervised": LossPlan(),
    "distilled": LossPlan(others=LossWeights({"hard": 0.3, "soft": 0.7}, 2.0)),
    "hidden": LossPlan(others=LossWeights({"hidden": 1.0}, 1.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    print(f"{machine()}; one thread; {runs} paired epochs, median (range)", flush=True)
    data = [demo_task("movies", 1000), demo_task("tweets", 1000)]
    with tempfile.TemporaryDirectory() as scratch:
        store = filled_store(Path(scratch) / "store", data)
        hidden = Path(scratch) / "hidden"
        for number, (name, (folder, layers)) in enumerate(STUDENTS.items()):
            if number == 0:  # both students have the same tokenizer, and words do not depend on it
                words = fill_hidden(Store(str(hidden)), data, ASSETS / folder)
                size = sum(file.stat().st_size for file in hidden.rglob("*") if file.is_file())
                print(
                    f"hidden targets: {size / words:.0f} bytes a word, {2 * HIDDEN.size} of them the vector"
                )
            trainers = [
                trainer(ASSETS / folder, layers, data, mode, store, Store(str(hidden)), Path(scratch))
                for mode in LOSSES
            ]
            supervised, *others = paired(runs, *(partial(cpu_seconds, one) for one in trainers))
            for mode, seconds in zip(list(LOSSES)[1:], others, strict=True):
                print(f"{name}: {mode} ÷ supervised {spread(ratios(seconds, supervised))}", flush=True)
            print(f"{name}: CPU seconds a supervised epoch {spread(supervised)}", flush=True)


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


def fill_hidden(store: Store, data: list[TaskData], folder: Path) -> int:
    """Adds random hidden targets of one teacher for every training example; returns their number of words."""
    rng, words = np.random.default_rng(0), 0
    for task_data in data:
        train = task_data.splits["train"]
        keys, firsts = np.unique(train.keys, return_index=True)
        counts = word_counts(encoded_with_words(task_data, folder))[firsts]
        vectors = rng.normal(size=(int(counts.sum()), HIDDEN.size)).astype(np.float16)
        words += len(vectors)
        store.append(
            task_data.task.name.encode().hex(),
            SoftTargets(keys, Dense(Ragged(vectors, offsets_of(counts)), HIDDEN)),
        )
    return words


def encoded_with_words(task_data: TaskData, folder: Path) -> Encoded:
    return TaskSet.of(task_data, open_tokenizer(folder), words=True).train


def word_counts(encoded: Encoded) -> np.ndarray:
    assert encoded.words is not None, "encoded with words"
    return encoded.words.counts


def trainer(
    folder: Path,
    layers: int | None,
    data: list[TaskData],
    mode: str,
    store: Store,
    hidden: Store,
    scratch: Path,
) -> Trainer:
    tokenizer = open_tokenizer(folder)
    sets = []
    for task_data in data:
        task, train = task_data.task, task_data.splits["train"]
        key = task.name.encode().hex()
        match mode:
            case "supervised":
                sets.append(TaskSet.of(task_data, tokenizer))
            case "distilled":
                stored = [store.view(name + key, train.keys, task.reading.labels) for name in TEACHERS]
                aggregation = Aggregation("confidence", torch.tensor([0.5, 0.5]))
                sets.append(TaskSet.of(task_data, tokenizer, sources=stored, aggregation=aggregation))
            case _:
                one = TaskSet.of(task_data, tokenizer, words=True)
                view = hidden.view(key, train.keys, HIDDEN, word_counts(one.train))
                sets.append(replace(one, hidden=HiddenMatch.over([view], [1.0], one.train, one.examples)))
    widths = {one.task.name: HIDDEN.size for one in sets if one.hidden is not None}
    student = build_student(folder, [s.task for s in sets], layers=layers, hidden=widths)
    config = StudentRecipe(
        epochs=1000, learning_rate=1e-4, head_learning_rate=1e-4, early_stopping=None, checkpoint_steps=10**9
    )
    feed = Feed(sets, config.batch_size, config.tokens_per_forward)
    return Trainer(
        student, feed, config, one_stage(config, LOSSES[mode]), Path(tempfile.mkdtemp(dir=scratch))
    )


def cpu_seconds(trainer: Trainer) -> float:
    """CPU seconds of the optimiser steps of the trainer's next epoch."""
    started = time.process_time()
    one_epoch(trainer)
    return time.process_time() - started


def one_epoch(trainer: Trainer) -> float:
    """Wall-clock seconds of the optimiser steps of the trainer's next epoch."""
    return trainer.run_epoch(trainer.progress.step // trainer.feed.steps_per_epoch)


if __name__ == "__main__":
    main()
