"""Students: one encoder, a head a task, whatever the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.losses import hard_cross_entropy
from pipeline.models import open_tokenizer
from pipeline.tasks.tensors import TensorWords
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from students.export import save_task
from students.student import MultiTaskStudent, build_student, set_dropout
from tests.conftest import TinyModel
from tests.unit.students.conftest import ARCHITECTURES, FolderOf

MOOD = text_classification("mood", ("bad", "good"), 32, "accuracy")
TONE = text_classification("tone.v2", ("bad", "good", "plain"), 32, "accuracy")
TASKS = (MOOD, TONE)
TEXTS = ("a very good film", "awful", "this plot is even and rather plain but long")


def inputs_of(folder: Path, texts: Sequence[str] = TEXTS) -> dict[str, Tensor]:
    tokenizer = open_tokenizer(folder)
    return dict(tokenizer(list(texts), padding=True, return_tensors="pt"))


def heads_of(student: MultiTaskStudent) -> dict[str, Tensor]:
    """Parameters that are not the encoder's."""
    shared = {id(parameter) for parameter in student.encoder.parameters()}
    return {name: p for name, p in student.named_parameters() if id(p) not in shared}


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_share_one_encoder(folder_of: FolderOf, architecture: str) -> None:
    student = build_student(folder_of(architecture), TASKS)
    models = [student.model(task.name) for task in TASKS]
    assert all(model.base_model is student.encoder for model in models)
    addresses = [p.data_ptr() for p in student.parameters()]
    assert len(addresses) == len(set(addresses))
    encoder = sum(p.numel() for p in student.encoder.parameters())
    heads = sum(p.numel() for p in heads_of(student).values())
    assert sum(p.numel() for p in student.parameters()) == encoder + heads
    assert not any(module.training for model in models for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_on_one_task_moves_the_encoder_of_both(folder_of: FolderOf, architecture: str) -> None:
    folder = folder_of(architecture)
    student = build_student(folder, TASKS, dropout=0.0)
    inputs = inputs_of(folder)
    before = {task.name: student(task.name, inputs).logits.detach() for task in TASKS}
    assert {name: logits.shape for name, logits in before.items()} == {"mood": (3, 2), "tone.v2": (3, 3)}
    weights = {name: head.detach().clone() for name, head in heads_of(student).items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    hard_cross_entropy(student("mood", inputs).logits, torch.tensor([1, 0, 1])).sum().backward()
    optimizer.step()
    after = {task.name: student(task.name, inputs).logits.detach() for task in TASKS}
    assert all(not torch.allclose(after[name], before[name]) for name in after)
    moved = {name for name, head in heads_of(student).items() if not torch.equal(head, weights[name])}
    assert moved
    assert all(name.startswith("models.0.") for name in moved)  # the other task's head stays


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_encoder_starts_as_the_folders(folder_of: FolderOf, architecture: str) -> None:
    from transformers import AutoModel

    folder = folder_of(architecture)
    student = build_student(folder, TASKS, dropout=0.3, seed=5)
    base = AutoModel.from_pretrained(folder)
    assert same(student.encoder.state_dict(), base.state_dict())


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("dropout", [None, 0.2])
def test_a_seed_decides_the_heads(folder_of: FolderOf, layers: int | None, dropout: float | None) -> None:
    folder = folder_of("bert")

    def heads(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.initial_seed() + 1)  # whatever the process drew before
        return heads_of(build_student(folder, TASKS, layers=layers, dropout=dropout, seed=seed))

    first, again, other = heads(3), heads(3), heads(4)
    assert same(first, again)
    matrices = [name for name, head in first.items() if head.ndim > 1]
    assert all(not torch.equal(first[name], other[name]) for name in matrices)


def test_building_leaves_the_global_random_numbers_alone(folder_of: FolderOf) -> None:
    folder = folder_of("bert")
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_student(folder, TASKS, layers=1, dropout=0.5, seed=2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [*((name, layers) for name in ARCHITECTURES for layers in (None, 1)), ("albert", None)],
)
def test_dropout_reaches_every_module(folder_of: FolderOf, architecture: str, layers: int | None) -> None:
    folder = folder_of(architecture)
    inputs = inputs_of(folder)
    students = {p: build_student(folder, TASKS, layers=layers, dropout=p).train() for p in (0.0, 0.4, None)}
    probabilities = {p: {m.p for m in s.modules() if isinstance(m, nn.Dropout)} for p, s in students.items()}
    assert probabilities[0.0] <= {0.0}
    assert probabilities[0.4] == {0.4}
    assert probabilities[None] & {0.1, 0.0}  # as the model's own config has it
    with torch.random.fork_rng():
        still, lively = (
            [students[p](task.name, inputs).logits for task in TASKS for _ in range(2)] for p in (0.0, 0.4)
        )
    assert torch.equal(still[0], still[1])
    assert torch.equal(still[2], still[3])
    assert not torch.allclose(lively[0], lively[1])


def test_dropout_sets_numbers_that_are_dropouts() -> None:
    from transformers import BertConfig, DistilBertConfig

    bert, distilbert = BertConfig(), DistilBertConfig()
    set_dropout(bert, 0.3)
    set_dropout(distilbert, 0.0)
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob) == (0.3, 0.3)
    assert bert.classifier_dropout is None  # BERT reads the hidden one then
    assert (distilbert.dropout, distilbert.attention_dropout, distilbert.seq_classif_dropout) == (0, 0, 0)
    assert bert.to_dict().keys() == BertConfig().to_dict().keys()


def test_a_student_goes_on_with_its_own_heads(folder_of: FolderOf, tmp_path: Path) -> None:
    """The encoder of token classification has no pooler, and comes first here: the other task's folder has it."""
    folder = folder_of("bert")
    tags = token_classification("tags", ("O", "B-X", "I-X"), 32, "f1")
    first = build_student(folder, (tags, MOOD), layers=1, seed=3)
    for name in first.tasks:
        save_task(first, name, open_tokenizer(folder), tmp_path / name)
    trained = {name: tmp_path / name for name in first.tasks}
    again = build_student(tmp_path / "tags", (tags, MOOD), seed=8, trained=trained)
    assert same(again.state_dict(), first.state_dict())
    assert not same(build_student(tmp_path / "tags", (tags, MOOD), seed=8).state_dict(), first.state_dict())


def test_heads_have_the_tasks_label_names(tiny_model: TinyModel) -> None:
    classifier = tiny_model("bert", ("x", "y", "z", "w"))  # of another label space: its head is not kept
    student = build_student(classifier, TASKS)
    for task in TASKS:
        config = student.model(task.name).config
        assert tuple(config.id2label.values()) == task.reading.labels
        assert config.label2id == {label: i for i, label in enumerate(task.reading.labels)}
        assert config.problem_type == "single_label_classification"
    assert student.encoder.config.id2label == {0: "x", 1: "y", 2: "z", 3: "w"}


def test_task_names_are_any_names(folder_of: FolderOf) -> None:
    tasks = [
        text_classification(name, ("a", "b"), 32, "accuracy")
        for name in ("x.y", "x", "encoder", "models", "0")
    ]
    folder = folder_of("bert")
    student = build_student(folder, tasks)
    heads = {student.model(task.name).classifier.weight.data_ptr() for task in tasks}
    assert len(heads) == len(tasks)
    assert [*student.tasks] == [task.name for task in tasks]
    assert student("x.y", inputs_of(folder)).logits.shape == (3, 2)
    with pytest.raises(KeyError):
        student("y", inputs_of(folder))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_projections_are_apart_from_the_tasks_models(folder_of: FolderOf, architecture: str) -> None:
    folder = folder_of(architecture)
    plain = build_student(folder, TASKS, seed=3)
    student = build_student(folder, TASKS, seed=3, hidden={"tone.v2": 7}).eval()
    assert same(student.models.state_dict(), plain.models.state_dict())
    extra = {name for name in heads_of(student) if name not in heads_of(plain)}
    assert extra == {"projections.0.weight", "projections.0.bias"}
    inputs, words = inputs_of(folder), TensorWords(torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        output, projected = student("tone.v2", inputs, words)
        states = student.encoder(**inputs).last_hidden_state.flatten(end_dim=1)[[1, 2]]
        assert torch.equal(output.logits, student("tone.v2", inputs).logits)
        assert torch.allclose(projected, student.projections[0](states), atol=1e-6)
    with pytest.raises(KeyError):
        student("mood", inputs, words)
