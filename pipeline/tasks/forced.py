"""A model that writes is forced along texts: what it would write next at each of their positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.batch import NO_TOKEN

MOST_LOGITS = 50_000_000
"""Logits of a forward pass along texts, 200 MB: a vocabulary has tens of thousands of tokens at each position."""
MOST_TRAINED = 4 * MOST_LOGITS
"""Of a forward pass with gradients, about three times as much memory a logit: as many as 4,096 tokens of most vocabularies have."""


def output_along(model: Any, inputs: Mapping[str, Tensor], target: Tensor) -> Any:
    """The output of a model that writes, forced along `target`: its logits are (S, length, V), those at a position of the token
    that stands there.

    inputs: ``input_ids`` and ``attention_mask``, (S, …) int64, padded on the right; or the features of recordings and, as ``decoder_input_ids``, the (S, p)
    prompt that the decoder reads first · target: (S, length) int64 token ids, padded by
    `NO_TOKEN`.
    """
    if "decoder_input_ids" in inputs:
        before = inputs["decoder_input_ids"]
        ids = torch.cat((before, target.masked_fill(target == NO_TOKEN, 0)[:, :-1]), dim=1)
        output = model(**{**readable(inputs, model), "decoder_input_ids": ids}, use_cache=False)
        output.logits = output.logits[:, before.shape[1] - 1 :]
        return output
    if model.config.is_encoder_decoder:
        return model(**inputs, decoder_input_ids=decoder_inputs(model, target), use_cache=False)
    prompt, there = padded_on_the_left(inputs), target != NO_TOKEN
    # the last token of a target is read by nothing
    ids = torch.cat((prompt["input_ids"], target.masked_fill(~there, 0)[:, :-1]), dim=1)
    mask = torch.cat((prompt["attention_mask"], there[:, :-1].long()), dim=1)
    length, known = target.shape[1], inspect.signature(model.forward).parameters
    more = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0), "logits_to_keep": length}
    more = {name: value for name, value in more.items() if name in known}
    output = model(input_ids=ids, attention_mask=mask, use_cache=False, **more)
    output.logits = output.logits[:, -length:]
    return output


def readable(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The inputs, features in the type of the model's weights."""
    return {name: one.to(model.dtype) if one.is_floating_point() else one for name, one in inputs.items()}


def most_tokens(tokens: int, vocabulary: int, logits: int = MOST_LOGITS) -> int:
    """The padded tokens of a forward pass along texts: `tokens`, or fewer where they would have more than `logits` logits."""
    return max(1, min(tokens, logits // vocabulary))


def padded_on_the_left(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same sequences, so padded that all end at the same place: what follows them begins there."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    return {name: values.gather(1, order) for name, values in inputs.items()}


def decoder_inputs(model: Any, target: Tensor) -> Tensor:
    """(S, length) what a decoder reads to be forced along `target`: the ids one position later."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted: Tensor = model.prepare_decoder_input_ids_from_labels(labels=target)
        return shifted
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    first = torch.full_like(target[:, :1], start)
    ids = torch.cat((first, target[:, :-1]), dim=1)
    return ids.masked_fill(ids == NO_TOKEN, pad)
