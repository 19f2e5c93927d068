"""The tokenizer of a model that is trained: a language model's puts a mark before each text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.models import open_tokenizer
from pipeline.tasks.task import Task
from pipeline.tasks.text_generation import PromptHead


def trained_tokenizer(folder: Path, tasks: Iterable[Task]) -> Any:
    """The tokenizer in `folder` of a model that learns `tasks`. That of a language model puts a mark before each prompt that is not a conversation, also in the
    folder that is saved after training.

    A decoder's layers use the first token as a sink of attention (2309.17453) and overlook what it says; where no mark stands there, that is the prompt's first word.
    """
    tokenizer = open_tokenizer(folder)
    if any(isinstance(task.head, PromptHead) and not task.head.chat for task in tasks):
        _mark_beginnings(tokenizer)
    return tokenizer


def _mark_beginnings(tokenizer: Any) -> None:
    mark = tokenizer.bos_token or tokenizer.eos_token
    if mark is not None and tokenizer("a")["input_ids"][0] not in tokenizer.all_special_ids:
        tokenizer.bos_token = mark
        tokenizer.add_bos_token = True
