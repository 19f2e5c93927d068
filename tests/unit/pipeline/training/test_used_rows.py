"""Of a student's token embeddings the rows train that its texts use; the results are those of training them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training import used_rows
from pipeline.training.loop import Trainer
from pipeline.training.replica import Replica
from pipeline.training.used_rows import UsedRows, UsedRowsReplica, used_ids
from students.student import MultiTaskStudent, build_student
from tests.conftest import Architecture, TinyModel
from tests.tiny_writers import prompt_task, writer
from tests.unit.pipeline.small_training import (
    UNUSED,
    VOCABULARY,
    StopAfter,
    encode,
    settings,
    student_of,
    task_of,
    trainer_of,
    two_tasks,
    weights_of,
)

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "distilbert", "mpnet", "modernbert")
TABLE = "encoder.embeddings.word_embeddings.weight"


def test_rows_answer_as_the_whole_table_and_refuse_other_ids() -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(9, 3, padding_idx=0)
    used = torch.tensor([0, 2, 5, 8])
    rows = UsedRows(table.weight.detach()[used].clone(), used, 9, 0)
    ids = torch.tensor([[2, 8, 8, 0], [5, 2, 0, 0]])
    assert torch.equal(rows(ids), table(ids))
    rows(ids).square().sum().backward()
    table(ids).square().sum().backward()
    assert table.weight.grad is not None
    assert rows.weight.grad is not None
    assert torch.equal(rows.weight.grad, table.weight.grad[used])
    assert not rows.weight.grad[0].any(), "padding does not train"
    with pytest.raises(IndexError):
        rows(torch.tensor([3]))


def whole(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Trainer:
    """A trainer that trains all rows."""
    with monkeypatch.context() as context:
        context.setattr(used_rows, "MOST", -1.0)
        trainer = trainer_of(folder, two_tasks(), settings(weight_decay=0.1))
    assert type(trainer.replica) is Replica
    return trainer


def test_weights_are_those_of_training_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer_of(tmp_path / "ours", two_tasks(), settings(weight_decay=0.1))
    theirs = whole(monkeypatch, tmp_path / "theirs")
    assert isinstance(ours.replica, UsedRowsReplica)
    start = weights_of(ours.student)[TABLE]
    for trainer in (ours, theirs):
        assert trainer.fit().status == "done"
    a, b = weights_of(ours.student), weights_of(theirs.student)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=2e-6, rtol=2e-5)
    assert len(a[TABLE]) == VOCABULARY + UNUSED
    unused = slice(VOCABULARY, None)
    assert bool((a[TABLE][unused].abs() < start[unused].abs()).all()), "weight decay"


def test_a_stop_between_two_checkpoints_changes_no_bit_of_any_row(tmp_path: Path) -> None:
    config = settings(weight_decay=0.1, checkpoint_steps=7)
    ours = trainer_of(tmp_path / "whole", two_tasks(), config)
    ours.fit()
    parts = tmp_path / "parts"
    assert trainer_of(parts, two_tasks(), config, should_stop=StopAfter(5)).fit().status == "interrupted"
    again = trainer_of(parts, two_tasks(), config)
    again.fit()
    expected = weights_of(ours.student)
    for name, tensor in weights_of(again.student).items():
        assert torch.equal(tensor, expected[name]), name


def test_moments_of_the_whole_table_are_stored(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, two_tasks(), settings())
    trainer.fit()
    replica = trainer.replica
    assert isinstance(replica, UsedRowsReplica)
    state = replica.optimizer_state(trainer.optimizer)
    (number,) = [n for n, slot in state.items() if len(slot["exp_avg"]) == VOCABULARY + UNUSED]
    moments = state[number]["exp_avg"]
    assert not moments[VOCABULARY:].any()
    assert moments[:VOCABULARY].any()
    before = {key: value.clone() for key, value in trainer.optimizer.state_dict()["state"][number].items()}
    replica.load_optimizer(trainer.optimizer, state)
    for key, value in trainer.optimizer.state_dict()["state"][number].items():
        assert torch.equal(value, before[key]), key


def test_tables_that_train_as_a_whole(tmp_path: Path, tiny_model: TinyModel) -> None:
    student = student_of(two_tasks())
    few, most = encode([[4, 5, 6]]), encode([list(range(1, 55))])
    assert used_ids(student, [few, few]) == pytest.approx(np.array([0, 4, 5, 6]))
    assert used_ids(student, [few, most]) is None, "nearly all are used"
    writes = build_student(writer("gpt2", tmp_path), [prompt_task()])
    assert used_ids(writes, [few]) is None
    for architecture in ARCHITECTURES:
        other = build_student(tiny_model(architecture), [task_of()])
        used = used_ids(other, [few])
        assert used is not None, architecture
        other.encoder.get_input_embeddings().weight.requires_grad_(False)
        assert used_ids(other, [few]) is None


def test_models_that_pad_by_themselves_or_have_no_tokens() -> None:
    from transformers import AutoModel, CanineConfig, LongformerConfig

    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    pads = LongformerConfig(vocab_size=50, pad_token_id=3, attention_window=4, **shape)
    student = MultiTaskStudent(AutoModel.from_config(pads), [task_of()])
    used = used_ids(student, [encode([[4, 5, 6]])])
    assert used is not None
    assert {0, 3, 4, 5, 6} <= set(used.tolist())
    characters = MultiTaskStudent(AutoModel.from_config(CanineConfig(**shape)), [task_of()])
    assert used_ids(characters, [encode([[4, 5, 6]])]) is None


def test_other_models_forward_alike(tiny_model: TinyModel) -> None:
    from pipeline.training.step import Workers

    ids = torch.tensor([[4, 5, 6, 7]])
    for architecture in ARCHITECTURES:
        student = build_student(tiny_model(architecture), [task_of()], dropout=0.0)
        used = used_ids(student, [encode([[4, 5, 6, 7]])])
        assert used is not None
        replica = UsedRowsReplica(student, Workers(), used)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        trained = replica.trained("mood", inputs).logits
        torch.testing.assert_close(trained, student("mood", inputs).logits)
        trained.square().sum().backward()
        rows = replica.trained.encoder.get_input_embeddings()
        assert rows.weight.grad is not None
        assert student.encoder.get_input_embeddings().weight.grad is None, "the whole table has no gradient"
