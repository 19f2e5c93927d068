"""Columns of recordings: paths, bytes and the Audio feature; what is refused, left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.config.schema import TaskConfig
from pipeline.data.identity import facts_of
from pipeline.data.splits import TaskData, load_task
from pipeline.errors import DataError
from pipeline.tasks.recording import Recording, samples
from tests.tiny_speech import RATE, record, tone

TEXTS = ["la", "ti", "do", "re", "la ti", "ti do", "do re", "re la"]


def lines(folder: Path, rows: list[dict[str, Any]]) -> TaskConfig:
    """A task on a JSON-lines file of train; the other splits have recordings of their own."""
    (folder / "own").mkdir(exist_ok=True)
    files = {"train": folder / "train.jsonl"}
    for split, text in (("validation", "re re"), ("test", "do do")):
        record(folder / "own" / f"{split}.wav", text)
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text(json.dumps({"audio": f"own/{split}.wav", "text": text}))
    files["train"].write_text("\n".join(map(json.dumps, rows)))
    return section({name: str(file) for name, file in files.items()}, "json")


def section(files: dict[str, str], path: str) -> TaskConfig:
    return TaskConfig.model_validate(
        {"kind": "speech-recognition", "data": {"path": path, "data_files": files}}
    )


def paths(data: TaskData) -> list[str]:
    return [Path(Recording.of(one).path).name for one in data.splits["train"].inputs["source"]]


def test_paths_begin_in_the_folder_of_the_data_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for number, text in enumerate(TEXTS):
        record(tmp_path / "own" / f"{number}.wav", text)
    rows: list[dict[str, Any]] = [
        {"audio": f"own/{number}.wav", "text": text} for number, text in enumerate(TEXTS)
    ]
    rows[-1]["text"] = None
    data = load_task("speech", lines(tmp_path, rows))
    assert paths(data) == [f"{number}.wav" for number in range(8)]
    assert list(data.splits["train"].inputs["target"]) == [*TEXTS[:-1], ""]
    assert any("1 example of train without a label" in note for note in data.notes)
    assert facts_of("speech", lines(tmp_path, rows)) is None, "examples are not kept: recordings may change"


def test_what_is_odd_is_counted_and_silence_left_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, dtype=np.float32), RATE)
    record(tmp_path / "plain.wav", "la")
    record(tmp_path / "slow.flac", "ti", rate=8000)
    record(tmp_path / "stereo.mp3", "do", rate=44_100, channels=2)
    rows = [{"audio": file.name, "text": file.stem} for file in sorted(tmp_path.glob("*.*"))]
    data = load_task("speech", lines(tmp_path, rows))
    assert paths(data) == ["plain.wav", "slow.flac", "stereo.mp3"]
    notes = " ".join(data.notes)
    assert "1 recording of train left out as silent" in notes
    assert (
        "2 recordings of train, validation, test resampled from another rate than 16,000 samples a second"
        in notes
    )
    assert "1 recording of train, validation, test mixed to one channel" in notes


def test_files_that_cannot_be_read_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "broken.wav").write_text("no sound")
    rows = [{"audio": name, "text": "la"} for name in ("empty.wav", "broken.wav", "missing.wav")]
    with pytest.raises(DataError) as caught:
        load_task("speech", lines(tmp_path, rows))
    assert "tasks.speech: 3 of 3 recordings of train cannot be read" in caught.value.cause
    for part in (
        "row 0: empty.wav: the file is empty",
        "row 1: broken.wav",
        "row 2: missing.wav: No such file",
    ):
        assert part in caught.value.cause


@pytest.mark.parametrize("cell", [None, "", "https://host/one.wav"])
def test_cells_that_are_no_recordings_are_refused(cell: Any, tmp_path: Path) -> None:
    record(tmp_path / "one.wav", "la")
    rows = [{"audio": "one.wav", "text": "la"}, {"audio": cell, "text": "ti"}]
    with pytest.raises(DataError, match="row 1 of train: audio is"):
        load_task("speech", lines(tmp_path, rows))


@pytest.mark.parametrize("form", ["bytes", "struct", "feature"])
def test_bytes_are_read_from_a_file_of_the_cache(form: str, tmp_path: Path) -> None:
    sounds = [record(tmp_path / f"{number}.flac", text).read_bytes() for number, text in enumerate(TEXTS)]
    cells: list[Any] = (
        sounds if form == "bytes" else [{"bytes": one, "path": f"{i}.flac"} for i, one in enumerate(sounds)]
    )
    files = {}
    for split, rows in {"train": slice(0, 4), "validation": slice(4, 6), "test": slice(6, 8)}.items():
        table = pa.table({"audio": pa.array(cells[rows]), "text": TEXTS[rows]})
        if form == "feature":
            features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, tmp_path / f"{split}.parquet")
        files[split] = str(tmp_path / f"{split}.parquet")
    data = load_task("speech", section(files, "parquet"))
    train = data.splits["train"]
    for reference, text in zip(train.inputs["source"], TEXTS[:4], strict=True):
        np.testing.assert_allclose(samples(reference, RATE), tone(text), atol=1e-4)
    same = load_task("speech", section(files, "parquet")).splits["train"]
    assert (same.keys == train.keys).all()
    assert list(same.inputs["source"]) == list(train.inputs["source"]), "the same files"
