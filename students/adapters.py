"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: put into a model before it trains, and added to its weights afterwards."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.config.adapters import LoraConfig
from pipeline.config.kinds import Kind
from pipeline.errors import ConfigError
from pipeline.models import open_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLER = "pooler"
"""The name of what sums a text up after the layers. It starts from nothing where the model's folder has none, so it trains whole, as heads do."""


def add_adapters(trunk: PreTrainedModel, given: LoraConfig) -> None:
    """Freezes the model's parameters, but for a pooler's, and gives its linear maps adapters, drawn from torch's generator, that add nothing yet.

    Raises `ConfigError` where the model has none of `given.modules`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = _targets(trunk, given)
    config = PeftConfig(
        r=given.rank,
        lora_alpha=given.alpha,  # type: ignore[arg-type]  # it may be any number
        lora_dropout=given.dropout,
        target_modules=list(targets),
        fan_in_fan_out=not any(isinstance(one, nn.Linear) for one in targets.values()),  # GPT-2's are Conv1D
    )
    inject_adapter_in_model(config, trunk)
    for name, parameter in trunk.named_parameters():
        if POOLER in name.split("."):
            parameter.requires_grad_(True)


def merge_adapters(trunk: PreTrainedModel) -> None:
    """Adds the adapters to the weights beside them and removes them: the model is one of transformers' again, all of it trainable."""
    for path, layer in list(_adapted(trunk)):
        layer.merge(safe_merge=False)
        parent, _, name = path.rpartition(".")
        setattr(trunk.get_submodule(parent), name, layer.get_base_layer())
    trunk.requires_grad_(True)


def check_adapters(folder: Path, given: LoraConfig, kinds: Collection[Kind], where: str) -> None:
    """Raises `ConfigError` where peft is missing, or the model in `folder` cannot have the adapters. kinds: of its tasks."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"{where} needs peft", "Install the project's extra, from its folder: pip install -e '.[lora]'."
        )
    config = open_config(folder)
    if not config.is_encoder_decoder and any(
        kind.writes and not kind.decoder_only and not kind.audio for kind in kinds
    ):
        raise ConfigError(
            f"{where}: the decoder that a {config.model_type} gets starts from nothing, adapters cannot train it",
            "Drop the key, or take a model that has a decoder.",
        )
    if given.modules is None:
        return
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    try:
        _targets(model, given)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error.cause}", error.remedy) from None


def _targets(trunk: PreTrainedModel, given: LoraConfig) -> dict[str, nn.Module]:
    """The linear maps that get adapters, by path. Raises `ConfigError` for one of `given.modules` that is no end of any."""
    from transformers.pytorch_utils import Conv1D

    maps: dict[str, nn.Module] = {
        path: one
        for path, one in trunk.named_modules()
        if isinstance(one, nn.Linear | Conv1D)
        and one is not trunk.get_output_embeddings()
        and POOLER not in path.split(".")
    }
    if given.modules is None:
        return maps
    chosen: dict[str, nn.Module] = {}
    for wanted in given.modules:
        own = {path: one for path, one in maps.items() if f".{path}".endswith(f".{wanted}")}
        if not own:
            ends = sorted({path.rpartition(".")[2] for path in maps})
            raise ConfigError(
                f"modules: a {type(trunk).__name__} has no linear map {wanted!r}",
                f"It has {', '.join(ends)}.",
            )
        chosen |= own
    return chosen


def _adapted(trunk: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The layers that have adapters, peft's, with their paths."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    yield from ((path, one) for path, one in trunk.named_modules() if isinstance(one, BaseTunerLayer))
