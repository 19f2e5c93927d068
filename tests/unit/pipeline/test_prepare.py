"""What is known before Ray starts: everything a run needs is found and fits, or it is refused with exit code 2."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import prepare as module
from pipeline.batch import Ragged
from pipeline.config.load import parse_config
from pipeline.config.recipe import ModelFacts, TaskFacts
from pipeline.curve import Curve
from pipeline.errors import TutelageError
from pipeline.models import fingerprint
from pipeline.prepare import Inputs, prepare, teacher_curves, teacher_specs
from pipeline.soft import Dense, SoftTargets
from pipeline.training.fine_tune import FACTS, WORK
from pipeline.training.log import METRICS
from teachers.store import Store
from tests.conftest import TinyModel, TinyRun, write_csv


def changed(run: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """`run` with another value at a dotted path; None takes the key out."""
    run = copy.deepcopy(run)
    *sections, leaf = path.split(".")
    place = run
    for section in sections:
        place = place.setdefault(section, {})
    place[leaf] = value
    if value is None:
        del place[leaf]
    return run


def prepared(run: dict[str, Any]) -> Inputs:
    return prepare(parse_config(run))


def refusal(run: dict[str, Any]) -> TutelageError:
    with pytest.raises(TutelageError) as caught:
        prepared(run)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


def test_inputs_of_a_new_run(tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path) -> None:
    inputs = prepared(tiny_run())
    assert {name: data.task.reading.labels for name, data in inputs.data.items()} == {
        "mood": ("bad", "good"),
        "tone": ("bad", "good", "plain"),
    }
    assert inputs.bases["mood-bert"] == inputs.bases["tone-bert"] == tiny_model("bert")
    assert inputs.to_fine_tune() == ["mood-bert", "mood-distilbert", "tone-bert"]
    for name, folder in inputs.teachers.items():
        assert folder.parent.parent == tmp_path / "runs" / "_teachers"
        assert folder.parent.name.startswith(f"{name}-")
    assert len(set(inputs.teachers.values())) == 3
    assert not (tmp_path / "runs").exists()  # looking changes nothing


# ---------------------------------------------------------------- arithmetic


@pytest.fixture
def alone(tiny_run: TinyRun, tiny_model: TinyModel) -> dict[str, Any]:
    """A run of one teacher that needs no fine-tuning."""
    teacher = {"task": "mood", "model": str(tiny_model("bert", ("bad", "good")))}
    run = tiny_run(teachers={"mood-bert": teacher})
    del run["tasks"]["tone"]
    return {**run, "students": {"cut": {"init_from": "mood-bert", "layers": 1}}}


def arithmetic(run: dict[str, Any]) -> str:
    config = parse_config(run)
    (spec,) = teacher_specs(config, prepare(config))
    return spec.dtype


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_teachers_compute_in_bf16_where_the_processor_does(
    alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "computes_in_bf16", lambda device: native)
    assert arithmetic(alone) == expected
    assert arithmetic(changed(alone, "teachers.mood-bert.serving", {"dtype": "fp16"})) == "fp16"
    elsewhere = changed(alone, "teachers.mood-bert.serving", {"gpus": 1})
    assert arithmetic(changed(elsewhere, "cluster", {"address": "auto"})) == "bf16"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("stored", ["bf16", "fp32"])
def test_stored_targets_are_taken_in_whatever_arithmetic_they_are(
    alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, native: bool, stored: str
) -> None:
    monkeypatch.setattr(module, "computes_in_bf16", lambda device: native)
    config = parse_config(changed(alone, "teachers.mood-bert.serving", {"dtype": stored}))
    (spec,) = teacher_specs(config, prepare(config))
    values = Dense(Ragged.single(np.zeros((1, 2), dtype=np.float16)), spec.task.head.columns)
    Store(config.store_path).append(spec.key, SoftTargets(np.array([7], dtype=np.uint64), values))
    assert arithmetic(alone) == stored


def test_a_teacher_that_is_there_is_not_made_again(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    inputs = prepared(tiny_run())
    folder = inputs.teachers["mood-distilbert"]
    shutil.copytree(tiny_model("distilbert", ("bad", "good")), folder)
    (folder.parent / FACTS).write_text(json.dumps({"fingerprint": fingerprint(folder)}))
    assert inputs.to_fine_tune() == ["mood-bert", "tone-bert"]
    assert teacher_curves(inputs) == {"mood-distilbert": Curve()}  # made elsewhere: its curve is not known

    metrics = folder.parent / WORK / METRICS
    metrics.parent.mkdir()
    points = [
        {"step": 3 * epoch, "total": 6, "epoch": epoch, "metrics": {"macro/score": epoch / 4}}
        for epoch in (1, 2)
    ]
    metrics.write_text("".join(json.dumps(point) + "\n" for point in points))
    assert teacher_curves(inputs) == {"mood-distilbert": Curve((0.25, 0.5), epochs=2)}


@pytest.mark.parametrize(
    ("path", "value", "anew"),
    [
        ("teachers.mood-bert.fine_tune.epochs", 2, {"mood-bert"}),
        ("teachers.mood-bert.fine_tune.seed", 1, {"mood-bert"}),
        ("teachers.mood-bert.fine_tune.checkpoint_steps", 7, set()),
        ("teachers.mood-bert.serving.cpus", 2, set()),
        ("tasks.mood.data.max_length", 20, {"mood-bert", "mood-distilbert"}),
        ("tasks.mood.data.limit", {"train": 20}, {"mood-bert", "mood-distilbert"}),
        ("tasks.mood.data.limit", {"test": 5}, set()),
        ("tasks.mood.data.labels", ["good", "bad"], {"mood-bert", "mood-distilbert"}),
        ("tasks.mood.metric", "macro_f1", {"mood-bert", "mood-distilbert"}),
        ("teachers.mood-bert.max_length", 20, {"mood-bert"}),
        ("teachers.mood-bert.max_length", 32, set()),
        ("students.cut.max_length", {"mood": 20}, set()),
        ("seed", 5, set()),
        ("loss", {"temperature": 4.0}, set()),
        ("train.epochs", 9, set()),
    ],
)
def test_what_makes_another_teacher(tiny_run: TinyRun, path: str, value: object, anew: set[str]) -> None:
    run = tiny_run()
    before, after = prepared(run).teachers, prepared(changed(run, path, value)).teachers
    assert {name for name in before if before[name] != after[name]} == anew


def test_a_ready_teacher_is_served_from_its_own_folder(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    folder = tiny_model("mpnet", ("Good", "BAD"))
    teachers = {**tiny_run()["teachers"], "mood-ready": {"task": "mood", "model": str(folder)}}
    inputs = prepared(tiny_run(teachers=teachers))
    assert inputs.teachers["mood-ready"] == inputs.bases["mood-ready"] == folder
    assert "mood-ready" not in inputs.to_fine_tune()


def test_a_teachers_name_follows_the_values_in_force(tiny_run: TinyRun) -> None:
    run = tiny_run()
    run["teachers"]["mood-bert"]["fine_tune"] = {}
    inputs = prepared(run)
    recipe = inputs.resolved.fine_tunings["mood-bert"].recipe
    equal = {"epochs": recipe.epochs, "learning_rate": recipe.learning_rate}
    for given, same in ((equal, True), ({**equal, "epochs": recipe.epochs + 1}, False)):
        again = prepared(changed(run, "teachers.mood-bert.fine_tune", given)).teachers["mood-bert"]
        assert (again == inputs.teachers["mood-bert"]) == same


def test_facts_are_those_of_data_and_models(tiny_run: TinyRun) -> None:
    inputs = prepared(tiny_run())
    facts, splits = inputs.facts, inputs.data["tone"].splits
    words = sum(
        len(text.split()) for split in ("train", "validation") for text in splits[split].inputs["text"]
    )
    assert facts.tasks["tone"] == TaskFacts(
        3, continuous=False, examples=48, labelled=48, majority=1 / 3, words=words
    )
    assert facts.students == {"cut": ModelFacts(32), "bare": ModelFacts(32)}
    assert facts.teachers["mood-distilbert"] == ModelFacts(32)  # whose config calls it `dim`


# ---------------------------------------------------------------- content


def test_contents_have_fingerprints(tiny_run: TinyRun) -> None:
    run = tiny_run()
    config = parse_config(run)
    before = prepare(config).fingerprints(config)
    assert list(before) == [
        "tasks.mood.data",
        "tasks.tone.data",
        "teachers.mood-bert.model",
        "teachers.mood-distilbert.model",
        "teachers.tone-bert.model",
        "students.bare.model",
    ]
    write_csv(Path(run["tasks"]["mood"]["data"]["data_files"]["test"]), [{"text": "new", "label": "bad"}])
    after = prepare(config).fingerprints(config)
    assert {path for path in before if before[path] != after[path]} == {"tasks.mood.data"}


def test_a_label_that_changes_changes_the_datas_fingerprint(tiny_run: TinyRun) -> None:
    run = tiny_run()
    before = prepared(run).data["mood"].fingerprint()
    file = Path(run["tasks"]["mood"]["data"]["data_files"]["train"])
    first, *others = file.read_text().splitlines()
    mended = others[0].removesuffix("bad") + "good"
    file.write_text("\n".join([first, mended, *others[1:]]))
    assert prepared(run).data["mood"].fingerprint() != before


# ---------------------------------------------------------------- refused


def test_labels_of_a_ready_teacher_must_match(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", ("bad", "good", "mixed"))
    run = changed(tiny_run(), "teachers.mood-bert", {"task": "mood", "model": str(folder)})
    error = refusal(run)
    assert error.cause == (
        "teachers.mood-bert: its labels ['bad', 'good', 'mixed'] are not those of task mood: ['bad', 'good']"
    )


def ready(tiny_model: TinyModel, names: tuple[str, ...], **keys: Any) -> dict[str, Any]:
    """A teacher of `mood` that is one already."""
    return {"task": "mood", "model": str(tiny_model("bert", names)), **keys}


def with_teachers(run: dict[str, Any], **teachers: dict[str, Any]) -> dict[str, Any]:
    """`run` with these as the teachers of `mood`."""
    tone = {"tone-bert": run["teachers"]["tone-bert"]}
    return {**run, "teachers": {**teachers, **tone}, "students": {"bare": run["students"]["bare"]}}


def test_a_declared_mapping_makes_labels_match(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    labels = {"awful": "bad", "fine": "good", "meh": None}
    teacher = ready(tiny_model, ("awful", "fine", "meh"), labels=labels)
    inputs = prepared(with_teachers(tiny_run(), big=teacher))
    assert inputs.to_fine_tune() == ["tone-bert"]
    error = refusal(with_teachers(tiny_run(), big={**teacher, "labels": {"awful": "bad"}}))
    assert error.cause.startswith(
        "teachers.big: its labels ['awful', 'fine', 'meh'] are not those of task mood: ['bad', 'good']; "
    )


def test_a_label_that_no_teacher_knows_is_refused(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    known = ready(tiny_model, ("bad", "good"))
    half = ready(tiny_model, ("bad", "meh"), labels={"meh": None})
    prepared(with_teachers(tiny_run(), half=half, big=known))
    error = refusal(with_teachers(tiny_run(), half=half))
    assert error.cause == "tasks.mood: no teacher knows ['good'] of ['bad', 'good']"
    run = with_teachers(tiny_run(), half=half, big=known)
    run["aggregation"] = {"teacher_weights": {"big": 0.0}}  # it takes no part
    assert refusal(run).cause == error.cause
    tuned = {"task": "mood", "model": str(tiny_model("bert")), "fine_tune": {"epochs": 1}}
    prepared(with_teachers(tiny_run(), half=half, tuned=tuned))


def test_a_mapping_of_a_teacher_that_learns_the_labels_is_refused(tiny_run: TinyRun) -> None:
    error = refusal(changed(tiny_run(), "teachers.mood-bert.labels", {"awful": "bad"}))
    assert error.cause == "teachers.mood-bert.labels: a teacher that is fine-tuned learns the task's labels"


def test_lengths_of_their_own_must_fit_the_model(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    run = with_teachers(tiny_run(), big=ready(tiny_model, ("bad", "good")))
    for path, key in (
        ("teachers.big.max_length", "teachers.big"),
        ("students.bare.max_length", "students.bare"),
    ):
        value: Any = 65 if path.startswith("teachers") else {"tone": 65}
        error = refusal(changed(run, path, value))
        assert error.cause == f"{key}: max_length 65 is more than the model's 64 positions"
    short = changed(run, "students.bare.model", str(tiny_model("bert", layers=1, positions=24)))
    assert "max_length 32 is more than the model's 24" in refusal(short).cause
    prepared(changed(short, "students.bare.max_length", {"mood": 24, "tone": 20}))


@pytest.mark.parametrize("strategy", ["mean", "log_mean", "entropy", "confidence", "best"])
def test_null_labels_and_a_strategy_that_needs_them(tiny_run: TinyRun, tmp_path: Path, strategy: str) -> None:
    run = changed(tiny_run(), "tasks.mood.aggregation", {"strategy": strategy})
    files = {}
    for split, file in run["tasks"]["mood"]["data"]["data_files"].items():
        with Path(file).open(newline="") as stream:
            rows: list[dict[str, Any]] = list(csv.DictReader(stream))
        if split == "train":
            rows[5]["label"] = rows[7]["label"] = None
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = changed(changed(run, "tasks.mood.data.path", "json"), "tasks.mood.data.data_files", files)
    if strategy in ("confidence", "best"):
        error = refusal(run)
        assert error.cause == (
            f"tasks.mood: strategy {strategy} needs labels, 2 of 48 examples of train have none"
        )
    else:
        assert len(prepared(run).data["mood"].labelled_train()) == 46


@pytest.mark.parametrize("section", ["teachers.mood-bert", "students.bare"])
def test_a_model_that_is_not_there(tiny_run: TinyRun, section: str) -> None:
    error = refusal(changed(tiny_run(), f"{section}.model", "somebody/no-such-model"))
    assert error.cause.startswith(f"{section}: no model 'somebody/no-such-model'")


@pytest.mark.parametrize("section", ["teachers.mood-bert", "students.bare"])
def test_a_model_that_is_too_short(tiny_run: TinyRun, tiny_model: TinyModel, section: str) -> None:
    error = refusal(changed(tiny_run(), f"{section}.model", str(tiny_model("mpnet", positions=24))))
    assert error.cause == f"{section}: max_length 32 is more than the model's 24 positions"


def test_a_student_of_one_task_must_fit_the_others(tiny_run: TinyRun, tiny_model: TinyModel) -> None:
    run = changed(tiny_run(), "tasks.mood.data.max_length", 20)
    run = changed(run, "teachers.mood-bert.model", str(tiny_model("bert", positions=24)))
    assert refusal(run).cause == "students.cut: max_length 32 is more than the model's 24 positions"


@pytest.mark.parametrize("section", ["teachers.mood-bert", "students.bare"])
def test_a_model_without_a_tokenizer(
    tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path, section: str
) -> None:
    folder = Path(shutil.copytree(tiny_model("bert"), tmp_path / "bare"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert refusal(changed(tiny_run(), f"{section}.model", str(folder))).cause.startswith(
        f"{folder}: no tokenizer"
    )


@pytest.mark.parametrize(
    ("layers", "cause"),
    [
        (3, "students.cut.layers: 3 requested, the teacher has 2"),
        ([0, 2], "students.cut.layers: there is no layer 2, the last is 1"),
    ],
)
def test_layers_that_the_teacher_has_not(tiny_run: TinyRun, layers: object, cause: str) -> None:
    assert refusal(changed(tiny_run(), "students.cut.layers", layers)).cause == cause


def test_data_that_are_not_there(tiny_run: TinyRun) -> None:
    error = refusal(changed(tiny_run(), "tasks.tone.data.data_files.test", "absent.csv"))
    assert error.cause == "tasks.tone.data.data_files: no file absent.csv"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("teachers.mood-bert.serving.gpus", "teachers.mood-bert.serving.gpus"),
        ("train.gpus_per_worker", "train.gpus_per_worker"),
    ],
)
def test_a_gpu_where_there_is_none(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, path: str, key: str
) -> None:
    run = changed(tiny_run(), path, 0.5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    error = refusal(run)
    assert error.cause == f"{key}: a GPU is requested, this machine has none"
    assert error.remedy == "Set it to 0, or give cluster.address."
    prepared(changed(run, "cluster.address", "ray://somewhere:10001"))  # what a cluster has is for Ray to say
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    prepared(run)
