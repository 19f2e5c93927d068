"""Student layers from a teacher's: any encoder whose layers stand in one ModuleList."""

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
    """Which of `total` layers to keep: `layers` of them evenly spaced with the last pinned
    (Distil-Whisper, arXiv 2311.00430), those named, or all for None. Raises `ConfigError` if there are too few.
    """
    if layers is None:
        return list(range(total))
    if isinstance(layers, int):
        if layers > total:
            raise ConfigError(
                f"layers: {layers} asked for, the teacher has {total}", f"Ask for {total} or fewer."
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
    """A new encoder with the chosen layers of `encoder`; embeddings, norms and pooler are copied whole."""
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
    """Path and length of the encoder's list of layers."""
    total = encoder.config.num_hidden_layers
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return path, total
    raise ConfigError(
        f"layers: {type(encoder).__name__} does not keep its layers in a list of {total}",
        "Give the student a `model` of its own instead of `init_from`.",
    )
