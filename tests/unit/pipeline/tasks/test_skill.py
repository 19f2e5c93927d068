"""The skill score: log-loss at the best temperature as a share of a constant's, for every kind."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import log_loss, r2_score  # type: ignore[import-untyped]

from pipeline.batch import ABSENT, Examples, Ragged
from pipeline.tasks import Task
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.regression import regression
from pipeline.tasks.skill import relative_losses, skill
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.unit.pipeline.tasks import questions

LABELS = ("a", "b", "c")
TASK = text_classification("task", LABELS, 16)


def texts(gold: NDArray[np.generic]) -> Examples:
    return Examples(
        "task", np.arange(len(gold), dtype=np.uint64), {"text": [""] * len(gold)}, Ragged.single(gold)
    )


def noisy(gold: NDArray[np.int64], sharp: float, seed: int = 0, classes: int = 3) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(len(gold), classes))
    return (sharp * np.eye(classes)[gold] + noise).astype(np.float32)


def gold_of(count: int = 400, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).choice(3, size=count, p=[0.6, 0.3, 0.1])


def score(task: Task, values: NDArray[np.floating], examples: Examples) -> float:
    return skill(relative_losses(task, values, examples))


def test_the_skill_is_the_log_loss_at_the_best_temperature_over_that_of_the_label_frequencies() -> None:
    gold = gold_of()
    values = noisy(gold, 2.0)

    def loss(temperature: float) -> float:
        logits = values.astype(np.float64) / temperature
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        return float(log_loss(gold, chances / chances.sum(axis=1, keepdims=True)))

    best = min(loss(temperature) for temperature in np.exp(np.linspace(-1, 1, 201)))
    frequencies = np.bincount(gold) / len(gold)
    constant = float(-(frequencies * np.log(frequencies)).sum())
    assert score(TASK, values, texts(gold)) == pytest.approx(1 - best / constant, abs=1e-5)


def test_neither_scale_nor_confidence_changes_the_skill_but_a_better_ranking_does() -> None:
    gold = gold_of()
    own = score(TASK, noisy(gold, 2.0), texts(gold))
    assert score(TASK, 7 * noisy(gold, 2.0), texts(gold)) == pytest.approx(own, abs=1e-5)
    assert score(TASK, noisy(gold, 2.0) / 9, texts(gold)) == pytest.approx(own, abs=1e-5)
    assert score(TASK, noisy(gold, 2.5), texts(gold)) > own + 0.05


def test_predictions_without_information_have_no_skill_and_certain_ones_all() -> None:
    gold = gold_of(2000)
    constant = np.tile(np.log(np.bincount(gold) / len(gold)), (len(gold), 1))
    assert score(TASK, constant, texts(gold)) == pytest.approx(0, abs=1e-4)
    assert score(TASK, noisy(gold, 0.0), texts(gold)) < 0.001
    assert score(TASK, noisy(gold, 60.0), texts(gold)) == pytest.approx(1, abs=1e-6)


def test_labels_that_are_all_the_same_leave_nothing_to_explain() -> None:
    gold = np.zeros(5, dtype=np.int64)
    assert score(TASK, noisy(gold, 2.0), texts(gold)) == 0


def test_numbers_are_measured_from_the_best_rising_line() -> None:
    task = regression("task", 16, center=3.0, scale=2.0)
    rng = np.random.default_rng(0)
    gold = rng.normal(size=300)
    values = (5 + 0.1 * (gold + rng.normal(size=300)))[:, None].astype(np.float32)
    line = np.polyval(np.polyfit(values[:, 0], gold, 1), values[:, 0])
    assert score(task, values, texts(gold)) == pytest.approx(r2_score(gold, line), abs=1e-5)
    assert score(task, -values, texts(gold)) == pytest.approx(0, abs=1e-9)


def test_each_label_of_a_text_is_a_row_of_its_own() -> None:
    task, rng = multi_label("task", LABELS, 16), np.random.default_rng(0)
    gold = (rng.random((300, 3)) < 0.3).astype(np.int64)
    values = (3 * gold + rng.normal(size=gold.shape)).astype(np.float32)
    losses = relative_losses(task, values, texts(gold))
    assert losses.shape == (300,)
    slope = LogisticRegression(fit_intercept=False, C=1e9).fit(values.reshape(-1, 1), gold.ravel())
    chances = slope.predict_proba(values.reshape(-1, 1))[:, 1]
    rate = gold.mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert skill(losses) == pytest.approx(1 - log_loss(gold.ravel(), chances) / constant, abs=1e-4)


def test_an_example_of_words_has_the_sum_of_its_words_losses() -> None:
    task = token_classification("task", ("O", "B-PER"), 16)
    gold, counts = np.array([0, 0, 1, 0, 1, 0]), [1, 3, 2]
    labels = Ragged(gold, np.concatenate(([0], np.cumsum(counts))))
    words = [["w"] * count for count in counts]
    examples = Examples("task", np.arange(3, dtype=np.uint64), {"words": words}, labels)
    values = noisy(gold, 2.0, classes=2)
    losses, each = (
        relative_losses(task, values, examples),
        relative_losses(text_classification("task", ("O", "B-PER"), 16), values, texts(gold)),
    )
    assert losses * 2 == pytest.approx(
        [each[:1].sum(), each[1:4].sum(), each[4:].sum()]
    )  # 2 words an example
    values[2] = ABSENT  # a word that the tokenizer drops
    assert np.isfinite(relative_losses(task, values, examples)).all()


def test_an_answer_has_two_rows_over_the_cells_of_its_own_context() -> None:
    examples = questions.read([("ann ran home", ["ran"]), ("bob is here now", ["here"])])
    gold = examples.labels.values
    values = np.random.default_rng(0).normal(size=(4 + 5, 2)).astype(np.float32)
    task = questions.task_of()
    near = values.copy()
    for start, (first, last) in zip((0, 4), gold, strict=True):
        near[start + first, 0] += 4
        near[start + last, 1] += 4
    assert relative_losses(task, near, examples).shape == (2,)
    assert score(task, near, examples) > 0.5 > score(task, values, examples)
