"""A student's layers out of a teacher with encoder and decoder, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import StackLayersConfig
from pipeline.errors import ConfigError
from pipeline.models import open_config, open_model, open_tokenizer
from students.layer_init import check_layers, depths, truncate
from tests.tiny_writers import FAMILIES, LAYERS, SOURCES, writer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: writer(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return open_model(AutoModelForSeq2SeqLM, folder)


@torch.no_grad()
def logits_of(model: Any, folder: Path) -> torch.Tensor:
    batch = open_tokenizer(folder)(
        SOURCES[:2], return_tensors="pt", padding=True, return_token_type_ids=False
    )
    logits: torch.Tensor = model(**batch, decoder_input_ids=torch.tensor([[0, 4, 5], [0, 6, 7]])).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_give_the_same_model(folders: dict[str, Path], family: str) -> None:
    model = model_of(folders[family])
    whole = truncate(model, StackLayersConfig())
    assert torch.equal(logits_of(whole, folders[family]), logits_of(model, folders[family]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layers", "expected"), [
    (StackLayersConfig(encoder=2, decoder=1), (2, 1)),
    (StackLayersConfig(decoder=(1,)), (LAYERS, 1)),
    (2, (2, 2)),
])  # fmt: skip
def test_a_cut_model_has_its_layers_and_is_saved(
    folders: dict[str, Path], tmp_path: Path, family: str, layers: Any, expected: tuple[int, int]
) -> None:
    model = model_of(folders[family])
    cut = truncate(model, layers)
    assert depths(cut.config) == expected
    cut.save_pretrained(tmp_path)
    open_tokenizer(folders[family]).save_pretrained(tmp_path)
    assert torch.equal(logits_of(model_of(tmp_path), tmp_path), logits_of(cut, folders[family]))
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
    assert logits_of(model, folders[family]).abs().sum() > 0, "the teacher keeps its own weights"


def test_kept_layers_are_the_teachers(folders: dict[str, Path]) -> None:
    model = model_of(folders["t5"])
    cut: Any = truncate(model, StackLayersConfig(encoder=1, decoder=(1, 2)))
    own, kept = model.encoder.block[LAYERS - 1], cut.encoder.block[0]
    assert torch.equal(own.layer[1].DenseReluDense.wi.weight, kept.layer[1].DenseReluDense.wi.weight)
    first = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert torch.equal(first, kept.layer[0].SelfAttention.relative_attention_bias.weight), (
        "only layer 0 has it"
    )
    for place, number in enumerate((1, 2)):
        assert torch.equal(
            model.decoder.block[number].layer[1].EncDecAttention.q.weight,
            cut.decoder.block[place].layer[1].EncDecAttention.q.weight,
        )


def test_output_embeddings_of_their_own_stay_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(folders["t5"])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    assert model.config.tie_word_embeddings
    cut: Any = truncate(model, StackLayersConfig())
    assert cut.encoder.embed_tokens.weight is cut.decoder.embed_tokens.weight is cut.shared.weight
    cut.save_pretrained(tmp_path)
    for own in (cut, model_of(tmp_path)):
        assert torch.equal(own.lm_head.weight, model.lm_head.weight)
        assert torch.equal(own.shared.weight, model.shared.weight)


def test_layers_that_are_not_there_are_refused(folders: dict[str, Path], tiny_model: Any) -> None:
    config = open_config(folders["bart"])
    check_layers(config, StackLayersConfig(encoder=LAYERS, decoder=1))
    with pytest.raises(ConfigError, match="4 requested, the teacher has 3"):
        check_layers(config, StackLayersConfig(decoder=LAYERS + 1))
    with pytest.raises(ConfigError, match="has no decoder"):
        check_layers(open_config(tiny_model("bert")), StackLayersConfig(decoder=1))
