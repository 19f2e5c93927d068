"""Recordings: references, faults of files, samples."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError
from pipeline.tasks.recording import (
    Recording,
    check_packages,
    content,
    digests,
    names,
    probe,
    samples,
    seconds,
)
from tests.tiny_speech import RATE, WORD_S, record, reference, tone


def loudest(wave: NDArray[np.float32], word: int) -> float:
    """Hertz of the tone in the middle of a word."""
    middle = round((word + 0.5) * WORD_S * RATE)
    return float(np.abs(np.fft.rfft(wave[middle - 800 : middle + 800])).argmax() * RATE / 1600)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_a_file_of_any_format_rate_and_channels_is_read_alike(ending: str, tmp_path: Path) -> None:
    plain = samples(reference(record(tmp_path / "plain.wav", "la ti do")), RATE)
    other = reference(record(tmp_path / f"other.{ending}", "la ti do", rate=22_050, channels=2))
    read = samples(other, RATE)
    assert read.dtype == np.float32
    assert len(read) == pytest.approx(len(plain), abs=2000 if ending == "mp3" else 2), "mp3 has whole frames"
    assert [loudest(read, word) for word in range(3)] == pytest.approx([300, 700, 1500], abs=10)
    assert probe(tmp_path / f"other.{ending}").channels == 2


def test_a_recording_is_named_by_its_bytes(tmp_path: Path) -> None:
    file = record(tmp_path / "one with spaces.wav", "la")
    one = reference(file)
    other = reference(file.rename(tmp_path / "moved.wav"))
    assert one != other
    assert digests([one]) == digests([other])
    assert content({"source": [one]}, audio=True) == content({"source": [other]}, audio=True)
    assert Recording.of(one).path == str(tmp_path / "one with spaces.wav")
    assert names([one]) == [f"one with spaces.wav ({digests([one])[0]})"]
    assert seconds([one]) == pytest.approx([0.3], abs=1e-4)


def test_what_is_wrong_with_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    whole = record(tmp_path / "whole.flac", "la ti do re").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "none.wav", np.zeros(0, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    faults = {
        name: probe(tmp_path / name).fault
        for name in ("empty.wav", "text.wav", "cut.flac", "none.wav", "nan.wav", "missing.wav")
    }
    assert faults["empty.wav"] == "the file is empty"
    assert "cannot be decoded" in str(faults["text.wav"])
    assert faults["cut.flac"] is not None
    assert faults["none.wav"] == "it has no samples"
    assert faults["nan.wav"] == "a sample is NaN or Inf"
    assert faults["missing.wav"] == "No such file or directory"


def test_silence_is_known(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", 1e-4 * tone("la"), RATE)
    soundfile.write(tmp_path / "quiet.wav", 1e-2 * tone("la"), RATE)
    assert probe(tmp_path / "silent.wav").silent
    assert not probe(tmp_path / "quiet.wav").silent


def test_a_file_that_changed_or_went_is_refused(tmp_path: Path) -> None:
    one = reference(record(tmp_path / "one.wav", "la"))
    record(tmp_path / "one.wav", "ti")
    with pytest.raises(DataError, match=r"one\.wav: the file has changed since the data was read"):
        samples(one, RATE)
    (tmp_path / "one.wav").unlink()
    with pytest.raises(DataError, match=r"one\.wav: No such file"):
        samples(one, RATE)


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "soxr" else sys)
    with pytest.raises(ConfigError, match="speech-recognition needs soxr") as caught:
        check_packages()
    assert "pip install -e '.[speech]'" in caught.value.remedy
