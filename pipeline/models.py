"""Hugging Face models and tokenizers: downloads, checks and opens them, without output. Safetensors only, no remote code."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.files import broken_json, is_local, missing_remedy
from pipeline.errors import TeacherError
from pipeline.soft import Layer, Vocabulary
from pipeline.synced import UrlFolder
from pipeline.urls import cache_folder, is_url

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG = "config.json"
FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")
"""Patterns of the files of a model folder that are used: config, weights, tokenizer."""


def resolve(model: str, revision: str | None, where: str) -> Path:
    """The local folder of `model` (a folder, its URL, or a hub id; those are fetched once into caches).

    Raises `TeacherError`, which names `where`, if there is no such model, or it has no safetensors weights.
    """
    if is_url(model):
        model = str(fetch_model(model, where))
    folder = Path(model)
    if not folder.is_dir() and is_local(model):
        raise TeacherError(f"{where}: no model {model!r}: there is no such folder", missing_remedy(folder))
    if not folder.is_dir():
        folder = _download(model, revision, where)
    if not (folder / CONFIG).is_file():
        raise TeacherError(
            f"{where}: {model} has no config.json", "Give a folder written by save_pretrained, or a hub id."
        )
    if not any(folder.glob("*.safetensors")):
        raise TeacherError(
            f"{where}: {model} has no safetensors weights",
            "Save it again with save_pretrained; pickled weights are refused.",
        )
    broken = broken_json(str(folder / CONFIG))
    if broken is not None:
        raise TeacherError(f"{where}: {broken}", "The folder is damaged: save or fetch the model again.")
    return folder


def _download(model: str, revision: str | None, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    quiet()
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except (HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"{where}: no model {model!r}: not a folder here, and the hub did not give it ({reason})",
            "Check the name, the network, or HF_TOKEN where the model is private.",
        ) from None


def fetch_model(url: str, where: str) -> Path:
    """This machine's copy of a model behind a URL, fetched once for its content. Raises `TeacherError`, which names `where`."""
    folder = UrlFolder(url)
    try:
        facts = {name: one for name, one in folder.facts().items() if "/" not in name}
    except OSError as error:
        raise TeacherError(
            f"{where}: {folder.shown} cannot be read: {error}", "Check the URL and the access."
        ) from None
    if CONFIG not in facts:
        raise TeacherError(f"{where}: no model at {folder.shown}", "Give a folder with a config.json.")
    content = blake2b(repr(sorted(facts.items())).encode(), digest_size=8).hexdigest()
    target = cache_folder(url) / f"model-{content}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        for name, one in facts.items():
            folder.fetch(name, part / name, one.time)
        with suppress(OSError):  # another process was first
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def fingerprint(folder: Path) -> str:
    """Hash of a model folder's config, weights and tokenizer, in hexadecimal: all that decides its predictions."""
    files = sorted({file for pattern in FILES for file in folder.glob(pattern)})
    return _hash_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of names and contents. files: path, size, time of each; cached until one of them changes."""
    digest = blake2b(digest_size=16)
    for file, _, _ in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def quiet() -> None:
    """Turns off the load reports and progress bars of transformers: Tutelage prints its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def open_config(folder: Path) -> PretrainedConfig:
    """The model's config. Raises `TeacherError` where transformers cannot read it, or only by running its code."""
    from transformers import AutoConfig

    quiet()
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            f"{folder / 'config.json'}: {reason}",
            "Give a model that this version of transformers supports; code that comes with a model is never run.",
        ) from None
    return config


def open_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises `TeacherError` where there is none, or one without a vocabulary."""
    from transformers import AutoTokenizer

    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        reason = (
            "its vocabulary has special tokens only"
            if len(tokenizer) <= len(tokenizer.all_special_ids)
            else ""
        )
    except Exception as error:  # of any type: the tokenizers' library raises bare ones
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason:  # transformers makes an empty tokenizer where the files are missing
        raise TeacherError(
            f"{folder}: no tokenizer that transformers can open: {reason}",
            "Save the tokenizer beside the model with save_pretrained.",
        )
    return tokenizer


def open_model(model_class: Any, folder: Path, *, complete: bool = False, **settings: Any) -> PreTrainedModel:
    """The model in fp32, evaluation mode; `settings` go to `from_pretrained`. Raises `TeacherError` where the weights
    are damaged or do not fit the config; `complete`: also where the folder lacks some, which would be random."""
    import torch
    from safetensors import SafetensorError

    quiet()
    settings = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32, **settings}
    try:
        model, info = model_class.from_pretrained(folder, output_loading_info=True, **settings)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            f"{folder}: its weights cannot be loaded: {reason}",
            "The folder is damaged or incomplete: save or fetch the model again.",
        ) from error
    if complete and info["missing_keys"]:
        raise TeacherError(
            f"{folder}: it has no weights {', '.join(sorted(info['missing_keys']))[:200]}",
            f"Give a folder that was saved from a {model_class.__name__.removeprefix('AutoModel')} model.",
        )
    opened: PreTrainedModel = model
    opened.eval()
    return opened


def width(config: PretrainedConfig) -> int:
    """The width of a model's hidden layers; of an encoder and a decoder with configs of their own the encoder's."""
    size: int = _encoder_of(config).hidden_size
    return size


def _encoder_of(config: PretrainedConfig) -> Any:
    """The config of the encoder, where encoder and decoder have one each; else the same."""
    return config.encoder if config.model_type == "encoder-decoder" else config


def vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary. Its fingerprint is a hash of its tokens and, where it has them, of the rules by which it cuts
    a text into tokens: a teacher and a student with the same one have the same ids at the same positions. A mark before a text alone, as language models have it before a
    prompt, does not count: a text that they write has none."""
    tokens = sorted(tokenizer.get_vocab().items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = type(tokenizer).__name__
    if backend is not None:
        parts = json.loads(backend.to_str())
        rules = {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "model")}
        text = tokenizer("a", add_special_tokens=False)["input_ids"]
        if tokenizer("a")["input_ids"][-len(text) :] == text:
            del rules["post_processor"]
    digest = blake2b(json.dumps([tokens, rules], sort_keys=True).encode(), digest_size=16)
    return Vocabulary(len(tokenizer), digest.hexdigest())


def check_length(folder: Path, max_length: int, where: str) -> None:
    """Raises `TeacherError` if the model has no positions for `max_length` tokens."""
    config = _encoder_of(open_config(folder))
    given, pad = getattr(config, "max_position_embeddings", None), getattr(config, "pad_token_id", None)
    if given is not None and max_length < given - (pad or 0):
        return  # fewer than any architecture has, also those that count from the padding id: no need to import the model's class
    most = positions(folder)
    if most is not None and max_length > most:
        raise TeacherError(
            f"{where}: max_length {max_length} is more than the model's {most} positions",
            f"Set the task's data.max_length to {most} or less.",
        )


def positions(folder: Path) -> int | None:
    """The number of tokens that the model has positions for; None where its architecture has no such limit."""
    import torch
    from transformers import AutoModel

    config = _encoder_of(open_config(folder))
    with torch.device("meta"):  # shapes, no weights
        model = AutoModel.from_config(config, trust_remote_code=False)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's and MPNet's
            return module.num_embeddings - first
    return getattr(config, "max_position_embeddings", None)


def hidden_layer(folder: Path, index: int | None, where: str) -> Layer:
    """The layer of a model whose hidden vectors are read: `index`, counted from 1, or for None the middle one.

    Raises `TeacherError` where the model has no such layer, or is no encoder.
    """
    config = open_config(folder)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if config.is_encoder_decoder or layers is None or width is None:
        raise TeacherError(
            f"{where}: {folder} is a {config.model_type}, whose hidden states are not read",
            "Give the loss no weight on hidden, or take an encoder such as BERT's.",
        )
    index = (layers + 1) // 2 if index is None else index
    if index > layers:
        raise TeacherError(
            f"{where}.hidden_layer: {index}, and {folder} has {layers} layers",
            f"Set it to {layers} or less, or leave it out for the middle layer.",
        )
    return Layer(width, index)


def weights_size(folder: Path) -> dict[str, int]:
    """``parameters`` and ``bytes`` of the weights in a model folder, read from the safetensors headers."""
    from math import prod

    from safetensors import safe_open

    parameters = size = 0
    for file in folder.glob("*.safetensors"):
        size += file.stat().st_size
        with safe_open(file, framework="np") as tensors:
            parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return {"parameters": parameters, "bytes": size}
