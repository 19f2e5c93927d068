"""Samples and predictions made by hand, for the tests of preflight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.tasks import Task
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification

MOODS = text_classification("mood", ("bad", "good", "plain"), 16)
INTENTS = text_classification("intents", tuple(f"intent-{i}" for i in range(77)), 16)
TYPES = ("LOC", "MISC", "ORG", "PER")
ENTITIES = token_classification(
    "entities", ("O", *(f"{place}-{name}" for name in TYPES for place in "BI")), 16
)
GOLD = np.random.default_rng(1).integers(0, 3, 120)


def texts(labels: NDArray[Any], task: Task = MOODS) -> Examples:
    """One text for each of `labels` (n, …)."""
    inputs = {"text": [f"the mood is {number}" for number in range(len(labels))]}
    return Examples(task.name, content_keys(task.kind.name, inputs), inputs, Ragged.single(labels))


def logits_for(
    predicted: NDArray[np.int64], classes: int = 3, skill: float = 3.0, noise: float = 0.3
) -> NDArray[np.float32]:
    """(n, classes) logits whose largest is that of `predicted` (n,)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=noise, size=(len(predicted), classes)) + skill * np.eye(classes)[predicted]
    return logits.astype(np.float32)


def intents(seed: int, n: int, accuracy: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) gold intents and predictions of which `accuracy` are right; of the others half are the neighbouring intent's,
    half any intent's."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 77, n)
    near = np.minimum(gold // 5 * 5 + rng.integers(0, 5, n), 76)
    wrong = np.where(rng.random(n) < 0.5, near, rng.integers(0, 77, n))
    return gold, np.where(rng.random(n) < accuracy, gold, wrong)


def tags(seed: int, n: int) -> tuple[Examples, NDArray[np.int64]]:
    """n sentences of 12 words with an entity of one or two words each (PER most often), and their label ids, end to end."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((n, 12), dtype=np.int64)
    for sentence in ids:
        at, kind = rng.integers(0, 10), rng.choice(4, p=(0.2, 0.1, 0.2, 0.5))
        sentence[at] = 1 + 2 * kind
        sentence[at + 1] = (2 + 2 * kind) * rng.integers(0, 2)
    inputs = {"words": [[f"w{row}-{i}" for i in range(12)] for row in range(n)]}
    labels = Ragged(ids.ravel(), np.arange(n + 1) * 12)
    return Examples("entities", content_keys(ENTITIES.kind.name, inputs), inputs, labels), ids.ravel()


def weak_tags(gold: NDArray[np.int64], seed: int, recall: float) -> NDArray[np.int64]:
    """`gold` (M,) with `recall` of the entities' words kept, half of the others O, and half of any type."""
    rng = np.random.default_rng(seed)
    other = 2 * rng.integers(0, 4, len(gold)) + 2 - gold % 2
    lost = np.where(rng.random(len(gold)) < 0.5, 0, other)
    predicted = np.where((gold == 0) | (rng.random(len(gold)) < recall), gold, lost)
    invented = (gold == 0) & (rng.random(len(gold)) < 0.05)
    return np.where(invented, 1 + 2 * rng.integers(0, 4, len(gold)), predicted)


def renamed(labels: Sequence[str], types: dict[str, str]) -> NDArray[np.int64]:
    """(C,) for each label the index of the one with the other entity type, prefixes kept."""
    names = [label[:2] + types.get(label[2:], label[2:]) if len(label) > 2 else label for label in labels]
    return np.array([labels.index(name) for name in names])
