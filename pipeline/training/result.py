"""The files of a finished training: its facts and its predictions, with checksums over both.

Predictions are those on the test splits; of a search's trial, which never sees them, those on the validation splits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.errors import CorruptError
from pipeline.files import read_object, write_atomically
from pipeline.run_folder import RESULT
from pipeline.text_arrays import arrays_of, numbers_of

PREDICTIONS = "predictions.safetensors"


def write_result(folder: Path, facts: Mapping[str, Any], predictions: Mapping[str, NDArray[Any]]) -> None:
    """Writes the (M, C) predictions by task, and then `facts`: a training that has facts is finished."""
    data = save(numbers_of(predictions))
    write_atomically(folder / PREDICTIONS, data)
    text = json.dumps(result := {**facts, "predictions": _digest(data)})
    write_atomically(folder / RESULT, json.dumps({**result, "checksum": _digest(text.encode())}))


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a finished training. Raises `CorruptError` where they do not match their checksum."""
    facts = read_object(folder / RESULT, _remedy(folder))
    checksum = facts.pop("checksum", None)
    if checksum != _digest(json.dumps(facts).encode()):
        raise CorruptError(f"{folder / RESULT}: its checksum does not match", _remedy(folder))
    return facts


def read_predictions(folder: Path) -> dict[str, NDArray[Any]]:
    """The (M, C) predictions by task. Raises `CorruptError` where they are missing or do not match their checksum."""
    file = folder / PREDICTIONS
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CorruptError(f"{file}: {error.strerror}", _remedy(folder)) from None
    if _digest(data) != read_facts(folder)["predictions"]:
        raise CorruptError(f"{file}: its checksum does not match", _remedy(folder))
    return arrays_of(load(data))


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _remedy(folder: Path) -> str:
    return f"Remove {folder}: the same command trains it again."
