"""What is stored, and reported, of teachers that a run trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import co_trained
from pipeline.config.load import parse_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.data.transfer import load_tasks
from pipeline.errors import ConfigError, CorruptError
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.report.evidence import checked_keys
from pipeline.run_folder import job_folder, live_teacher_folder
from pipeline.training.fine_tune import FACTS, TEACHER
from pipeline.training.jobs import check_results
from pipeline.training.result import write_result
from tests.conftest import TinyModel, TinyRun


@pytest.fixture
def config(tiny_run: TinyRun, tiny_model: TinyModel) -> RunConfig:
    """Of `mood`, whose teachers are trained on, and `tone`, whose teacher is not."""
    labels = {"mood": ("bad", "good"), "tone": ("bad", "good", "plain")}
    teachers: dict[str, Any] = {
        f"{task}-ready": {"task": task, "model": str(tiny_model("bert", names))}
        for task, names in labels.items()
    }
    students = {"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}}
    return parse_config(tiny_run(teachers=teachers, students=students, co_train={"tasks": ["mood"]}))


def trained(config: RunConfig, inputs: Inputs) -> Path:
    """As if the run had trained its teacher: the folder of a copy with another label order in its config."""
    folder = live_teacher_folder(config.run_dir.absolute(), "mood-ready")
    for file in inputs.teachers["mood-ready"].iterdir():
        (folder / TEACHER).mkdir(parents=True, exist_ok=True)
        (folder / TEACHER / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / TEACHER / "config.json").read_text())
    (folder / TEACHER / "config.json").write_text(json.dumps({**settings, "hidden_dropout_prob": 0.2}))
    (folder / FACTS).write_text(json.dumps({"batches": 1234}))
    return folder / TEACHER


def test_train_is_not_stored_of_teachers_that_are_trained_on(config: RunConfig) -> None:
    data = load_tasks(config)
    splits = data["mood"].splits
    assert co_trained.stored_examples(config, data["mood"]) == [splits["validation"], splits["test"]]
    assert co_trained.stored_count(config, data["mood"]) == len(splits["validation"]) + len(splits["test"])
    assert co_trained.stored_count(config, data["tone"]) == data["tone"].distinct()


def test_the_report_sees_teachers_as_they_are_at_the_end(config: RunConfig) -> None:
    """Under a key of their own, so that nothing is mixed with what other runs have stored of them."""
    inputs = prepare(config)
    assert not co_trained.have_ended(config)
    with pytest.raises(ConfigError, match="yet to train mood-ready on"):
        checked_keys(config, inputs)
    folder = trained(config, inputs)
    assert co_trained.have_ended(config)
    ended = co_trained.at_the_end(config, inputs)
    assert ended.teachers == {"mood-ready": folder, "tone-ready": inputs.teachers["tone-ready"]}
    assert ended.to_fine_tune() == []
    before, after = ({spec.name: spec for spec in teacher_specs(config, one)} for one in (inputs, ended))
    assert before["tone-ready"] == after["tone-ready"]
    assert before["mood-ready"].key != after["mood-ready"].key
    assert after["mood-ready"].model == str(folder)
    (note,) = co_trained.notes(config)
    assert note.startswith("mood-ready was trained on beside the student, synchronously, over 1,234 batches")


def test_a_teacher_that_is_gone_after_its_training_is_no_silent_loss(config: RunConfig) -> None:
    write_result(job_folder(config.run_dir, Job("bare", "distilled")), {}, {})
    with pytest.raises(CorruptError, match="teachers/mood-ready"):
        check_results(config)
