"""All trainings of a run in one worker, without Ray: which there are, what they read, write and leave behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.batch import Drawn, Ragged
from pipeline.config.adapters import LoraConfig
from pipeline.config.load import parse_config
from pipeline.config.recipe import TaskLoss
from pipeline.config.resolved import Job, StudentLoss, jobs_of, student_settings
from pipeline.config.schema import RunConfig, StageConfig, StageLossConfig
from pipeline.data.transfer import load_tasks
from pipeline.errors import CorruptError
from pipeline.losses import LossWeights
from pipeline.models import hidden_layer
from pipeline.predictor import Predictor
from pipeline.run_folder import RESULT, job_folder, stop_file, student_folder
from pipeline.soft import Dense, SoftTargets
from pipeline.tasks.text_classification import ClassHead
from pipeline.training import jobs as training
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.jobs import (
    after_round,
    check_results,
    loss_plan,
    parameter_count,
    read_result,
    take_over,
    train_jobs,
)
from pipeline.training.kept import Kept
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.own import Before
from pipeline.training.plan import Plan, new_plan, start_folder
from pipeline.training.sets import task_sets
from pipeline.training.stage import LossPlan
from pipeline.training.step import Workers
from students.student import build_student
from teachers.spec import HiddenTargets
from teachers.store import Store
from teachers.store_key import hidden_key, store_key
from tests.conftest import TinyModel, TinyRun
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.small_training import StopAfter, same_bits, same_predictions

CUT, BARE = Job("cut", "distilled"), Job("bare", "distilled")
LABELS = {"mood": ("bad", "good"), "tone": ("bad", "good", "plain")}
TEACHERS = {"mood-bert": "mood", "mood-distilbert": "mood", "tone-bert": "tone"}


@pytest.fixture
def config(tiny_run: TinyRun, tiny_model: TinyModel) -> RunConfig:
    """Three teachers that are ready, `mood-distilbert` with a third of the weight of `mood-bert`."""
    teachers = {
        name: {
            "task": task,
            "model": str(tiny_model("bert" if "-bert" in name else "distilbert", LABELS[task])),
        }
        for name, task in TEACHERS.items()
    }
    return parse_config(
        tiny_run(
            teachers=teachers,
            aggregation={"strategy": "confidence", "teacher_weights": {"mood-bert": 3.0}},
            train={
                "epochs": 2,
                "batch_size": 16,
                "learning_rate": 1e-3,
                "dropout": 0.1,
                "precision": "fp32",
                "early_stopping": {"patience": 1},
            },
        )
    )


def plan_of(config: RunConfig, *, label: bool = True, sign: int = 1) -> Plan:
    """The run's plan; with `label`, its store filled, `sign` −1 turning every teacher into its opposite."""
    data = load_tasks(config)
    folders = {name: teacher.model for name, teacher in config.teachers.items()}
    keys = {name: store_key(Path(folders[name]), data[task].task, "fp32") for name, task in TEACHERS.items()}
    store = Store(config.store_path)
    for name, task in TEACHERS.items():
        examples = data[task].splits["train"]
        logits, _ = Predictor(Path(folders[name]), data[task].task).predict(examples.inputs)
        if label:
            scaled = Dense(Ragged.single(sign * 30 * logits.values), LABELS[task])
            store.append(keys[name], SoftTargets(examples.keys, scaled))
    return new_plan(config, facts_of(config), data, keys, folders)


def predictions(plan: Plan, job: Job) -> dict[str, NDArray[Any]]:
    return read_result(plan.run_dir, job)[1]


def first_point(plan: Plan, job: Job) -> Mapping[str, float]:
    values: Mapping[str, float] = read_metrics(job_folder(plan.run_dir, job) / METRICS)[0]["metrics"]
    return values


# ---------------------------------------------------------------- which trainings, on what


def test_every_student_is_distilled_and_then_trained_on_labels_alone(config: RunConfig) -> None:
    assert [job.name for job in jobs_of(config)] == [
        "cut-distilled",
        "bare-distilled",
        "cut-supervised",
        "bare-supervised",
    ]
    assert jobs_of(config.model_copy(update={"baselines": ()})) == [CUT, BARE]


def test_a_job_minimises_its_students_loss_and_a_baseline_the_labels(tiny_run: TinyRun) -> None:
    config = parse_config(
        tiny_run(
            loss={
                "hard": 1.0,
                "soft": 3.0,
                "temperature": 4.0,
                "task_weights": {"mood": 3.0},
                "task_temperatures": {"tone": 1.5},
            },
            students={
                "cut": {"init_from": "mood-bert", "layers": 1},
                "own": {"init_from": "mood-bert", "loss": {"hard": 0.0, "annealing": "linear"}},
            },
        )
    )
    cut, own = (student_settings(config, name, facts_of(config)).loss for name in ("cut", "own"))
    plan, terms = loss_plan(cut, "distilled"), {"hard": 0.25, "soft": 0.75}
    assert plan == LossPlan({"mood": LossWeights(terms, 4.0, 1.5), "tone": LossWeights(terms, 1.5, 0.5)})
    assert [plan.at(task, 0.5).temperature for task in ("mood", "tone")] == [4.0, 1.5]
    soft = {"hard": 0.0, "soft": 1.0}
    assert loss_plan(own, "distilled") == LossPlan(
        {"mood": LossWeights(soft, 4.0, 1.5), "tone": LossWeights(soft, 1.5, 0.5)}, "linear"
    )
    alone = {"hard": 1.0}
    assert loss_plan(own, "supervised") == LossPlan(
        {"mood": LossWeights(alone, 1.0, 1.5), "tone": LossWeights(alone, 1.0, 0.5)}
    )


def test_hidden_states_alone_are_learnt_alike_by_all_tasks() -> None:
    """So that a search over the weights of tasks trains a first stage once; a task of weight 0 stays out."""
    losses = {
        "mood": TaskLoss(0, 0, 1, 1.5, 1),
        "tone": TaskLoss(0, 0, 1, 0.0, 1),
        "both": TaskLoss(0.5, 0, 1, 1.5, 0.5),
    }
    plan = loss_plan(StudentLoss(losses, "constant"), "distilled")
    assert {task: weights.task for task, weights in plan.tasks.items()} == {"mood": 1, "tone": 0, "both": 1.5}


def test_targets_stand_beside_their_examples_and_weights_beside_their_teachers(config: RunConfig) -> None:
    plan = plan_of(config)
    folder = Path(plan.teacher_folders["mood-bert"])
    mood, tone = task_sets(plan, folder, "cut", Store(config.store_path))
    assert (mood.task.name, tone.task.name) == ("mood", "tone")
    assert mood.aggregation is not None
    assert mood.aggregation.strategy == "confidence"
    assert mood.aggregation.weights.tolist() == [0.75, 0.25]
    texts = plan.data["mood"].splits["train"].inputs["text"]
    rows = np.array([40, 0, 7])
    for source, name in zip(mood.sources, ("mood-bert", "mood-distilbert"), strict=True):
        teacher = Predictor(Path(plan.teacher_folders[name]), mood.task)
        logits, _ = teacher.predict({"text": [texts[row] for row in rows]})
        np.testing.assert_allclose(
            source.targets(Drawn(mood.examples, rows)).values, 30 * logits.values, rtol=2e-3, atol=1e-3
        )
    assert len(tone.sources) == 1
    alone = task_sets(plan, folder, "cut", None)
    assert [(each.sources, each.aggregation) for each in alone] == [((), None)] * 2
    assert np.array_equal(alone[0].examples.labels.values, plan.data["mood"].splits["train"].labels.values)
    assert len(alone[0].validation) == 16


def test_the_student_of_the_round_before_is_one_more_teacher_of_its_own_student(config: RunConfig) -> None:
    plan, store = plan_of(config), Store(config.store_path)
    train = plan.data["mood"].splits["train"]
    predicted = Dense(
        Ragged.single(np.tile(np.array([3, -3], dtype=np.float32), (len(train), 1))), LABELS["mood"]
    )
    store.append("ab", SoftTargets(train.keys, predicted))
    plan = replace(plan, before={"cut": Before({}, 0.4, {"mood": "ab"})})
    folder = Path(plan.teacher_folders["mood-bert"])
    mood, tone = task_sets(plan, folder, "cut", store)
    assert mood.aggregation is not None
    assert mood.aggregation.weights.tolist() == pytest.approx([0.45, 0.15, 0.4])
    own = mood.sources[-1].targets(Drawn(mood.examples, np.array([5, 1])))
    np.testing.assert_allclose(own.values, [[3, -3]] * 2)
    assert len(tone.sources) == 1, "of a task of which it has no predictions"
    assert len(task_sets(plan, folder, "bare", store)[0].sources) == 2, "of another student"
    assert not task_sets(plan, folder, "cut", None)[0].sources, "a baseline has labels alone"


def test_a_student_goes_on_with_its_heads_and_its_baseline_does_not(
    config: RunConfig, tmp_path: Path
) -> None:
    baseline = Job("cut", "supervised")
    first = replace(plan_of(config), jobs=[CUT])
    train_jobs(first, Workers())
    starts = {task: str(student_folder(first.run_dir, "cut", task)) for task in LABELS}
    cut = first.students["cut"]
    train = cut.train.model_copy(update={"learning_rate": 1e-12, "head_learning_rate": 1e-12})
    again = replace(
        first,
        run_dir=tmp_path / "again",
        jobs=[CUT, baseline],
        students={**first.students, "cut": replace(cut, train=train)},
        before={"cut": Before(starts, 0.0)},
    )
    train_jobs(again, Workers())
    for task, trained in predictions(first, CUT).items():
        np.testing.assert_allclose(predictions(again, CUT)[task], trained, atol=1e-4)
        assert not np.allclose(predictions(again, baseline)[task], trained, atol=1e-2)


def test_a_student_goes_on_with_its_weights_and_its_baseline_does_not(
    config: RunConfig, tiny_model: TinyModel
) -> None:
    plan = plan_of(config)
    start = str(tiny_model("bert", layers=1, seed=5))
    plan = replace(plan, before={"cut": Before({"mood": start}, 0.5)}, jobs=[CUT, Job("cut", "supervised")])
    own = after_round(plan, "cut").students["cut"]
    assert (own.model, own.init_from, own.layers) == (start, None, None)
    assert after_round(plan, "bare").students["bare"] == plan.students["bare"]
    seen = dict[str, Path]()

    def fit(_: Plan, job: Job, folder: Path, *args: Any, **more: Any) -> str:
        seen[job.name] = folder
        return "done"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_job", fit)
        train_jobs(plan, Workers())
    assert seen == {"cut-distilled": Path(start), "cut-supervised": Path(plan.teacher_folders["mood-bert"])}


def with_hidden_targets(plan: Plan) -> Plan:
    """The plan with hidden targets of all teachers in its store, for train and validation."""
    store, hidden = Store(plan.store), dict[str, HiddenTargets]()
    for name, task in TEACHERS.items():
        folder, data = Path(plan.teacher_folders[name]), plan.data[task]
        layer = hidden_layer(folder, None, name)
        hidden[name] = HiddenTargets(hidden_key(folder, data.task, "fp32", layer), layer)
        for split in ("train", "validation"):
            examples = data.splits[split]
            _, vectors, _ = Predictor(folder, data.task, layer=layer).label(examples.inputs)
            assert vectors is not None
            store.append(hidden[name].key, SoftTargets(examples.keys, vectors))
    return replace(plan, hidden=hidden)


def test_a_job_in_stages_learns_hidden_targets_first_and_exports_no_projection(config: RunConfig) -> None:
    stages = (
        StageConfig(loss=StageLossConfig(hidden=1), epochs=2, learning_rate=2e-3),
        StageConfig(loss=StageLossConfig(soft=1), epochs=1),
        StageConfig(epochs=1),
    )
    baseline = Job("cut", "supervised")
    plan = with_hidden_targets(plan_of(config.model_copy(update={"stages": stages})))
    train_jobs(replace(plan, jobs=[CUT, baseline]), Workers())
    facts, predicted = read_result(plan.run_dir, CUT)
    points = read_metrics(job_folder(plan.run_dir, CUT) / METRICS)
    terms = {
        epoch: {name for point in points if point["epoch"] == epoch for name in point["metrics"]}
        for epoch in (1, 2, 3, 4)
    }
    assert {"loss/hidden/mood", "loss/hidden/tone", "validation/hidden/mood"} <= terms[1]
    assert not {"loss/hard/mood", "loss/soft/mood", "macro/score"} & (terms[1] | terms[2])
    assert {"loss/soft/mood", "macro/score"} <= terms[3]
    assert not any("hidden" in name for name in terms[3] | terms[4])
    assert {"loss/hard/mood", "loss/soft/mood", "macro/score"} <= terms[4]
    errors = [
        p["metrics"]["validation/hidden/mood"] for p in points if "validation/hidden/mood" in p["metrics"]
    ]
    assert errors[1] < errors[0] < 2
    assert facts["best_epoch"] in (2, 3)
    assert len(facts["epoch_seconds"]) == 4
    assert all(np.isfinite(values).all() for values in predicted.values())
    saved = load_file(student_folder(plan.run_dir, "cut", "mood") / "model.safetensors")
    assert not any("projection" in name for name in saved)
    alone, _ = read_result(plan.run_dir, baseline)
    assert alone["parameters"] == facts["parameters"]
    assert len(alone["epoch_seconds"]) <= 4
    assert not any("hidden" in name for name in first_point(plan, baseline))


def test_plans_do_not_depend_on_the_working_directory(
    config: RunConfig, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = config.students["bare"].model_copy(update={"model": "models/bare"})
    Path("models/bare").mkdir(parents=True)
    relative = config.model_copy(update={"runs_dir": "runs", "students": {**config.students, "bare": bare}})
    plan = new_plan(relative, facts_of(relative), {}, {}, {})
    assert (plan.run_dir, plan.stop.parent) == (tmp_path / "runs" / "tiny", tmp_path / "runs" / "tiny")
    assert plan.store == str(tmp_path / "runs" / "_store")
    assert plan.students["bare"].model == str(tmp_path / "models" / "bare")
    hub = bare.model_copy(update={"model": "someone/something"})
    store = config.store.model_copy(update={"path": "s3://bucket/store"})
    remote = relative.model_copy(update={"students": {"bare": hub}, "store": store})
    kept = new_plan(remote, facts_of(remote), {}, {}, {})
    assert (kept.students["bare"].model, kept.store) == ("someone/something", "s3://bucket/store")
    assert new_plan(relative, facts_of(relative), {}, {}, {}).launch_id != plan.launch_id


# ---------------------------------------------------------------- all of them


def test_all_trainings_end_with_results(config: RunConfig) -> None:
    plan = plan_of(config)
    train_jobs(plan, Workers())
    for job in jobs_of(config):
        result, says = read_result(plan.run_dir, job)
        assert {name: tuple(logits.shape) for name, logits in says.items()} == {
            "mood": (16, 2),
            "tone": (16, 3),
        }
        assert result["status"] in ("done", "early_stopped")
        assert result["truncated"] == {"mood": 0, "tone": 0}
        assert result["parameters"] > 0
        assert 0 <= result["best_score"] <= 1
        assert result["skipped"] == 0
        files = sorted(path.name for path in job_folder(plan.run_dir, job).iterdir())
        assert files == [METRICS, "predictions.safetensors", "result.json"]  # and no checkpoint
    assert sorted(path.name for path in (plan.run_dir / "students").iterdir()) == ["bare", "cut"]
    for job in (CUT, BARE):  # the saved students are those that were scored
        for name, logits in predictions(plan, job).items():
            folder = plan.run_dir / "students" / job.student / name
            found, _ = Predictor(folder, plan.data[name].task).predict(plan.data[name].splits["test"].inputs)
            np.testing.assert_allclose(found.values, logits, atol=1e-5, rtol=0)


def test_adapters_train_resume_and_are_saved_as_plain_weights(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = config.train.model_copy(update={"lora": LoraConfig(rank=2), "checkpoint_steps": 2})
    plans = []
    for name in ("at once", "in parts"):
        plan = plan_of(config.model_copy(update={"train": train, "runs_dir": str(tmp_path / name)}))
        plans.append(replace(plan, jobs=[CUT]))
    train_jobs(plans[0], Workers())
    with monkeypatch.context() as patch:
        patch.setattr(training, "StopWatch", lambda file: StopAfter(4))
        train_jobs(plans[1], Workers())
    folder = job_folder(plans[1].run_dir, CUT)
    newest = newest_checkpoint(folder)
    assert newest is not None
    kept = load_file(newest / "model.safetensors")
    assert kept
    assert all("lora_" in name or "pooler" in name or "classifier" in name for name in kept)
    train_jobs(plans[1], Workers())
    assert same_predictions(*(predictions(plan, CUT) for plan in plans))
    facts, predicted = read_result(plans[0].run_dir, CUT)
    assert 0 < facts["trained"] < facts["parameters"]
    for task, values in predicted.items():
        saved = student_folder(plans[0].run_dir, "cut", task)
        assert not any(
            "lora" in name or "base_layer" in name for name in load_file(saved / "model.safetensors")
        )
        data = plans[0].data[task]
        answers, _ = Predictor(saved, data.task).predict(data.splits["test"].inputs)
        np.testing.assert_allclose(answers.values, values, atol=1e-5)


def test_damage_to_a_finished_training_is_seen_before_another_begins(config: RunConfig) -> None:
    plan = plan_of(config)
    train_jobs(plan, Workers())
    check_results(config)
    (job_folder(plan.run_dir, BARE) / RESULT).rename(plan.run_dir / "aside")
    check_results(config)  # one that is to be trained
    weights = plan.run_dir / "students" / "cut" / "tone" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        check_results(config)
    assert str(weights.parent) in caught.value.cause
    assert str(job_folder(plan.run_dir, CUT)) in caught.value.remedy
    shutil.rmtree(job_folder(plan.run_dir, CUT))
    train_jobs(plan, Workers())
    check_results(config)


def test_a_baseline_is_the_same_student_from_the_same_start(config: RunConfig) -> None:
    plan = plan_of(config)
    train_jobs(plan, Workers())
    for student in config.students:
        distilled, supervised = (first_point(plan, Job(student, m)) for m in ("distilled", "supervised"))
        (hard,) = [name for name in supervised if name.startswith("loss/hard/")]
        assert distilled[hard] == supervised[hard]  # before the first update: same weights, batch and dropout
        assert hard.replace("hard", "soft") in distilled
        assert not any("soft" in name for name in supervised)


def test_teachers_change_the_distilled_students_and_no_baseline(config: RunConfig, tmp_path: Path) -> None:
    plans = []
    for sign in (1, -1):
        runs = config.model_copy(update={"runs_dir": str(tmp_path / f"runs{sign}")})
        plans.append(plan_of(runs, sign=sign))
        train_jobs(plans[-1], Workers())
    for job in jobs_of(config):
        same = same_predictions(*(predictions(plan, job) for plan in plans))
        assert same == (job.mode == "supervised")


def test_a_students_start_is_its_teachers_layers(config: RunConfig) -> None:
    plan = plan_of(config)
    folder = start_folder(plan.students["cut"], plan.teacher_folders)
    assert str(folder) == plan.teacher_folders["mood-bert"]
    tasks = [data.task for data in plan.data.values()]
    cut, whole = (build_student(folder, tasks, layers=layers) for layers in (1, None))
    assert same_bits(
        cut.encoder.get_submodule("encoder.layer.0").state_dict(),
        whole.encoder.get_submodule("encoder.layer.1").state_dict(),
    )
    encoder = sum(tensor.numel() for tensor in cut.encoder.state_dict().values())
    assert parameter_count(cut) == encoder + (32 + 1) * 2 + (32 + 1) * 3  # two linear heads
    assert str(start_folder(plan.students["bare"], plan.teacher_folders)) == config.students["bare"].model


def test_targets_that_are_missing_are_an_error_and_nothing_is_trained(config: RunConfig) -> None:
    plan = plan_of(config, label=False)
    with pytest.raises(CorruptError, match="lacks 48 of 48 targets"):
        train_jobs(plan, Workers())
    assert not plan.run_dir.exists()


# ---------------------------------------------------------------- again, and interrupted


def test_finished_trainings_are_not_repeated(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(config)
    train_jobs(plan, Workers())
    before = {path: path.stat().st_mtime_ns for path in plan.run_dir.rglob("*") if path.is_file()}
    expected = predictions(plan, BARE)
    train_jobs(plan, Workers())
    assert {path: path.stat().st_mtime_ns for path in plan.run_dir.rglob("*") if path.is_file()} == before
    (job_folder(plan.run_dir, BARE) / "result.json").unlink()
    trained: list[Job] = []
    train_job = training.train_job

    def watched(plan: Plan, job: Job, *rest: Any, **more: Any) -> str:
        trained.append(job)
        return train_job(plan, job, *rest, **more)

    monkeypatch.setattr(training, "train_job", watched)
    train_jobs(plan, Workers())
    assert trained == [BARE]
    assert same_predictions(predictions(plan, BARE), expected)


def test_a_run_takes_over_what_a_trial_has_trained(config: RunConfig, tmp_path: Path) -> None:
    run = plan_of(config)
    trial = replace(run, run_dir=tmp_path / "000", jobs=(CUT,), trial=True)
    source = job_folder(trial.run_dir, CUT)
    assert not take_over(run.run_dir, CUT, source), "nothing is trained yet"
    train_jobs(trial, Workers())
    alone = replace(run, run_dir=tmp_path / "alone", jobs=(CUT,))
    train_jobs(alone, Workers())

    assert take_over(run.run_dir, CUT, source)
    assert not take_over(run.run_dir, CUT, source), "the run has begun the job"
    epochs: list[int] = []
    train_jobs(replace(run, jobs=(CUT,)), Workers(), lambda epoch, scores: epochs.append(epoch))
    assert epochs == [], "nothing is trained"
    assert same_predictions(predictions(run, CUT), predictions(alone, CUT))
    facts, expected = (read_result(plan.run_dir, CUT)[0] for plan in (run, alone))
    timed = {"epoch_seconds", "kept", "predictions"}
    assert {k: v for k, v in facts.items() if k not in timed} == {
        k: v for k, v in expected.items() if k not in timed
    }
    metrics = job_folder(run.run_dir, CUT) / METRICS
    assert read_metrics(metrics) == read_metrics(source / METRICS)
    assert not list(run.run_dir.rglob("step-*"))
    assert not take_over(run.run_dir, CUT, source), "the job is finished"


@pytest.mark.parametrize("hidden", [False, True])
def test_trials_one_after_another_in_a_process_are_those_of_a_process_each(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    """Whatever their values are, and whatever the trial before did; examples are encoded once."""
    loss = config.loss.model_copy(update={"hidden": 0.5} if hidden else {})
    plan = plan_of(config.model_copy(update={"loss": loss}))
    plan = with_hidden_targets(plan) if hidden else plan
    mean = {
        name: replace(one, strategy="mean", weights=dict(reversed(list(one.weights.items()))))
        for name, one in plan.aggregations.items()
    }
    shorter = {
        name: replace(one, lengths=dict.fromkeys(one.lengths, 6)) for name, one in plan.students.items()
    }
    trials = [plan, replace(plan, seed=3), replace(plan, aggregations=mean), replace(plan, students=shorter)]
    trials = [replace(one, jobs=(CUT,), trial=True) for one in [*trials, plan]]
    encoded: list[int | None] = []
    encode = ClassHead.encode

    def counted(self: ClassHead, tokenizer: Any, inputs: Any, length: int | None = None, **more: Any) -> Any:
        encoded.append(length)
        return encode(self, tokenizer, inputs, length, **more)

    monkeypatch.setattr(ClassHead, "encode", counted)
    kept, times = Kept(), list[int]()
    for number, trial in enumerate(trials):
        encoded.clear()
        train_jobs(replace(trial, run_dir=tmp_path / f"shared-{number}"), Workers(), kept=kept)
        kept.drop_unused()
        times.append(len(encoded))
    assert times == [4, 0, 0, 4, 4], (
        "train and validation of both tasks, and no more is kept than the last one used"
    )
    for number, trial in enumerate(trials):
        train_jobs(replace(trial, run_dir=tmp_path / f"alone-{number}"), Workers())
        shared, alone = (job_folder(tmp_path / f"{name}-{number}", CUT) for name in ("shared", "alone"))
        assert untimed(shared) == untimed(alone)
        assert (shared / "predictions.safetensors").read_bytes() == (
            alone / "predictions.safetensors"
        ).read_bytes()
        (weights,) = shared.glob("step-*/model.safetensors")
        assert weights.read_bytes() == next(alone.glob("step-*/model.safetensors")).read_bytes()


def untimed(folder: Path) -> list[dict[str, float]]:
    """The points of a training's curves, without times."""
    points = [point["metrics"] for point in read_metrics(folder / METRICS)]
    return [{name: value for name, value in point.items() if "time" not in name} for point in points]


@pytest.mark.parametrize("stops", [(1,), (4, 15)], ids=["in the first job", "in the first and another"])
def test_interrupted_trainings_end_with_the_same_results(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    plans = {
        name: plan_of(config.model_copy(update={"runs_dir": str(tmp_path / name)}))
        for name in ("whole", "interrupted")
    }
    train_jobs(plans["whole"], Workers())
    for calls in stops:
        with monkeypatch.context() as patch:
            patch.setattr(training, "StopWatch", lambda file, calls=calls: StopAfter(calls + 1))
            train_jobs(plans["interrupted"], Workers())
        folders = [job_folder(plans["interrupted"].run_dir, job) for job in jobs_of(config)]
        assert [bool(list(folder.glob("step-*"))) for folder in folders].count(True) == 1
        torch.rand(calls)
    train_jobs(plans["interrupted"], Workers())
    for job in jobs_of(config):
        (whole, expected), (resumed, found) = (read_result(plan.run_dir, job) for plan in plans.values())
        assert same_predictions(found, expected)
        assert {**resumed, "epoch_seconds": 0} == {**whole, "epoch_seconds": 0}


def test_nothing_is_begun_while_the_stop_file_is_there(config: RunConfig) -> None:
    plan = plan_of(config)
    stop_file(plan.run_dir).parent.mkdir(parents=True)
    stop_file(plan.run_dir).touch()
    train_jobs(plan, Workers())
    assert [path.name for path in plan.run_dir.iterdir()] == ["STOP"]


def test_cut_texts_are_counted_over_all_splits(config: RunConfig) -> None:
    mood = config.tasks["mood"]
    short = mood.model_copy(update={"data": mood.data.model_copy(update={"max_length": 6})})
    students = {"bare": config.students["bare"]}
    cut = config.model_copy(
        update={"tasks": {**config.tasks, "mood": short}, "students": students, "baselines": ()}
    )
    plan = plan_of(cut)
    train_jobs(plan, Workers())
    texts = [text for examples in plan.data["mood"].all_examples() for text in examples.inputs["text"]]
    result = json.loads((job_folder(plan.run_dir, BARE) / "result.json").read_text())
    assert result["truncated"] == {"mood": sum(len(text.split()) > 4 for text in texts), "tone": 0}
    assert result["truncated"]["mood"] > 0


def test_the_seed_decides_the_students(config: RunConfig, tmp_path: Path) -> None:
    says = []
    for number, seed in enumerate((5, 5, 6)):
        changes = {"runs_dir": str(tmp_path / str(number)), "seed": seed, "baselines": ()}
        plan = plan_of(config.model_copy(update=changes))
        torch.manual_seed(number)
        train_jobs(replace(plan, cpus=1), Workers())
        says.append(predictions(plan, CUT))
    assert same_predictions(says[0], says[1])
    assert not same_predictions(says[0], says[2])


def test_a_student_of_some_tasks_learns_and_answers_these(tiny_run: TinyRun, config: RunConfig) -> None:
    students = {"bare": {**config.students["bare"].model_dump(mode="json"), "tasks": ["tone"]}}
    own = parse_config({**config.model_dump(mode="json"), "students": students, "baselines": ["supervised"]})
    plan = plan_of(own)
    settings = plan.students["bare"]
    assert list(settings.lengths) == list(settings.loss.tasks) == ["tone"]
    assert settings.loss.tasks["tone"].weight == 1.0
    train_jobs(plan, Workers())
    for job in jobs_of(own):
        assert list(predictions(plan, job)) == ["tone"]
        assert not any("mood" in name for name in first_point(plan, job))
    assert [path.name for path in (plan.run_dir / "students/bare").iterdir()] == ["tone"]
