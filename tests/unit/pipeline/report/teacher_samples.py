"""Teachers of every kind of task on a few examples, which the tests of worth and disagreement share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged
from pipeline.config.schema import Strategy
from pipeline.report.ensembles import TaskTeachers
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.regression import regression
from pipeline.tasks.task import Task
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.unit.pipeline.tasks import questions

N = 400


def texts(labels: NDArray[Any], columns: Sequence[str] = ("text",)) -> Examples:
    inputs = {name: [f"{name} {i}" for i in range(len(labels))] for name in columns}
    return Examples("task", np.arange(len(labels), dtype=np.uint64), inputs, Ragged.single(labels))


def of(
    task: Task,
    examples: Examples,
    predictions: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    strategy: Strategy = "mean",
) -> TaskTeachers:
    values = {name: np.asarray(own, dtype=np.float32) for name, own in predictions.items()}
    shares = weights or {name: 1 / len(values) for name in values}
    return TaskTeachers(task, examples, values, shares, strategy)


def strong_and_weak(**weights: float) -> TaskTeachers:
    """A sure teacher, right on 90% of 400 texts, and an unsure one, right on half, which never overrules it."""
    gold = np.arange(N) % 2
    strong = np.where(np.arange(N) % 10 < 9, gold, 1 - gold)
    weak = np.where(np.arange(N) % 4 < 2, gold, 1 - gold)
    predictions = {"strong": 6 * np.eye(2)[strong], "weak": 0.5 * np.eye(2)[weak]}
    return of(text_classification("task", ("no", "yes"), 16), texts(gold), predictions, weights or None)


def topics(c: Any = ((0, 4, 0), (0, 4, 0), (0, 0, 4), (0, 4, 0))) -> TaskTeachers:
    """Four texts, gold a, a, b, c; teacher one is right, two says b to all but the third."""
    examples = texts(np.array([0, 0, 1, 2]))
    one = 4 * np.eye(3)[[0, 0, 1, 2]]
    return of(text_classification("task", ("a", "b", "c"), 16), examples, {"one": one, "two": c})


def marks() -> TaskTeachers:
    task, gold = multi_label("task", ("calm", "loud"), 16), np.array([[1, 0], [1, 1], [0, 0]])
    return of(task, texts(gold), {"one": 6 * gold - 3, "two": [[3, -3], [-3, 1], [-3, -3]]})


def numbers() -> TaskTeachers:
    task, gold = regression("task", 16, center=2.0, scale=2.0), np.array([1.0, 2.0, 3.0, 5.0])
    return of(task, texts(gold), {"one": gold[:, None], "two": [[1.0], [2.5], [3.0], [9.0]]})


def words(two: Any = ((4, 0), (4, 0), (0, 4), (0, 4))) -> TaskTeachers:
    """Sentences of one and three words, gold O, O B-PER O; teacher two takes the first B-PER for O, and O for it."""
    task = token_classification("task", ("O", "B-PER"), 16)
    labels = Ragged(np.array([0, 0, 1, 0]), np.array([0, 1, 4]))
    inputs = {"words": [["hush"], ["says", "Ada", "now"]]}
    examples = Examples("task", np.arange(2, dtype=np.uint64), inputs, labels)
    return of(task, examples, {"one": 4 * np.eye(2)[[0, 0, 1, 0]], "two": two})


def spans() -> TaskTeachers:
    examples = questions.read([("ann ran home", ["ran"]), ("bob is here now", ["here"])])
    one, two = np.zeros((9, 2)), np.zeros((9, 2))
    for start, cells in zip((0, 4), examples.labels.values, strict=True):
        one[start + cells[0], 0] = one[start + cells[1], 1] = 5
    two[:4] = one[:4]
    two[4 + 1] = 5  # "bob"
    return of(questions.task_of(), examples, {"one": one, "two": two})


KINDS = {
    "classes": topics,
    "marks": marks,
    "numbers": numbers,
    "words": words,
    "spans": spans,
}
