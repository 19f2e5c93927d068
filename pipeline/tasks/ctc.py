"""The head of models of speech that label each frame of a recording with a letter, or none: CTC models.

They learn texts as others do, from references and teachers; the hard loss is of a whole text, over all ways in which the frames can be labelled with it.
Token targets of a recording are its teachers' distributions at each frame, whatever the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Examples, TargetTokens
from pipeline.config.generation import GenerationConfig
from pipeline.losses import FRAME_LOSSES, FrameInputs, LossTerm
from pipeline.tasks.hearing import SpeechHead
from pipeline.tasks.listening import frames_of, listener_of
from pipeline.tasks.pairs import pairs
from pipeline.tasks.recording import seconds
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Task
from pipeline.tasks.tensors import TensorBatch

UNSPELLED = "with letters or digits that the model's vocabulary lacks, or none"
TOO_LONG = "with more letters than its recording has frames"
"""Why a text cannot be learnt."""


@dataclass(frozen=True)
class FrameHead(SpeechHead):
    """See `pipeline.tasks.task.Head`. blank: the id of a frame without a letter · convolutions: see `Listener`. `target_length` is not read: frames bound a text."""

    losses: ClassVar[tuple[LossTerm, ...]] = FRAME_LOSSES

    blank: int = 0
    convolutions: tuple[tuple[int, int], ...] = ()

    def targets(self, tokenizer: Any, texts: Sequence[str]) -> TargetTokens:
        """Token ids of n texts, without an end mark, as `spelled` has them."""
        listener = self.listener(tokenizer)
        longest = frames_of(np.array([round(listener.window * listener.rate)]), self.convolutions)
        return target_tokens(tokenizer, spelled(tokenizer, texts)[0], int(longest[0]))

    def faults(
        self, tokenizer: Any, recordings: Sequence[str], texts: Sequence[str]
    ) -> dict[str, NDArray[np.bool_]]:
        """(n,) by fault, which of n texts cannot be learnt, of recordings that are within one window. Of two equal letters in a row a frame stands between."""
        listener, tokens = self.listener(tokenizer), self.targets(tokenizer, texts)
        owners = np.repeat(np.arange(len(texts)), tokens.counts)
        twice = (np.diff(tokens.ids) == 0) & (np.diff(owners) == 0)
        needed = tokens.counts + np.bincount(owners[1:][twice], minlength=len(texts))
        frames = self.frames(recordings, listener.rate)
        written = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
        lacking = spelled(tokenizer, texts)[1] | (written & (tokens.counts == 0))
        return {UNSPELLED: lacking, TOO_LONG: (needed > frames) & ~lacking}

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(S, F, V) float32 logits of the frames of S recordings, padded on the right."""
        logits: Tensor = output.logits.float()
        return logits

    def inputs(self, logits: Tensor, batch: TensorBatch) -> FrameInputs:
        """The inputs of the hard loss of a batch. logits: as of `read_out`."""
        assert batch.target is not None, "a batch of pairs"
        frames = frames_of(batch.inputs["attention_mask"].sum(dim=-1), self.convolutions)
        return FrameInputs(logits, frames, batch.target, self.blank)

    def frames(self, recordings: Sequence[str], rate: int) -> NDArray[np.int64]:
        """(n,) frames of recordings that are within one window. rate: samples a second of the model."""
        return frames_of(np.round(seconds(recordings) * rate).astype(np.int64), self.convolutions)


def of_model(task: Task, tokenizer: Any) -> Task:
    """A task of recordings as the model of a tokenizer learns it. A CTC model has one text for each recording, so it reads nothing of `generation`.

    Raises `TeacherError` where the model is none of speech.
    """
    head = task.head
    if (
        not isinstance(head, SpeechHead)
        or not (listener := listener_of(str(tokenizer.name_or_path), head.generation.language)).is_ctc
    ):
        return task
    settings = GenerationConfig(language=head.generation.language)
    own = FrameHead(
        head.task,
        head.max_length,
        head.target_length,
        head.prefix,
        settings,
        tokenizer.pad_token_id,
        listener.convolutions,
    )
    return replace(task, head=own)


def frame_pairs(task: Task, recordings: Sequence[str]) -> Examples:
    """What a teacher that labels frames is asked of n recordings, in the form of `pairs`: each with no text."""
    return pairs(task, recordings, [""] * len(recordings))


def spelled(tokenizer: Any, texts: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
    """n texts in the letters of a vocabulary, and (n,) which of them have letters or digits that it lacks.

    A letter that the vocabulary has in the other case alone takes that case; punctuation that it lacks is left out, as scores leave it out. A
    tokenizer without a mark between words is not one of letters: its texts stay as they are, and lack nothing.
    """
    if getattr(tokenizer, "word_delimiter_token", None) is None:
        return list(texts), np.zeros(len(texts), dtype=np.bool_)
    letters = _letters(tuple(sorted(tokenizer.get_vocab())))
    written = [text.translate(letters) for text in texts]
    lacking = np.array([LACKING in text for text in written], dtype=np.bool_)
    return [" ".join(text.replace(LACKING, "").split()) for text in written], lacking


LACKING = "\x00"


class _Letters(dict[int, str]):
    """How each character is spelled, for `str.translate`; filled as characters occur."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self._vocabulary = frozenset(vocabulary)

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        known = (one for one in (letter, letter.upper(), letter.lower()) if one in self._vocabulary)
        other = " " if letter.isspace() else LACKING if letter.isalnum() else ""
        self[code] = own = next(known, other)
        return own


@lru_cache(maxsize=8)
def _letters(vocabulary: tuple[str, ...]) -> Mapping[int, str]:
    return _Letters(vocabulary)
