"""Kind `speech-recognition`: the text of a recording.

As of `pipeline.tasks.sequence_to_sequence`, with recordings as sources, which stand in the examples as references to their files
(`pipeline.tasks.recording`). A model reads them in windows (`pipeline.tasks.listening`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged
from pipeline.config.kinds import SPEECH_RECOGNITION as KIND
from pipeline.errors import ConfigError
from pipeline.tasks.hearing import SpeechHead
from pipeline.tasks.label_columns import Column
from pipeline.tasks.recording import check_packages, names, seconds
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.sequence_to_sequence import FIELDS, SequenceReading, SequenceScoring
from pipeline.tasks.task import Task
from pipeline.tasks.text_scores import Likeness
from pipeline.tasks.variants import Side
from pipeline.tasks.word_errors import WORD_LIKENESS, cer_of, error_counts, error_signatures, wer_of

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

ROLES = ("audio", "text")


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; nothing is read of train. Raises `ConfigError` where packages are missing."""
    check_packages()
    head = SpeechHead(name, config.data.max_length, config.data.target_length, "", config.generation)
    metric = config.metric or KIND.metrics[0].name
    return Task(name, KIND, SpeechReading(name, (), FIELDS, ROLES), head, SpeechScoring(metric, KIND.metrics))


@dataclass(frozen=True)
class SpeechReading(SequenceReading):
    """Reads references of recordings, and their texts."""

    rewritable: ClassVar[tuple[bool, ...]] = (False,)

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The names of the files, with their hashes."""
        return (names(inputs["source"]),)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Never called: no text is a recording."""
        raise NotImplementedError

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """Raises `ConfigError`: a recording has no variants."""
        raise ConfigError(f"tasks.{self.task}.augment: recordings have no variants", "Drop the key.")

    def sizes(self, sources: Sequence[str]) -> NDArray[np.float64]:
        """(n,) seconds of each recording."""
        return seconds(sources)


@dataclass(frozen=True)
class SpeechScoring(SequenceScoring):
    """See `pipeline.tasks.task.Scoring`. Scores are 1 − error rates, so that higher is better, as of all kinds."""

    @property
    def likeness(self) -> Likeness:
        """By word error."""
        return WORD_LIKENESS

    @property
    def signatures(self) -> Mapping[str, str]:
        """How the error rates are computed."""
        return error_signatures()

    def scores(self, values: NDArray[Any], examples: Examples) -> dict[str, float]:
        """Every one of `metrics`, as shares of 1."""
        sums = self.statistics(values, examples).sum(axis=0)
        wer, cer = float(wer_of(sums)), float(cer_of(sums))
        return {"word_accuracy": 1 - wer, "character_accuracy": 1 - cer, "wer": wer, "cer": cer}

    def statistics(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n, WIDTH) see `pipeline.tasks.word_errors.error_counts`."""
        refuse_unlabelled(examples.labels.values >= 0)
        return error_counts(values[:, 0].tolist(), examples.inputs["target"])

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the task's metric of summed statistics."""
        return np.asarray(1 - (wer_of if self.metric == "word_accuracy" else cer_of)(sums))

    def constant_score(self, examples: Examples) -> float:
        """0: the score of empty texts."""
        return 0.0

    def text_losses(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n,) character error rates of single texts, 1 where they are above it: a long hallucination counts no more than an empty text."""
        return np.minimum(cer_of(self.statistics(values, examples)), 1.0)

    def agreement(self, a: NDArray[Any], b: NDArray[Any], examples: Examples) -> float:
        """1 − the word error rate of the texts of `a` with those of `b` as references; 0 where that is above 1."""
        sums = error_counts(a[:, 0].tolist(), b[:, 0].tolist()).sum(axis=0)
        return max(0.0, float(1 - wer_of(sums)))
