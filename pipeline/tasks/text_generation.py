"""Kind `text-generation`: a language model reads a prompt and writes on from it.

As of `pipeline.tasks.sequence_to_sequence`, with one stack of layers that reads the prompt and the text. Prompt and completion
stand in the data as the model reads them: nothing is put between them, and none of their spaces is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.batch import Encoded, Ragged, TargetTokens, offsets_of
from pipeline.config.kinds import TEXT_GENERATION as KIND
from pipeline.errors import ConfigError, DataError, TeacherError
from pipeline.tasks.label_columns import Column
from pipeline.tasks.sequence_to_sequence import FIELDS, SequenceReading, SequenceScoring
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Task
from pipeline.tasks.variants import Side
from pipeline.tasks.writing import WritingHead

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

ROLES, WHOLE = ("prompt", "completion"), "messages"
SHARED = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""The role of who speaks in a message ``{from: …, value: …}``, as ShareGPT wrote conversations down."""


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; nothing is read of train."""
    chat = WHOLE in config.data.columns
    head = PromptHead(
        name, config.data.max_length, config.data.target_length, config.prefix, config.generation, chat
    )
    metric = config.metric or KIND.metrics[0].name
    reading = (ChatReading if chat else SequenceReading)(name, (), FIELDS, ROLES)
    return Task(name, KIND, reading, head, SequenceScoring(metric, KIND.metrics))


@dataclass(frozen=True)
class ChatReading(SequenceReading):
    """Reads conversations, each a list of ``{role: …, content: …}``, or ``{from: …, value: …}``: the last message, where it is the assistant's, is what
    the model learns to write, and those before it are the prompt, kept as JSON."""

    rewritable: ClassVar[tuple[bool, ...]] = (False,)

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """See `SequenceReading.read`. Raises `DataError` for what is no conversation."""
        if WHOLE not in columns:
            return super().read(columns, split)
        pairs = [self._pair(row, given, split) for row, given in enumerate(columns[WHOLE].values)]
        prompts, completions = ([pair[side] for pair in pairs] for side in (0, 1))
        if split == "unlabelled":  # of conversations that stand there the answers are not wanted
            completions = [None] * len(prompts)
        return super().read({ROLES[0]: Column(prompts), ROLES[1]: Column(completions)}, split)

    def _pair(self, row: int, given: Any, split: str) -> tuple[str, str | None]:
        rows = given if isinstance(given, list) else []
        messages = [message for message in map(_message, rows) if message]
        roles = [one["role"] for one in messages]
        if not rows or len(messages) < len(rows) or roles == ["assistant"]:
            raise DataError(
                f"tasks.{self.task}: row {row} of {split}: messages is {given!r:.200}, no conversation",
                "Give a list of objects with role and content (or from and value), texts both, of which the last one is the assistant's answer.",
            )
        answered = messages[-1]["role"] == "assistant"
        prompt = messages[:-1] if answered else messages
        return json.dumps(prompt, ensure_ascii=False), messages[-1]["content"] if answered else None

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The contents of each prompt's messages, a line each."""
        return (["\n".join(one["content"] for one in json.loads(text)) for text in inputs["source"]],)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Each text as the one message of a user."""
        (texts,) = columns
        asked = ([{"role": "user", "content": text}] for text in texts)
        return {"source": [json.dumps(one, ensure_ascii=False) for one in asked]}

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """Raises `ConfigError`: a conversation has no variants."""
        raise ConfigError(f"tasks.{self.task}.augment: conversations have no variants", "Drop the key.")


@dataclass(frozen=True)
class PromptHead(WritingHead):
    """See `pipeline.tasks.task.Head`. The sources are prompts, the targets their completions.

    chat: the prompts are conversations, which the tokenizer's chat template makes texts of; `prefix` is their first message, the
    system's.
    """

    chat: bool = False

    @property
    def decoding(self) -> Mapping[str, Any]:
        """See `WritingHead`."""
        return {**super().decoding, "chat": True} if self.chat else super().decoding

    def positions(self, max_length: int | None) -> int:
        """Those of a prompt and of what is written after it."""
        return super().positions(max_length) + self.target_length

    def read_prompts(self, tokenizer: Any, sources: Sequence[str], max_length: int) -> Encoded:
        """Token ids of n prompts without an end mark. A prompt of more than `max_length` tokens loses the first ones: what is
        asked for mostly stands at its end."""
        end, pad = end_of(tokenizer), tokenizer.pad_token_id
        settings = {"add_special_tokens": not self.chat, "verbose": False}  # a chat template has them
        with _cut_on_the_left(tokenizer):
            ids = tokenizer(list(sources), truncation=True, max_length=max_length, **settings)["input_ids"]
            full = [row for row, own in enumerate(ids) if len(own) == max_length]  # only these may be cut
            whole = tokenizer([sources[row] for row in full], **settings)["input_ids"] if full else []
        ids = [own[:-1] if len(own) > 1 and own[-1] == end else own for own in ids]
        lengths = np.array([len(own) for own in ids], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        return Encoded(
            columns={"input_ids": flat},
            offsets=offsets_of(lengths),
            pads={"input_ids": end if pad is None else pad},
            truncated=sum(len(own) > max_length for own in whole),
        )

    def prompts(self, tokenizer: Any, sources: Sequence[str]) -> list[str]:
        """What a model reads of n sources. Raises `TeacherError` where a conversation meets a tokenizer without a chat template, or
        one that refuses it."""
        if not self.chat:
            return super().prompts(tokenizer, sources)
        if not tokenizer.chat_template:
            raise TeacherError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template for the messages of {self.task}",
                "Take a model that was tuned for conversations, or give columns prompt and completion.",
            )
        from jinja2 import TemplateError  # here: conversations alone need it

        talks = [[*self._system(), *json.loads(text)] for text in sources]
        try:
            texts: list[str] = tokenizer.apply_chat_template(
                talks, tokenize=False, add_generation_prompt=True
            )
        # templates raise what they do not take: a system's message, two of one role
        except TemplateError as error:
            raise TeacherError(
                f"{tokenizer.name_or_path}: its chat template refuses a conversation of {self.task}: {error}",
                "Remove or mend such conversations; some templates know no system's message, nor a prefix.",
            ) from None
        return texts

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.prefix}] if self.prefix else []

    def targets(self, tokenizer: Any, texts: Sequence[str]) -> TargetTokens:
        """Token ids of n completions, each with the tokenizer's end mark, but for those that are cut to `target_length`."""
        return target_tokens(tokenizer, texts, self.target_length, end_of(tokenizer))

    def snippet(self) -> str:
        """See `pipeline.tasks.task.Head`."""
        asked: Any = self.prefix + "A prompt."
        if self.chat:
            asked = [*self._system(), {"role": "user", "content": "A question?"}]
        return (
            "from transformers import pipeline\n"
            'writer = pipeline("text-generation", "path/to/this/folder")\n'
            f"print(writer({asked!r}, return_full_text=False))"
        )


def _message(given: Any) -> dict[str, str] | None:
    """A message with its role and content alone; None for what is no message."""
    if not isinstance(given, dict):
        return None
    role, content = given.get("role"), given.get("content")
    if role is None and isinstance(given.get("from"), str):
        role, content = SHARED.get(given["from"]), given.get("value")
    if not (isinstance(role, str) and isinstance(content, str)):
        return None
    return {"role": role, "content": content}


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
