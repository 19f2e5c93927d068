"""Examples that are encoded in parts have the tokens that they have when they are encoded at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import disk_cache
from pipeline.batch import Examples, Ragged, content_keys
from pipeline.models import open_tokenizer
from pipeline.tasks import Task, encoding, target_tokens
from pipeline.tasks.encoding import encode_examples, encoded
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


def examples_of(task: Task, inputs: Mapping[str, Sequence[Any]]) -> Examples:
    content = {role: inputs[role] for role in task.reading.fields}
    count = len(next(iter(inputs.values())))
    return Examples(task.name, content_keys(task.kind.name, content), inputs, Ragged.single(np.arange(count)))


@pytest.mark.parametrize(("task", "inputs"), INPUTS, ids=[task.kind.name for task, _ in INPUTS])
def test_from_disk_as_at_once(
    task: Task,
    inputs: Mapping[str, Sequence[Any]],
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(disk_cache.cached, "__kwdefaults__", {"worth": 0.0})
    monkeypatch.setattr(encoding, "AT_ONCE", 4)
    tokenizer, examples, words = (
        open_tokenizer(tiny_model("bert")),
        examples_of(task, inputs),
        not task.kind.writes,
    )
    whole = arrays(task.head.encode(tokenizer, inputs, words=words))
    encoded(task.head, tokenizer, examples, words=words)
    monkeypatch.setattr(encoding, "encode_examples", None)  # never called again
    again = arrays(encoded(task.head, open_tokenizer(tiny_model("bert")), examples, words=words))
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
        assert getattr(again[name], "dtype", None) == getattr(value, "dtype", None), name


def test_another_length_tokenizer_or_text_is_encoded_anew(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(disk_cache.cached, "__kwdefaults__", {"worth": 0.0})
    monkeypatch.setattr(encoding, "AT_ONCE", 4)
    (task, inputs), (writing, pairs) = INPUTS[0], INPUTS[3]
    bert, distilbert = (open_tokenizer(tiny_model(name)) for name in ("bert", "distilbert"))
    examples, sources = examples_of(task, inputs), examples_of(writing, pairs)
    fewer = examples.take(np.arange(20))
    others = dataclasses.replace(sources, labels=Ragged.single(np.arange(23) + 1))  # other targets
    for head, tokenizer, some, length in (
        (task.head, bert, examples, 6),
        (task.head, bert, examples, 5),
        (task.head, distilbert, examples, 6),
        (task.head, bert, fewer, 6),
        (writing.head, bert, sources, 6),
        (writing.head, bert, others, 6),
    ):
        encoded(head, tokenizer, some, length)
    assert len(list((tmp_path / "tutelage" / "kept").iterdir())) == 6
