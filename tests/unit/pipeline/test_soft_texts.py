"""Texts in the store: what was written for an example is read back for that example, whatever shard it is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import content_keys
from pipeline.errors import BadTargetsError, TeacherError
from pipeline.soft import Candidates, SoftTargets, Texts, join_soft, space_fields, space_of
from pipeline.text_arrays import text_array
from teachers.store import Store

TEACHER = "0a1b2c"


def keys(*numbers: int) -> np.ndarray:
    return content_keys("sequence-to-sequence", {"source": [f"source {i}" for i in numbers]})


def texts(*numbers: int, candidates: int = 2) -> Texts:
    rows = [[f"text {i}, candidate {c}" for c in range(candidates)] for i in numbers]
    shape = (len(numbers), candidates)
    scores = -np.arange(1, 1 + len(numbers) * candidates, dtype=np.float32).reshape(shape)
    return Texts(text_array(rows), scores, np.full(shape, 3, dtype=np.int32))


def test_texts_are_read_back_by_key(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(TEACHER, SoftTargets(keys(0, 1, 2), texts(0, 1, 2)))
    store.append(TEACHER, SoftTargets(keys(5, 4), texts(5, 4)))
    view = Store(str(tmp_path)).view(TEACHER, keys(4, 0), None)
    read = view.gather(keys(4, 0, 4))
    assert isinstance(read, Texts)
    assert read.values[:, 1].tolist() == [f"text {i}, candidate 1" for i in (4, 0, 4)]
    assert read.scores.dtype == np.float16
    assert read.lengths.tolist() == [[3, 3]] * 3


def test_texts_survive_compaction(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.append(TEACHER, SoftTargets(keys(0, 1, 2), texts(0, 1, 2)))
    store.append(TEACHER, SoftTargets(keys(5, 4), texts(5, 4)))
    store.compact(TEACHER)
    (entry,) = (tmp_path / TEACHER).glob("shard-*.json")
    read = Store(str(tmp_path)).view(TEACHER, keys(4, 0), None).gather(keys(4, 0, 2, 5))
    assert isinstance(read, Texts), entry
    assert read.values[:, 0].tolist() == [f"text {i}, candidate 0" for i in (4, 0, 2, 5)]


def test_spaces_of_texts_are_told_apart(tmp_path: Path) -> None:
    assert space_of(space_fields(Candidates(3))) == Candidates(3)
    store = Store(str(tmp_path))
    store.append(TEACHER, SoftTargets(keys(0), texts(0)))
    with pytest.raises(TeacherError, match="2 texts an example, not 3 texts"):
        store.append(TEACHER, SoftTargets(keys(1), texts(1, candidates=3)))
    with pytest.raises(TeacherError, match="2 named columns"):
        store.view(TEACHER, keys(0), ("a", "b"))


def test_a_score_that_is_not_finite_is_refused_with_its_text(tmp_path: Path) -> None:
    bad = texts(0, 1)
    bad.scores[1, 1] = np.nan
    with pytest.raises(BadTargetsError, match="nan for the score of text 2"):
        Store(str(tmp_path)).append(TEACHER, SoftTargets(keys(0, 1), bad))


def test_texts_are_joined_and_taken() -> None:
    joined = join_soft([texts(0), texts(1, 2)])
    assert joined.take(np.array([2, 0])).values[:, 0].tolist() == [
        "text 2, candidate 0",
        "text 0, candidate 0",
    ]
    with pytest.raises(ValueError, match="do not fit"):
        Texts(text_array([["a"]]), np.zeros((1, 2), dtype=np.float32), np.ones((1, 1), dtype=np.int32))


def test_of_texts_that_two_wrote_at_once_the_first_counts(tmp_path: Path) -> None:
    """As with samples: two runs write other texts for the same source, and every student reads the same ones."""
    first, second = Store(str(tmp_path)), Store(str(tmp_path))
    assert len(first.missing(TEACHER, keys(0, 1))) == len(second.missing(TEACHER, keys(0, 1))) == 2
    first.append(TEACHER, SoftTargets(keys(0, 1), texts(0, 1)))
    second.append(TEACHER, SoftTargets(keys(1, 0, 2), texts(7, 8, 2)))
    for store in (first, second, Store(str(tmp_path))):
        read = store.view(TEACHER, keys(0, 1, 2), None).gather(keys(2, 1, 0))
        assert isinstance(read, Texts)
        assert read.values[:, 0].tolist() == [f"text {i}, candidate 0" for i in (2, 1, 0)]
