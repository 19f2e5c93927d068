"""The head of models that hear: windows of recordings, token ids of their texts after the model's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.batch import Encoded, TargetTokens
from pipeline.config.generation import GenerationConfig
from pipeline.errors import TeacherError
from pipeline.tasks.listening import WITHOUT_SPACES, Listener, listener_of
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Task
from pipeline.tasks.writing import WritingHead


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
        if (
            listener.is_ctc
            and self.generation.settings != GenerationConfig(language=self.generation.language).settings
        ):
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

    def encode_sources(self, tokenizer: Any, sources: Sequence[str], max_length: int) -> Encoded:
        """The windows of n recordings."""
        return self.listener(tokenizer).encoded(sources)

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


def speech_head(task: Task) -> SpeechHead:
    """The head of a task of recordings. Raises TypeError for another."""
    if not isinstance(task.head, SpeechHead):
        raise TypeError(f"{task.name} is of kind {task.kind.name}, which hears nothing")
    return task.head
