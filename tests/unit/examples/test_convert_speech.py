"""examples/convert_speech.py and corpora_speech.py: arrays under transformers' names, sentences that are spoken as they are written.

Not covered: the real packages; whisper-tiny.en wrote the same through the pipeline as through Tutelage, by hand.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from examples.convert_speech import Weights, read_arrays, whisper_weights
from examples.corpora_speech import COUNTS, VOICES, read_sentences, split_sentences


def _text(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def packed(arrays: Weights, kind: str = "WhisperSpec") -> bytes:
    """Arrays in CTranslate2's format, as halves."""
    parts = [struct.pack("<I", 6), _text(kind), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        half = array.astype("<f2")
        shape = struct.pack(f"<{array.ndim}I", *array.shape)
        parts += [
            _text(name),
            struct.pack("<B", array.ndim),
            shape,
            struct.pack("<BI", 4, half.nbytes),
            half.tobytes(),
        ]
    return b"".join([*parts, struct.pack("<I", 0)])


def joined(state: dict[str, np.ndarray]) -> Weights:
    """A model's weights as CTranslate2 has them: projections joined, a bias of 0 for the keys."""
    arrays: Weights = {}
    for part in ("encoder", "decoder"):
        arrays[f"{part}/position_encodings/encodings"] = state[f"model.{part}.embed_positions.weight"]
        for theirs, ours in (("gamma", "weight"), ("beta", "bias")):
            arrays[f"{part}/layer_norm/{theirs}"] = state[f"model.{part}.layer_norm.{ours}"]
        attentions = {
            "self_attn": "self_attention",
            **({"encoder_attn": "attention"} if part == "decoder" else {}),
        }
        own, to = f"model.{part}.layers.0", f"{part}/layer_0"
        for theirs, ours in (("gamma", "weight"), ("beta", "bias")):
            arrays[f"{to}/ffn/layer_norm/{theirs}"] = state[f"{own}.final_layer_norm.{ours}"]
            for name, place in attentions.items():
                arrays[f"{to}/{place}/layer_norm/{theirs}"] = state[f"{own}.{name}_layer_norm.{ours}"]
        for kind in ("weight", "bias"):
            for number in (0, 1):
                arrays[f"{to}/ffn/linear_{number}/{kind}"] = state[f"{own}.fc{number + 1}.{kind}"]
            for name, place in attentions.items():
                q, v, out = (state[f"{own}.{name}.{one}_proj.{kind}"] for one in ("q", "v", "out"))
                k = state.get(f"{own}.{name}.k_proj.{kind}", np.zeros_like(q))
                groups = [[q, k, v], [out]] if place == "self_attention" else [[q], [k, v], [out]]
                for number, group in enumerate(groups):
                    arrays[f"{to}/{place}/linear_{number}/{kind}"] = np.concatenate(group)
    for number, kind in ((one, two) for one in (1, 2) for two in ("weight", "bias")):
        arrays[f"encoder/conv{number}/{kind}"] = state[f"model.encoder.conv{number}.{kind}"]
    arrays["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    arrays["decoder/num_heads"] = np.array(2.0)
    return arrays


def test_every_weight_gets_its_name_and_the_window_is_cut() -> None:
    shape = {"d_model": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 20, "num_mel_bins": 4}
    heads = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    model = WhisperForConditionalGeneration(
        WhisperConfig.from_dict(
            {**shape, **heads, **tokens, "max_source_positions": 200, "max_target_positions": 12}
        )
    ).half()
    state = {
        name: one.float().numpy() for name, one in model.state_dict().items() if name != "proj_out.weight"
    }
    read = whisper_weights(read_arrays(packed(joined(state))), seconds=2)
    assert read.keys() == state.keys()
    positions = read.pop("model.encoder.embed_positions.weight")
    assert torch.equal(positions, torch.from_numpy(state["model.encoder.embed_positions.weight"][:100]))
    for name, own in read.items():
        np.testing.assert_array_equal(own.numpy(), state[name], err_msg=name)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="a TransformerSpec in version 6"):
        read_arrays(packed({}, "TransformerSpec"))


def test_sentences_are_spoken_as_they_are_written() -> None:
    texts = [
        "Open the garage door",
        "Open the garage door",
        "Use {name} as name",
        "Set 3 new values here",
        "Too short",
        "Use the USB port now",
    ]
    assert read_sentences([{"a": {str(i): text for i, text in enumerate(texts)}}]) == ["Open the garage door"]


def test_voices_of_test_are_none_of_trains() -> None:
    words = ("open", "close", "find", "show", "move", "start")
    texts = [f"{a} the {b} and {c} it" for a in words for b in words for c in words]
    splits = split_sentences(texts)
    assert sum(map(len, splits.values())) <= sum(COUNTS.values())
    used = {name: {one.voice for one in sentences} for name, sentences in splits.items()}
    assert not used["train"] & (used["validation"] | used["test"])
    assert used["train"] <= set(VOICES["train"])
    assert not {one.text for one in splits["train"]} & {one.text for one in splits["test"]}
