"""A student's layers, copied from a teacher's, for any encoder, or encoder and decoder, with its layers in a ModuleList."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.kinds import Kind
from pipeline.config.schema import StackLayersConfig
from pipeline.errors import ConfigError
from pipeline.predictor import check_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


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


def truncate(
    model: PreTrainedModel, layers: int | Sequence[int] | StackLayersConfig | None
) -> PreTrainedModel:
    """A new model with the chosen layers of `model`, which keeps its embeddings, norms and pooler.

    layers: see `layer_indices`; of a model with encoder and decoder of both, or of each. Raises `ConfigError` where they do
    not fit the model.
    """
    config = copy.deepcopy(model.config)
    if config.is_encoder_decoder:
        paths = _cut_stacks(model, config, layers)
    elif isinstance(layers, StackLayersConfig):
        raise ConfigError(
            f"layers: {type(model).__name__} has no decoder", "Give a number, or a list of layers."
        )
    else:
        path, total = _layer_list(
            model, "layers", "Give the student a `model` of its own instead of `init_from`."
        )
        paths = {path: layer_indices(layers, total)}
        config.num_hidden_layers = len(paths[path])
        if getattr(config, "layer_types", None):  # ModernBERT: which attention each layer has
            config.layer_types = [config.layer_types[i] for i in paths[path]]
    student: PreTrainedModel = type(model)(config)
    _part_head(model, student)
    if (
        model.can_generate()
    ):  # what it writes depends on more than its config, such as Whisper's tokens of no speech
        student.generation_config = copy.deepcopy(model.generation_config)
    state = _kept_weights(model, paths)
    incomplete = student.load_state_dict(state, strict=False)
    if incomplete.missing_keys:
        raise ConfigError(
            f"layers: {type(model).__name__} has no weights for {incomplete.missing_keys[0]}",
            "Choose other layers, or give the student a `model` of its own.",
        )
    student.eval()
    return student


def _part_head(model: PreTrainedModel, student: PreTrainedModel) -> None:
    """Gives the student's output embeddings weights of their own where the model's are not its input embeddings, in spite of
    `tie_word_embeddings`: of T5's configs it says only that encoder and decoder share theirs."""
    own: Any = model.get_output_embeddings()
    new: Any = student.get_output_embeddings()
    if own is None or own.weight is model.get_input_embeddings().weight:
        return
    if new.weight is student.get_input_embeddings().weight:
        new.weight = torch.nn.Parameter(torch.empty_like(own.weight))


def check_kinds(folder: Path, kinds: Collection[Kind], where: str) -> None:
    """Raises `ConfigError` where one model cannot learn tasks of these kinds, and `TeacherError` where the one in `folder` is of another class."""
    own = next((kind for kind in kinds if kind.decoder_only or kind.audio), None)
    if own is None:
        return
    others = sorted({kind.name for kind in kinds if kind != own})
    if others:
        what = "model of speech" if own.audio else "language model"
        raise ConfigError(
            f"{where}: a {what} learns tasks of {own.name} alone, and no {' or '.join(others)}",
            "Give the tasks to students of their own (students.<student>.tasks).",
        )
    check_head(folder, own, where)


def check_layers(
    config: PretrainedConfig,
    layers: int | Sequence[int] | StackLayersConfig | None,
    kinds: Collection[Kind] = (),
) -> None:
    """Raises `ConfigError` where a model with that config does not have the layers.

    kinds: of the student's tasks: where one of them writes with a decoder, an encoder gets one of as many layers.
    """
    writes = any(kind.writes and not kind.decoder_only and not kind.audio for kind in kinds)
    if config.is_encoder_decoder or writes:
        totals = depths(config) if config.is_encoder_decoder else (config.num_hidden_layers,) * 2
        for own, total in zip(_of_stacks(layers), totals, strict=True):
            layer_indices(own, total)
    elif isinstance(layers, StackLayersConfig):
        raise ConfigError(
            f"layers: a {config.model_type} has no decoder", "Give a number, or a list of layers."
        )
    else:
        layer_indices(layers, config.num_hidden_layers)


DEPTHS = (("encoder_layers", "decoder_layers"), ("num_layers", "num_decoder_layers"))
"""Names of the numbers of layers in the configs of models with encoder and decoder: BART's and T5's."""


def depths(config: PretrainedConfig) -> tuple[int, int]:
    """Layers of the encoder and of the decoder. Raises `ConfigError` where the config does not say."""
    if config.model_type == "encoder-decoder":
        return config.encoder.num_hidden_layers, config.decoder.num_hidden_layers
    for names in DEPTHS:
        if all(isinstance(getattr(config, name, None), int) for name in names):
            encoder, decoder = (getattr(config, name) for name in names)
            return encoder, decoder
    raise ConfigError(
        f"layers: the config of a {config.model_type} does not say how many layers it has", "Drop the key."
    )


def _of_stacks(
    layers: int | Sequence[int] | StackLayersConfig | None,
) -> tuple[int | Sequence[int] | None, int | Sequence[int] | None]:
    if isinstance(layers, StackLayersConfig):
        return layers.encoder, layers.decoder
    return layers, layers


def _cut_stacks(
    model: PreTrainedModel, config: Any, layers: int | Sequence[int] | StackLayersConfig | None
) -> dict[str, list[int]]:
    """The layers to keep of encoder and decoder, by the names of their lists; `config` gets their numbers."""
    kept = [layer_indices(own, total) for own, total in zip(_of_stacks(layers), depths(config), strict=True)]
    if config.model_type == "encoder-decoder":
        config.encoder.num_hidden_layers, config.decoder.num_hidden_layers = map(len, kept)
    else:
        names = next(names for names in DEPTHS if isinstance(getattr(config, names[0], None), int))
        for name, own in zip(names, kept, strict=True):
            setattr(config, name, len(own))
    names_of = {id(module): name for name, module in model.named_modules()}
    lists = []
    for stack, total in zip((model.get_encoder(), model.get_decoder()), depths(model.config), strict=True):
        found = next(
            (one for one in stack.modules() if isinstance(one, nn.ModuleList) and len(one) == total), None
        )
        if found is None:
            raise ConfigError(
                f"layers: {type(model).__name__} does not keep its layers in a list of {total}",
                "Give the student a `model` of its own instead of `init_from`.",
            )
        lists.append(names_of[id(found)])
    return dict(zip(lists, kept, strict=True))


def _kept_weights(model: PreTrainedModel, paths: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The model's weights with its layers renumbered. paths: the layers to keep, by the name of their list.

    What only the first layer has (T5's relative positions) goes to the new first layer.
    """
    first, state = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        path = next((path for path in paths if name.startswith(f"{path}.")), None)
        if path is None:
            state[name] = tensor
            continue
        number, rest = name[len(path) + 1 :].split(".", 1)
        if int(number) in paths[path]:
            state[f"{path}.{list(paths[path]).index(int(number))}.{rest}"] = tensor
        elif int(number) == 0:
            first[f"{path}.0.{rest}"] = tensor
    return {**first, **state}


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
        # wav2vec2 has as many convolutions before its layers as some of its models have layers
        if isinstance(module, nn.ModuleList) and len(module) == total and "feature_extractor" not in path:
            return path, total
    raise ConfigError(
        f"{key}: {type(encoder).__name__} does not keep its layers in a list of {total}", remedy
    )
