"""Tutelage's supervised training beside transformers' own `Trainer` in random batches: score and speed.

    python -m benchmarks.parity [--seeds 5] [--tasks newsgroups movies conll2003 qa] [--pools 16]

Goal: the mean over seeds of Tutelage − Trainer is −0.3 points or more for every task; Trainer ÷ Tutelage in seconds is 2 or
more where texts are short. `examples/fetch_assets.py bert-tiny newsgroups movies conll2003 qa` fetches the data. It needs
`accelerate`, which `make install` installs. `--tasks amazon r52` has the data of two examples and the recipe that is
derived for them.

The same for both: the model and its weights before the first step (of each seed: the head's, too), a Hugging Face class;
the encoded examples of our `Head.encode`; batch size, and so the number of steps; AdamW with its betas, weight decay on
matrices alone, peak learning rate, warm-up over a tenth of the steps, linear fall, clipping at 1; dropout; fp32; one
thread. Every epoch is trained and the last weights are kept. The test split is predicted and scored by our code.

What differs is what is measured:

- Which examples are in a batch. Trainer's batches are random; ours are of examples that are alike in length, within
  pools of `schedule.POOL` batches. `--pools` tries others; in pools of 1 our batches are random, too.
- The loss of a step. Trainer has the model's own loss: a mean over a step's texts, labelled words or windows. Ours is a
  mean over a step's examples, so a word weighs the same in every step. For answers the model's own loss is a softmax
  over each window, and a window without the answer is taught to point at CLS (as in ``run_qa``); ours is one softmax
  over all windows of a context. For one label a text both are the same.
- The first step's rate, which is 0 in Trainer and a share of the warm-up in ours.

Seconds are CPU seconds of this process, which has one thread: those of the optimiser steps, without validation and
checkpoints on either side. Other work on the machine makes them longer, but less than it does seconds on the clock.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from benchmarks.common import ASSETS, machine, mean_and_error, ratios, spread
from pipeline.batch import Encoded, Padded, Ragged
from pipeline.config.explain import overlay
from pipeline.config.fields import SPLITS
from pipeline.config.kinds import QUESTION_ANSWERING, TOKEN_CLASSIFICATION, Kind
from pipeline.config.recipe import Facts, Recipe, student_recipe
from pipeline.config.schema import TaskConfig, TrainConfig
from pipeline.data.splits import TaskData, load_task
from pipeline.models import open_tokenizer
from pipeline.prepare import model_facts
from pipeline.tasks.windows import SIDES
from pipeline.training import schedule
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.optimizer import make_optimizer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import predict
from students.student import MultiTaskStudent, build_student

STUDENT = ASSETS / "bert-tiny"
IGNORED = -100  # the label that transformers leaves out of a loss
RANDOM = "Trainer"


@dataclass(frozen=True)
class Setting:
    """One task's data and recipe.

    train, test: most examples · epochs, learning_rate: None: derived as where a config leaves them out, and the head's
    rate with them; else the head has the encoder's rate · passage: words of a context that are kept around its first answer; questions without
    an answer are left out then. None: contexts as they are. Of whole contexts, several windows each, BERT-tiny learns
    no more in a benchmark's time than to answer nothing, and two sides that have learnt nothing are equal.
    """

    suffix: str
    max_length: int
    train: int
    epochs: int | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    batch_size: int = 32
    test: int = 3000
    kind: str = "text-classification"
    columns: Mapping[str, str] = field(default_factory=dict)
    passage: int | None = None


SETTINGS = {
    "newsgroups": Setting("csv", 48, 1500, 6, 1e-3),
    "movies": Setting("csv", 64, 2000, 4, 5e-4),
    "conll2003": Setting("jsonl", 96, 1500, 6, 1e-3, kind="token-classification", columns={"labels": "tags"}),
    "qa": Setting(
        "jsonl",
        128,
        2000,
        6,
        1e-3,
        kind="question-answering",
        columns={"answer_starts": "answer_starts"},
        passage=64,
    ),
    "amazon": Setting("csv", 64, 2000),
    "r52": Setting("csv", 48, 2000),
}
DEFAULT = ("newsgroups", "movies", "conll2003", "qa")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(DEFAULT))
    parser.add_argument("--pools", nargs="+", type=int, default=[schedule.POOL], help="batches a pool")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; seeds 0 to {arguments.seeds - 1}; scores in points, seconds of one core", flush=True)
    sides = [RANDOM, *(f"pools of {pool}" for pool in arguments.pools)]
    with tempfile.TemporaryDirectory() as scratch:
        bouts = [Bout.of(name, sides, Path(scratch)) for name in arguments.tasks]
    for seed in range(arguments.seeds):
        for bout in bouts:
            for side in sides if seed % 2 == 0 else reversed(sides):
                bout.run(side, seed)
    for bout in bouts:
        print(bout.summary(), flush=True)


@dataclass(frozen=True)
class Bout:
    """One task, encoded once for both sides, with the scores in points and the seconds so far, by side and seed."""

    setting: Setting
    data: TaskData
    train: TaskSet
    test: Encoded
    scores: Mapping[str, list[float]]
    seconds: Mapping[str, list[float]]

    @classmethod
    def of(cls, name: str, sides: Sequence[str], scratch: Path) -> Bout:
        """The task of that name, nothing trained. scratch: a folder for files made of the data set's."""
        setting, tokenizer = SETTINGS[name], open_tokenizer(STUDENT)
        folder = ASSETS / name
        if setting.passage is not None:
            folder = write_passages(folder, scratch / name, setting.passage)
        data = load_task(name, task_config(name, setting, folder))
        setting = complete(setting, data)
        test = data.task.head.encode(tokenizer, data.splits["test"].inputs)
        values: list[dict[str, list[float]]] = [{side: [] for side in sides} for _ in range(2)]
        return cls(setting, data, TaskSet.of(data, tokenizer), test, *values)

    def run(self, side: str, seed: int) -> None:
        """Trains the student on one side, scores it on test, and prints both numbers."""
        task = self.data.task
        student = build_student(STUDENT, [task], seed=seed)
        started = time.process_time()
        if side == RANDOM:
            train_with_transformers(student, self.train, self.setting, seed)
        else:
            schedule.POOL = int(side.split()[-1])
            train_with_tutelage(student, self.train, self.setting, seed)
        self.seconds[side].append(time.process_time() - started)
        predictions = predict(student, task, self.test, 4096)
        score = task.scoring.scores(predictions, self.data.splits["test"])[task.scoring.metric]
        self.scores[side].append(100 * score)
        print(
            f"{task.name} seed {seed} {side}: {100 * score:.2f}, {self.seconds[side][-1]:.1f} s", flush=True
        )

    def summary(self) -> str:
        """Scores by side, the differences from Trainer with their standard error over seeds, and the speed."""
        task, trainer = self.data.task, self.scores[RANDOM]
        lines = [
            f"{task.name}: {task.scoring.metric}, {len(self.train.train)} train, {len(self.test)} test, "
            f"{self.setting.epochs} epochs, batches of {self.setting.batch_size}, rates {self.setting.learning_rate}, {self.setting.head_learning_rate}"
        ]
        for side, values in self.scores.items():
            line = f"  {side}: {statistics.mean(values):.2f} ({' '.join(f'{value:.1f}' for value in values)})"
            if side != RANDOM:
                mean, error = mean_and_error([a - b for a, b in zip(values, trainer, strict=True)])
                times = ratios(self.seconds[RANDOM], self.seconds[side])
                line += f"; − Trainer {mean:+.2f} ± {error:.2f}; Trainer ÷ it in seconds {spread(times)}"
            lines.append(f"{line}; seconds {spread(self.seconds[side])}")
        return "\n".join(lines)


def task_config(name: str, setting: Setting, folder: Path) -> TaskConfig:
    """The task's section of a config. folder: has a file of each split."""
    base = TaskConfig.model_validate({"kind": setting.kind, "data": {"path": "csv"}})
    data = {
        "path": {"jsonl": "json"}.get(setting.suffix, setting.suffix),
        "data_files": {split: str(folder / f"{split}.{setting.suffix}") for split in SPLITS},
        "columns": dict(setting.columns),
        "max_length": setting.max_length,
        "limit": {"train": setting.train, "validation": 40, "test": setting.test},
    }
    return overlay(base, {"data": data}, (name,))


def write_passages(source: Path, target: Path, words: int) -> Path:
    """Writes every split of a question-answering data set with short contexts, and returns their folder, `target`."""
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in SPLITS:
        rows = map(json.loads, (source / f"{split}.jsonl").read_text().splitlines())
        short = [passage(row, words, rng) for row in rows if row["answers"]]
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    return target


def passage(row: Mapping[str, Any], words: int, rng: np.random.Generator) -> dict[str, Any]:
    """The row with `words` words of its context, which hold its first answer at a random place, and the answers in it.

    An answer that is longer than that is kept whole.
    """
    spans = [match.span() for match in re.finditer(r"\S+", row["context"])]
    start, end = row["answer_starts"][0], row["answer_starts"][0] + len(row["answers"][0])
    first = max(i for i, (left, _) in enumerate(spans) if left <= start)
    last = min(i for i, (_, right) in enumerate(spans) if right >= end)
    lowest = min(first, max(0, last + 1 - words))
    low = int(rng.integers(lowest, max(lowest, min(first, len(spans) - words)) + 1))
    left, right = spans[low][0], spans[max(last, min(low + words, len(spans)) - 1)][1]
    inside = [
        (text, place - left)
        for text, place in zip(row["answers"], row["answer_starts"], strict=True)
        if left <= place and place + len(text) <= right
    ]
    return {
        **row,
        "context": row["context"][left:right],
        "answers": [text for text, _ in inside],
        "answer_starts": [place for _, place in inside],
    }


# ---- the two sides ---------------------------------------------------------------------------------


def complete(setting: Setting, data: TaskData) -> Setting:
    """The setting without any value left to derive."""
    if setting.epochs is not None and setting.learning_rate is not None:
        return replace(setting, head_learning_rate=setting.head_learning_rate or setting.learning_rate)
    facts = Facts(
        {data.task.name: data.facts()}, {STUDENT.name: model_facts(STUDENT, open_tokenizer(STUDENT))}
    )
    recipe, _ = student_recipe(TrainConfig(batch_size=setting.batch_size), STUDENT.name, facts)
    return replace(
        setting,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        head_learning_rate=recipe.head_learning_rate,
    )


def recipe_of(setting: Setting) -> Recipe:
    """How both sides train: the defaults of a config, but fp32, to the last epoch, without checkpoints."""
    assert setting.epochs is not None
    assert setting.learning_rate is not None
    return Recipe(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        head_learning_rate=setting.head_learning_rate or setting.learning_rate,
        early_stopping=None,
        precision="fp32",
        checkpoint_steps=10**9,
    )


def train_with_tutelage(student: MultiTaskStudent, task_set: TaskSet, setting: Setting, seed: int) -> None:
    """Trains the student by our loop, in place, without validation and checkpoints."""
    config = recipe_of(setting)
    with tempfile.TemporaryDirectory() as folder:
        feed = Feed([task_set], config.batch_size, config.tokens_per_forward, seed=seed)
        trainer = Trainer(student, feed, config, one_stage(config, LossPlan()), Path(folder))
        torch.manual_seed(seed)
        for epoch in range(config.epochs):
            trainer.run_epoch(epoch)
        trainer.replica.gather()


def train_with_transformers(
    student: MultiTaskStudent, task_set: TaskSet, setting: Setting, seed: int
) -> None:
    """Trains the same model by transformers' `Trainer` in random batches, in place, with the model's own loss."""
    import transformers

    config = recipe_of(setting)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup,  # below 1: a share of all steps
            lr_scheduler_type=config.schedule,
            max_grad_norm=config.gradient_clip or 0.0,
            seed=seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        optimizer = make_optimizer(student, config)  # Trainer's own has one rate for encoder and head
        trainer = transformers.Trainer(
            model=student.model(task_set.task.name),
            args=arguments,
            optimizers=(optimizer, None),
            train_dataset=Rows(len(task_set.train)),
            data_collator=Collator(task_set),
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it prints each log's numbers
        trainer.train()


class Rows(Dataset[int]):
    """The row numbers of n examples; `Collator` makes batches of them."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> int:
        return row


@dataclass(frozen=True)
class Collator:
    """Row numbers of a task's train split → the arguments of its Hugging Face model: the padded tokens that our loop
    would give it for these examples, and their labels in the model's own form."""

    task_set: TaskSet

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        chosen = np.asarray(rows, dtype=np.int64)
        padded, labels = self.task_set.train.pad(chosen), self.task_set.examples.labels.take(chosen)
        arrays = {**padded.inputs, **own_labels(self.task_set.task.kind, padded, labels)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def own_labels(kind: Kind, padded: Padded, labels: Ragged) -> dict[str, NDArray[np.int64]]:
    """The labels of a batch's m examples as arguments of a Hugging Face model of the kind.

    One label a text: ``labels`` (m,) · a label a word: ``labels`` (S, length), at the token of which we read the
    word's logits, `IGNORED` elsewhere · answers: ``start_positions`` and ``end_positions`` (S,) tokens of the first
    gold answer, or of CLS in a window that does not hold all of it.
    """
    if kind == TOKEN_CLASSIFICATION:
        tokens = np.full_like(padded.inputs["input_ids"], IGNORED)
        for spot in padded.spots.values():
            sequence, token = (spot >= 0).nonzero()
            words = labels.offsets[padded.owners[sequence]] + spot[sequence, token]
            tokens[sequence, token] = labels.values[words]
        return {"labels": tokens}
    if kind == QUESTION_ANSWERING:
        gold = labels.values[padded.owners]
        start, end = (padded.spots[side] == gold[:, [i]] for i, side in enumerate(SIDES))
        cls = (padded.spots["start"] == 0).argmax(axis=1)
        whole = start.any(axis=1) & end.any(axis=1)
        last = end.shape[1] - 1 - end[:, ::-1].argmax(axis=1)
        return {
            "start_positions": np.where(whole, start.argmax(axis=1), cls),
            "end_positions": np.where(whole, last, cls),
        }
    return {"labels": labels.values}


if __name__ == "__main__":
    main()
