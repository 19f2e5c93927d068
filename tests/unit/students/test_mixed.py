"""One student that writes, classifies and tags over one encoder; each folder opens with transformers and gives its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.tasks import Task
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from pipeline.training.step import predict
from students.export import save_task
from students.student import build_student
from tests.conftest import TinyModel
from tests.tiny_writers import FAMILIES, SOURCES, writer, writing_task

torch.set_num_threads(1)
MOVIES = text_classification("movies", ("no", "yes"), 32, "accuracy")
ENTITIES = token_classification("entities", ("O", "B-X", "I-X"), 32, "f1")
INPUTS: dict[str, dict[str, Any]] = {
    "movies": {"text": SOURCES},
    "entities": {"words": [source.split() for source in SOURCES]},
    "translate": {"source": SOURCES},
}
CLASSIFIERS = ("t5", "bart", "mbart", "encoder-decoder")
TAGGERS = ("t5", "encoder-decoder")


def check_folders(folder: Path, tasks: list[Task], to: Path) -> None:
    student, words = build_student(folder, tasks, dropout=0.0), open_tokenizer(folder)
    for name, task in student.tasks.items():
        save_task(student, name, words, to / name)
        saved, _ = Predictor(to / name, task).predict(INPUTS[name])
        own = predict(student, task, task.head.encode(words, INPUTS[name]), 4096, tokenizer=words)
        assert np.array_equal(saved.values, own), name


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_student_writes_and_classifies(tmp_path: Path, family: str) -> None:
    check_folders(writer(family, tmp_path / "start"), [MOVIES, writing_task()], tmp_path)


@pytest.mark.parametrize("family", TAGGERS)
def test_a_student_writes_and_tags(tmp_path: Path, family: str) -> None:
    check_folders(writer(family, tmp_path / "start"), [writing_task(beams=2), ENTITIES], tmp_path)


@pytest.mark.parametrize("family", TAGGERS)
def test_a_mixed_student_goes_on_with_all_its_heads(tmp_path: Path, family: str) -> None:
    folder = writer(family, tmp_path / "start")
    tasks = [writing_task(), ENTITIES]
    first = build_student(folder, tasks, seed=3)
    for name in first.tasks:
        save_task(first, name, open_tokenizer(folder), tmp_path / name)
    trained = {name: tmp_path / name for name in first.tasks}
    again = build_student(tmp_path / "translate", tasks, seed=8, trained=trained)
    own, other = again.state_dict(), first.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_tasks_share_one_encoder(tmp_path: Path) -> None:
    folder = writer("t5", tmp_path)
    alone = sum(p.numel() for p in build_student(folder, [writing_task()]).parameters())
    mixed = build_student(folder, [writing_task(), MOVIES, ENTITIES])
    heads = sum(p.numel() for p in mixed.parameters()) - alone
    assert 0 < heads < alone / 10
    models = [mixed.model(name) for name in mixed.tasks]
    assert len({id(next(model.get_encoder().parameters())) for model in models[:2]}) == 1


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(CLASSIFIERS)))
def test_a_family_without_such_a_model_is_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(ConfigError, match="transformers has no ForSequenceClassification"):
        build_student(writer(family, tmp_path), [writing_task(), MOVIES])


def test_an_encoder_gets_a_decoder(tmp_path: Path, tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", layers=2)
    student = build_student(folder, [writing_task()], dropout=0.0, seed=3)
    again = build_student(folder, [writing_task()], dropout=0.0, seed=3)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    check_folders(folder, [writing_task(), MOVIES], tmp_path)


def test_an_encoder_that_has_no_decoder_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigError, match="no decoder"):
        build_student(tiny_model("distilbert"), [writing_task()])
