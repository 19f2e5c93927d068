"""Kind `text-generation`: a language model reads a prompt and writes on from it.

As of `pipeline.tasks.sequence_to_sequence`, with one stack of layers that reads the prompt and the text. Prompt and completion
stand in the data as the model reads them: nothing is put between them, and none of their spaces is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.batch import Encoded, TargetTokens, offsets_of
from pipeline.config.kinds import TEXT_GENERATION as KIND
from pipeline.errors import TeacherError
from pipeline.tasks.label_columns import Column
from pipeline.tasks.sequence_to_sequence import FIELDS, SequenceReading, SequenceScoring
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Task
from pipeline.tasks.writing import WritingHead

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

ROLES = ("prompt", "completion")


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; nothing is read of train."""
    head = PromptHead(
        name, config.data.max_length, config.data.target_length, config.prefix, config.generation
    )
    metric = config.metric or KIND.metrics[0].name
    reading = SequenceReading(name, (), FIELDS, ROLES)
    return Task(name, KIND, reading, head, SequenceScoring(metric, KIND.metrics))


@dataclass(frozen=True)
class PromptHead(WritingHead):
    """See `pipeline.tasks.task.Head`. The sources are prompts, the targets their completions."""

    def positions(self, max_length: int | None) -> int:
        """Those of a prompt and of what is written after it."""
        return super().positions(max_length) + self.target_length

    def read_sources(self, tokenizer: Any, sources: Sequence[str], max_length: int) -> Encoded:
        """Token ids of n prompts without an end mark. A prompt of more than `max_length` tokens loses the first ones: what is
        asked for mostly stands at its end."""
        end, pad = end_of(tokenizer), tokenizer.pad_token_id
        with _cut_on_the_left(tokenizer):
            ids = tokenizer(list(sources), truncation=True, max_length=max_length)["input_ids"]
            full = [
                row for row, own in enumerate(ids) if len(own) == max_length
            ]  # only these can have lost any
            whole = tokenizer([sources[row] for row in full], verbose=False)["input_ids"] if full else []
        ids = [own[:-1] if len(own) > 1 and own[-1] == end else own for own in ids]
        lengths = np.array([len(own) for own in ids], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        return Encoded(
            columns={"input_ids": flat},
            offsets=offsets_of(lengths),
            pads={"input_ids": end if pad is None else pad},
            truncated=sum(len(own) > max_length for own in whole),
        )

    def targets(self, tokenizer: Any, texts: Sequence[str]) -> TargetTokens:
        """Token ids of n completions, each with the tokenizer's end mark, but for those that are cut to `target_length`."""
        return target_tokens(tokenizer, texts, self.target_length, end_of(tokenizer))

    def snippet(self) -> str:
        """See `pipeline.tasks.task.Head`."""
        return (
            "from transformers import pipeline\n"
            'writer = pipeline("text-generation", "path/to/this/folder")\n'
            f"print(writer({self.prefix + 'A prompt.'!r}, return_full_text=False))"
        )


def end_of(tokenizer: Any) -> int:
    """The id that ends a text. Raises `TeacherError` where the tokenizer has none."""
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise TeacherError(
            f"{tokenizer.name_or_path}: its tokenizer has no token that ends a text",
            "Set eos_token in its tokenizer_config.json.",
        )
    return end


@contextmanager
def _cut_on_the_left(tokenizer: Any) -> Iterator[None]:
    before, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = before
