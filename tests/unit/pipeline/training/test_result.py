"""A finished training's result: what was written is read, anything else is an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import CorruptError
from pipeline.run_folder import RESULT
from pipeline.text_arrays import text_array
from pipeline.training.result import PREDICTIONS, read_facts, read_predictions, write_result

FACTS = {
    "status": "done",
    "best_score": float("-inf"),
    "kept": {"macro/score": 0.1 + 0.2},
    "saved": {"a": "b"},
}
VALUES: dict[str, NDArray[Any]] = {
    "mood": np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32),
    "tone.v2": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32),
    "short": text_array([["a summary"], [""], ["好 and \n more"]]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_result(tmp_path / "job", FACTS, VALUES)
    return tmp_path / "job"


def test_what_was_written_is_read(folder: Path) -> None:
    assert read_facts(folder).items() >= FACTS.items()
    read = read_predictions(folder)
    assert read.keys() == VALUES.keys()
    for name, values in VALUES.items():
        assert read[name].dtype == values.dtype
        assert np.array_equal(read[name], values)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1 if file.name == PREDICTIONS else data.index(b"0.3")] ^= 1  # the last byte of a number
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def without_checksum(file: Path) -> None:
    facts = json.loads(file.read_text())
    del facts["checksum"]
    file.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (PREDICTIONS, flip),
        (PREDICTIONS, cut),
        (PREDICTIONS, Path.unlink),
        (RESULT, flip),
        (RESULT, cut),
        (RESULT, lambda file: file.write_bytes(b"")),
        (RESULT, lambda file: file.write_bytes(bytes(range(256)))),
        (RESULT, lambda file: file.write_text("[1]")),
        (RESULT, without_checksum),
    ],
)
def test_damage_is_an_error_that_names_the_file(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)
    read = read_facts if name == RESULT else read_predictions
    with pytest.raises(CorruptError) as caught:
        read(folder)
    assert caught.value.cause.startswith(str(folder / name))
    assert caught.value.remedy == f"Remove {folder}: the same command trains it again."
    assert caught.value.exit_code == 4
