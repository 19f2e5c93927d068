"""What each task kind costs: a warm distilled epoch ÷ a supervised one, and several tasks together ÷ one by one.

    python -m benchmarks.kinds [--runs 7] [--student tiny|half]

Goal: ≤ 1.05 for each kind; a multi-task epoch ≤ 1.05 × the sum of its tasks' epochs over the same batches. Two
teachers a task with random soft targets, which cost as much to read as real ones. An epoch is its optimiser steps.
Also: bytes of the store ÷ raw float16 for targets of several items an example (goal: ≤ 1.25).
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ASSETS, machine, paired, ratios, spread
from pipeline.batch import Ragged
from pipeline.config.explain import overlay
from pipeline.config.fields import SPLITS
from pipeline.config.recipe import StudentRecipe
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import TaskData, load_task
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.soft import Dense, SoftTargets
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from students.student import build_student
from teachers.store import Store

STUDENTS: dict[str, tuple[str, int | None]] = {"tiny": ("bert-tiny", None), "half": ("minilm-l6", 3)}
TEACHERS = ("aa", "bb")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--student", choices=list(STUDENTS), default="tiny")
    arguments = parser.parse_args()
    print(f"{machine()}; student {arguments.student}, {arguments.runs} paired epochs, median (range)")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tasks = demo_tasks(scratch)
        store = Store(str(scratch / "store"))
        for data in tasks.values():
            share = fill(store, data)
            print(f"{data.task.name}: store ÷ raw float16 {share:.3f}")
        measure = partial(trainer, arguments.student, store, scratch)
        for name, data in tasks.items():
            epochs = [partial(one_epoch, measure([data], distilled)) for distilled in (True, False)]
            distilled, supervised = paired(arguments.runs, *epochs)
            print(f"{name}: distilled ÷ supervised {spread(ratios(distilled, supervised))}", end="; ")
            print(f"seconds {spread(distilled)}, {spread(supervised)}")
        together = measure(list(tasks.values()), True)
        alone = [measure([data], True) for data in tasks.values()]
        mixed, single = paired(
            arguments.runs,
            partial(one_epoch, together),
            lambda: sum(one_epoch(one) for one in alone),
        )
        print(f"all tasks in one student ÷ one by one {spread(ratios(mixed, single))}", end="; ")
        print(f"seconds {spread(mixed)}, {spread(single)}")


def demo_tasks(scratch: Path) -> dict[str, TaskData]:
    """A task of each kind on the demo's data; `examples/fetch_assets.py all` fetches it."""
    topics = multi_label_file(scratch)
    sections: dict[str, dict[str, Any]] = {
        "single label": section("movies", "csv", 800),
        "pairs": section(
            "boolq", "jsonl", 200, columns={"text": "question", "text_pair": "passage"}, max_length=160
        ),
        "multi-label": {**section("tweets", "csv", 800), "problem": "multi_label"},
        "regression": {
            **section("strength", "csv", 800, columns={"label": "score"}),
            "problem": "regression",
        },
        "words": {
            **section("conll2003", "jsonl", 800, columns={"labels": "tags"}),
            "kind": "token-classification",
        },
        "answers": {
            **section("qa", "jsonl", 80, columns={"answer_starts": "answer_starts"}, max_length=192),
            "kind": "question-answering",
        },
    }
    sections["multi-label"]["data"] |= {"path": "json", "data_files": {"train": topics}}
    base = TaskConfig.model_validate({"kind": "text-classification", "data": {"path": "csv"}})
    return {
        name: load_task(name.replace(" ", "-"), overlay(base, keys, (name,)))
        for name, keys in sections.items()
    }


def section(asset: str, suffix: str, train: int, **data: Any) -> dict[str, Any]:
    """A task section on one of the demo's data sets."""
    files = {split: str(ASSETS / asset / f"{split}.{suffix}") for split in SPLITS}
    limit = {"train": train, "validation": 40, "test": 40}
    path = "csv" if suffix == "csv" else "json"
    return {"data": {"path": path, "data_files": files, "max_length": 64, "limit": limit, **data}}


def multi_label_file(scratch: Path) -> str:
    """A file of tweets with one to three random labels each, which cost as much as real ones; returns its path."""
    rng, file = np.random.default_rng(0), scratch / "topics.jsonl"
    with (ASSETS / "tweets" / "train.csv").open(newline="") as stream:
        texts = [row["text"] for row, _ in zip(csv.DictReader(stream), range(2000), strict=False)]
    rows = [{"text": t, "label": sorted({f"label {i}" for i in rng.integers(0, 8, 3)})} for t in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def key_of(teacher: str, data: TaskData) -> str:
    """The fingerprint of a teacher for a task in the store."""
    return teacher + data.task.name.encode().hex()


def fill(store: Store, data: TaskData) -> float:
    """Stores both teachers' random soft targets of the training examples; returns the bytes on disk ÷ raw float16."""
    train = data.splits["train"]
    rng, counts = np.random.default_rng(0), data.task.reading.counts(train.inputs)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    for teacher in TEACHERS:
        values = rng.normal(size=(int(offsets[-1]), len(data.task.head.columns))).astype(np.float32)
        targets = SoftTargets(train.keys, Dense(Ragged(values, offsets), data.task.head.columns))
        store.append(key_of(teacher, data), targets)
    return store.size(key_of(TEACHERS[0], data)) / (values.size * 2)


def trainer(student: str, store: Store, scratch: Path, tasks: Sequence[TaskData], distilled: bool) -> Trainer:
    """A trainer of the student on `tasks`; each example is drawn once an epoch."""
    folder, layers = STUDENTS[student]
    tokenizer = open_tokenizer(ASSETS / folder)
    sets = [task_set(tokenizer, data, store if distilled else None) for data in tasks]
    model = build_student(ASSETS / folder, [one.task for one in sets], layers=layers)
    losses = LossPlan(others=LossWeights({"hard": 0.3, "soft": 0.7}, 2.0)) if distilled else LossPlan()
    config = StudentRecipe(
        epochs=1000,
        batch_size=BATCH,
        learning_rate=1e-4,
        head_learning_rate=1e-4,
        early_stopping=None,
        checkpoint_steps=10**9,
    )
    return Trainer(
        model,
        Feed(sets, config.batch_size, config.tokens_per_forward),
        config,
        one_stage(config, losses),
        Path(tempfile.mkdtemp(dir=scratch)),
    )


def task_set(tokenizer: Any, data: TaskData, store: Store | None) -> TaskSet:
    """The encoded task, with its soft targets where there is a store."""
    if store is None:
        return TaskSet.of(data, tokenizer)
    train = data.splits["train"]
    counts = data.task.reading.counts(train.inputs)
    aggregation = Aggregation("mean", torch.tensor([0.5, 0.5]))
    stored = [store.view(key_of(t, data), train.keys, data.task.head.columns, counts) for t in TEACHERS]
    return TaskSet.of(data, tokenizer, sources=stored, aggregation=aggregation)


def one_epoch(one: Trainer) -> float:
    """Seconds of the optimiser steps of the trainer's next epoch."""
    return one.run_epoch(one.progress.step // one.feed.steps_per_epoch)


if __name__ == "__main__":
    main()
