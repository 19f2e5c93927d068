"""The demo's recordings: sentences of a user interface, spoken by eSpeak NG. Text → parquet files with audio and text.

Speech without limit, whose texts are known; voices of test and validation are none of train's. eSpeak is called by ctypes, its library and data are taken out of a
package. Needs numpy, pyarrow and soundfile.
"""

from __future__ import annotations

import ctypes
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.asset_splits import draw, one_line, shuffled
from examples.corpora_pairs import COMPONENT, MARKUP, leaves, masked

FEWEST_WORDS, MOST_WORDS, MOST_SECONDS = 4, 12, 5.0
COUNTS = {"train": 600, "validation": 60, "test": 120}
VOICES = {
    "train": ("en-us", "en", "en-gb-scotland", "en-us+f3", "en+m7"),
    "validation": ("en-us+m3", "en-gb-x-rp"),
    "test": ("en-gb-x-gbclan", "en-us+f2", "en-gb-x-gbcwmd"),
}
PACE = (150, 175, 195)
"""Words a minute."""
SYNCHRONOUS, RATE_PARAMETER, UTF8, BY_CHARACTER = 2, 1, 1, 1


class Sentence(NamedTuple):
    """A text, the voice that speaks it, and how fast."""

    text: str
    voice: str
    pace: int


def read_sentences(files: Iterable[Mapping[str, Any]]) -> list[str]:
    """The English sentences of the interface's files: of 4 to 12 words, of letters alone, without markup; each once."""
    texts = (one_line(text) for file in files for _, text in leaves(file))
    fitting = (
        text
        for text in texts
        if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS and not MARKUP.search(text) and _spoken(text)
    )
    return list(dict.fromkeys(fitting))


def _spoken(text: str) -> bool:
    """Whether a text is written as it is spoken: no digits, no signs."""
    return all(one.isalpha() or one in " '.,-?!" for one in text) and not any(
        word[1:] != word[1:].lower() for word in text.split()
    )


def split_sentences(texts: Iterable[str]) -> dict[str, list[Sentence]]:
    """As many sentences a split as `COUNTS`, each with a voice and a pace; those that are the same when `masked` are in one split."""
    drawn: dict[str, list[Sentence]] = {name: [] for name in COUNTS}
    rows = [(text,) for text in texts]
    for number, (text,) in enumerate(shuffled(rows, lambda row: row[0])):
        split = draw(masked(text), validation=0.1, test=0.2)
        if len(drawn[split]) < COUNTS[split]:
            voices = VOICES[split]
            drawn[split].append(Sentence(text, voices[number % len(voices)], PACE[number // 7 % len(PACE)]))
    return drawn


class Speaker:
    """eSpeak NG: text → samples. folder: has its library and its data."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self.rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, str(folder).encode(), 0))
        if self.rate <= 0:
            raise ValueError("eSpeak did not start")
        self._parts: list[bytes] = []
        form = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = form(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wave: Any, count: int, _: Any) -> int:
        if wave and count > 0:
            self._parts.append(ctypes.string_at(wave, 2 * count))
        return 0

    def say(self, sentence: Sentence) -> bytes:
        """16-bit samples, mono, at `rate`. Raises ValueError for an unknown voice."""
        if self._library.espeak_SetVoiceByName(sentence.voice.encode()) != 0:
            raise ValueError(f"eSpeak has no voice {sentence.voice}")
        self._library.espeak_SetParameter(RATE_PARAMETER, sentence.pace, 0)
        text = sentence.text.encode() + b"\0"
        self._parts.clear()
        self._library.espeak_Synth(text, len(text), 0, BY_CHARACTER, 0, UTF8, None, None)
        return b"".join(self._parts)


def build_speech(folder: Path, interface: Path, espeak: Path) -> str:
    """The sentences, spoken, as parquet files with the bytes of flac files."""
    with zipfile.ZipFile(interface) as wheel:
        matches = sorted(
            match[0] for match in map(COMPONENT.fullmatch, wheel.namelist()) if match and match[2] == "en"
        )
        texts = read_sentences(json.loads(wheel.read(name)) for name in matches)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(espeak) as wheel:
        wheel.extractall(scratch)
        speaker = Speaker(Path(scratch, "espeakng_loader"))
        splits = split_sentences(texts)
        return _write(folder, splits, lambda one: _flac(speaker.say(one), speaker.rate))


def _flac(samples: bytes, rate: int) -> bytes:
    import numpy as np
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.frombuffer(samples, "<i2"), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _write(
    folder: Path, splits: Mapping[str, Sequence[Sentence]], spoken: Callable[[Sentence], bytes]
) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile

    counts, total = [], 0.0
    for name, sentences in splits.items():
        rows = []
        for one in sentences:
            audio = spoken(one)
            length = soundfile.info(io.BytesIO(audio)).duration
            if length <= MOST_SECONDS:
                rows.append({"audio": audio, "text": one.text, "voice": one.voice})
                total += length
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        counts.append(f"{len(rows):,} {name}")
    return f"{' / '.join(counts)}, {total / 60:.0f} minutes"
