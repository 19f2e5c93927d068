"""Kind `sequence-to-sequence`: a text written from a text, such as a translation or a summary.

A model's prediction is what it writes: (n, C) candidate texts, of which the first one is its answer (`pipeline.soft.Texts`).
Its training sees positions: each token of a target text is one row, a distribution over the model's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED, Examples, Ragged
from pipeline.config.kinds import SEQUENCE_TO_SEQUENCE as KIND
from pipeline.config.kinds import Metric
from pipeline.errors import DataError
from pipeline.tasks.label_columns import Column
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.task import Task
from pipeline.tasks.text import TextReading, texts_of
from pipeline.tasks.text_scores import (
    CHRF_LIKENESS,
    EXACT,
    ROUGE_L,
    Likeness,
    bleu_of,
    chrf_of,
    mean_of,
    text_signatures,
    text_statistics,
)
from pipeline.tasks.variants import Variant
from pipeline.tasks.writing import WritingHead

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

FIELDS = ("source",)
NO_TARGET = ""
"""Stands for the target of an example without one; an empty target is refused."""


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; nothing is read of train."""
    head = WritingHead(
        name, config.data.max_length, config.data.target_length, config.prefix, config.generation
    )
    metric = config.metric or KIND.metrics[0].name
    return Task(name, KIND, SequenceReading(name, (), FIELDS), head, SequenceScoring(metric, KIND.metrics))


@dataclass(frozen=True)
class SequenceReading(TextReading):
    """See `pipeline.tasks.task.Reading`. An example's label is a hash of its target, which is an input for scores and
    training. roles: the columns of sources and targets."""

    roles: tuple[str, str] = ("source", "target")

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Sources and targets, and one int64 hash of its target per example, `UNLABELLED` for None."""
        read, written = self.roles
        read = read if read in columns else self.fields[0]  # of texts that other tasks or variants gave
        sources = texts_of(self.task, split, columns, (read,))[read]
        _refuse_empty(self.task, split, read, sources)
        given = columns[written].values if written in columns else [None] * len(sources)
        known = [row for row, target in enumerate(given) if target is not None]
        targets = [NO_TARGET if target is None else target for target in given]
        texts_of(self.task, split, {written: Column(targets)}, (written,))
        _refuse_empty(self.task, split, written, targets, known)
        labels = np.full(len(targets), UNLABELLED, dtype=np.int64)
        labels[known] = [_hash(targets[row]) for row in known]
        return {"source": sources, "target": targets}, Ragged.single(labels)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the example has a target."""
        return np.asarray(labels.values != UNLABELLED)

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) ones: one item per example."""
        return np.ones(len(inputs["source"]), dtype=np.int64)

    def altered(
        self,
        inputs: Mapping[str, Sequence[Any]],
        labels: Ragged,
        variants: Sequence[Variant],
        *,
        keep_labels: bool,
    ) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """The altered sources, with their examples' targets or none."""
        read, marks = super().altered(inputs, labels, variants, keep_labels=keep_labels)
        if keep_labels:
            read["target"] = [inputs["target"][one.row] for one in variants]
        return read, marks

    def sizes(self, sources: Sequence[str]) -> NDArray[np.float64]:
        """(n,) how long each source is, in a unit that the lengths of texts follow: characters."""
        return np.array([len(source) for source in sources], dtype=np.float64)


def _hash(target: str) -> int:
    """A hash of a target in [0, 2⁶³)."""
    digest = blake2b(target.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _refuse_empty(
    task: str, split: str, role: str, texts: Sequence[str], rows: Sequence[int] | None = None
) -> None:
    """Raises `DataError` for the first of `rows`, by default of all, whose text is empty."""
    for row in range(len(texts)) if rows is None else rows:
        if not texts[row].strip():
            raise DataError(
                f"tasks.{task}: row {row} of {split}: {role} is empty",
                "Remove or mend that row; a target of null is one that is not known.",
            )


@dataclass(frozen=True)
class SequenceScoring:
    """See `pipeline.tasks.task.Scoring`. Values are (n, C) texts, the model's answers first. metrics: of the kind."""

    metric: str
    metrics: tuple[Metric, ...]

    @property
    def likeness(self) -> Likeness:
        """How alike two texts of the task are."""
        return CHRF_LIKENESS

    @property
    def signatures(self) -> Mapping[str, str]:
        """How scores are computed, by metric, for reports."""
        return text_signatures()

    def scores(self, values: NDArray[Any], examples: Examples) -> dict[str, float]:
        """Every one of `metrics`, as shares of 1."""
        sums = self._statistics(values, examples, rouge=True).sum(axis=0)
        return {metric.name: float(_score(metric.name, sums)) for metric in self.metrics}

    def statistics(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n, WIDTH) see `pipeline.tasks.text_scores.text_statistics`; ROUGE-L only where it is the task's metric."""
        return self._statistics(values, examples, rouge=self.metric == "rouge_l")

    def _statistics(self, values: NDArray[Any], examples: Examples, rouge: bool) -> NDArray[np.float64]:
        refuse_unlabelled(examples.labels.values != UNLABELLED)
        return text_statistics(values[:, 0].tolist(), examples.inputs["target"], rouge=rouge)

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the task's metric of summed statistics."""
        return _score(self.metric, sums)

    def constant_score(self, examples: Examples) -> float:
        """The score of copying the source: what a model has that knows nothing of the task."""
        rouge = self.metric == "rouge_l"
        copies = text_statistics(examples.inputs["source"], examples.inputs["target"], rouge=rouge)
        return float(self.score_of(copies.sum(axis=0)))

    def text_losses(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n,) of single texts 1 − chrF, which is 1 of an empty one."""
        return 1 - chrf_of(self.statistics(values, examples))

    def agreement(self, a: NDArray[Any], b: NDArray[Any], examples: Examples) -> float:
        """chrF of the texts of `a` with those of `b` as references."""
        sums = text_statistics(a[:, 0].tolist(), b[:, 0].tolist(), rouge=False).sum(axis=0)
        return float(chrf_of(sums))

    def decisions(self, values: NDArray[Any], examples: Examples) -> NDArray[Any]:
        """(n,) the texts."""
        return np.asarray(values[:, 0])

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """The texts; of gold labels, which are hashes, the examples' targets."""
        if decisions.dtype.kind == "i":
            return list(examples.inputs["target"])
        return [str(text) for text in decisions.tolist()]

    def classified(
        self, values: NDArray[Any], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """None: a text is not one label out of C."""
        return None


def _score(metric: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    match metric:
        case "chrf":
            return chrf_of(sums)
        case "bleu":
            return bleu_of(sums)
        case "rouge_l":
            return mean_of(sums, ROUGE_L)
        case _:
            return mean_of(sums, EXACT)
