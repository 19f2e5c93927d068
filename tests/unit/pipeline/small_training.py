"""Small trainings without files or tokenizers: a BERT of hidden size 32 on made-up token ids.

Shared by the tests of step, loop and fine-tuning and by the processes that they start, so nothing here needs
pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, Drawn, Encoded, Examples, Ragged, TextWords
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Strategy, WorkerStrategy
from pipeline.losses import LossWeights
from pipeline.soft import Dense, Layer
from pipeline.tasks import Task
from pipeline.tasks.text_classification import text_classification
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.hidden import HiddenMatch
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, Stage, one_stage
from pipeline.training.step import Aggregation, Workers
from students.student import MultiTaskStudent

ROOT = Path(__file__).resolve().parents[3]
VOCABULARY, TELLING, FILLER = (
    40,
    4,
    10,
)  # ids: a label's telling token is TELLING + label, filler from FILLER on
DISTIL = LossPlan(others=LossWeights({"hard": 0.3, "soft": 0.7}, temperature=2.0))

torch.set_num_threads(1)  # the models are tiny and the tests start several processes


# ---------------------------------------------------------------- data


def task_of(name: str = "mood", labels: Sequence[str] = ("bad", "good")) -> Task:
    return text_classification(name, tuple(labels), 16, "accuracy")


def encode(rows: Sequence[Sequence[int]]) -> Encoded:
    """Token ids as a tokenizer's output."""
    ids = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Encoded({"input_ids": ids}, offsets, {"input_ids": 0}, truncated=0)


def examples(classes: int, count: int, rng: np.random.Generator) -> tuple[Encoded, NDArray[np.int64]]:
    """`count` rows of 3 to 12 tokens, one of which tells the label."""
    labels = rng.integers(classes, size=count)
    rows = []
    for label in labels:
        row = [*rng.integers(FILLER, VOCABULARY, size=int(rng.integers(2, 12))), TELLING + label]
        rows.append([int(token) for token in rng.permutation(row)])
    return encode(rows), labels.astype(np.int64)


@dataclass
class FixedTargets:
    """A source of logits in memory, by row."""

    logits: NDArray[np.float16]

    def targets(self, batch: Drawn) -> Dense:
        columns = tuple(map(str, range(self.logits.shape[1])))
        return Dense(Ragged.single(self.logits[batch.rows]), columns)


def task_set(
    task: Task | None = None,
    count: int = 24,
    *,
    teachers: int = 0,
    strategy: Strategy = "mean",
    seed: int = 0,
) -> TaskSet:
    """A task with `count` training and half as many validation examples; its teachers are right, and noisy."""
    task = task or task_of()
    rng = np.random.default_rng(seed)
    train, labels = examples(len(task.reading.labels), count, rng)
    validation, validation_labels = examples(len(task.reading.labels), count // 2, rng)
    right = 2 * np.eye(len(task.reading.labels))[labels]
    sources = [
        FixedTargets((right + rng.normal(size=right.shape)).astype(np.float16)) for _ in range(teachers)
    ]
    aggregation = Aggregation(strategy, torch.full((teachers,), 1 / teachers)) if teachers else None
    gold = gold_of(task, validation_labels)
    return TaskSet(task, train, gold_of(task, labels), validation, gold, sources, aggregation)


@dataclass
class FixedHidden:
    """A source of hidden targets in memory: of a word, the row of `table` at its token id, for train and validation."""

    table: NDArray[np.float16]
    train: Encoded
    validation: Encoded
    gold: Examples

    def targets(self, batch: Drawn) -> Dense:
        encoded = self.validation if batch.examples is self.gold else self.train
        vectors = Ragged(self.table[encoded.columns["input_ids"]], encoded.offsets)
        return Dense(vectors.take(batch.rows), Layer(self.table.shape[1], 1))


def word_by_token(encoded: Encoded) -> Encoded:
    """Every token is a word of its own."""
    lengths = encoded.lengths
    words = (np.arange(lengths.sum()) - np.repeat(encoded.offsets[:-1], lengths)).astype(np.int32)
    return replace(encoded, words=TextWords(words, words, lengths, lengths))


def with_hidden(each: TaskSet, widths: Sequence[int] = (6, 3), absent: Sequence[int] = ()) -> TaskSet:
    """The task with hidden targets of a teacher of each width. absent: token ids that the teachers do not see."""
    train, validation = word_by_token(each.train), word_by_token(each.validation)
    tables = [np.random.default_rng(width).normal(3, 2, (VOCABULARY, width)) for width in widths]
    for table in tables:
        table[list(absent)] = ABSENT
    sources = [FixedHidden(table.astype(np.float16), train, validation, each.gold) for table in tables]
    weights = [1 / len(widths)] * len(widths)
    match = HiddenMatch.over(sources, weights, train, each.examples)
    return replace(each, train=train, validation=validation, hidden=match)


def gold_of(task: Task, labels: NDArray[Any]) -> Examples:
    """Examples of which nothing but the labels is read."""
    keys = np.arange(len(labels), dtype=np.uint64)
    return Examples(task.name, keys, {"text": [""] * len(labels)}, Ragged.single(labels))


def two_tasks(teachers: int = 2, strategy: Strategy = "confidence") -> list[TaskSet]:
    """`mood` with two labels, `tone.v2` with three and fewer examples."""
    tone = task_of("tone.v2", ("bad", "good", "plain"))
    return [
        task_set(count=24, teachers=teachers, strategy=strategy),
        task_set(tone, count=16, teachers=teachers, strategy=strategy, seed=1),
    ]


# ---------------------------------------------------------------- training


UNUSED = 20
"""Ids of the students' vocabulary that no text has."""


def student_of(
    sets: Sequence[TaskSet], *, dropout: float = 0.1, seed: int = 0, layers: int = 2
) -> MultiTaskStudent:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY + UNUSED,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = {one.task.name: sum(one.hidden.widths) for one in sets if one.hidden is not None}
        return MultiTaskStudent(BertModel(config), [each.task for each in sets], hidden)


def settings(**changes: Any) -> Recipe:
    """Three epochs of ten steps on `two_tasks`."""
    values = {
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "head_learning_rate": changes.get("learning_rate", 1e-3),
        "early_stopping": None,
        "precision": "fp32",
        **changes,
    }
    return Recipe.model_validate(values)


def trainer_of(
    folder: Path,
    sets: Sequence[TaskSet],
    config: Recipe | None = None,
    losses: LossPlan = DISTIL,
    *,
    dropout: float = 0.1,
    sampling: float = 1.0,
    workers: Workers | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    stages: Sequence[Stage] = (),
    seed: int = 0,
    first_stages: Path | None = None,
    strategy: WorkerStrategy = "ddp",
) -> Trainer:
    """A trainer on a new student, the same one every time."""
    config = config or settings()
    feed = Feed(
        sets, config.batch_size, config.tokens_per_forward, seed=seed, sampling=sampling, workers=workers
    )
    return Trainer(
        student_of(sets, dropout=dropout),
        feed,
        config,
        stages or one_stage(config, losses),
        folder,
        should_stop=should_stop,
        first_stages=first_stages,
        strategy=strategy,
    )


class StopAfter:
    """Says stop from its `calls`-th call on: a trainer asks once a step."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def weights_of(student: MultiTaskStudent) -> dict[str, Tensor]:
    """A copy of every parameter, shared ones once."""
    return {name: parameter.detach().clone() for name, parameter in student.named_parameters()}


def optimizer_state(trainer: Trainer) -> dict[str, Tensor]:
    """Moments and step counts by parameter."""
    slots = trainer.optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, slot in slots.items() for key, value in slot.items()}


def points(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock wrote."""
    lines = read_metrics(folder / METRICS)
    for line in lines:
        del line["time"]
        line["metrics"].pop("time/epoch_s", None)
    return lines


def curve(folder: Path, name: str) -> list[float]:
    """One metric's values, in order."""
    return [line["metrics"][name] for line in points(folder) if name in line["metrics"]]


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_predictions(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def python(function: Callable[..., None], *arguments: object) -> subprocess.Popen[str]:
    """`function`, of a module, on string arguments in a process of its own."""
    script = f"import sys; from {function.__module__} import {function.__name__} as f; f(*sys.argv[1:])"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 180) -> None:
    """Waits for it; a failure shows what it printed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
