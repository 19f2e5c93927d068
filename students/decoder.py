"""An encoder → a model that writes: the encoder and a decoder made of the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.models import open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_decoder(encoder: PreTrainedModel, folder: Path, tokenizer: Any) -> PreTrainedModel:
    """An `EncoderDecoderModel` of `encoder` and a decoder with the same weights, as "bert2bert" in Rothe et al.
    (arXiv:1907.12461); its attention to the encoder is drawn from torch's generator.

    folder: of the encoder. Texts begin with the tokenizer's first special token and end with its last one. Raises
    `ConfigError` for an encoder without a decoder in transformers, or a tokenizer without such tokens.
    """
    from transformers import AutoModelForCausalLM, EncoderDecoderModel

    first, last = (
        next((token for token in tokens if token is not None), None)
        for tokens in (
            (tokenizer.cls_token_id, tokenizer.bos_token_id),
            (tokenizer.sep_token_id, tokenizer.eos_token_id),
        )
    )
    if first is None or last is None or tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{folder}: its tokenizer has no token that begins or ends a text", "Give a model with a decoder."
        )
    config = copy.deepcopy(encoder.config)
    config.is_decoder = config.add_cross_attention = True
    try:
        decoder = open_model(AutoModelForCausalLM, folder, config=config)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{folder}: transformers has no decoder for a {config.model_type}: {reason}"[:400],
            "Give a model with a decoder, or an encoder of BERT's kind.",
        ) from None
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    ids = {"decoder_start_token_id": first, "eos_token_id": last, "pad_token_id": tokenizer.pad_token_id}
    for name, value in ids.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.config.vocab_size = decoder.config.vocab_size
    opened: PreTrainedModel = model.eval()
    return opened
