"""Variants by translation there and back: whole texts, each translated once, never an answer or a tagged word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.augment.back_translation import BackTranslation, check_translators
from pipeline.augment.make import augmented
from pipeline.config.data import AugmentConfig, BackTranslationConfig
from pipeline.config.kinds import QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from pipeline.data.splits import TaskData, read_examples
from pipeline.errors import ConfigError, TeacherError
from pipeline.predictor import Predictor
from pipeline.tasks.label_columns import Column
from pipeline.tasks.text_classification import text_classification
from tests.conftest import TinyModel
from tests.tiny_writers import SOURCES, writer, writing_task

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("translators")
    return writer("t5", root / "there"), writer("bart", root / "back", seed=4)


def config(models: tuple[Path, Path], **changes: Any) -> BackTranslationConfig:
    there, back = map(str, models)
    settings = {"there": there, "back": back, "beams": 2, "max_length": 12, "variants": 2, **changes}
    return BackTranslationConfig(**settings)


def test_a_text_goes_there_and_back(models: tuple[Path, Path], tmp_path: Path) -> None:
    forms, asked, _ = BackTranslation(config(models), tmp_path, "augment").of([*SOURCES, SOURCES[0]])
    assert asked == len(SOURCES), "each text once"
    assert forms[0] == forms[-1]
    there = Predictor(models[0], writing_task(12, 12, beams=2)).predict({"source": SOURCES})[0]
    pivots = [text or "." for text in there.values[:, 0].tolist()]
    back = Predictor(models[1], writing_task(12, 12, beams=2, candidates=2)).predict({"source": pivots})[0]
    assert forms[:-1] == back.values.tolist()


def test_what_was_translated_is_not_translated_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    first = BackTranslation(config(models), tmp_path, "augment").of(SOURCES)[0]
    forms, asked, _ = BackTranslation(config(models), tmp_path, "augment").of(SOURCES)
    assert (forms, asked) == (first, 0)
    assert BackTranslation(config(models, beams=3), tmp_path, "augment").of(SOURCES)[1] == len(SOURCES)


def test_an_interruption_keeps_what_is_done(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.augment.back_translation.CHUNK", 2)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BackTranslation(config(models), tmp_path, "augment", check=check).of(SOURCES)
    assert BackTranslation(config(models), tmp_path, "augment").of(SOURCES)[1] == len(SOURCES) - 4


def test_variants_join_train_without_labels(models: tuple[Path, Path], tmp_path: Path) -> None:
    task = text_classification("mood", ("no", "yes"), 32, "accuracy")
    columns = {"text": Column(SOURCES), "label": Column(["no", "yes", "no", "yes", "no"])}
    train = read_examples(task, "train", columns)
    other = read_examples(task, "test", {"text": Column(["zz"]), "label": Column(["no"])})
    data = TaskData(task, {"train": train, "validation": other, "test": other})
    settings = config(models)
    method = BackTranslation(settings, tmp_path, "augment")
    made = augmented(data, AugmentConfig(back_translation=settings), [method])
    new = made.splits["train"].take(np.arange(len(train), len(made.splits["train"])))
    forms = {form for own in method.of(SOURCES)[0] for form in own}
    assert set(new.inputs["text"]) <= forms
    assert not task.reading.labelled(new.labels).any()
    record = made.variants["back_translation"]
    assert record.count == len(new)
    assert record.count + sum(record.dropped.values()) == 2 * len(SOURCES)


def test_kinds_and_models_that_do_not_fit_are_refused(
    models: tuple[Path, Path], tiny_model: TinyModel
) -> None:
    for kind in (TEXT_CLASSIFICATION, QUESTION_ANSWERING):
        check_translators(config(models), "augment", kind)
    with pytest.raises(ConfigError, match="are of words"):
        check_translators(config(models), "augment", TOKEN_CLASSIFICATION)
    with pytest.raises(TeacherError, match=r"augment\.back"):
        check_translators(
            config(models, back=str(tiny_model("bert", ("a", "b")))), "augment", TEXT_CLASSIFICATION
        )
    with pytest.raises(TeacherError, match="there is no such folder"):
        check_translators(config(models, there="./nowhere"), "augment", TEXT_CLASSIFICATION)
