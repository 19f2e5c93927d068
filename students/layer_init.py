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
    path, total = _layer_list(
        encoder, "layers", "Give the student a `model` of its own instead of `init_from`."
    )
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


def parts_from_top(encoder: PreTrainedModel) -> list[list[nn.Parameter]]:
    """The encoder's parameters in the order of gradual unfreezing: what follows its layers (a pooler, a last norm), each
    layer from the last to the first, and what comes before them, its embeddings.

    Raises `ConfigError` where its layers are not in one list.
    """
    path, total = _layer_list(encoder, "unfreeze", "Drop the key.")
    before, after = list[nn.Parameter](), list[nn.Parameter]()
    layers: list[list[nn.Parameter]] = [[] for _ in range(total)]
    pattern = re.compile(rf"^{re.escape(path)}\.(\d+)\.")
    for name, parameter in encoder.named_parameters():
        if match := pattern.match(name):
            layers[int(match[1])].append(parameter)
        else:  # modules are registered in the order of the forward pass
            (after if any(layers) else before).append(parameter)
    return [after, *reversed(layers), before]


def _layer_list(encoder: PreTrainedModel, key: str, remedy: str) -> tuple[str, int]:
    """The name of the encoder's ModuleList of layers among its modules, and its length.

    Raises `ConfigError` with the config's key and the remedy where there is none, as in ALBERT, whose layers share weights.
    """
    total = encoder.config.num_hidden_layers
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return path, total
    raise ConfigError(
        f"{key}: {type(encoder).__name__} does not keep its layers in a list of {total}", remedy
    )
