"""Recordings of speech: what names one, what is wrong with its file, and its samples at a model's rate.

An example holds a *reference*: the hash of the file's bytes, its length in seconds and its path, in one text. So audio stays on disk until a
model reads it, wherever a reference travels, and an example's key is the content of its file.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError

PACKAGES = ("jiwer", "soundfile", "soxr")
SILENCE = 1e-3
"""A recording is silent where no sample is as far from 0; full scale is 1 (−60 dB)."""
BLOCK_S = 60
"""Seconds that are decoded at once to look for faults."""


class Recording(NamedTuple):
    """A reference, taken apart."""

    digest: str
    seconds: float
    path: str

    @classmethod
    def of(cls, reference: str) -> Recording:
        """The parts of a reference."""
        digest, seconds, path = reference.split(" ", 2)
        return cls(digest, float(seconds), path)

    @property
    def reference(self) -> str:
        """The recording as one text."""
        return f"{self.digest} {self.seconds:.6f} {self.path}"


@dataclass(frozen=True)
class Probe:
    """What is known of a file. digest: of its bytes · seconds, rate, channels: as the file has them · silent: whether there is nothing to
    hear · fault: why it cannot be read, or None."""

    digest: str = ""
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    silent: bool = False
    fault: str | None = None


def check_packages() -> None:
    """Raises `ConfigError` where the packages that speech needs are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"speech-recognition needs {', '.join(missing)}",
            "Install the project's extra, from its folder: pip install -e '.[speech]'.",
        )


def probe(path: Path) -> Probe:
    """Reads and decodes all of a file, block by block."""
    import soundfile

    try:
        data = path.read_bytes()
    except OSError as error:
        return Probe(fault=error.strerror or str(error))
    if not data:
        return Probe(fault="the file is empty")
    digest = digest_of(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, length, frames, peak = file.samplerate, file.channels, file.frames, 0, 0.0
            for block in file.blocks(blocksize=BLOCK_S * rate, dtype="float32", always_2d=True):
                frames += len(block)
                peak = float(np.maximum(peak, np.abs(block).max(initial=0)))  # NaN where a sample is
    except (soundfile.SoundFileError, RuntimeError) as error:
        return Probe(digest, fault=f"it cannot be decoded ({str(error).splitlines()[0]})")
    if not frames:
        return Probe(digest, fault="it has no samples")
    if frames < length:
        return Probe(digest, fault=f"it ends after {frames:,} of {length:,} samples")
    if not np.isfinite(peak):
        return Probe(digest, fault="a sample is NaN or Inf")
    return Probe(digest, frames / rate, rate, channels, peak < SILENCE)


def digest_of(data: bytes) -> str:
    """The hash of a file's bytes that a reference has."""
    return blake2b(data, digest_size=8).hexdigest()


@lru_cache(maxsize=1)  # the windows of a long recording are read one after another
def samples(reference: str, rate: int) -> NDArray[np.float32]:
    """(n,) samples of a recording, mono, at `rate` a second. Raises `DataError` where its file is not what it was."""
    import soundfile
    import soxr

    recording = Recording.of(reference)
    try:
        data = Path(recording.path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{recording.path}: {error.strerror or error}",
            "Recordings must stay where they are, and every node must have them at the same path.",
        ) from None
    if digest_of(data) != recording.digest:
        raise DataError(
            f"{recording.path}: the file has changed since the data was read", "Run the same command again."
        )
    decoded, own = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = decoded.mean(axis=1)
    wave = mono if own == rate else soxr.resample(mono, own, rate)
    count = round(recording.seconds * rate)  # what is computed from the length holds for the samples, too
    return np.ascontiguousarray(np.pad(wave[:count], (0, max(0, count - len(wave)))), dtype=np.float32)


def digests(references: Sequence[str]) -> list[str]:
    """The hash of each recording: what an example's key is computed from."""
    return [Recording.of(one).digest for one in references]


def seconds(references: Sequence[str]) -> NDArray[np.float64]:
    """(n,) the length of each recording."""
    return np.array([Recording.of(one).seconds for one in references], dtype=np.float64)


def names(references: Sequence[str]) -> list[str]:
    """The name of each recording's file, for people, with its hash, since files in several folders may have one name."""
    parts = ((Path(one.path).name, one.digest) for one in map(Recording.of, references))
    return [name if digest in name else f"{name} ({digest})" for name, digest in parts]


def content(inputs: Any, audio: bool) -> Any:
    """The inputs from which keys are computed: of recordings their hashes, wherever the files lie."""
    return {**inputs, "source": digests(inputs["source"])} if audio else inputs
