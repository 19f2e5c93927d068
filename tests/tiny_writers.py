"""Small random models that write, of the usual families, with one tokenizer, and tasks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.config.generation import GenerationConfig
from pipeline.config.kinds import SEQUENCE_TO_SEQUENCE, TEXT_GENERATION
from pipeline.tasks import Task
from pipeline.tasks.sequence_to_sequence import SequenceReading, SequenceScoring
from pipeline.tasks.text_generation import ROLES, PromptHead
from pipeline.tasks.writing import WritingHead

FAMILIES = ("t5", "bart", "mbart", "marian", "m2m_100", "encoder-decoder")
DECODERS = ("gpt2", "llama", "gpt_neox", "opt", "bloom")
"""Families of language models: learnt positions, rotary ones, those of OPT that count the mask, and ALiBi."""
WORDS = {
    "red": "rouge",
    "cat": "chat",
    "dog": "chien",
    "the": "le",
    "a": "un",
    "sees": "voit",
    "big": "grand",
}
SOURCES = ["the red cat sees a dog", "a dog", "the big dog sees the red cat", "a cat sees the dog", "red"]
TARGETS = [" ".join(WORDS[word] for word in source.split()) for source in SOURCES]
WIDTH, LAYERS = 16, 3


def tokenizer(*, ends: bool = True) -> Any:
    """A BPE tokenizer of the words. ends: it ends each text with ``</s>``, as no language model's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    bpe.train_from_iterator(
        [*SOURCES, *TARGETS], trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    )
    if ends:
        bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def writer(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves a model and its tokenizer in `folder`; returns it."""
    words = tokenizer(ends=family not in DECODERS)
    torch.manual_seed(seed)
    model = _model(family, len(words))
    with torch.no_grad():  # far enough from uniform that ties do not decide what is written
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _model(family: str, size: int) -> Any:
    from transformers import (
        BertConfig,
        EncoderDecoderConfig,
        EncoderDecoderModel,
        T5Config,
        T5ForConditionalGeneration,
    )
    from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    ids: dict[str, Any] = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 3,
        "decoder_start_token_id": 0,
    }
    if family == "t5":
        shape: dict[str, Any] = {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 32,
            "num_heads": 2,
            "num_layers": LAYERS,
        }
        return T5ForConditionalGeneration(
            T5Config(vocab_size=size, **shape, num_decoder_layers=LAYERS, dropout_rate=0.0, **ids)
        )
    if family == "encoder-decoder":
        shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
        bert = BertConfig(vocab_size=size, **shape, intermediate_size=32, max_position_embeddings=64)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
        for name, value in ids.items():
            setattr(config, name, value)
        return EncoderDecoderModel(config=config)
    if family in DECODERS:
        return _language_model(family, size)
    shape = {
        "d_model": WIDTH,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
    }
    configs: Any = CONFIG_MAPPING
    models: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    own = configs[family](vocab_size=size, **shape, forced_eos_token_id=None, **ids)
    return models[type(own)](own)


def _language_model(family: str, size: int) -> Any:
    """Without a padding id of its own, as most are saved."""
    from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    configs: Any = CONFIG_MAPPING
    models: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    more = {
        "llama": {"intermediate_size": 32, "num_key_value_heads": 1},
        "gpt_neox": {"intermediate_size": 32},
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": WIDTH},
    }
    length = {} if family == "bloom" else {"max_position_embeddings": 64}
    own = configs[family](
        vocab_size=size, **shape, **length, **more.get(family, {}), eos_token_id=1, bos_token_id=3
    )
    for name, value in own.to_dict().items():
        if name.endswith(("pdrop", "dropout")) and isinstance(value, float):
            setattr(own, name, 0.0)
    return models[type(own)](own)


def prompt_task(
    max_length: int = 24, target_length: int = 12, metric: str = "chrf", **generation: Any
) -> Task:
    """A task of text-generation, with these settings for generation."""
    head = PromptHead("translate", max_length, target_length, "", GenerationConfig(**generation))
    reading = SequenceReading("translate", (), ("source",), ROLES)
    return Task("translate", TEXT_GENERATION, reading, head, SequenceScoring(metric, TEXT_GENERATION.metrics))


def writing_task(
    max_length: int = 32, target_length: int = 12, metric: str = "chrf", **generation: Any
) -> Task:
    """A task of the kind, with these settings for generation."""
    head = WritingHead("translate", max_length, target_length, "", GenerationConfig(**generation))
    reading = SequenceReading("translate", (), ("source",))
    return Task(
        "translate",
        SEQUENCE_TO_SEQUENCE,
        reading,
        head,
        SequenceScoring(metric, SEQUENCE_TO_SEQUENCE.metrics),
    )
