"""Examples that are encoded in parts have the tokens that they have when they are encoded at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.models import open_tokenizer
from pipeline.tasks import Task, encoding, target_tokens
from pipeline.tasks.encoding import encode_examples
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.conftest import FILLER, GOOD, TinyModel
from tests.tiny_writers import writing_task

WORDS = [FILLER[: 1 + n % 5] + GOOD[: n % 3] for n in range(23)]
SENTENCES = [" ".join(words) for words in WORDS]
INPUTS: list[tuple[Task, Mapping[str, Sequence[Any]]]] = [
    (text_classification("mood", ("bad", "good"), 6, "accuracy"), {"text": SENTENCES}),
    (token_classification("ner", ("O", "B-PER"), 6, "accuracy"), {"words": WORDS}),
    (
        question_answering("qa", 24, "f1", True),
        {"question": SENTENCES, "context": [" ".join(SENTENCES[: 1 + n % 7]) for n in range(23)]},
    ),
    (writing_task(), {"source": SENTENCES, "target": ["", *SENTENCES[1:]]}),
]


def arrays(value: Any) -> dict[str, Any]:
    """All fields of nested dataclasses and mappings, by their path."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return {"": value}
    return {f"{name}.{path}": one for name, part in value.items() for path, one in arrays(part).items()}


@pytest.mark.parametrize(("task", "inputs"), INPUTS, ids=[task.kind.name for task, _ in INPUTS])
@pytest.mark.parametrize("at_once", [1, 4, 22])
def test_in_parts_as_at_once(
    task: Task,
    inputs: Mapping[str, Sequence[Any]],
    at_once: int,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = open_tokenizer(tiny_model("bert"))
    words = not task.kind.writes
    whole = arrays(task.head.encode(tokenizer, inputs, words=words))
    monkeypatch.setattr(encoding, "AT_ONCE", at_once)
    monkeypatch.setattr(target_tokens, "AT_ONCE", at_once)
    parts = arrays(encode_examples(task.head, tokenizer, inputs, words=words))
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
        assert getattr(parts[name], "dtype", None) == getattr(value, "dtype", None), name
