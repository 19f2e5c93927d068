"""What a student learns from itself in the round before, out of a real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.load import parse_config
from pipeline.config.resolved import TaskAggregation, student_settings
from pipeline.data.splits import TaskData, read_examples
from pipeline.soft import SoftTargets, Texts
from pipeline.tasks.label_columns import Column
from pipeline.text_arrays import text_array
from pipeline.training.own import EMPTY, OWN, Before, goes_on, with_own_teacher, with_own_texts
from pipeline.training.written import WrittenTexts
from teachers.forced import forced_pairs
from teachers.store import Store
from tests.conftest import TinyRun
from tests.tiny_writers import SOURCES, TARGETS, writing_task
from tests.unit.pipeline.facts import facts_of

LOOP = "le chat un " * 4
MINE = ["un", "", LOOP, TARGETS[3], " "]


@pytest.fixture
def data() -> TaskData:
    task = writing_task()
    train = read_examples(task, "train", {"source": Column(SOURCES), "target": Column(TARGETS)})
    return TaskData(task, {"train": train, "validation": train, "test": train})


@pytest.fixture
def store(tmp_path: Path, data: TaskData) -> Store:
    store, rows = Store(str(tmp_path)), [[text] for text in MINE]
    texts = Texts(text_array(rows), np.zeros((5, 1), np.float32), np.ones((5, 1), np.int32))
    store.append("0a", SoftTargets(data.splits["train"].keys, texts))
    return store


def test_own_texts_take_their_share_of_all_others(store: Store, data: TaskData) -> None:
    teachers = WrittenTexts((text_array(TARGETS),), (0.5,), {"empty": 2})
    own = with_own_texts(teachers, data, "0a", 0.4, store)
    assert own.own
    assert own.shares == pytest.approx((0.3, 0.4)), "references keep the other 0.3"
    assert own.left_out == {"empty": 2, EMPTY: 2}


def test_a_looping_own_text_is_learnt_since_its_teachers_say_what_is_wrong(
    store: Store, data: TaskData
) -> None:
    own = with_own_texts(WrittenTexts(), data, "0a", 0.5, store)
    assert own.texts[-1].tolist() == ["un", "", LOOP, TARGETS[3], ""]


def test_teachers_are_forced_along_own_texts_too(store: Store, data: TaskData) -> None:
    texts = forced_pairs(data, {"small before": "0a"}, store).inputs["text"]
    assert set(texts) >= {*TARGETS, "un", LOOP}
    assert len(texts) == len(TARGETS) + 3, "one is a reference, one is empty"


def test_the_student_before_has_its_weight_among_the_teachers() -> None:
    together = TaskAggregation("confidence", {"a": 0.75, "b": 0.25})
    own = with_own_teacher(together, 0.2)
    assert own.strategy == "confidence"
    assert own.weights == pytest.approx({"a": 0.6, "b": 0.2, OWN: 0.2})
    assert list(own.weights)[-1] == OWN
    assert with_own_teacher(together, 1.0).weights == {"a": 0, "b": 0, OWN: 1}


def test_only_one_with_a_model_to_start_from_goes_on(tiny_run: TinyRun) -> None:
    config = parse_config(tiny_run())
    settings = student_settings(config, "cut", facts_of(config))
    assert goes_on(settings, None) is settings
    assert goes_on(settings, Before({}, 0.5)) is settings
    after = goes_on(settings, Before({"mood": "there", "tone": "here"}, 0.5))
    assert (after.init_from, after.model, after.layers) == (None, "there", None)
    assert replace(after, init_from="mood-bert", model=None, layers=1) == settings
