"""Every problem of text classification from files to a report, without Ray: teacher, store, student, baseline."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.batch import UNLABELLED, Drawn
from pipeline.config.load import parse_config
from pipeline.config.resolved import Job, jobs_of
from pipeline.config.schema import FineTuneConfig, RunConfig
from pipeline.data.splits import TaskData
from pipeline.data.transfer import load_tasks
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.prepare import prepare
from pipeline.report.build import build
from pipeline.report.model_card import write_model_card
from pipeline.report.page import markdown
from pipeline.report.results import task_results
from pipeline.run_folder import RESULT, job_folder
from pipeline.saved import score_student, score_table
from pipeline.soft import SoftTargets
from pipeline.training import jobs as training
from pipeline.training.baseline import LONGER, PLAIN, SHORTER
from pipeline.training.fine_tune import TEACHER, fine_tune
from pipeline.training.jobs import is_finished, read_result, train_jobs
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.plan import Plan, new_plan
from pipeline.training.sets import task_sets
from pipeline.training.step import Workers
from students.export import save_task
from students.student import build_student
from teachers.store import Store
from teachers.store_key import store_key
from tests.conftest import BAD, GOOD, TinyModel, texts_of
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.hand_results import some_facts
from tests.unit.pipeline.small_training import StopAfter, finish, python, same_predictions
from tests.unit.pipeline.training import two_workers

Row = dict[str, Any]
SIZES = {"train": 96, "validation": 32, "test": 48}


def marks(texts: Sequence[str]) -> list[Row]:
    """Which kinds of telling words a text has; some have none."""
    rows = []
    for text in texts:
        words = set(text.split())
        rows.append({"text": text, "label": [m for m, w in (("bad", BAD), ("good", GOOD)) if words & set(w)]})
    return rows


def multi_label_rows(count: int) -> list[Row]:
    sides = [texts_of(label, count) for label in (0, 1, 2)]
    mixed = [
        (sides[0][i], sides[1][i], f"{sides[0][i]} {sides[1][i]}", sides[2][i])[i % 4] for i in range(count)
    ]
    return marks(mixed)


def regression_rows(count: int) -> list[Row]:
    sides = [texts_of(label, count) for label in range(3)]
    return [{"text": sides[i % 3][i], "label": 50 + 10 * (0, 2, 1)[i % 3]} for i in range(count)]


def pair_rows(count: int) -> list[Row]:
    """The second text alone tells the label."""
    first, second = texts_of(2, count), [texts_of(label, count) for label in range(2)]
    return [
        {"text": first[i], "text_pair": second[i % 2][i], "label": ("bad", "good")[i % 2]}
        for i in range(count)
    ]


PROBLEMS: dict[str, tuple[Callable[[int], list[Row]], dict[str, Any]]] = {
    "multi_label": (multi_label_rows, {"problem": "multi_label"}),
    "regression": (regression_rows, {"problem": "regression"}),
    "pairs": (pair_rows, {}),
}


def section(folder: Path, problem: str) -> dict[str, Any]:
    """A task on JSON files just written."""
    make, keys = PROBLEMS[problem]
    rows = make(sum(SIZES.values()))
    files, start = {}, 0
    for split, size in SIZES.items():
        file = folder / f"{problem}-{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[start : start + size]))
        files[split], start = str(file), start + size
    data: dict[str, Any] = {"path": "json", "data_files": files, "max_length": 40}
    if problem == "pairs":
        data["columns"] = {"text_pair": "text_pair"}
    return {"kind": "text-classification", "data": data, **keys}


def config_of(tiny_model: TinyModel, folder: Path, problem: str, **changes: Any) -> RunConfig:
    fitted = {
        "epochs": 12,
        "learning_rate": 5e-3,
        "batch_size": 16,
        "dropout": 0.0,
        "precision": "fp32",
        "early_stopping": None,
    }
    run = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "tasks": {"mood": section(folder, problem)},
        "teachers": {"big": {"task": "mood", "model": str(tiny_model("bert")), "fine_tune": fitted}},
        "students": {"small": {"model": str(tiny_model("bert", layers=1, seed=1))}},
        "train": {**fitted, "epochs": 4},
        "tracking": {"enabled": False},
        **changes,
    }
    return parse_config(run)


def labelled(config: RunConfig, data: dict[str, TaskData], folders: dict[str, Path]) -> dict[str, str]:
    """Fills the store; returns the teachers' names in it."""
    keys, store = {}, Store(config.store_path)
    for name, folder in folders.items():
        task_data = data[config.teachers[name].task]
        teacher = Predictor(folder, task_data.task)
        keys[name] = store_key(folder, task_data.task, "fp32")
        for examples in task_data.all_examples():
            rows = store.missing(keys[name], examples.keys)
            some = examples.take(rows)
            if len(some):
                soft, _ = teacher.predict(some.inputs)
                store.append(keys[name], SoftTargets(some.keys, soft))
    return keys


@pytest.mark.parametrize("problem", PROBLEMS)
def test_from_files_to_a_report(tiny_model: TinyModel, tmp_path: Path, problem: str) -> None:
    config = config_of(
        tiny_model,
        tmp_path,
        problem,
        students={"small": {"init_from": "big", "train": {"epochs": 10}}},  # clear of a constant prediction
    )
    inputs = prepare(config)
    data = dict(inputs.data)
    folder = inputs.teachers["big"].parent
    progress = fine_tune(
        inputs.bases["big"], data["mood"], inputs.resolved.fine_tunings["big"].recipe, folder
    )
    assert progress.best_score > 0.6
    keys = labelled(config, data, {"big": folder / TEACHER})
    plan = new_plan(config, facts_of(config), data, keys, {"big": str(folder / TEACHER)})
    train_jobs(plan, Workers())

    results = task_results(config, data, keys)
    facts = some_facts({"mood": ["big"]}, ["small"])
    report = build(results, facts)
    task = report.tasks["mood"]
    assert task.metric == data["mood"].task.kind.metrics[0].name
    assert task.ensemble == pytest.approx(
        task.teachers["big"], abs=1e-3
    )  # a single teacher, in half precision
    assert task.ensemble > max(0.6, task.majority)
    student = task.students["small"]
    assert student.score > task.majority
    assert (student.delta_error or 0) >= 0
    assert "nan" not in markdown(report)

    saved = config.run_dir / "students" / "small"
    found = score_student(saved, config, "test")
    assert found["mood"][task.metric] == pytest.approx(student.score, abs=1e-6)
    metrics, mood = score_table("small", "test", found).fields[:2]
    assert list(metrics.cells) == list(found["mood"])
    assert len(mood.cells) == len(metrics.cells)
    write_model_card(saved / "mood", config, report, inputs.resolved.students["small"], data["mood"].task)
    card = (saved / "mood" / "README.md").read_text()
    assert ("labels:" in card) == (problem != "regression")
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(saved / "mood"))
    answers: dict[str, Any] = {}
    exec(code.replace("pipeline(", "answer = pipeline(", 1), answers)
    assert answers["answer"][0]["score"] >= 0 if isinstance(answers["answer"], list) else answers["answer"]


def test_a_pair_is_answered_as_transformers_does(tiny_model: TinyModel, tmp_path: Path) -> None:
    from transformers import pipeline

    config = config_of(tiny_model, tmp_path, "pairs")
    data = load_tasks(config)["mood"]
    student = build_student(tiny_model("bert"), [data.task])
    with torch.no_grad():
        student.model("mood").classifier.weight.mul_(20)
    save_task(student, "mood", open_tokenizer(tiny_model("bert")), tmp_path / "saved")
    test = data.splits["test"].inputs
    said, _ = Predictor(tmp_path / "saved", data.task).predict(test)
    pairs = [
        {"text": text, "text_pair": pair} for text, pair in zip(test["text"], test["text_pair"], strict=True)
    ]
    answer: Any = pipeline("text-classification", str(tmp_path / "saved"), top_k=None)
    found = [{each["label"]: each["score"] for each in row} for row in answer(pairs)]
    expected = torch.from_numpy(said.values).softmax(-1)
    scores = [[row[label] for label in data.task.reading.labels] for row in found]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert len(np.unique(expected.numpy().round(7), axis=0)) > 40  # so that a wrong order would show


@pytest.mark.parametrize(
    ("problem", "labels", "majority"), [("multi_label", 2, 0.5), ("regression", None, None)]
)
def test_the_facts_of_a_task(
    tiny_model: TinyModel, tmp_path: Path, problem: str, labels: int | None, majority: float | None
) -> None:
    facts = load_tasks(config_of(tiny_model, tmp_path, problem))["mood"].facts()
    assert (facts.labels, facts.majority, facts.continuous) == (labels, majority, problem == "regression")
    assert (facts.examples, facts.labelled) == (96, 96)


def test_a_config_of_tasks_teachers_and_students_trains(tiny_model: TinyModel, tmp_path: Path) -> None:
    config = config_of(tiny_model, tmp_path, "pairs", train={}, baselines=[], stages=[])
    big = config.teachers["big"].model_copy(update={"fine_tune": FineTuneConfig()})
    config = config.model_copy(update={"teachers": {"big": big}})
    inputs = prepare(config)
    folder = inputs.teachers["big"].parent
    recipe = inputs.resolved.fine_tunings["big"].recipe
    fine_tune(inputs.bases["big"], inputs.data["mood"], recipe, folder)
    keys = labelled(config, dict(inputs.data), {"big": folder / TEACHER})
    plan = new_plan(config, inputs.facts, inputs.data, keys, {"big": str(folder / TEACHER)})
    train_jobs(plan, Workers())
    result, _ = read_result(plan.run_dir, Job("small", "distilled"))
    assert plan.students["small"].train.epochs == 60
    assert len(result["epoch_seconds"]) <= 60
    assert result["status"] in ("done", "early_stopped")


# ---------------------------------------------------------------- examples without labels


@pytest.fixture
def half_labelled(
    tiny_model: TinyModel, tmp_path: Path
) -> tuple[RunConfig, dict[str, TaskData], dict[str, str]]:
    """48 labelled examples and as many unlabelled ones, a teacher that is there, and its soft targets."""
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(2, 48, seed=5)))
    config = config_of(tiny_model, tmp_path, "regression")
    mood = config.tasks["mood"].model_dump(mode="json")
    mood["data"]["limit"] = {"train": 48}
    mood["data"]["unlabelled"] = {"path": "json", "data_files": str(more)}
    run = {**config.model_dump(mode="json"), "tasks": {"mood": mood}}
    config = parse_config(run)
    data = load_tasks(config)
    teacher = build_student(tiny_model("bert"), [data["mood"].task], seed=3)
    save_task(teacher, "mood", open_tokenizer(tiny_model("bert")), tmp_path / "teacher")
    return config, data, labelled(config, data, {"big": tmp_path / "teacher"})


def test_unlabelled_examples_teach_by_the_soft_loss_alone(
    half_labelled: tuple[RunConfig, dict[str, TaskData], dict[str, str]], tmp_path: Path
) -> None:
    config, data, keys = half_labelled
    train = data["mood"].splits["train"]
    assert (len(train), len(data["mood"].labelled_train())) == (96, 48)
    plan = new_plan(config, facts_of(config), data, keys, {"big": str(tmp_path / "teacher")})
    folder = Path(config.students["small"].model or "")
    (distilled,) = task_sets(plan, folder, "small", Store(config.store_path))
    (supervised,) = task_sets(plan, folder, "small", None)
    assert (len(distilled.train), len(supervised.train)) == (96, 48)
    assert np.isfinite(supervised.examples.labels.values).all()
    assert np.isnan(distilled.examples.labels.values).sum() == 48
    soft = distilled.sources[0].targets(Drawn(train, np.array([95])))
    expected, _ = Predictor(tmp_path / "teacher", data["mood"].task).predict(
        train.take(np.array([95])).inputs
    )
    np.testing.assert_allclose(soft.values, expected.values, rtol=2e-3)


HalfLabelled = tuple[RunConfig, dict[str, TaskData], dict[str, str]]
BASELINE = Job("small", "supervised")


def baseline_plan(half_labelled: HalfLabelled, folder: Path, runs: str, *, plain: bool = False) -> Plan:
    """A plan of the supervised baseline alone; `plain`: where the unlabelled examples do not exist."""
    config, data, keys = half_labelled
    if plain:
        mood = data["mood"]
        data = {"mood": replace(mood, splits={**mood.splits, "train": mood.labelled_train()})}
    config = config.model_copy(update={"name": runs})
    return replace(
        new_plan(config, facts_of(config), data, keys, {"big": str(folder / "teacher")}), jobs=[BASELINE]
    )


def test_a_baseline_chooses_between_its_students_epochs_fewer_and_its_students_steps(
    half_labelled: HalfLabelled, tmp_path: Path
) -> None:
    config, data, keys = half_labelled
    plan = new_plan(config, facts_of(config), data, keys, {"big": str(tmp_path / "teacher")})
    train_jobs(plan, Workers())
    (distilled, _), (baseline, predictions) = (read_result(plan.run_dir, job) for job in jobs_of(config))
    assert "schedules" not in distilled
    tried = baseline["schedules"]["tried"]
    assert [(one["name"], one["epochs"]) for one in tried] == [(PLAIN, 4), (SHORTER, 1), (LONGER, 8)]
    assert baseline["step"] <= distilled["step"]
    assert baseline["best_score"] == max(one["score"] for one in tried)
    without = baseline_plan(half_labelled, tmp_path, "without", plain=True)
    train_jobs(without, Workers())
    alone, alone_predictions = read_result(without.run_dir, BASELINE)
    assert alone["schedules"]["tried"] == tried[:2]  # nothing is unlabelled: there is no longer one
    assert alone["best_score"] <= baseline["best_score"]
    assert same_predictions(predictions, alone_predictions) == (baseline["schedules"]["kept"] != LONGER)
    folder = job_folder(plan.run_dir, BASELINE)
    assert sorted(path.name for path in folder.iterdir()) == [METRICS, "predictions.safetensors", RESULT]
    assert read_metrics(folder / METRICS)[-1]["step"] == baseline["step"]
    names = {name for line in read_metrics(folder / METRICS) for name in line["metrics"]}
    assert "loss/hard/mood" in names
    assert "loss/soft/mood" not in names


def test_a_plain_schedule_that_wins_is_what_it_was_before_the_longer_one(
    half_labelled: HalfLabelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "best_schedule", lambda scores: PLAIN)
    both, alone = (
        baseline_plan(half_labelled, tmp_path, name, plain=name == "alone") for name in ("both", "alone")
    )
    for plan in (both, alone):
        train_jobs(plan, Workers())
    (kept, predictions), (expected, expected_predictions) = (
        read_result(plan.run_dir, BASELINE) for plan in (both, alone)
    )
    assert same_predictions(predictions, expected_predictions)
    assert {**expected, "epoch_seconds": 0, "predictions": 0, "schedules": kept["schedules"]} == {
        **kept,
        "epoch_seconds": 0,
        "predictions": 0,
    }


@pytest.mark.parametrize("kept", [PLAIN, SHORTER, LONGER])
def test_a_baseline_resumes_in_any_schedule(
    half_labelled: HalfLabelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(training, "best_schedule", lambda scores: kept)
    whole = baseline_plan(half_labelled, tmp_path, "whole")
    train_jobs(whole, Workers())
    stopped = baseline_plan(half_labelled, tmp_path, "stopped")
    folder = job_folder(stopped.run_dir, BASELINE)
    plain_steps = 0
    for steps, begun in ((2, [PLAIN]), (0, [LONGER, PLAIN, SHORTER])):  # in the first one, then in the last
        with monkeypatch.context() as patch:
            calls = steps or plain_steps + 2
            patch.setattr(training, "StopWatch", lambda file, calls=calls: StopAfter(calls + 1))
            train_jobs(stopped, Workers())
        assert sorted(path.name for path in folder.iterdir()) == begun
        assert not is_finished(stopped.run_dir, BASELINE)
        plain_steps = read_metrics(folder / PLAIN / METRICS)[-1]["total"]
        torch.rand(3)
    train_jobs(stopped, Workers())
    (expected, expected_predictions), (resumed, predictions) = (
        read_result(plan.run_dir, BASELINE) for plan in (whole, stopped)
    )
    assert same_predictions(predictions, expected_predictions)
    assert {**resumed, "epoch_seconds": 0} == {**expected, "epoch_seconds": 0}


def test_two_workers_choose_the_schedule_that_one_chooses(
    half_labelled: HalfLabelled, tmp_path: Path
) -> None:
    alone, both = (baseline_plan(half_labelled, tmp_path, name) for name in ("alone", "both"))
    train_jobs(alone, Workers())
    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(both))
    processes = [python(two_workers.jobs_worker, rank, 2, tmp_path) for rank in range(2)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    (expected, _), (result, _) = (read_result(plan.run_dir, BASELINE) for plan in (alone, both))
    tried = [schedule["score"] for schedule in expected["schedules"]["tried"]]
    assert [one["score"] for one in result["schedules"]["tried"]] == pytest.approx(tried, abs=1e-3)
    assert result["schedules"]["kept"] == expected["schedules"]["kept"]
    assert result["best_score"] == pytest.approx(expected["best_score"], abs=1e-3)


# ---------------------------------------------------------------- a length for each model


def test_a_student_has_a_length_of_its_own(tiny_model: TinyModel, tmp_path: Path) -> None:
    students = {
        "short": {"model": str(tiny_model("bert", layers=1)), "max_length": {"mood": 6}},
        "whole": {"model": str(tiny_model("bert", layers=1))},
    }
    config = config_of(tiny_model, tmp_path, "multi_label", students=students, baselines=[])
    data = load_tasks(config)
    save_task(
        build_student(tiny_model("bert"), [data["mood"].task]),
        "mood",
        open_tokenizer(tiny_model("bert")),
        tmp_path / "teacher",
    )
    keys = labelled(config, data, {"big": tmp_path / "teacher"})
    train = config.train.model_copy(update={"epochs": 1})
    config = config.model_copy(update={"train": train})
    plan = new_plan(config, facts_of(config), data, keys, {"big": str(tmp_path / "teacher")})
    train_jobs(plan, Workers())
    short, whole = (read_result(plan.run_dir, Job(name, "distilled")) for name in students)
    texts = [text for examples in data["mood"].all_examples() for text in examples.inputs["text"]]
    assert short[0]["truncated"] == {"mood": sum(len(text.split()) > 4 for text in texts)}
    assert whole[0]["truncated"] == {"mood": 0}
    for name, (_, says) in (("short", short), ("whole", whole)):
        found = score_student(plan.run_dir / "students" / name, config, "test")["mood"]
        scores = data["mood"].task.scoring.scores(says["mood"], data["mood"].splits["test"])
        assert found["micro_f1"] == pytest.approx(scores["micro_f1"], abs=1e-6)


def test_null_labels_of_one_label_are_masked(tiny_model: TinyModel, tmp_path: Path) -> None:
    config = config_of(tiny_model, tmp_path, "pairs")
    data = load_tasks(config)["mood"]
    labels = data.splits["train"].labels.values.copy()
    labels[::2] = UNLABELLED
    train = replace(data.splits["train"], labels=replace(data.splits["train"].labels, values=labels))
    some = replace(data, splits={**data.splits, "train": train})
    assert len(some.labelled_train()) == 48
    assert some.labelled_train().inputs["text_pair"][0] == train.inputs["text_pair"][1]
    assert some.fingerprint() != data.fingerprint()
