"""Which texts of the teachers a student learns, by strategy, out of a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.resolved import TaskAggregation
from pipeline.data.splits import TaskData, read_examples
from pipeline.soft import SoftTargets, Texts
from pipeline.tasks.label_columns import Column
from pipeline.text_arrays import text_array
from pipeline.training.written import WrittenTexts, written_texts
from teachers.forced import forced_pairs
from teachers.store import Store
from tests.tiny_writers import SOURCES, TARGETS, writing_task

KEYS = {"a": "0a", "b": "0b", "c": "0c"}
WRITTEN = {
    "a": [["un chat", "x"], ["un chien", "x"], ["le grand chien", "x"], ["un chat voit", "x"], ["", ""]],
    "b": [["le chat rouge"], ["un chien"], ["grand"], ["un chat voit le"], ["rouge"]],
    "c": [["un chat rouge"], ["chien"], ["le grand chien"], ["chat voit"], ["vert"]],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store, data = Store(str(tmp_path)), data_of()
    for name, rows in WRITTEN.items():
        shape = (len(rows), len(rows[0]))
        texts = Texts(text_array(rows), np.zeros(shape, np.float32), np.ones(shape, np.int32))
        store.append(KEYS[name], SoftTargets(data.splits["train"].keys, texts))
    return store


def data_of(targets: list[Any] | None = None) -> TaskData:
    task = writing_task()
    train = read_examples(task, "train", {"source": Column(SOURCES), "target": Column(targets or TARGETS)})
    return TaskData(task, {"train": train, "validation": train, "test": train})


def written(store: Store, strategy: Any, **weights: float) -> WrittenTexts:
    together = TaskAggregation(strategy, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, **weights})
    return written_texts(data_of(), KEYS, together, 0.6, store)


def test_the_consensus_is_one_text_of_each_source(store: Store) -> None:
    own = written(store, "consensus")
    assert own.shares == (0.6,)
    assert own.texts[0].tolist()[1:3] == ["un chien", "le grand chien"]


def test_the_best_is_the_nearest_to_the_reference(store: Store) -> None:
    assert written(store, "best").texts[0].tolist() == [
        "le chat rouge",
        "un chien",
        "le grand chien",
        "un chat voit le",
        "rouge",
    ]


def test_the_mean_has_every_teachers_first_text_by_its_weight(store: Store) -> None:
    own = written(store, "mean", a=0.5, b=0.5, c=0.0)
    assert own.shares == (0.3, 0.3)
    assert [texts.tolist()[1] for texts in own.texts] == ["un chien", "un chien"]
    assert own.texts[0].tolist()[4] == ""
    assert own.left_out["empty"] == 1


def test_without_a_share_nothing_is_read(tmp_path: Path) -> None:
    together = TaskAggregation("consensus", {"a": 1.0})
    assert written_texts(data_of(), KEYS, together, 0.0, Store(str(tmp_path))) == WrittenTexts()


def test_strategies_of_distributions_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="not made for texts"):
        written(store, "entropy")


def test_teachers_are_forced_along_references_and_all_that_they_wrote(store: Store) -> None:
    targets = [None, *TARGETS[1:]]
    pairs = forced_pairs(data_of(targets), KEYS, store)
    rows = set(zip(pairs.inputs["source"], pairs.inputs["text"], strict=True))
    expected = {(source, target) for source, target in zip(SOURCES, targets, strict=True) if target}
    for texts in WRITTEN.values():
        expected |= {
            (source, text) for source, row in zip(SOURCES, texts, strict=True) for text in row if text
        }
    assert rows == expected
    assert len(pairs) == len(expected), "each pair once"
