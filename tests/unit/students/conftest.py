"""More architectures than `tiny_model` has, and tasks for their students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.models import quiet
from tests.conftest import VOCABULARY, Architecture, TinyModel, save_tokenizer

MORE = ("roberta", "electra", "deberta-v2")  # "albert" as well, where nothing is cut
ARCHITECTURES = (*get_args(Architecture), *MORE)
FolderOf = Callable[..., Path]


@pytest.fixture(scope="session")
def folder_of(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Factory: architecture, number of layers → a bare encoder's folder."""
    root = tmp_path_factory.mktemp("more-models")

    def make(architecture: str, layers: int = 2) -> Path:
        if architecture in get_args(Architecture):
            known: Architecture = architecture  # type: ignore[assignment]
            return tiny_model(known, layers=layers)
        folder = root / f"{architecture}-{layers}"
        if not folder.exists():
            _save(architecture, layers, folder)
        return folder

    return make


def _save(architecture: str, layers: int, folder: Path) -> None:
    from transformers import AutoConfig, AutoModel

    quiet()
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(VOCABULARY),
        pad_token_id=0,
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=65,  # RoBERTa counts from the padding id + 1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, token_types=architecture == "electra")
