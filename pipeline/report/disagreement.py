"""Which teachers of a task disagree, and where: pure functions of their predictions on labelled examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import UNLABELLED, Ragged, is_present, offsets_of
from pipeline.report.ensembles import TaskTeachers
from pipeline.tasks.label_counts import label_counts
from pipeline.tasks.skill import row_owners
from pipeline.tasks.writing import writing_scoring

SHOWN_EXAMPLES = 5


@dataclass(frozen=True)
class LabelDispute:
    """How often a gold label occurs, and on how many of these occurrences not all teachers decide the same about it."""

    label: str
    gold: int
    disputed: int

    @property
    def share(self) -> float:
        """disputed ÷ gold."""
        return self.disputed / self.gold


@dataclass(frozen=True)
class DisputedExample:
    """An example on which teachers differ. gold, answers (by teacher): see `Scoring.answers` · apart: see `divergences`."""

    text: str
    gold: str
    answers: Mapping[str, str]
    apart: float


@dataclass(frozen=True)
class Disagreement:
    """How a task's teachers, two or more, disagree.

    agreement: by teacher and other teacher, the share of answers in which they agree, or the correlation of numbers ·
    labels: most disputed first, those that occur; empty without a label space · examples: those of which the predictions
    are furthest apart, without those where they are the same.
    """

    agreement: Mapping[str, Mapping[str, float]]
    labels: tuple[LabelDispute, ...]
    examples: tuple[DisputedExample, ...]


def disagreement(teachers: TaskTeachers) -> Disagreement:
    """See `Disagreement`."""
    scoring, examples = teachers.task.scoring, teachers.validation
    agreement = {
        name: {
            other: scoring.agreement(values, others, examples)
            for other, others in teachers.predictions.items()
            if other != name
        }
        for name, values in teachers.predictions.items()
    }
    return Disagreement(agreement, disputed_labels(teachers), disputed_examples(teachers))


def disputed_labels(teachers: TaskTeachers) -> tuple[LabelDispute, ...]:
    """The labels that occur in gold, by the share of their occurrences that are disputed."""
    task, labels = teachers.task, teachers.validation.labels
    if not task.reading.labels:
        return ()
    first, *others = (
        task.scoring.decisions(values, teachers.validation) for values in teachers.predictions.values()
    )
    disputed = np.any([first != other for other in others], axis=0) if others else np.zeros_like(first, bool)
    counts = label_counts(task, labels)
    hits = label_counts(task, Ragged(np.where(disputed, labels.values, UNLABELLED), labels.offsets))
    disputes = [
        LabelDispute(name, int(gold), int(hit))
        for name, gold, hit in zip(task.reading.labels, counts, hits, strict=True)
        if gold
    ]
    return tuple(sorted(disputes, key=lambda one: (-one.share, -one.gold)))


def disputed_examples(teachers: TaskTeachers, most: int = SHOWN_EXAMPLES) -> tuple[DisputedExample, ...]:
    """The examples with the largest `divergences`, with every teacher's answer."""
    task = teachers.task
    apart, items = divergences(teachers)
    chosen = np.argsort(-apart, kind="stable")[:most]
    chosen = chosen[apart[chosen] > 0]
    picked = teachers.validation.take(chosen)
    counts = task.reading.counts(teachers.validation.inputs)
    offsets = offsets_of(counts)
    gold = task.scoring.answers(picked.labels.values, picked, items[chosen])
    answers = {
        name: task.scoring.answers(
            task.scoring.decisions(Ragged(values, offsets).take(chosen).values, picked), picked, items[chosen]
        )
        for name, values in teachers.predictions.items()
    }
    texts = zip(*task.reading.plain(picked.inputs), strict=True)
    return tuple(
        DisputedExample(
            " | ".join(" ".join(side.split()) for side in sides),
            gold[i],
            {name: own[i] for name, own in answers.items()},
            float(apart[row]),
        )
        for i, (sides, row) in enumerate(zip(texts, chosen, strict=True))
    )


def divergences(teachers: TaskTeachers) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n,) how far apart the teachers' predictions are on each example, and (n,) the item on which they are.

    Of distributions the Jensen-Shannon divergence, in nats, at temperature 1, of the row of the example where it is
    largest; of numbers the largest absolute difference, in the labels' unit; of texts 1 − the lowest chrF, of transcripts the
    highest word error rate, of one teacher's text with another's as reference.
    """
    task = teachers.task
    if task.kind.writes:
        texts = zip(*(values[:, 0].tolist() for values in teachers.predictions.values()), strict=True)
        pairwise = writing_scoring(task).likeness.pairwise
        return np.array([1 - pairwise(own).min() for own in texts]), np.zeros(
            len(teachers.validation), dtype=np.int64
        )
    values = torch.from_numpy(np.stack(list(teachers.predictions.values()))).float()
    if task.kind.continuous:
        apart = (values.amax(dim=0) - values.amin(dim=0)).squeeze(-1).double().numpy()
        return apart, np.zeros(len(apart), dtype=np.int64)
    counts = torch.from_numpy(np.asarray(task.reading.counts(teachers.validation.inputs), dtype=np.int64))
    rows = jensen_shannon(task.head.rows(values, counts)).numpy()
    owners = row_owners(len(rows), counts)
    order = np.lexsort((np.arange(len(rows)), -rows, owners))
    starts = offsets_of(np.bincount(owners, minlength=len(counts)))[:-1]
    top = order[starts]
    return rows[top], top - starts


def jensen_shannon(logits: Tensor) -> Tensor:
    """(N,) float64 Jensen-Shannon divergence, in nats, of K teachers' distributions, equally weighted.

    logits: (K, N, D). The entropy of the mean minus the mean of the entropies (Lin 1991): 0 where all are the same, at
    most ln K. Teachers without a prediction for a row take no part in it.
    """
    predicting = is_present(logits).any(dim=-1, keepdim=True)
    count = predicting.sum(dim=0).clamp(min=1)
    chances = torch.softmax(logits.double(), dim=-1) * predicting
    mixture = torch.special.entr(chances.sum(dim=0) / count).sum(dim=-1)
    own = torch.special.entr(chances).sum(dim=-1).sum(dim=0) / count.squeeze(-1)
    divergence: Tensor = (mixture - own).clamp(min=0)
    return divergence
