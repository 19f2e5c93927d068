"""Token ids that are read from disk are those that a tokenizer gives."""

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
from pipeline.tasks import Task
from pipeline.training import encoded as training
from pipeline.training.encoded import encoded
from tests.conftest import TinyModel
from tests.unit.pipeline.tasks.test_encoding import INPUTS, arrays


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
    monkeypatch.setattr(training, "AT_ONCE", 4)
    tokenizer, examples, words = (
        open_tokenizer(tiny_model("bert")),
        examples_of(task, inputs),
        not task.kind.writes,
    )
    whole = arrays(task.head.encode(tokenizer, inputs, words=words))
    encoded(task.head, tokenizer, examples, words=words)
    monkeypatch.setattr(training, "encode_examples", None)  # never called again
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
    monkeypatch.setattr(training, "AT_ONCE", 4)
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
