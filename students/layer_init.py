"""A student's layers, copied from a teacher's, for any encoder that has its layers in one ModuleList."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_indices(layers: int | Sequence[int] | None, total: int) -> list[int]:
    """Indices of the layers to keep, out of `total`, ascending for a number or None.

    layers: a number keeps that many, evenly spaced, always with the last one (Distil-Whisper, arXiv 2311.00430); a
    sequence keeps those indices; None keeps all. Raises `ConfigError` if the model has fewer layers.
    """
    if layers is None:
        return list(range(total))
    if isinstance(layers, int):
        if layers > total:
            raise ConfigError(
                f"layers: {layers} requested, the teacher has {total}", f"Set layers to {total} or fewer."
            )
        kept = np.linspace(0, total - 1, layers, dtype=int)
        kept[-1] = total - 1
        return [int(i) for i in kept]
    if max(layers) >= total:
        raise ConfigError(
            f"layers: there is no layer {max(layers)}, the last is {total - 1}", "Layers count from 0."
        )
    return list(layers)


def truncate(encoder: PreTrainedModel, layers: int | Sequence[int] | None) -> PreTrainedModel:
    """A new encoder with the chosen layers of `encoder`, which keeps its embeddings, norms and pooler.

    layers: see `layer_indices`. Raises `ConfigError` where they do not fit the encoder.
    """
    path, total = _layer_list(encoder)
    kept = layer_indices(layers, total)
    config = copy.deepcopy(encoder.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):  # ModernBERT: which attention each layer has
        config.layer_types = [config.layer_types[i] for i in kept]
    student: PreTrainedModel = type(encoder)(config)
    pattern = re.compile(rf"^{re.escape(path)}\.(\d+)\.")
    position = {old: new for new, old in enumerate(kept)}
    state = {}
    for name, tensor in encoder.state_dict().items():
        match = pattern.match(name)
        if match is None:
            state[name] = tensor
        elif int(match[1]) in position:
            state[f"{path}.{position[int(match[1])]}.{name[match.end() :]}"] = tensor
    incomplete = student.load_state_dict(state, strict=False)
    if incomplete.missing_keys:
        raise ConfigError(
            f"layers: {type(encoder).__name__} has no weights for {incomplete.missing_keys[0]}",
            "Choose other layers, or give the student a `model` of its own.",
        )
    student.eval()
    return student


def _layer_list(encoder: PreTrainedModel) -> tuple[str, int]:
    """The name of the encoder's ModuleList of layers among its modules, and its length."""
    total = encoder.config.num_hidden_layers
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return path, total
    raise ConfigError(
        f"layers: {type(encoder).__name__} does not keep its layers in a list of {total}",
        "Give the student a `model` of its own instead of `init_from`.",
    )
