"""How a model of speech reads recordings: in windows, as the features that its own feature extractor computes.

A recording that is longer than the model's window is cut into windows that overlap by a third, as `pipeline("automatic-speech-recognition")`
cuts it with ``chunk_length_s``; what is written for them is merged again. Features of a window are computed once, by content, and kept on this machine's disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, offsets_of
from pipeline.errors import TeacherError
from pipeline.tasks.heads import is_ctc
from pipeline.tasks.recording import Recording, samples, seconds
from pipeline.urls import cache_base

Numbers = TypeVar("Numbers", NDArray[np.int64], Tensor)
MULTILINGUAL = 51865
"""Size of the vocabularies of Whisper's models of several languages, or more."""
CTC_WINDOW_S = 30.0
"""A CTC model has no window of its own; this one bounds its memory."""
WITHOUT_SPACES = (
    "chinese",
    "japanese",
    "thai",
    "lao",
    "burmese",
    "cantonese",
    "zh",
    "ja",
    "th",
    "lo",
    "my",
    "yue",
)
"""Languages, as Whisper names them, whose texts do not begin with a space."""


@dataclass(frozen=True)
class Listener:
    """How the model in a folder reads recordings.

    rate: samples a second · window: seconds · position: seconds of one position of the encoder · prompt: token ids that its decoder starts from; none of a CTC model ·
    positions: of its decoder, for prompt and text; 0 of a CTC model · features: names what its feature extractor computes · convolutions: of a CTC model, the
    (kernel, stride) of each that makes frames of samples.
    """

    folder: str
    rate: int
    window: float
    position: float
    prompt: tuple[int, ...]
    positions: int
    features: str
    convolutions: tuple[tuple[int, int], ...] = ()

    @property
    def is_ctc(self) -> bool:
        """Whether the model labels frames, and writes none by a decoder."""
        return not self.prompt

    @property
    def stride(self) -> float:
        """Seconds at each end of a window that its neighbour has, too."""
        return self.window / 6

    def windows(self, references: Sequence[str]) -> NDArray[np.int64]:
        """(n,) windows of each recording."""
        beyond = np.maximum(seconds(references) - self.window, 0)
        step = self.window - 2 * self.stride
        return 1 + np.ceil((beyond - 1e-6) / step).astype(np.int64).clip(min=0)

    def fits(self, references: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each recording is within one window."""
        return np.asarray(self.windows(references) == 1)

    def bounds(self, length: float, number: int) -> tuple[float, float, float, float]:
        """Of window `number`, from 0, of a recording: where it starts, its length, and how much of it, at its two ends, its neighbours have; in seconds."""
        start = number * (self.window - 2 * self.stride)
        own = min(self.window, length - start)
        last = start + self.window >= length - 1e-6
        return start, own, self.stride if number else 0.0, 0.0 if last else self.stride

    def encoded(self, references: Sequence[str]) -> Encoded:
        """n recordings, each in its windows. A window counts the positions of the encoder as its tokens."""
        counts = self.windows(references)
        owners = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        lengths = np.full(len(owners), round(self.window / self.position), dtype=np.int64)
        if self.is_ctc:
            whole = seconds(references)[owners]
            parts = [
                self.bounds(float(one), int(number))[1] for one, number in zip(whole, numbers, strict=True)
            ]
            lengths = np.maximum(np.ceil(np.array(parts) / self.position), 1).astype(np.int64)
        windows = Windows(self, [references[owner] for owner in owners.tolist()], numbers)
        return Encoded({}, offsets_of(lengths), {}, 0, sequences=offsets_of(counts), audio=windows)


def frames_of(samples: Numbers, convolutions: Sequence[tuple[int, int]]) -> Numbers:
    """(n,) int64 frames that a CTC model makes of so many samples. convolutions: see `Listener`."""
    for kernel, stride in convolutions:
        samples = (samples - kernel) // stride + 1
    return samples.clip(min=0)


@dataclass(frozen=True, eq=False)
class Windows:
    """S windows of recordings. references: (S,) the recordings · numbers: (S,) int64 of each window within its recording, from 0."""

    listener: Listener
    references: Sequence[str]
    numbers: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Windows]) -> Windows:
        """The windows of `parts`, one part after another; at least one part."""
        references = [one for part in parts for one in part.references]
        return cls(parts[0].listener, references, np.concatenate([part.numbers for part in parts]))

    def take(self, windows: NDArray[np.int64]) -> Windows:
        """Some of the windows."""
        return Windows(self.listener, [self.references[one] for one in windows], self.numbers[windows])

    def padded(self, windows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What the model reads of some windows: features, float32, and the prompt of its decoder, int64, by the model's argument."""
        listener, extractor = self.listener, _extractor(self.listener.folder)
        parts = [(self.references[one], int(self.numbers[one])) for one in windows]
        if listener.is_ctc:
            waves = [_cut(listener, *part) for part in parts]
            read = extractor(
                waves,
                sampling_rate=listener.rate,
                padding=True,
                return_attention_mask=True,
                return_tensors="np",
            )
            return dict(read)
        features = np.stack([_features(listener, *part) for part in parts])
        prompt = np.tile(np.array(listener.prompt, dtype=np.int64), (len(parts), 1))
        return {"input_features": features, "decoder_input_ids": prompt}

    def strides(self, windows: NDArray[np.int64]) -> list[tuple[float, float, float]]:
        """Of each window its length and how much of it its neighbours have, at the left and at the right, in seconds."""
        lengths = seconds([self.references[one] for one in windows])
        return [
            self.listener.bounds(float(length), int(number))[1:]
            for length, number in zip(lengths, self.numbers[windows], strict=True)
        ]


@cache
def listener_of(folder: str, language: str | None) -> Listener:
    """How the model in `folder`, that of a tokenizer, reads recordings of a language.

    Raises `TeacherError` for a model that is neither of Whisper's architecture nor CTC, and for one of several languages without a language.
    """
    from transformers import AutoConfig, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    extractor, features = _extractor(folder), _name_of(folder)
    rate = int(extractor.sampling_rate)
    if config.model_type != "whisper":
        ratio = getattr(config, "inputs_to_logits_ratio", None)
        if ratio is None or not is_ctc(config.architectures):
            raise TeacherError(
                f"{folder}: a {config.model_type} is no model of speech that Tutelage reads",
                "Give a model of Whisper's architecture, or a CTC model such as wav2vec2's or HuBERT's.",
            )
        convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        if getattr(config, "add_adapter", False):
            convolutions += ((1, config.adapter_stride),) * config.num_adapter_layers
        return Listener(folder, rate, CTC_WINDOW_S, ratio / rate, (), 0, features, convolutions)
    window = extractor.n_samples / rate
    if extractor.nb_max_frames != 2 * config.max_source_positions:
        raise TeacherError(
            f"{folder}: its feature extractor gives {extractor.nb_max_frames} frames, its encoder has {config.max_source_positions} positions for two each",
            "Set chunk_length in preprocessor_config.json to max_source_positions ÷ 50.",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if is_multilingual(config):
        if language is None:
            raise TeacherError(
                f"{folder}: a model of several languages, and none is named",
                "Set generation.language of the task or of the teacher, for instance to en.",
            )
        try:
            tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
            prompt = list(tokenizer.prefix_tokens)
        except ValueError as error:
            raise TeacherError(
                f"{folder}: {str(error).splitlines()[0]}", "Set generation.language as Whisper names it."
            ) from None
    else:
        tokenizer.set_prefix_tokens(language=None, task=None, predict_timestamps=False)
        prompt = list(tokenizer.prefix_tokens)
    position = window / config.max_source_positions
    return Listener(folder, rate, window, position, tuple(prompt), config.max_target_positions, features)


def is_multilingual(config: Any) -> bool:
    """Whether a model of Whisper's architecture knows several languages, which its prompt then names."""
    return bool(config.vocab_size >= MULTILINGUAL)


def open_extractor(folder: Path) -> Any:
    """The feature extractor of the model in a folder. Raises `TeacherError` where there is none."""
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any type, each about the folder's files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            f"{folder}: no feature extractor that transformers can open: {reason}",
            "Save it beside the model: preprocessor_config.json.",
        ) from None


@cache
def _extractor(folder: str) -> Any:
    return open_extractor(Path(folder))


@cache
def _name_of(folder: str) -> str:
    """A hash of what a folder's feature extractor computes."""
    return blake2b(_extractor(folder).to_json_string().encode(), digest_size=8).hexdigest()


def _cut(listener: Listener, reference: str, number: int) -> NDArray[np.float32]:
    """The samples of a window."""
    whole = samples(reference, listener.rate)
    start, _, _, _ = listener.bounds(Recording.of(reference).seconds, number)
    first = round(start * listener.rate)
    return whole[first : first + round(listener.window * listener.rate)]


def _features(listener: Listener, reference: str, number: int) -> NDArray[np.float32]:
    """(bins, frames) log-mel features of a window, from disk where this machine has computed them before.

    Kept are the frames of the recording alone; those of the silence that pads it to the whole window are all the same.
    """
    digest = Recording.of(reference).digest
    file = cache_base() / "features" / listener.features / digest[:2] / f"{digest}-{number}.npy"
    with suppress(OSError, ValueError, EOFError):  # none there, or a damaged one
        return _widened(listener, np.load(file))
    kept = _computed(listener, _cut(listener, reference, number))
    _keep(file, kept)
    return _widened(listener, kept)


def _computed(listener: Listener, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    extractor = _extractor(listener.folder)
    # with as much silence after it as the last frame of the recording sees, to a whole number of frames
    padded = -(-(len(wave) + extractor.n_fft) // extractor.hop_length) * extractor.hop_length
    longest = min(padded, extractor.n_samples)
    read = extractor(
        wave, sampling_rate=listener.rate, padding="max_length", max_length=longest, return_tensors="np"
    )
    features: NDArray[np.float32] = read["input_features"][0].astype(np.float32)
    return features


def _widened(listener: Listener, kept: NDArray[np.float32]) -> NDArray[np.float32]:
    frames = int(_extractor(listener.folder).nb_max_frames)
    return np.pad(kept, ((0, 0), (0, frames - kept.shape[1])), constant_values=kept[0, -1])


def _keep(file: Path, features: NDArray[np.float32]) -> None:
    """Writes a file of features under a name of its own and renames it; nothing where the disk has no room, so that they are computed each time."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as stream:
            np.save(stream, features)
        scratch.replace(file)
    except OSError:
        scratch.unlink(missing_ok=True)
