"""What the tests of question answering share: examples, hard texts, small tokenizers of the usual families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from pipeline.batch import Encoded, Examples, content_keys
from pipeline.models import open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.spans import word_spans
from pipeline.tasks.tensors import TensorBatch
from tests.conftest import FILLER, GOOD

ASSETS = Path(__file__).resolve().parents[4] / ".cache" / "assets"
CPU = torch.device("cpu")
CONTEXT = "Ada wrote it in 1843. Grace wrote a compiler in 1952."
PIECES = (
    *[
        "Paris",
        "the",
        "naïve",
        "été",
        "re-entry",
        "3.14",
        "U.S.",
        "don't",
        "word",
        "WORD",
        "_x_",
        "東京",
        "中国人民",
        "ありがとう",
        "ภาษาไทย",
    ],
    *[
        "한국어",
        "שלום",
        "مرحبا",
        "Straße",
        "ﬁnd",
        "①",
        "Ⅳ",
        "½",
        "😀",
        "👩\u200d👩\u200d👧",
        "🇫🇷",
        "\u200b",
        "\u200d",
        "\ufeff",
        "́",
        "️",
    ],
    *[
        "\x00",
        "\x1f",
        "�",
        "\u2028",
        "\t",
        "\n",
        "\xa0",
        ".",
        ",",
        "...",
        "(",
        ")",
        '"',
        "$",
        "%",
        "[CLS]",
        "[SEP]",
        "[UNK]",
    ],
    *("  ", " ", " ", " "),
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join),
    st.text(max_size=30),
)
CONTEXTS = TEXTS.filter(lambda text: len(word_spans(text)) > 0)
PAIRS = st.lists(st.tuples(TEXTS, CONTEXTS), min_size=1, max_size=4)
"""Questions and contexts."""
TOKENIZERS = ("wordpiece-uncased", "wordpiece-cased", "byte-bpe", "unigram", "minilm")


def task_of(max_length: int = 64, unanswerable: bool = True, metric: str = "f1") -> Task:
    return question_answering("qa", max_length, metric, unanswerable)


def columns_of(rows: Sequence[tuple[Any, Any]], starts: Sequence[Any] | None = None) -> dict[str, Column]:
    """Columns of (context, answers) rows."""
    columns = {
        "question": Column(["Who?"] * len(rows)),
        "context": Column([context for context, _ in rows]),
        "answers": Column([answers for _, answers in rows]),
    }
    return columns if starts is None else {**columns, "answer_starts": Column(starts)}


def read(rows: Sequence[tuple[Any, Any]], starts: Sequence[Any] | None = None) -> Examples:
    inputs, labels = task_of().reading.read(columns_of(rows, starts), "train")
    content = {role: inputs[role] for role in task_of().reading.fields}
    return Examples("qa", content_keys("question-answering", content), inputs, labels)


def batch_of(encoded: Encoded, rows: Sequence[int] | None = None) -> TensorBatch:
    return TensorBatch.of(encoded.pad(np.arange(len(encoded)) if rows is None else np.array(rows)), CPU)


def noise(batch: TensorBatch, seed: int = 0) -> dict[str, Tensor]:
    """A model's output, drawn."""
    shape, generator = batch.inputs["input_ids"].shape, torch.Generator().manual_seed(seed)
    start, end = (4 * torch.randn(shape, generator=generator) for _ in range(2))
    return {"start_logits": start, "end_logits": end}


def long_context(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice([*FILLER, *GOOD], words))


@cache
def tokenizer_of(name: str) -> Any:
    """Small tokenizers of the usual families, trained on `PIECES`."""
    if name == "minilm":
        if not (ASSETS / "minilm-l6").exists():
            pytest.skip("no example model: python examples/fetch_assets.py minilm-l6")
        return open_tokenizer(ASSETS / "minilm-l6")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer: Any
    match name:
        case "byte-bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=400,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
        case "unigram":
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False
            )
        case _:
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=name.endswith("uncased"))
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([" ".join(p for p in PIECES if p not in special)] * 3, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    extra = " [SEP]" if name == "byte-bpe" else ""  # two separators, as RoBERTa has
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP]{extra} $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def inputs_of(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Inputs of (question, context) pairs."""
    return {"question": [question for question, _ in pairs], "context": [context for _, context in pairs]}
