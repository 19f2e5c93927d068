"""Answers of a masked language model on disk: by content, whole or not at all, never asked twice."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.augment.candidates import Candidates, word_keys

KEYS = word_keys("some text", np.arange(4))
IDS = np.arange(12, dtype=np.int32).reshape(4, 3)


def opened(folder: Path, facts: tuple[str, ...] = ("model",), width: int = 3) -> Candidates:
    return Candidates(folder, facts, width)


def test_a_word_is_known_by_its_text_and_its_place() -> None:
    assert len(np.unique(KEYS)) == 4
    assert word_keys("some text", np.array([2])).tolist() == [KEYS[2]]
    assert not np.isin(word_keys("other text", np.arange(4)), KEYS).any()


def test_answers_are_kept_on_disk(tmp_path: Path) -> None:
    known = opened(tmp_path)
    assert known.missing(KEYS).all()
    known.add(KEYS[[2, 0]], IDS[[2, 0]], 4.0)
    known.add(KEYS[[1]], IDS[[1]], 1.0)
    for one in (known, opened(tmp_path)):
        assert one.missing(KEYS).tolist() == [False, False, False, True]
        np.testing.assert_array_equal(one.of(KEYS[[1, 0, 2]]), IDS[[1, 0, 2]])
        assert one.seconds(KEYS[[0, 1, 0]]) == pytest.approx(3.0)
    assert not list(tmp_path.rglob("*.tmp"))


def test_of_equal_keys_the_first_answer_counts(tmp_path: Path) -> None:
    known = opened(tmp_path)
    known.add(KEYS[:2], IDS[:2], 1.0)
    known.add(KEYS[1:3], IDS[1:3] + 100, 1.0)
    assert known.of(KEYS[:3])[:, 0].tolist() == [0, 3, 106]


def test_another_model_has_answers_of_its_own(tmp_path: Path) -> None:
    opened(tmp_path).add(KEYS, IDS, 1.0)
    assert opened(tmp_path, ("another",)).missing(KEYS).all()
    assert opened(tmp_path, width=4).missing(KEYS).all()


def test_a_damaged_block_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = opened(tmp_path)
    known.add(KEYS[:2], IDS[:2], 1.0)
    (block,) = known.folder.glob("block-*.arrow")
    block.write_bytes(block.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path)
    assert again.missing(KEYS).all()
    assert "does not match its checksum" in caplog.text
    assert [file.suffix for file in known.folder.iterdir()] == [".corrupt"]
    again.add(KEYS[:2], IDS[:2], 1.0)
    assert not opened(tmp_path).missing(KEYS[:2]).any()
