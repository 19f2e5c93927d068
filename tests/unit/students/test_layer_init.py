"""Student layers from a teacher's: which ones, and that they are its own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import open_model
from students.layer_init import layer_indices, parts_from_top, truncate
from tests.unit.students.conftest import ARCHITECTURES, FolderOf

LAYERS = {"distilbert": "transformer.layer", "modernbert": "layers"}  # elsewhere: encoder.layer
IDS = torch.randint(7, 40, (3, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 12:] = 0


def encoder_of(folder: Path) -> Any:
    from transformers import AutoModel

    return open_model(AutoModel, folder)


@torch.no_grad()
def says(encoder: Any) -> Tensor:
    """Hidden states of the tokens that count."""
    hidden: Tensor = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return hidden[MASK.bool()]


# ---------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [
        (3, 6, [0, 2, 5]),
        (3, 12, [0, 5, 11]),
        (6, 12, [0, 2, 4, 6, 8, 11]),
        (2, 6, [0, 5]),
        (1, 6, [5]),
        (1, 1, [0]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (None, 4, [0, 1, 2, 3]),
        ((1, 3), 4, [1, 3]),
        ([0], 4, [0]),
    ],
)
def test_layers_are_spread_evenly_and_the_last_is_kept(layers: Any, total: int, kept: list[int]) -> None:
    assert layer_indices(layers, total) == kept


@given(st.integers(1, 48).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
def test_any_number_of_layers_gives_that_many_different_ones(numbers: tuple[int, int]) -> None:
    layers, total = numbers
    kept = layer_indices(layers, total)
    assert len(kept) == layers
    assert kept == sorted(set(kept))
    assert kept[-1] == total - 1
    assert layers == 1 or kept[0] == 0


@pytest.mark.parametrize("layers", [7, (0, 6)])
def test_more_than_there_are_is_refused(layers: Any) -> None:
    with pytest.raises(ConfigError, match="layers"):
        layer_indices(layers, 6)


# ---------------------------------------------------------------- their weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_layers_make_the_same_encoder(folder_of: FolderOf, architecture: str) -> None:
    teacher = encoder_of(folder_of(architecture, layers=4))
    student = truncate(teacher, None)
    assert torch.equal(says(student), says(teacher))
    shared = {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not shared  # a copy: training it leaves the teacher alone


@pytest.mark.parametrize("layers", [3, 1, (0, 1, 4)], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chosen_layers_are_the_teachers(folder_of: FolderOf, architecture: str, layers: Any) -> None:
    teacher = encoder_of(folder_of(architecture, layers=6))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = truncate(teacher, layers)
    kept = layer_indices(layers, 6)
    path = LAYERS.get(architecture, "encoder.layer")
    seen = set()
    for name, tensor in student.state_dict().items():
        match = re.match(rf"{re.escape(path)}\.(\d+)\.(.*)", name)
        theirs = f"{path}.{kept[int(match[1])]}.{match[2]}" if match else name
        assert torch.equal(tensor, before[theirs]), name
        seen.add(int(match[1]) if match else -1)
    assert seen == {-1, *range(len(kept))}
    assert student.config.num_hidden_layers == len(kept)
    assert teacher.config.num_hidden_layers == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "modernbert"])
def test_it_computes_what_the_teacher_would_without_the_other_layers(
    folder_of: FolderOf, architecture: str
) -> None:
    teacher = encoder_of(folder_of(architecture, layers=6))
    student = truncate(teacher, (1, 3, 4))
    pruned = copy.deepcopy(teacher)
    layers = pruned.get_submodule(LAYERS.get(architecture, "encoder.layer"))
    for i in (5, 2, 0):
        del layers[i]
    pruned.config.num_hidden_layers = 3
    assert torch.equal(says(student), says(pruned))


def test_modernbert_layers_keep_their_kind_of_attention(folder_of: FolderOf) -> None:
    teacher = encoder_of(folder_of("modernbert", layers=6))
    kinds = teacher.config.layer_types
    assert len(set(kinds)) == 2
    student = truncate(teacher, (0, 2, 3))
    assert student.config.layer_types == [kinds[i] for i in (0, 2, 3)]
    assert teacher.config.layer_types == kinds
    pruned = copy.deepcopy(teacher)
    for i in (5, 4, 1):
        del pruned.layers[i]
    pruned.config.num_hidden_layers = 3
    pruned.config.layer_types = student.config.layer_types
    assert torch.equal(says(student), says(pruned))


def test_modernbert_cut_without_its_first_layer(folder_of: FolderOf) -> None:
    """One layer means the last: it needs the norm that ModernBERT's first layer does without."""
    teacher = encoder_of(folder_of("modernbert", layers=6))
    student = truncate(teacher, 1)
    assert student.config.layer_types == [teacher.config.layer_types[5]]
    assert bool(says(student).isfinite().all())


def test_layers_that_are_not_in_a_list_are_refused(folder_of: FolderOf) -> None:
    with pytest.raises(ConfigError, match="AlbertModel does not keep its layers in a list"):
        truncate(encoder_of(folder_of("albert")), 1)


# ---------------------------------------------------------------- from the top


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_from_top_are_all_parameters_each_once(folder_of: FolderOf, architecture: str) -> None:
    encoder = encoder_of(folder_of(architecture, layers=3))
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    after, *layers, before = parts_from_top(encoder)
    assert sorted(names[p] for part in (after, *layers, before) for p in part) == sorted(names.values())
    path = LAYERS.get(architecture, "encoder.layer")
    for number, layer in zip((2, 1, 0), layers, strict=True):
        assert {names[p].startswith(f"{path}.{number}.") for p in layer} == {True}
    assert encoder.get_input_embeddings().weight in set(before)


def test_parts_of_layers_that_share_weights_are_refused(folder_of: FolderOf) -> None:
    with pytest.raises(ConfigError, match="unfreeze: AlbertModel does not keep its layers in a list"):
        parts_from_top(encoder_of(folder_of("albert")))
