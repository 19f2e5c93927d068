"""Saved students: plain transformers opens them and says what the student says."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.kinds import TEXT_CLASSIFICATION
from pipeline.errors import ConfigError, DataError
from pipeline.models import open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.text_classification import text_classification
from pipeline.training.step import predict
from students.export import export_onnx, save_task
from students.student import MultiTaskStudent, build_student
from tests.conftest import texts_of
from tests.unit.students.conftest import ARCHITECTURES, FolderOf

MOOD = text_classification("mood", ("bad", "good"), 32, "accuracy")
TONE = text_classification("tone.v2", ("bad", "good", "plain"), 32, "accuracy")
TEXTS = texts_of(0, 4) + texts_of(1, 4) + ["word " * 60]
ONNX = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def trained(folder_of: FolderOf) -> Callable[[str], tuple[MultiTaskStudent, Any]]:
    """Factory: architecture → a student cut to two layers of four, no longer as it was initialised, and its tokenizer."""
    made: dict[str, tuple[MultiTaskStudent, Any]] = {}

    def make(architecture: str) -> tuple[MultiTaskStudent, Any]:
        if architecture not in made:
            folder = folder_of(architecture, layers=4)
            student = build_student(folder, (MOOD, TONE), layers=(0, 2), dropout=0.2)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            made[architecture] = student, open_tokenizer(folder)
        return made[architecture]

    return make


def probabilities(student: MultiTaskStudent, task: Task, tokenizer: Any) -> Tensor:
    """What the student itself says about `TEXTS`."""
    encoded = task.head.encode(tokenizer, {"text": TEXTS})
    return torch.from_numpy(predict(student, task, encoded, 100)).softmax(-1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", [MOOD, TONE], ids=lambda task: str(task.name))
def test_transformers_says_what_the_student_says(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]],
    tmp_path: Path,
    architecture: str,
    task: Task,
) -> None:
    from transformers import AutoModelForSequenceClassification, pipeline

    student, tokenizer = trained(architecture)
    folder = tmp_path / "students" / task.name
    save_task(student, task.name, tokenizer, folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or of another shape
    assert model.config.architectures == [type(model).__name__]
    answer: Any = pipeline(
        "text-classification", str(folder), top_k=None, truncation=True, max_length=task.head.max_length
    )
    answers = [{each["label"]: each["score"] for each in row} for row in answer(TEXTS)]
    expected = probabilities(student, task, tokenizer)
    assert {label for row in answers for label in row} == set(task.reading.labels)
    np.testing.assert_allclose(
        [[row[label] for label in task.reading.labels] for row in answers], expected, atol=1e-5, rtol=0
    )


def test_a_folder_holds_one_task_and_no_other_head(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], tmp_path: Path
) -> None:
    from safetensors import safe_open

    student, tokenizer = trained("roberta")
    save_task(student, "mood", tokenizer, tmp_path / "mood")
    assert {file.name for file in (tmp_path / "mood").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with safe_open(tmp_path / "mood" / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    assert "roberta.pooler.dense.weight" not in names  # the shared encoder has it, this class does not
    assert sum(tensor.numel() for tensor in student.model("mood").state_dict().values()) > 0
    assert {name.split(".")[0] for name in names} == {"roberta", "classifier"}


def test_a_folder_is_replaced_whole(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "mood"
    folder.mkdir()
    (folder / "model.onnx").write_text("of an older student")
    (tmp_path / ".mood.part").mkdir()
    (tmp_path / ".mood.part" / "stale").touch()  # a killed save
    (tmp_path / "tone.v2").mkdir()
    for architecture in ("bert", "distilbert"):
        student, tokenizer = trained(architecture)
        save_task(student, "mood", tokenizer, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mood", "tone.v2"]
    assert not (folder / "model.onnx").exists()
    assert '"distilbert"' in (folder / "config.json").read_text()


def test_a_save_that_fails_leaves_the_old_folder(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], tmp_path: Path
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no room")

    student, tokenizer = trained("bert")
    folder = tmp_path / "mood"
    save_task(student, "mood", tokenizer, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(OSError, match="no room"):
        save_task(student, "tone.v2", SimpleNamespace(save_pretrained=fail), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_saving_changes_nothing_in_the_student(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], tmp_path: Path
) -> None:
    student, tokenizer = trained("bert")
    before = probabilities(student, TONE, tokenizer)
    for task in (MOOD, TONE, MOOD):
        save_task(student, task.name, tokenizer, tmp_path / task.name)
    assert torch.equal(probabilities(student, TONE, tokenizer), before)
    assert student.model("mood").bert is student.model("tone.v2").bert


# ---------------------------------------------------------------- ONNX


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ONNX), reason="no ONNX: pip install -e '.[onnx]'"
)
def test_onnx_says_what_the_student_says(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], tmp_path: Path
) -> None:
    import onnxruntime

    student, tokenizer = trained("bert")
    save_task(student, "tone.v2", tokenizer, tmp_path / "tone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        assert export_onnx(tmp_path / "tone", TEXT_CLASSIFICATION, tmp_path / "onnx") < 1e-5
    session = onnxruntime.InferenceSession(
        str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    expected = probabilities(student, TONE, tokenizer)
    encoded = TONE.head.encode(tokenizer, {"text": TEXTS})
    for rows in (np.arange(1), np.arange(5), np.array([8])):  # other batch sizes and lengths than exported
        (logits,) = session.run(["logits"], encoded.pad(rows).inputs)
        exported = torch.from_numpy(logits).softmax(-1)
        torch.testing.assert_close(exported, expected[torch.from_numpy(rows)], atol=1e-5, rtol=0)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These of the extra's packages and no others."""
    find = importlib.util.find_spec

    def pretend(name: str, package: str | None = None) -> Any:
        return (name if name in names else None) if name in ONNX else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", pretend)


def test_onnx_without_the_extra_is_a_config_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_installed(monkeypatch, "onnx", "onnxruntime")
    with pytest.raises(ConfigError) as error:
        export_onnx(tmp_path, TEXT_CLASSIFICATION, tmp_path / "onnx")
    assert error.value.cause == "--onnx needs onnxscript"
    assert "[onnx]" in error.value.remedy
    assert not (tmp_path / "onnx").exists()


def test_onnx_that_disagrees_is_an_error(
    trained: Callable[[str], tuple[MultiTaskStudent, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Session:
        """An ONNX Runtime that computes something else."""

        def __init__(self, file: str, providers: list[str]) -> None: ...

        def run(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
            return [np.full((2, 2), 7.0, dtype=np.float32)]

    student, tokenizer = trained("bert")
    save_task(student, "mood", tokenizer, tmp_path / "mood")
    pretend_installed(monkeypatch, *ONNX)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: None)
    with pytest.raises(DataError, match="outputs differ by"):
        export_onnx(tmp_path / "mood", TEXT_CLASSIFICATION, tmp_path / "onnx")
