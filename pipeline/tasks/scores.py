"""Metrics of any model or ensemble on one task: pure functions of predictions and gold labels.

This file has the metrics of one label out of C, which several task kinds share, and the bootstrap. A kind's own
metrics are in its file under `pipeline.tasks`.

Scores are (n, C); column c belongs to the c-th name of the task's label space. gold is (n,) int64 indices into it.
A function that needs probabilities refuses anything else; `softmax` makes them from logits. Not here: running a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.batch import Examples
    from pipeline.tasks.task import Task

BINS = 15  # of confidence, as in Guo et al. 2017
RESAMPLES = 500  # of the bootstrap: a standard error to 3%


@dataclass(frozen=True)
class Reliability:
    """A model's accuracy by confidence. Arrays have one entry per bin, NaN for an empty bin."""

    confidence: NDArray[np.float64]
    """(bins,) mean of the largest probability."""
    accuracy: NDArray[np.float64]
    """(bins,) share of examples whose largest probability is on the gold label."""
    count: NDArray[np.int64]
    """(bins,) number of examples."""


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, C) probabilities of (n, C) logits, at temperature 1, in float64 whatever the logits' type."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float64)


def scores(probabilities: NDArray[np.floating], gold: NDArray[np.int64]) -> dict[str, float]:
    """``accuracy``, ``macro_f1``, ``nll`` and ``ece`` of (n, C) probabilities against (n,) gold labels.

    accuracy: share of examples whose largest probability is on the gold label · macro_f1: unweighted mean of the
    classes' F1 over the whole label space. A class that is never predicted, or predicted where it never
    occurs, counts as 0; a class that neither occurs nor is predicted has no F1 (0/0) and is left out (as
    scikit-learn does) · nll: mean negative log-likelihood of the gold label, in nats, a probability of 0 read as
    the smallest positive float64 (708 nats) so that it stays finite · ece: expected calibration error,
    Σ (count/n) · |accuracy − confidence| over 15 equal-width bins of confidence (Guo et al., arXiv 1706.04599).

    Ours are ece and nll: torchmetrics has no per-class nll, and its calibration error gives confidences that
    round to 1.0 a sixteenth bin.

    Raises `DataError` where a gold label is missing, `ValueError` where the arguments do not fit each other.
    """
    import torch  # both here: together they import for 5 s, and a report's reader needs neither
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    _check(probabilities, gold)
    _check_probabilities(probabilities)
    classes = probabilities.shape[1]
    predicted, truth = torch.tensor(probabilities.argmax(axis=1)), torch.tensor(gold)
    likelihood = probabilities[np.arange(len(gold)), gold].astype(np.float64)
    return {  # torchmetrics computes in float32: seven digits are all there are
        "accuracy": round(multiclass_accuracy(predicted, truth, classes, average="micro").item(), 7),
        "macro_f1": round(multiclass_f1_score(predicted, truth, classes, average="macro").item(), 7),
        "nll": float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
        "ece": ece(probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == gold),
    }


def class_statistics(
    predicted: NDArray[np.int64], gold: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """(n, 3 · classes) one-hot: hit class, predicted class, gold class. Accuracy and F1 follow from their sums."""
    one = np.eye(classes)
    return np.hstack((one[gold] * (predicted == gold)[:, None], one[predicted], one[gold]))


def class_score(metric: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) ``accuracy`` or ``macro_f1`` of (…, 3 · classes) sums of `class_statistics`; as `scores` has them."""
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    if metric == "accuracy":
        return np.asarray(hits.sum(-1) / gold.sum(-1))
    with np.errstate(invalid="ignore"):  # a class that neither occurs nor is predicted has no F1
        return np.asarray(np.nanmean(2 * hits / (predicted + gold), axis=-1))


def constant_class_score(metric: str, gold: NDArray[np.int64], classes: int) -> float:
    """The score of predicting the most frequent gold label for every example."""
    majority = np.full_like(gold, np.bincount(gold, minlength=classes).argmax())
    return float(class_score(metric, class_statistics(majority, gold, classes).sum(0)))


def bootstrap(
    statistics: Sequence[NDArray[np.float64]],
    score_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    resamples: int = RESAMPLES,
) -> list[NDArray[np.float64]]:
    """(resamples,) scores of each model on test sets drawn anew with replacement, the same draws for all.

    statistics: (n, S) for each model; a score is a function of their sum over examples · score_of: that function,
    (…, S) → (…,). A standard error is the standard deviation over the draws, a paired one that of the differences
    (Efron & Tibshirani 1993). The draws are a fixed function of n.
    """
    rng, n = np.random.default_rng(0), len(statistics[0])
    draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    return [score_of(draws @ one) for one in statistics]


def score_of(task: Task, values: NDArray[Any], examples: Examples) -> float:
    """The task's metric of (M, C) predictions."""
    return float(task.scoring.score_of(task.scoring.statistics(values, examples).sum(0)))


def confusion(scores: NDArray[np.floating], gold: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C, C) counts: row = gold label, column = predicted label. `scores` (n, C): logits or probabilities."""
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    _check(scores, gold)
    predicted, truth = torch.tensor(scores.argmax(axis=1)), torch.tensor(gold)
    counts = multiclass_confusion_matrix(predicted, truth, scores.shape[1]).numpy()
    return np.asarray(counts, dtype=np.int64)


def reliability(
    probabilities: NDArray[np.floating], gold: NDArray[np.int64], bins: int = BINS
) -> Reliability:
    """Confidence and accuracy of (n, C) probabilities in equal-width bins of confidence, each ``(low, high]``."""
    _check(probabilities, gold)
    _check_probabilities(probabilities)
    return _reliability(
        probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == gold, bins
    )


def ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error of (n,) confidences; correct: (n,) whether each prediction is right; see `scores`."""
    bins = _reliability(confidence, correct, BINS)
    full = bins.count > 0
    gaps = np.abs(bins.accuracy[full] - bins.confidence[full])
    return float((gaps * bins.count[full]).sum() / len(confidence))


def _reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int) -> Reliability:
    rows = np.digitize(confidence, np.linspace(0, 1, bins + 1), right=True) - 1
    rows = rows.clip(0, bins - 1)  # float32 rows may sum to a hair over 1
    count = np.bincount(rows, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    return Reliability(
        np.bincount(rows, weights=confidence, minlength=bins) / divisor,
        np.bincount(rows, weights=correct, minlength=bins) / divisor,
        count,
    )


def agreement(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Share of examples on which `a` and `b`, (n, C) logits or probabilities, have the same largest column."""
    if a.shape != b.shape or not a.size:
        raise ValueError(f"scores {a.shape} and {b.shape} do not fit, or are empty")
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def refuse_unlabelled(labelled: NDArray[np.bool_]) -> None:
    """Raises `DataError` unless all examples to score have a label."""
    if not labelled.all():
        raise DataError(
            f"{int((~labelled).sum())} of {len(labelled)} examples to score have no label",
            "Score on a labelled split: name one under `data.splits`, or leave test out to hold out part of train.",
        )


def _check(scores: NDArray[np.floating], gold: NDArray[np.int64]) -> None:
    if scores.ndim != 2 or gold.shape != scores.shape[:1] or not scores.size:
        raise ValueError(f"scores {scores.shape} and gold labels {gold.shape} do not fit, or are empty")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or Inf")
    refuse_unlabelled(gold >= 0)
    if gold.max() >= scores.shape[1]:
        raise ValueError(f"gold label {gold.max()} is outside the {scores.shape[1]} classes")


def _check_probabilities(probabilities: NDArray[np.floating]) -> None:
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if (probabilities < 0).any() or not np.allclose(sums, 1, atol=1e-2):  # float16 rows are that rough
        raise ValueError("rows are not probabilities; give logits to softmax first")
