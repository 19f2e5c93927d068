"""Random heads on a real model: the encoder runs once, the heads differ, the same ones come again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from students.export import save_task
from students.student import build_student
from teachers.random_heads import HEAD_EXAMPLES, HEADS, random_head_scores
from tests.conftest import Architecture, TinyModel
from tests.unit.teachers.preflight_samples import ENTITIES, tags

SAMPLE = tags(0, 130)[0]


@pytest.fixture(params=["bert", "distilbert", "modernbert"])
def teacher(request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path: Path) -> Predictor:
    architecture: Architecture = request.param
    base = tiny_model(architecture)
    save_task(build_student(base, [ENTITIES]), "entities", open_tokenizer(base), tmp_path / "teacher")
    return Predictor(tmp_path / "teacher", ENTITIES, tokens_per_forward=1024)


def test_heads_differ_and_come_again(teacher: Predictor) -> None:
    scores = random_head_scores(teacher, SAMPLE)

    assert scores.shape == (HEADS,)
    assert len(np.unique(scores)) > 2
    assert (scores < 0.3).all()
    assert random_head_scores(teacher, SAMPLE).tolist() == scores.tolist()


def test_the_encoder_runs_once_and_is_as_before(teacher: Predictor) -> None:
    encoder = getattr(teacher.model, teacher.model.base_model_prefix)
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    rows = []
    encoder.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["attention_mask"])), with_kwargs=True
    )
    random_head_scores(teacher, SAMPLE)

    assert sum(rows) == HEAD_EXAMPLES
    assert getattr(teacher.model, teacher.model.base_model_prefix) is encoder
    assert all((weights[name] == tensor).all() for name, tensor in encoder.state_dict().items())


def test_a_model_without_an_encoder_apart_has_no_scores(
    teacher: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(teacher.model), "base_model_prefix", "")

    assert random_head_scores(teacher, SAMPLE).shape == (0,)
