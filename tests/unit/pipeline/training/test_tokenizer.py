"""What stands before a text that a trained model reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.models import open_tokenizer, vocabulary
from pipeline.tasks import Task
from pipeline.tasks.text_generation import PromptHead
from pipeline.tasks.writing import writing_head
from pipeline.training.tokenizer import trained_tokenizer
from tests.tiny_writers import DECODERS, prompt_task, writer, writing_task


def chat_task() -> Task:
    head: Any = prompt_task().head
    assert isinstance(head, PromptHead)
    return replace(prompt_task(), head=replace(head, chat=True))


def ids(tokenizer: Any, own: Task) -> list[int]:
    encoded = writing_head(own).encode(tokenizer, {"source": ["a dog"], "target": ["un chien"]})
    values: list[int] = encoded.columns["input_ids"].tolist()
    return values


@pytest.mark.parametrize("family", DECODERS)
def test_a_language_model_that_is_trained_reads_a_mark_first(family: str, tmp_path: Path) -> None:
    given = open_tokenizer(writer(family, tmp_path))
    marked = trained_tokenizer(tmp_path, [prompt_task()])
    assert ids(marked, prompt_task()) == [given.bos_token_id, *ids(given, prompt_task())]
    assert vocabulary(marked) == vocabulary(given)
    marked.save_pretrained(tmp_path / "saved")
    saved = open_tokenizer(tmp_path / "saved")
    assert saved("a dog")["input_ids"] == ids(marked, prompt_task())
    assert ids(trained_tokenizer(tmp_path / "saved", [prompt_task()]), prompt_task()) == ids(
        saved, prompt_task()
    )


def test_the_end_is_the_mark_where_there_is_no_other(tmp_path: Path) -> None:
    words = open_tokenizer(writer("gpt2", tmp_path))
    words.bos_token = None
    words.save_pretrained(tmp_path)
    assert ids(trained_tokenizer(tmp_path, [prompt_task()]), prompt_task())[0] == words.eos_token_id


def test_conversations_and_other_models_are_read_as_they_were(tmp_path: Path) -> None:
    given = open_tokenizer(writer("gpt2", tmp_path))
    same = trained_tokenizer(tmp_path, [chat_task(), writing_task()])
    assert same("a dog")["input_ids"] == given("a dog")["input_ids"]
