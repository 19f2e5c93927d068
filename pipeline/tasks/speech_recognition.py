"""Kind `speech-recognition`: the text of a recording.

As of `pipeline.tasks.sequence_to_sequence`, with recordings as sources, which stand in the examples as references to their files
(`pipeline.tasks.recording`). A model reads them in windows (`pipeline.tasks.listening`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Encoded, Examples, Ragged, TargetTokens
from pipeline.config.generation import GenerationConfig
from pipeline.config.kinds import SPEECH_RECOGNITION as KIND
from pipeline.errors import ConfigError, TeacherError
from pipeline.tasks import recording
from pipeline.tasks.label_columns import Column
from pipeline.tasks.listening import WITHOUT_SPACES, Listener, listener_of
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.sequence_to_sequence import FIELDS, SequenceReading, SequenceScoring
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Task
from pipeline.tasks.text_scores import Likeness
from pipeline.tasks.variants import Side
from pipeline.tasks.word_errors import WORD_LIKENESS, cer_of, error_counts, error_signatures, wer_of
from pipeline.tasks.writing import WritingHead

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

ROLES = ("audio", "text")


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; nothing is read of train. Raises `ConfigError` where packages are missing."""
    recording.check_packages()
    head = SpeechHead(name, config.data.max_length, config.data.target_length, "", config.generation)
    metric = config.metric or KIND.metrics[0].name
    return Task(name, KIND, SpeechReading(name, (), FIELDS, ROLES), head, SpeechScoring(metric, KIND.metrics))


@dataclass(frozen=True)
class SpeechReading(SequenceReading):
    """Reads references of recordings, and their texts."""

    rewritable: ClassVar[tuple[bool, ...]] = (False,)

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The names of the files."""
        return (recording.names(inputs["source"]),)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Never called: no text is a recording."""
        raise NotImplementedError

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """Raises `ConfigError`: a recording has no variants."""
        raise ConfigError(f"tasks.{self.task}.augment: recordings have no variants", "Drop the key.")

    def sizes(self, sources: Sequence[str]) -> NDArray[np.float64]:
        """(n,) seconds of each recording."""
        return recording.seconds(sources)


@dataclass(frozen=True)
class SpeechHead(WritingHead):
    """See `pipeline.tasks.task.Head`. `max_length` is not read: a model has its own window."""

    def positions(self, max_length: int | None) -> int:
        """1: how a model of speech counts its positions, its feature extractor knows."""
        return 1

    def listener(self, tokenizer: Any) -> Listener:
        """How the tokenizer's model reads recordings. Raises `TeacherError` where it cannot, or its decoder has too few positions."""
        listener = listener_of(str(tokenizer.name_or_path), self.generation.language)
        most = listener.positions - len(listener.prompt)
        if listener.is_ctc and self.generation != GenerationConfig(language=self.generation.language):
            raise TeacherError(
                f"{listener.folder}: a CTC model labels frames, and has one text for each recording",
                "Give its teacher no generation but language, or the settings to the other teachers alone.",
            )
        if not listener.is_ctc and self.target_length > most:
            raise TeacherError(
                f"{listener.folder}: target_length {self.target_length} is more than the {most} positions that its decoder has for a text",
                f"Set tasks.{self.task}.data.target_length to {most} or less.",
            )
        return listener

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """The windows of n recordings, and token ids of their texts, cut to `target_length`, where `inputs` has them.

        Raises `TeacherError` where words are asked for: hidden states of these models are not read.
        """
        if words:
            raise self.no_hidden_states()
        encoded = self.listener(tokenizer).encoded(inputs["source"])
        if "target" not in inputs:
            return encoded
        targets = self.targets(tokenizer, inputs["target"])
        return replace(encoded, targets=targets, units=targets.counts)

    def targets(self, tokenizer: Any, texts: Sequence[str]) -> TargetTokens:
        """Token ids of n texts that a model learns to write, each with the tokenizer's end mark, but for those that are cut to
        `target_length`; as Whisper writes them, with a space first."""
        space = "" if (self.generation.language or "").lower() in WITHOUT_SPACES else " "
        written = [space + text.strip() if text else text for text in texts]
        return target_tokens(tokenizer, written, self.target_length, tokenizer.eos_token_id)

    def snippet(self) -> str:
        """See `pipeline.tasks.task.Head`."""
        return (
            "from transformers import pipeline\n"
            'transcribe = pipeline("automatic-speech-recognition", "path/to/this/folder")\n'
            'print(transcribe("recording.wav"))'
        )


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


def speech_head(task: Task) -> SpeechHead:
    """The head of a task of recordings. Raises TypeError for another."""
    if not isinstance(task.head, SpeechHead):
        raise TypeError(f"{task.name} is of kind {task.kind.name}, which hears nothing")
    return task.head
