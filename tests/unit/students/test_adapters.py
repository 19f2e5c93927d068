"""Adapters: they add nothing at first, they alone train, and what is saved has their sums in plain weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config.adapters import LoraConfig
from pipeline.config.kinds import SEQUENCE_TO_SEQUENCE, TEXT_CLASSIFICATION, TEXT_GENERATION
from pipeline.errors import ConfigError
from pipeline.models import open_tokenizer
from pipeline.tasks.text_classification import text_classification
from students.adapters import check_adapters, merge_adapters
from students.student import MultiTaskStudent, build_student
from tests.tiny_speech import speech_task, whisper
from tests.tiny_writers import DECODERS, FAMILIES, prompt_task, writer, writing_task
from tests.unit.students.conftest import ARCHITECTURES, FolderOf

MOOD = text_classification("mood", ("bad", "good"), 32, "accuracy")
TEXTS = ("a very good film", "this plot is even and rather plain but long")
LORA = LoraConfig(rank=2, alpha=4)


def trained_names(student: MultiTaskStudent) -> set[str]:
    return {name for name, one in student.named_parameters() if one.requires_grad}


def disturb(student: MultiTaskStudent) -> None:
    """Gives the adapters something to add."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_start_at_nothing_train_alone_and_end_in_plain_weights(
    folder_of: FolderOf, architecture: str
) -> None:
    folder = folder_of(architecture)
    plain, student = build_student(folder, [MOOD]), build_student(folder, [MOOD], lora=LORA)
    inputs = dict(open_tokenizer(folder)(list(TEXTS), padding=True, return_tensors="pt"))
    answer = student("mood", inputs).logits.detach()
    torch.testing.assert_close(answer, plain("mood", inputs).logits)
    encoder = {name for name in trained_names(student) if name.startswith("encoder.")}
    assert any("lora_A" in name for name in encoder)
    assert all("lora_" in name or "pooler" in name for name in encoder)
    assert trained_names(student) - encoder, "the head trains whole"
    disturb(student)
    changed = student("mood", inputs).logits.detach()
    assert not torch.allclose(changed, answer)
    merge_adapters(student.encoder)
    torch.testing.assert_close(student("mood", inputs).logits, changed)
    assert trained_names(student) >= trained_names(plain)
    assert student.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("family", [*(one for one in FAMILIES if one != "encoder-decoder"), *DECODERS])
def test_a_model_that_writes_keeps_its_vocabulary(tmp_path: Path, family: str) -> None:
    task = prompt_task() if family in DECODERS else writing_task()
    student = build_student(writer(family, tmp_path), [task], lora=LORA)
    names = trained_names(student)
    assert names
    assert all("lora_" in name for name in names)
    head: Tensor = student.encoder.get_output_embeddings().weight
    assert not head.requires_grad
    disturb(student)
    merge_adapters(student.encoder)
    assert not [name for name in student.state_dict() if "lora" in name or "base_layer" in name]


def test_a_model_of_speech_keeps_its_vocabulary(tmp_path: Path) -> None:
    student = build_student(whisper(tmp_path), [speech_task()], lora=LORA)
    names = trained_names(student)
    assert names
    assert all("lora_" in name for name in names)
    merge_adapters(student.encoder)
    assert not [name for name in student.state_dict() if "lora" in name or "base_layer" in name]


def test_named_modules_alone_have_adapters(folder_of: FolderOf) -> None:
    lora = LoraConfig(rank=2, modules=("query", "value"))
    student = build_student(folder_of("bert"), [MOOD], lora=lora)
    adapted = {name.split(".lora_")[0] for name in trained_names(student) if ".lora_" in name}
    assert adapted
    assert all(name.endswith((".query", ".value")) for name in adapted)


def test_the_seed_draws_heads_as_without_adapters(folder_of: FolderOf) -> None:
    plain = build_student(folder_of("bert"), [MOOD], seed=3)
    student = build_student(folder_of("bert"), [MOOD], seed=3, lora=LORA)
    assert torch.equal(student.model("mood").classifier.weight, plain.model("mood").classifier.weight)
    again = build_student(folder_of("bert"), [MOOD], seed=3, lora=LORA)
    for a, b in zip(student.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_have_adapters_is_refused_before_anything_starts(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, where = folder_of("bert"), "students.small: train.lora"
    check_adapters(folder, LORA, [TEXT_CLASSIFICATION], where)
    with pytest.raises(ConfigError, match=r"modules: a BertModel has no linear map 'q_proj'") as error:
        check_adapters(folder, LoraConfig(modules=("q_proj",)), [TEXT_CLASSIFICATION], where)
    assert "query" in error.value.remedy
    with pytest.raises(ConfigError, match="starts from nothing"):
        check_adapters(folder, LORA, [SEQUENCE_TO_SEQUENCE], where)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs peft") as error:
        check_adapters(folder, LORA, [TEXT_GENERATION], where)
    assert "[lora]" in error.value.remedy
