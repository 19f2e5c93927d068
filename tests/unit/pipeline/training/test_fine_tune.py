"""Base model → teacher: named by what made it, a plain folder, resumed to the same bits."""

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

from pipeline.batch import UNLABELLED, Ragged
from pipeline.config.adapters import LoraConfig
from pipeline.config.recipe import Patience, TeacherRecipe
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import TaskData, load_task
from pipeline.predictor import Predictor
from pipeline.tasks.text_classification import text_classification
from pipeline.training import fine_tune as fine_tuning
from pipeline.training.fine_tune import TEACHER, WORK, fine_tune, is_finished, teacher_folder
from pipeline.training.log import METRICS, read_metrics
from tests.conftest import CsvTask, TinyModel
from tests.unit.pipeline.small_training import StopAfter

CONFIG = TeacherRecipe(
    epochs=3,
    learning_rate=2e-3,
    head_learning_rate=2e-3,
    batch_size=16,
    dropout=0.1,
    seed=3,
    precision="fp32",
    early_stopping=Patience(patience=2),
)


@pytest.fixture
def data(csv_task: CsvTask) -> TaskData:
    return load_task("mood", TaskConfig.model_validate(csv_task()))


# ---------------------------------------------------------------- the folder's name


def test_the_name_is_the_same_for_the_same(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    base = tiny_model("bert")
    folder = teacher_folder(tmp_path, "critic", base, data, CONFIG)
    assert folder.parent == tmp_path
    assert folder.name.startswith("critic-")
    copied = shutil.copytree(base, tmp_path / "elsewhere")
    (copied / "README.md").write_text("the same model")
    assert teacher_folder(tmp_path, "critic", copied, data, CONFIG) == folder
    assert teacher_folder(tmp_path, "other", base, data, CONFIG).name == folder.name.replace(
        "critic", "other"
    )


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"learning_rate": 1e-3}, True),
        ({"epochs": 2}, True),
        ({"seed": 4}, True),
        ({"early_stopping": None}, True),
        ({"dropout": None}, True),
        ({"batch_size": 8}, True),
        ({"lora": LoraConfig(rank=2)}, True),
        ({"checkpoint_steps": 7}, False),
    ],
)
def test_the_name_follows_the_config(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path, change: dict[str, Any], another: bool
) -> None:
    name = teacher_folder(tmp_path, "critic", tiny_model("bert"), data, CONFIG).name
    changed = teacher_folder(tmp_path, "critic", tiny_model("bert"), data, CONFIG.model_copy(update=change))
    assert (changed.name != name) == another


def with_split(data: TaskData, split: Any, **changes: Any) -> TaskData:
    return replace(data, splits={**data.splits, split: replace(data.splits[split], **changes)})


def turned(labels: Ragged) -> Ragged:
    return Ragged.single(1 - labels.values)


DATA: dict[str, tuple[Callable[[TaskData], TaskData], bool]] = {
    "a label of train": (
        lambda d: with_split(d, "train", labels=turned(d.splits["train"].labels)),
        True,
    ),
    "a text of validation": (
        lambda d: with_split(d, "validation", keys=d.splits["validation"].keys + np.uint64(1)),
        True,
    ),
    "one example less": (
        lambda d: replace(d, splits={**d.splits, "train": d.splits["train"].take(np.arange(40))}),
        True,
    ),
    "order of train": (
        lambda d: replace(d, splits={**d.splits, "train": d.splits["train"].take(np.arange(48)[::-1])}),
        True,
    ),
    "label names": (lambda d: replace(d, task=text_classification(d.task.name, ("poor", "fine"), 32)), True),
    "max_length": (
        lambda d: replace(d, task=text_classification(d.task.name, d.task.reading.labels, 30)),
        True,
    ),
    "test": (lambda d: with_split(d, "test", labels=turned(d.splits["test"].labels)), False),
    "task's name": (lambda d: replace(d, task=replace(d.task, name="other")), False),
}


@pytest.mark.parametrize("change", DATA)
def test_the_name_follows_the_data(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path, change: str
) -> None:
    changed, another = DATA[change]
    base = tiny_model("bert")
    before = teacher_folder(tmp_path, "critic", base, data, CONFIG)
    assert (teacher_folder(tmp_path, "critic", base, changed(data), CONFIG) != before) == another


def test_the_name_follows_a_length_of_its_own(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    names = [teacher_folder(tmp_path, "critic", tiny_model("bert"), data, CONFIG, n) for n in (None, 32, 20)]
    assert names[0] == names[1] != names[2]


def without_some_labels(data: TaskData) -> TaskData:
    """The last 20 examples of train lose their label."""
    labels = data.splits["train"].labels.values.copy()
    labels[-20:] = UNLABELLED
    return with_split(data, "train", labels=Ragged.single(labels))


def test_examples_without_labels_make_no_other_teacher(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path
) -> None:
    fewer = replace(data, splits={**data.splits, "train": data.splits["train"].take(np.arange(28))})
    folders = [
        teacher_folder(tmp_path, "critic", tiny_model("bert"), each, CONFIG)
        for each in (fewer, without_some_labels(data))
    ]
    assert folders[0] == folders[1]
    config = CONFIG.model_copy(update={"epochs": 1})
    for each, folder in ((fewer, "fewer"), (without_some_labels(data), "some")):
        fine_tune(tiny_model("bert"), each, config, tmp_path / folder)
    one, other = (tmp_path / name / TEACHER / "model.safetensors" for name in ("fewer", "some"))
    assert one.read_bytes() == other.read_bytes()


def test_a_length_of_its_own_cuts_the_texts(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    fine_tune(tiny_model("bert"), data, config, tmp_path, max_length=6)
    longer = sum(len(text.split()) > 4 for text in data.splits["train"].inputs["text"])
    assert json.loads((tmp_path / "fine_tune.json").read_text())["truncated"] == longer > 0


def test_the_name_follows_the_base(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    names = {
        teacher_folder(tmp_path, "critic", base, data, CONFIG)
        for base in (tiny_model("bert"), tiny_model("bert", seed=1), tiny_model("distilbert"))
    }
    assert len(names) == 3


# ---------------------------------------------------------------- the teacher


@pytest.mark.parametrize("base", ["bare", "a classifier of three other labels"])
def test_a_teacher_is_a_plain_folder_that_has_learnt(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path, base: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "critic"
    model = tiny_model("bert", None if base == "bare" else ("x", "y", "z"))
    changes = {"epochs": 15, "learning_rate": 5e-3, "dropout": 0.0, "batch_size": 8}
    config = CONFIG.model_copy(update={**changes, "early_stopping": None})
    assert not is_finished(folder)
    progress = fine_tune(model, data, config, folder)
    assert is_finished(folder)
    opened, info = AutoModelForSequenceClassification.from_pretrained(
        folder / TEACHER, output_loading_info=True
    )
    assert not any(info.values())
    assert opened.config.id2label == {0: "bad", 1: "good"}
    assert progress.best_score > 0.8
    test = data.splits["test"]
    logits, _ = Predictor(folder / TEACHER, data.task).predict(test.inputs)
    assert (logits.values.argmax(1) == test.labels.values).mean() > 0.8
    facts = json.loads((folder / "fine_tune.json").read_text())
    assert facts["validation_score"] == progress.best_score
    assert facts["steps"] == progress.step
    assert facts["config"] == config.model_dump(mode="json")


def test_a_teacher_made_by_adapters_is_a_plain_folder(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    changes = {"epochs": 40, "learning_rate": 3e-3, "dropout": 0.0, "batch_size": 8, "early_stopping": None}
    config = CONFIG.model_copy(update={**changes, "lora": LoraConfig(rank=16)})
    progress = fine_tune(tiny_model("bert"), data, config, tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / TEACHER, output_loading_info=True
    )
    assert not any(info.values())
    assert progress.best_score > 0.8
    before = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert")).bert
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before.embeddings.word_embeddings.weight)
    query = "encoder.layer.0.attention.self.query"
    assert not torch.equal(model.bert.get_submodule(query).weight, before.get_submodule(query).weight)
    validation = data.splits["validation"]
    logits, _ = Predictor(tmp_path / TEACHER, data.task).predict(validation.inputs)
    assert (logits.values.argmax(1) == validation.labels.values).mean() == progress.best_score


def test_only_what_is_needed_stays(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    folder = tmp_path / "critic"
    fine_tune(tiny_model("bert"), data, CONFIG, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["fine_tune.json", TEACHER, WORK]
    assert [path.name for path in (folder / WORK).iterdir()] == [METRICS]
    assert {"mood/accuracy", "loss/hard/mood"} <= {
        name for line in read_metrics(folder / WORK / METRICS) for name in line["metrics"]
    }


def flip(folder: Path) -> None:
    file = folder / TEACHER / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose_the_tokenizer(folder: Path) -> None:
    (folder / TEACHER / "tokenizer.json").unlink()


def cut_the_facts(folder: Path) -> None:
    file = folder / "fine_tune.json"
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize("damage", [flip, lose_the_tokenizer, cut_the_facts])
def test_a_damaged_teacher_is_set_aside_and_made_anew(
    tiny_model: TinyModel,
    data: TaskData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    config, folder = CONFIG.model_copy(update={"epochs": 1}), tmp_path / "critic"
    fine_tune(tiny_model("bert"), data, config, folder)
    assert is_finished(folder)
    before = {file.name: file.read_bytes() for file in (folder / TEACHER).iterdir()}
    damage(folder)
    damaged = {file.name: file.read_bytes() for file in (folder / TEACHER).iterdir()}
    assert not is_finished(folder)
    assert not is_finished(folder)
    (warning,) = caplog.messages
    assert str(folder) in warning
    assert "made anew" in warning
    fine_tune(tiny_model("bert"), data, config, folder)
    assert is_finished(folder)
    assert {file.name: file.read_bytes() for file in (folder / TEACHER).iterdir()} == before
    assert {file.name: file.read_bytes() for file in (folder / "teacher.corrupt").iterdir()} == damaged


def test_a_cut_text_is_counted(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    short = text_classification(data.task.name, data.task.reading.labels, 6)
    fine_tune(
        tiny_model("bert"), replace(data, task=short), CONFIG.model_copy(update={"epochs": 1}), tmp_path
    )
    longer = sum(len(text.split()) > 4 for text in data.splits["train"].inputs["text"])
    assert json.loads((tmp_path / "fine_tune.json").read_text())["truncated"] == longer > 0


def test_an_interrupted_fine_tuning_ends_in_the_same_teacher(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path
) -> None:
    base, interrupted = tiny_model("distilbert"), tmp_path / "interrupted"
    whole = fine_tune(base, data, CONFIG, tmp_path / "whole")
    for calls in (2, 3):
        progress = fine_tune(base, data, CONFIG, interrupted, should_stop=StopAfter(calls))
        assert progress.status == "interrupted"
        assert not is_finished(interrupted)
        torch.rand(calls)
    more_often = CONFIG.model_copy(update={"checkpoint_steps": 2})
    resumed = fine_tune(base, data, more_often, interrupted)
    assert (resumed.step, resumed.best_score) == (whole.step, whole.best_score)
    for file in (tmp_path / "whole" / TEACHER).iterdir():
        assert (interrupted / TEACHER / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_kill_after_training_and_before_the_save_loses_nothing(
    tiny_model: TinyModel, data: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    base = tiny_model("bert")
    fine_tune(base, data, CONFIG, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "save_task", killed)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(base, data, CONFIG, tmp_path / "killed")
    assert not is_finished(tmp_path / "killed")

    def no_step() -> bool:
        pytest.fail("took a step")

    fine_tune(base, data, CONFIG, tmp_path / "killed", should_stop=no_step)
    whole, killed_file = (tmp_path / name / TEACHER / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed_file.read_bytes()


def test_the_seed_decides_the_teacher(tiny_model: TinyModel, data: TaskData, tmp_path: Path) -> None:
    weights = []
    for folder, seed in (("first", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(len(folder) + seed)
        config = CONFIG.model_copy(update={"epochs": 1, "seed": seed})
        fine_tune(tiny_model("bert"), data, config, tmp_path / folder)
        weights.append((tmp_path / folder / TEACHER / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
