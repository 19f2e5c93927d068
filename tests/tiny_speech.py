"""Small random models of speech, recordings of a toy language whose words are tones, and a task for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.generation import GenerationConfig
from pipeline.config.kinds import SPEECH_RECOGNITION
from pipeline.tasks import Task
from pipeline.tasks.hearing import SpeechHead
from pipeline.tasks.recording import Recording, probe
from pipeline.tasks.speech_recognition import ROLES, SpeechReading, SpeechScoring

RATE, WINDOW_S, WORD_S = 16_000, 2, 0.3
TONES = {"la": 300, "ti": 700, "do": 1500, "re": 3000}
"""Hertz of each word."""
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
LETTERS = ("Ġ", *sorted({letter for word in TONES for letter in word}))
TOKENS = (*LETTERS, *SPECIAL)
"""As Whisper has them: ids above that of no timestamps are timestamps."""
END, START, _, _, WITHOUT_TIMES = (TOKENS.index(one) for one in SPECIAL)


def tone(text: str, rate: int = RATE) -> NDArray[np.float32]:
    """A text as its words' tones, one after another."""
    times = np.arange(round(WORD_S * rate)) / rate
    waves = [0.3 * np.sin(2 * np.pi * TONES[word] * times) for word in text.split()]
    return np.concatenate(waves).astype(np.float32)


def record(file: Path, text: str, *, rate: int = RATE, channels: int = 1) -> Path:
    """Writes a text's recording; the format is that of the file's ending. Returns the file."""
    import soundfile

    wave = tone(text, rate)
    soundfile.write(file, np.stack([wave] * channels, axis=1), rate)
    return file


def reference(file: Path) -> str:
    """The reference of a recording's file."""
    known = probe(file)
    return Recording(known.digest, known.seconds, str(file)).reference


def whisper(folder: Path, seed: int = 0) -> Path:
    """Saves a small model of Whisper's architecture, of English alone, with its tokenizer and feature extractor; returns the folder."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = whisper_tokenizer()
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=20,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50 * WINDOW_S,
        max_target_positions=40,
        dropout=0.0,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    own = {"no_timestamps_token_id": WITHOUT_TIMES, "is_multilingual": False, "return_timestamps": False}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=20, chunk_length=WINDOW_S).save_pretrained(folder)
    return folder


def whisper_tokenizer() -> Any:
    """Letters, and Whisper's special tokens."""
    from transformers import WhisperTokenizer

    vocab = {token: number for number, token in enumerate(TOKENS)}
    return WhisperTokenizer(vocab=vocab, merges=[], extra_special_tokens=list(SPECIAL[1:]))


def ctc(folder: Path, seed: int = 0, norm: Literal["group", "layer"] = "group") -> Path:
    """Saves a small wav2vec2 model that labels frames; returns the folder. norm: ``group``, over all of a recording's time, as wav2vec2-base has it, or
    ``layer``, as larger models have, which learn the faster."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS[1:]]
    file = folder / "vocab.json"
    file.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16 if norm == "group" else 32,) * 7,
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(file)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def speech_task(target_length: int = 24, metric: str = "word_accuracy", **generation: Any) -> Task:
    """A task of the kind, with these settings for generation."""
    head = SpeechHead("speech", 128, target_length, "", GenerationConfig(**generation))
    scoring = SpeechScoring(metric, SPEECH_RECOGNITION.metrics)
    return Task("speech", SPEECH_RECOGNITION, SpeechReading("speech", (), ("source",), ROLES), head, scoring)


def recorded(folder: Path, texts: Sequence[str]) -> list[str]:
    """References of recordings of some texts, made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [reference(record(folder / f"{number}.wav", text)) for number, text in enumerate(texts)]
