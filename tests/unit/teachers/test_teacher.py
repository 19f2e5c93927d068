"""One teacher: label order by name, example order as given, and what names its soft targets in the store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.batch import ABSENT
from pipeline.errors import TeacherError
from pipeline.models import open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.text_classification import text_classification
from teachers.teacher import Dtype, Teacher, check_teacher, store_key
from tests.conftest import Architecture, TinyModel, save_tokenizer, texts_of

LABELS = ("bad", "good", "plain")
TASK = text_classification("mood", LABELS, 32, "accuracy")
TEXTS = [text for label in range(3) for text in texts_of(label, 12)]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


def says(folder: Path, task: Task = TASK, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    return Teacher(folder, task).label({"text": texts})[0].values


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


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_models_in_the_examples_order(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model(architecture, LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = open_tokenizer(folder)
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    found = says(folder)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=0)
    assert len(np.unique(found.round(6), axis=0)) == len(TEXTS)  # so that a wrong order would show


@pytest.mark.parametrize("order", [("good", "plain", "bad"), ("plain", "good", "bad")])
def test_labels_are_aligned_by_name(copied: Path, order: tuple[str, ...]) -> None:
    expected = says(copied)
    relabel(copied, order)
    found = says(copied)
    for column, name in enumerate(LABELS):
        assert np.array_equal(found[:, column], expected[:, order.index(name)])
    shuffled = says(copied, text_classification("mood", ("good", "bad", "plain"), 32))
    assert np.array_equal(shuffled, found[:, [1, 0, 2]])


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_examples_changes_no_answer(tiny_model: TinyModel, order: str) -> None:
    rows = np.arange(len(TEXTS))[::-1]
    if order == "shuffled":
        rows = np.random.default_rng(0).permutation(len(TEXTS))
    expected = says(tiny_model("bert", LABELS))
    found = says(tiny_model("bert", LABELS), texts=[TEXTS[i] for i in rows])
    np.testing.assert_allclose(found, expected[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_token_budget_changes_no_answer(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS)
    expected = says(folder)
    for tokens in (1, 17, 100, 10**6):
        found, _ = Teacher(folder, TASK, tokens_per_batch=tokens).label({"text": TEXTS})
        np.testing.assert_allclose(found.values, expected, atol=1e-5, rtol=0)  # measured < 1e-7


def test_the_same_examples_give_the_same_bytes(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", LABELS)
    assert says(folder).tobytes() == says(folder).tobytes()


def test_dropout_takes_no_part(tiny_model: TinyModel) -> None:
    teacher = Teacher(tiny_model("bert", LABELS), TASK)
    first, second = (teacher.label({"text": TEXTS})[0].values for _ in range(2))
    assert np.array_equal(first, second)


def test_texts_are_cut_to_the_tasks_length_and_counted(tiny_model: TinyModel) -> None:
    task = text_classification("mood", LABELS, 6)
    teacher = Teacher(tiny_model("bert", LABELS), task)
    texts = ["good", "good film is fair", "good film is fair too", "good film is fair and long and long"]
    logits, truncated = teacher.label({"text": texts})
    assert truncated == 2  # four words and two special tokens fit
    assert len(teacher.tokenizer("good film is fair")["input_ids"]) == 6
    np.testing.assert_allclose(
        logits.values[3], logits.values[1], atol=1e-5
    )  # nothing after the fourth word is seen


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_says_nearly_the_same(tiny_model: TinyModel, dtype: Dtype) -> None:
    folder = tiny_model("bert", LABELS)
    found = Teacher(folder, TASK, dtype=dtype).label({"text": TEXTS})[0].values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, says(folder), atol=5e-3)
    assert not np.array_equal(found, says(folder))


def test_a_teacher_may_have_a_length_of_its_own(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", LABELS, positions=40)
    texts = ["good " * 35]
    whole, shorter = (Teacher(folder, TASK, max_length=length) for length in (40, 6))
    assert [teacher.label({"text": texts})[1] for teacher in (whole, shorter)] == [0, 1]
    np.testing.assert_allclose(
        shorter.label({"text": texts})[0].values,
        says(folder, text_classification("mood", LABELS, 6), texts),
        atol=1e-6,
    )
    with pytest.raises(TeacherError, match="max_length 41 is more than the model's 40 positions"):
        Teacher(folder, TASK, max_length=41)


def test_several_labels_may_mean_one_and_some_none(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", ("awful", "meh", "fine", "spam"))
    declared = {"awful": "bad", "meh": "bad", "fine": "good", "spam": None}
    found = Teacher(folder, TASK, labels=declared).label({"text": TEXTS})[0].values
    own = says(folder, text_classification("mood", ("awful", "meh", "fine", "spam"), 32))
    np.testing.assert_allclose(found[:, 0], np.logaddexp(own[:, 0], own[:, 1]), atol=1e-5)
    np.testing.assert_array_equal(found[:, 1], own[:, 2])
    assert (found[:, 2] == ABSENT).all()  # it knows nothing of `plain`


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "names",
    [("bad", "good", "neutral"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("bad", "good"), (*LABELS, "other")],
)
def test_another_label_space_is_refused(tiny_model: TinyModel, names: tuple[str, ...]) -> None:
    folder = tiny_model("bert", names)
    for attempt in (lambda: Teacher(folder, TASK), lambda: check_teacher(folder, TASK, "teachers.x")):
        with pytest.raises(TeacherError) as error:
            attempt()
        assert all(name in error.value.cause for name in (*names, *LABELS, "task mood"))
        assert ".labels" in error.value.remedy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_too_short_for_the_task_is_refused(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS, positions=40)
    long = " ".join(["good film"] * 30)
    logits, truncated = Teacher(folder, text_classification("mood", LABELS, 40)).label({"text": [long]})
    assert truncated == 1
    assert np.isfinite(logits.values).all()
    with pytest.raises(TeacherError, match="max_length 41 is more than the model's 40 positions"):
        Teacher(folder, text_classification("mood", LABELS, 41))


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


def test_a_model_of_another_kind_is_refused_before_it_is_opened(tiny_model: TinyModel) -> None:
    with pytest.raises(
        TeacherError, match=r"teachers\.x: .* is a BertModel, text-classification needs"
    ) as caught:
        check_teacher(tiny_model("bert"), TASK, "teachers.x")
    assert "fine_tune" in caught.value.remedy
