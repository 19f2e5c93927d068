"""A smooth score of predictions against gold labels, for every task kind: the share of the log-loss that they explain.

Accuracy on a few hundred validation examples moves in steps, and two good models differ by less than its noise. The
log-loss of the gold labels uses how sure a model is, so that it tells models apart earlier. But it also rewards
calibration, which no metric of ours needs: a student of soft targets would win over a better one of labels. So the loss
is that at the model's best temperature, its refinement (Berta et al. 2025, "Rethinking Early Stopping: Refine, Then
Calibrate", arXiv 2501.19195). As a skill score it is a share of the loss of the best constant prediction, 0 for a model
that is no better and 1 for one without loss, so that tasks with few and many labels can be averaged. Of numbers it is
the coefficient of determination at the best rising line through the predictions. Of texts the loss is 1 − chrF, of transcripts the character error
rate, both 1 of an empty text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.batch import UNLABELLED, Examples, is_present
from pipeline.tasks.task import Task
from pipeline.tasks.writing import writing_scoring

LARGEST_LOG_TEMPERATURE = 5.0
"""The best temperature is looked for between e⁻⁵ and e⁵."""


def relative_losses(task: Task, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
    """(n,) each example's loss ÷ the mean loss of the best constant prediction; the skill is 1 − their mean.

    Arguments as in `example_losses`. All ones where the labels are all the same, so that there is nothing to explain.
    """
    return relative(*example_losses(task, values, examples))


def example_losses(task: Task, values: NDArray[Any], examples: Examples) -> tuple[NDArray[np.float64], float]:
    """(n,) each example's loss, and the sum over examples of the losses of the best constant prediction.

    values: (M, C) predictions of the n examples, all labelled, as `Scoring.scores` takes them. The loss of an example
    with several rows (words, an answer's two ends) is the sum of theirs.
    """
    if task.kind.writes:
        return writing_scoring(task).text_losses(values, examples), float(len(examples))
    counts = torch.from_numpy(np.asarray(task.reading.counts(examples.inputs), dtype=np.int64))
    rows = task.head.rows(torch.from_numpy(np.asarray(values, dtype=np.float32)), counts)
    labels = task.head.row_labels(
        torch.tensor(examples.labels.values), counts
    )  # a copy: the examples may be mapped, read-only
    losses, constant = _numbers(rows, labels) if task.kind.continuous else _distributions(rows, labels)
    sums = np.bincount(row_owners(len(rows), counts), weights=losses, minlength=len(counts))
    return np.asarray(sums, dtype=np.float64), constant


def relative(losses: NDArray[np.float64], constant: float) -> NDArray[np.float64]:
    """(n,) losses of examples in units of the mean of a constant prediction's, whose sum is `constant`; ones where that
    is 0."""
    return losses * len(losses) / constant if constant > 0 else np.ones(len(losses))


def skill(losses: NDArray[np.float64]) -> float:
    """The skill of (n,) `relative_losses`: 1 is perfect, 0 no better than a constant, below 0 worse."""
    return float(1 - losses.mean())


def row_owners(rows: int, counts: Tensor) -> NDArray[np.int64]:
    """(rows,) the example of each row. Examples have a row an item (words), or all the same number of rows."""
    each = counts.numpy() if rows == int(counts.sum()) else rows // len(counts)
    return np.repeat(np.arange(len(counts)), each)


def _distributions(rows: Tensor, labels: Tensor) -> tuple[NDArray[np.float64], float]:
    """(N,) log-losses of (N, D) logits at their best temperature, 0 without a label; and the sum of the losses of the best
    constant prediction.

    A row whose gold column has no logit (a word that the tokenizer drops) has the loss of a uniform distribution. So has
    the constant prediction where rows have different columns (the cells of a context).
    """
    present, known = is_present(rows), labels != UNLABELLED
    width = torch.where(present.any(dim=-1), present.sum(dim=-1), rows.shape[-1])
    uniform = width.double().log() * known
    gold = labels.clamp(min=0)
    scored = known & present.gather(-1, gold.unsqueeze(-1)).squeeze(-1)

    def at(log_temperature: float) -> Tensor:
        logits = (rows.double() / np.exp(log_temperature)).masked_fill(~present, -torch.inf)
        losses = cross_entropy(logits[scored], gold[scored], reduction="none")
        return uniform.masked_scatter(scored, losses)

    from scipy.optimize import (
        minimize_scalar,  # half a second, which no training waits for before its first step
    )

    best = minimize_scalar(
        lambda t: float(at(t).sum()),
        bounds=(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-3},
    )
    constant = float(uniform.sum())
    if bool(present.all()):
        shares = torch.bincount(gold[known], minlength=rows.shape[-1]).double() / max(1, int(known.sum()))
        constant = float(torch.special.entr(shares).sum() * known.sum())
    return at(best.x).numpy(), constant


def _numbers(rows: Tensor, labels: Tensor) -> tuple[NDArray[np.float64], float]:
    """(N,) squared errors of (N, 1) numbers at the best rising line through them, and the sum of those of the labels' mean."""
    x, y = rows.squeeze(-1).double().numpy(), labels.double().numpy()
    slope = max(0.0, np.cov(x, y, bias=True)[0, 1]) / max(float(x.var()), np.finfo(np.float64).tiny)
    fitted = y.mean() + slope * (x - x.mean())
    return (y - fitted) ** 2, float(((y - y.mean()) ** 2).sum())
