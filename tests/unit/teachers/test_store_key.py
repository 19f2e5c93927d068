"""What names a teacher's soft targets in the store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.generation import TokenTargetsConfig
from pipeline.tasks.multi_label import MultiLabelHead, multi_label
from pipeline.tasks.question_answering import SpanHead, question_answering
from pipeline.tasks.regression import NumberHead, regression
from pipeline.tasks.text_classification import ClassHead, text_classification
from pipeline.tasks.token_classification import TokenHead, token_classification
from teachers.store_key import store_key, token_key
from tests.conftest import TinyModel, save_tokenizer
from tests.tiny_writers import writer, writing_task

LABELS = ("bad", "good", "plain")
TASK = text_classification("mood", LABELS, 32, "accuracy")


@pytest.fixture
def copied(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A classifier's folder that the test may change."""
    return shutil.copytree(tiny_model("bert", LABELS), tmp_path / "teacher")


def relabel(folder: Path, names: Sequence[str]) -> None:
    """Other names for the folder's outputs."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    file.write_text(json.dumps(config))


# ---------------------------------------------------------------- its name in the store

CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: shutil.copy(folder.parent / "other.safetensors", folder / "model.safetensors"),
    "tokenizer": lambda folder: save_tokenizer(folder, token_types=False),
    "label order": lambda folder: relabel(folder, ("good", "bad", "plain")),
    "config": lambda folder: rewrite(folder / "config.json", '"gelu"', '"relu"'),
}
NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "read me": lambda folder: (folder / "README.md").write_text("# A teacher"),
    "training record": lambda folder: (folder / "training_args.bin").write_bytes(b"1"),
    "dates": lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
    "hidden file": lambda folder: (folder / ".DS_Store").write_bytes(b"1"),
}


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_answers_changes_the_key(copied: Path, tiny_model: TinyModel, change: str) -> None:
    shutil.copy(tiny_model("bert", LABELS, seed=1) / "model.safetensors", copied.parent / "other.safetensors")
    before = store_key(copied, TASK, "fp32")
    CHANGES[change](copied)
    assert store_key(copied, TASK, "fp32") != before


@pytest.mark.parametrize("change", NO_CHANGES)
def test_what_decides_nothing_leaves_the_key(copied: Path, change: str) -> None:
    before = store_key(copied, TASK, "fp32")
    NO_CHANGES[change](copied)
    assert store_key(copied, TASK, "fp32") == before
    moved = copied.rename(copied.with_name("another name"))
    assert store_key(moved, TASK, "fp32") == before


def test_the_key_follows_what_the_task_asks(copied: Path) -> None:
    keys = [
        store_key(copied, TASK, "fp32"),
        store_key(copied, TASK, "bf16"),
        store_key(copied, text_classification("mood", LABELS, 31), "fp32"),
        store_key(copied, TASK, "fp32", max_length=30),
        store_key(copied, TASK, "fp32", labels={"bad": "good"}),
        store_key(copied, TASK, "fp32", labels={"bad": None}),
        store_key(copied, text_classification("mood", ("good", "bad", "plain"), 32), "fp32"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(key == key.lower() and int(key, 16) for key in keys)  # hexadecimal, as the store demands


@pytest.mark.parametrize("head", [ClassHead, MultiLabelHead, NumberHead, TokenHead, SpanHead])
def test_another_way_of_reading_a_text_is_another_key(
    copied: Path, monkeypatch: pytest.MonkeyPatch, head: Any
) -> None:
    tasks = (
        TASK,
        multi_label("mood", LABELS, 32),
        regression("mood", 32),
        token_classification("mood", LABELS, 32),
        question_answering("mood", 32),
    )
    (task,) = (task for task in tasks if type(task.head) is head)
    before = store_key(copied, task, "fp32")
    monkeypatch.setattr(head, "version", head.version + 1)
    assert store_key(copied, task, "fp32") != before


def test_a_length_of_its_own_is_a_length(copied: Path) -> None:
    shorter = store_key(copied, text_classification("mood", LABELS, 20), "fp32")
    assert store_key(copied, TASK, "fp32", max_length=20) == shorter
    assert store_key(copied, TASK, "fp32", max_length=32) == store_key(copied, TASK, "fp32")


def test_one_label_and_several_labels_map_otherwise(copied: Path) -> None:
    several, declared = multi_label("mood", LABELS, 32), {"bad": "good"}
    assert store_key(copied, several, "fp32") == store_key(copied, TASK, "fp32")  # the same logits
    keys = {store_key(copied, task, "fp32", labels=declared) for task in (several, TASK)}
    assert len(keys) == 2  # sums here, the largest there


def test_the_key_does_not_follow_the_order_of_a_mapping(copied: Path) -> None:
    pairs = [("bad", "good"), ("good", None)]
    keys = {store_key(copied, TASK, "fp32", labels=dict(each)) for each in (pairs, pairs[::-1])}
    assert len(keys) == 1


def test_the_key_does_not_follow_what_the_task_is_called_or_scored_by(copied: Path) -> None:
    other = text_classification("tone.v2", LABELS, 32, "macro_f1")
    assert store_key(copied, other, "fp32") == store_key(copied, TASK, "fp32")


def test_texts_written_otherwise_have_another_key_and_distributions_along_them_the_same(
    tmp_path: Path,
) -> None:
    folder, form = writer("t5", tmp_path), TokenTargetsConfig()
    ways: list[dict[str, Any]] = [
        {},
        {"beams": 3},
        {"beams": 3, "candidates": 2},
        {"temperature": 1.0},
        {"length_penalty": 0.5},
        {"no_repeat_ngram": 3},
        {"repetition_penalty": 1.2},
        {"target_length": 13},
    ]
    assert len({store_key(folder, writing_task(**way), "fp32") for way in ways}) == len(ways)
    assert len({token_key(folder, writing_task(**way), "fp32", form) for way in ways[:-1]}) == 1
    forms = [form, TokenTargetsConfig(ids=4), TokenTargetsConfig(form="sampled")]
    assert len({token_key(folder, writing_task(), "fp32", one) for one in forms}) == len(forms)
