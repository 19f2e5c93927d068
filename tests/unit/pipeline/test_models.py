"""Model folders: which are taken, which are refused and why; nothing that comes with a model is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from pipeline.errors import TeacherError
from pipeline.models import (
    check_length,
    fingerprint,
    open_config,
    open_model,
    open_tokenizer,
    resolve,
    weights_size,
)
from tests.conftest import Architecture, TinyModel

WHERE = "teachers.movies"


@pytest.fixture
def folder(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A model folder to change."""
    return Path(shutil.copytree(tiny_model("bert", ("bad", "good")), tmp_path / "model"))


def edit_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refusal(model: object) -> TeacherError:
    with pytest.raises(TeacherError) as caught:
        resolve(str(model), None, WHERE)
    assert caught.value.exit_code == 2
    assert caught.value.cause.startswith(f"{WHERE}: ")
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


# ---------------------------------------------------------------- found


def test_a_folder_is_itself(folder: Path) -> None:
    assert resolve(str(folder), None, WHERE) == folder


@pytest.mark.parametrize(
    "model",
    ["somebody/no-such-model", "no-such-model", "/no/such/folder", "./no/such/folder", "not a name!", "../x"],
)
def test_what_is_not_there_is_refused(model: str) -> None:
    # the hub is out of reach in tests, as on a train (FAULTS: teacher not found / offline)
    error = refusal(model)
    assert f"no model {model!r}" in error.cause


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder).cause == f"{WHERE}: {folder} has no config.json"


def test_a_damaged_config_is_named_by_line_and_column(folder: Path) -> None:
    (folder / "config.json").write_text('{\n "model_type": "bert",\n}')
    assert refusal(folder).cause.startswith(f"{WHERE}: {folder / 'config.json'}:3:1: ")


def test_a_folder_that_is_missing_is_answered_with_the_nearest(folder: Path) -> None:
    error = refusal(folder.parent / "modell")
    assert error.cause == f"{WHERE}: no model '{folder.parent / 'modell'}': there is no such folder"
    assert error.remedy.startswith(f"Did you mean {folder}?")


def test_pickled_weights_are_refused(folder: Path) -> None:
    state = {"weight": torch.ones(3)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    error = refusal(folder)
    assert error.cause == f"{WHERE}: {folder} has no safetensors weights"
    assert "pickled weights are refused" in error.remedy


def test_pickled_weights_beside_safe_ones_are_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    before = open_model(AutoModel, resolve(str(folder), None, WHERE)).state_dict()
    assert all(tensor.isfinite().all() for tensor in before.values())


# ---------------------------------------------------------------- nothing of theirs is run


THEIR_CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path({marker!r}).touch()
class Theirs(PretrainedConfig):
    model_type = "theirs"
"""


def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "theirs.py").write_text(THEIR_CODE.format(marker=str(marker)))
    edit_config(folder, model_type="theirs", auto_map={"AutoConfig": "theirs.Theirs"})
    with pytest.raises(TeacherError, match=r"config\.json: ") as caught:
        open_config(folder)
    assert caught.value.remedy.endswith("code that comes with a model is never run.")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no-such-architecture"}', "{}"])
def test_a_config_that_nobody_can_read(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(TeacherError) as caught:
        open_config(folder)
    assert caught.value.cause.startswith(f"{folder / 'config.json'}: ")
    assert "\n" not in caught.value.cause


# ---------------------------------------------------------------- opened


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_models_open_in_fp32_ready_to_answer(
    tiny_model: TinyModel, capfd: pytest.CaptureFixture[str], architecture: Architecture
) -> None:
    folder = tiny_model(architecture, ("bad", "good"))
    model = open_model(AutoModelForSequenceClassification, folder)
    tokenizer = open_tokenizer(folder)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    assert ("token_type_ids" in inputs) == (architecture == "bert")
    assert model(**inputs).logits.shape == (2, 2)
    assert capfd.readouterr().err == ""


def test_other_dtypes_on_request(folder: Path) -> None:
    model = open_model(AutoModel, folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_weights_size(folder: Path) -> None:
    model = open_model(AutoModelForSequenceClassification, folder)
    assert weights_size(folder) == {
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
    }


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_no_more_tokens_than_positions(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, ("bad", "good"), positions=24)
    check_length(folder, 24, WHERE)
    model = open_model(AutoModelForSequenceClassification, folder)
    assert model(input_ids=torch.full((1, 24), 40)).logits.isfinite().all()  # it does take that many
    with pytest.raises(TeacherError) as caught:
        check_length(folder, 25, WHERE)
    assert caught.value.cause == f"{WHERE}: max_length 25 is more than the model's 24 positions"
    assert caught.value.remedy == "Set the task's data.max_length to 24 or less."


# ---------------------------------------------------------------- fingerprint


def test_a_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "README.md").write_text("no part of the model")
    (moved / "pytorch_model.bin").write_bytes(b"nor this")
    assert fingerprint(moved) == before


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_every_file_of_a_model_is_in_its_fingerprint(folder: Path, file: str) -> None:
    before = fingerprint(folder)
    data = bytearray((folder / file).read_bytes())
    data[-2] ^= 1
    (folder / file).write_bytes(bytes(data))
    assert fingerprint(folder) != before


def test_a_file_more_changes_the_fingerprint(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "added_tokens.json").write_text("{}")
    assert fingerprint(folder) != before


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_a_model_without_its_tokenizer_is_refused(
    tiny_model: TinyModel, tmp_path: Path, architecture: Architecture
) -> None:
    # transformers would make up an empty one for most, to which every word is [UNK]
    folder = Path(shutil.copytree(tiny_model(architecture), tmp_path / "model"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TeacherError) as caught:
        open_tokenizer(folder)
    assert caught.value.cause.startswith(f"{folder}: no tokenizer that transformers can open: ")
    assert "\n" not in caught.value.cause


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TeacherError, match="no tokenizer"):
        open_tokenizer(folder)


# ---------------------------------------------------------------- damaged weights


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def overwrite(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)))


def another_size(folder: Path) -> None:
    edit_config(folder, hidden_size=64)


@pytest.mark.parametrize("damage", [cut, overwrite, another_size])
def test_weights_that_cannot_be_loaded_are_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(TeacherError) as caught:
        open_model(AutoModelForSequenceClassification, folder)
    assert caught.value.cause.startswith(f"{folder}: its weights cannot be loaded: ")
    assert "\n" not in caught.value.cause + caught.value.remedy
