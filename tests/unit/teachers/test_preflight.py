"""Preflight on real models: predictions, their cache, and which teachers may label."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.config.schema import ServingConfig
from pipeline.curve import Curve
from pipeline.tasks import Task
from pipeline.tasks.question_answering import question_answering
from students.export import save_task
from students.student import build_student
from teachers import preflight as module
from teachers.preflight import SAMPLE, preflight, sample_of
from teachers.spec import TeacherSpec
from teachers.store_key import store_key
from tests.conftest import FILLER, TinyModel
from tests.unit.teachers.preflight_samples import GOLD, MOODS, texts


def test_the_sample_is_the_same_every_time_whatever_the_order() -> None:
    many = texts(np.zeros(SAMPLE + 50, dtype=np.int64))
    turned = many.take(np.arange(len(many))[::-1])

    assert len(sample_of(many)) == SAMPLE
    assert sample_of(many).inputs == sample_of(turned).inputs


@pytest.fixture
def teacher(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny teacher whose head is saved with it."""
    from pipeline.models import open_tokenizer

    base = tiny_model("bert")
    save_task(build_student(base, [MOODS]), "mood", open_tokenizer(base), tmp_path / "teacher")
    return tmp_path / "teacher"


def spec_of(folder: Path, name: str = "t", task: Task = MOODS) -> TeacherSpec:
    return TeacherSpec(name, str(folder), None, task, ServingConfig(), store_key(folder, task, "fp32"))


def test_two_replicas_of_a_saved_teacher_agree_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    (findings,) = preflight([spec_of(teacher)], {"mood": texts(GOLD)}, tmp_path / "cache", on_ray=False)

    assert findings.replica_difference == 0
    assert findings.self_loss < 1e-4


def test_half_precision_is_compared_with_fp32(teacher: Path, tmp_path: Path) -> None:
    exact, half = spec_of(teacher), replace(spec_of(teacher, "h"), dtype="bf16", key="h")
    one, other = preflight([exact, half], {"mood": texts(GOLD)}, tmp_path / "cache", on_ray=False)

    assert one.rounding == 0
    assert 0 < other.rounding < 0.05
    assert other.replica_difference == 0
    (again,) = preflight([half], {"mood": texts(GOLD)}, tmp_path / "cache", on_ray=False)
    assert again.rounding == other.rounding, "it is cached"


def test_a_model_without_its_head_differs_between_replicas(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(tiny_model("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(enumerate(MOODS.reading.labels))
    config["label2id"] = {label: i for i, label in enumerate(MOODS.reading.labels)}
    del config["architectures"]  # which would give it away before it is opened
    (folder / "config.json").write_text(json.dumps(config))
    (findings,) = preflight([spec_of(folder)], {"mood": texts(GOLD)}, tmp_path / "cache", on_ray=False)

    assert findings.replica_difference > 0
    assert "two replicas' logits differ" in findings.problems[0]


def test_a_question_answering_teacher_with_a_random_head_stops(tiny_model: TinyModel, tmp_path: Path) -> None:
    from pipeline.models import open_tokenizer

    task, base, rng = question_answering("answers", 48), tiny_model("bert"), np.random.default_rng(0)
    contexts = [list(rng.permutation(FILLER[6:])[:16]) for _ in range(120)]
    starts = rng.integers(0, 15, 120)
    inputs: dict[str, list[Any]] = {
        "question": [f"{context[start]} and what" for context, start in zip(contexts, starts, strict=True)],
        "context": [" ".join(context) for context in contexts],
        "answers": [[context[start + 1]] for context, start in zip(contexts, starts, strict=True)],
    }
    keys = content_keys(task.kind.name, {name: inputs[name] for name in task.reading.fields})
    examples = Examples("answers", keys, inputs, Ragged.single(np.stack((starts, starts), axis=1) + 2))
    student = build_student(base, [task], seed=3)
    with torch.no_grad():  # a tiny model's states are small: without this all its probabilities are the same
        student.model("answers").qa_outputs.weight.mul_(50)
    save_task(student, "answers", open_tokenizer(base), tmp_path / "teacher")
    (findings,) = preflight(
        [spec_of(tmp_path / "teacher", task=task)], {"answers": examples}, tmp_path / "cache", on_ray=False
    )

    assert findings.majority == 0
    assert findings.replica_difference == 0
    assert findings.score > 0
    assert "the same model under random heads" in findings.problems[0]


def test_a_cached_teacher_is_warned_of_by_its_curve(teacher: Path, tmp_path: Path) -> None:
    examples, rising = {"mood": texts(GOLD)}, Curve((0.0, 0.5, 1.0), epochs=3)
    for _ in range(2):  # predicted, then cached
        (findings,) = preflight(
            [spec_of(teacher)], examples, tmp_path / "cache", on_ray=False, curves={"t": rising}
        )
        assert "was still rising when its fine-tuning ended (0.0, 50.0, 100.0" in "; ".join(findings.warnings)


def test_cached_predictions_open_no_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = {"mood": texts(GOLD)}
    first = preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)
    monkeypatch.setattr(module, "predict", lambda *_: pytest.fail("predicted again"))

    assert preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False) == first
    other_name = preflight([spec_of(teacher, "other")], examples, tmp_path / "cache", on_ray=False)
    assert other_name[0].teacher == "other"


@pytest.mark.parametrize("setting", ["FORMAT", "TWICE", "HEADS", "HEAD_EXAMPLES"])
def test_what_decides_predictions_is_in_the_name_of_their_file(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    examples = {"mood": texts(GOLD)}
    preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)
    monkeypatch.setattr(module, setting, getattr(module, setting) + 1)
    preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)

    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_thresholds_take_effect_on_cached_predictions(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = {"mood": texts(GOLD)}
    preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)
    monkeypatch.setattr("teachers.checks.UNIFORM", 0.0)
    (findings,) = preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)

    assert findings.problems == ["its predictions do not depend on the text"]


def _with_other_fields(file: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"values": np.zeros((120, 3), dtype=np.float32), "teacher": np.zeros(1)}, file)


def _with_another_shape(file: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file({**load_file(file), "values": np.zeros((7, 3), dtype=np.float32)}, file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 200),
        lambda file: file.write_text('{"teacher": "t"}'),
        _with_other_fields,
        _with_another_shape,
    ],
    ids=["truncated", "empty", "garbage", "json", "other fields", "another shape"],
)
def test_a_cache_file_that_cannot_be_read_is_made_anew(
    teacher: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    examples = {"mood": texts(GOLD)}
    first = preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    damage(file)

    assert preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False) == first
    assert file.read_bytes() == content
