"""A finished run's files → the inputs of its report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, get_args

from numpy.typing import NDArray

from pipeline.co_trained import stored_count
from pipeline.config.fields import SPLITS, Split
from pipeline.config.kinds import SKILL
from pipeline.config.recipe import Reasons, Recipe
from pipeline.config.resolved import Job, Mode, StudentLoss, StudentSettings, jobs_of, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData, Variants
from pipeline.models import weights_size
from pipeline.prepare import Inputs
from pipeline.report.ensembles import ensemble_notes
from pipeline.report.latency import latencies
from pipeline.report.schema import (
    LossRecord,
    PreflightFindings,
    RecipeRecord,
    Size,
    Sizes,
    StageRecord,
    StudentRecord,
    VariantExample,
    VariantsRecord,
)
from pipeline.report.types import RunFacts, TaskResults
from pipeline.run_folder import job_folder
from pipeline.stages import Stages
from pipeline.tasks.skill import relative_losses, skill
from pipeline.training.baseline import schedule_note
from pipeline.training.jobs import read_result
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.repeats import repeats_note
from pipeline.training.shared_baseline import TRAINED_BY
from teachers.checks import Findings
from teachers.ensemble import ensemble_values, stored_predictions
from teachers.pool import Labelling
from teachers.store import Store

PACKAGES = ("tutelage", "torch", "transformers", "datasets", "ray", "mlflow", "numpy")


def task_results(
    config: RunConfig, data: Mapping[str, TaskData], keys: Mapping[str, str]
) -> dict[str, TaskResults]:
    """By task, every model's predictions on the test split: teachers' from the store, students' from their jobs."""
    store = Store(config.store_path)
    results = {job: read_result(config.run_dir, job) for job in jobs_of(config)}
    return {
        name: _one_task(config, name, task_data, keys, store, results) for name, task_data in data.items()
    }


def _one_task(
    config: RunConfig,
    name: str,
    data: TaskData,
    keys: Mapping[str, str],
    store: Store,
    results: Mapping[Job, tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]],
) -> TaskResults:
    task, test, strategy = data.task, data.splits["test"], task_aggregation(config, name).strategy
    teachers, together = _predictions(config, name, data, keys, store, "test")
    by_mode: dict[str, dict[str, Any]] = {mode: {} for mode in get_args(Mode)}
    forced = {mode: dict[str, Mapping[str, float]]() for mode in get_args(Mode)}
    for job, (facts, values) in results.items():
        if name in values:
            by_mode[job.mode][job.student] = values[name]
            forced[job.mode][job.student] = facts.get("forced", {}).get(name, {})
    return TaskResults(
        task=task,
        test=test,
        examples={split: len(data.splits[split]) for split in SPLITS},
        teachers=teachers,
        ensemble=together,
        students=by_mode["distilled"],
        supervised=by_mode["supervised"],
        best_teacher=by_mode["best_teacher"],
        aggregation=strategy,
        forced=forced,
        notes=ensemble_notes(strategy, len(teachers)),
        variants={method: variants_record(made) for method, made in data.variants.items()},
    )


def variants_record(made: Variants) -> VariantsRecord:
    """What a method of `augment` made, in the layout of report.json."""
    return VariantsRecord(
        count=made.count,
        dropped=dict(made.dropped),
        seconds=round(made.seconds, 2),
        asked=made.asked,
        examples=tuple(VariantExample(text=text, variant=variant) for text, variant in made.shown),
    )


def ensemble_scores(
    config: RunConfig, data: Mapping[str, TaskData], keys: Mapping[str, str], split: Split
) -> dict[str, float]:
    """The ensembles' scores by ``<task>/<metric>``, ``macro/score``, their mean, and ``macro/skill``."""
    store, scores, skills = Store(config.store_path), {}, []
    for name, task_data in data.items():
        _, together = _predictions(config, name, task_data, keys, store, split)
        metric = task_data.task.scoring.metric
        scores[f"{name}/{metric}"] = task_data.task.scoring.scores(together, task_data.splits[split])[metric]
        skills.append(skill(relative_losses(task_data.task, together, task_data.splits[split])))
    return {
        **scores,
        "macro/score": statistics.mean(scores.values()),
        f"macro/{SKILL}": statistics.mean(skills),
    }


def _predictions(
    config: RunConfig, name: str, data: TaskData, keys: Mapping[str, str], store: Store, split: Split
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """(M, C) predictions of each of a task's teachers on a split, from the store, and of their ensemble."""
    task, examples, together = data.task, data.splits[split], task_aggregation(config, name)
    teachers = stored_predictions(task, examples, {one: keys[one] for one in together.weights}, store)
    counts = task.reading.counts(examples.inputs)
    ensemble = ensemble_values(task, list(teachers.values()), counts, together.strategy, together.weights)
    return teachers, ensemble


def run_facts(
    config: RunConfig,
    inputs: Inputs,
    labelled: Mapping[str, Labelling],
    stages: Stages,
    notes: list[str],
    findings: Sequence[Findings] = (),
    group: str | None = None,
    ensemble_validation: Mapping[str, float] | None = None,
) -> RunFacts:
    """The other inputs of the report: costs, counts, versions, curves; the last two arguments as in `RunFacts`."""
    curves: dict[str, list[dict[str, Any]]] = {}
    parameters: dict[str, int] = {}
    for job in jobs_of(config):
        result, _ = read_result(config.run_dir, job)
        lines = read_metrics(job_folder(config.run_dir, job) / METRICS)
        curves[job.student if job.mode == "distilled" else job.name] = [
            line for line in lines if "macro/score" in line["metrics"]
        ]
        parameters.setdefault(job.student, result["parameters"])
        notes += _job_notes(inputs, job, result)
    notes += [
        f"{name}: {done.truncated} {inputs.data[config.teachers[name].task].task.kind.truncates} truncated by the teacher"
        for name, done in labelled.items()
        if done.truncated
    ]
    notes += [
        f"{name}: {done.restarts} replicas replaced" for name, done in labelled.items() if done.restarts
    ]
    latency = latencies(config, inputs)
    return RunFacts(
        name=config.name,
        seed=config.seed,
        teacher_forwards={name: done.forwards for name, done in labelled.items()},
        soft_targets={
            name: stored_count(config, inputs.data[teacher.task]) for name, teacher in config.teachers.items()
        },
        timings_s=stages.seconds(),
        launches=stages.launches,
        first_step_s=stages.first_step_s,
        size=Sizes(
            students={name: Size(parameters=n, bytes=4 * n) for name, n in parameters.items()},
            teachers={name: Size(**weights_size(folder)) for name, folder in inputs.teachers.items()},
        ),
        latency=latency,
        versions={package: version(package) for package in PACKAGES},
        curves=curves,
        ensemble_validation=dict(ensemble_validation or {}),
        preflight=preflight_records(findings),
        recipes={name: _student_record(one) for name, one in inputs.resolved.students.items()},
        fine_tunings={
            name: RecipeRecord(**_recipe_values(one.recipe, one.reasons))
            for name, one in inputs.resolved.fine_tunings.items()
        },
        notes=notes,
        group=group,
    )


def _student_record(settings: StudentSettings) -> StudentRecord:
    stages = tuple(
        StageRecord(
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            head_learning_rate=stage.head_learning_rate,
            unfreeze=stage.unfreeze,
            loss=_loss_records(stage.loss, {}),
        )
        for stage in settings.stages
    )
    loss = _loss_records(settings.loss, settings.loss_reasons)
    why = {} if settings.stages_reason is None else {"stages": settings.stages_reason}
    return StudentRecord(
        **_recipe_values(settings.train, {**settings.reasons, **why}),
        loss=loss,
        stages=stages,
        task_focus=settings.train.task_focus,
    )


def _loss_records(loss: StudentLoss, reasons: Mapping[str, Reasons]) -> dict[str, LossRecord]:
    return {
        task: LossRecord(
            hard=one.hard,
            soft=one.soft,
            hidden=one.hidden,
            text=one.text,
            label_smoothing=one.label_smoothing,
            beta=one.beta,
            on_policy=one.on_policy,
            temperature=one.temperature,
            derived=dict(reasons.get(task, {})),
        )
        for task, one in loss.tasks.items()
    }


def _recipe_values(recipe: Recipe, reasons: Reasons) -> dict[str, Any]:
    """The values of a `RecipeRecord`."""
    return {
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "head_learning_rate": recipe.head_learning_rate,
        "patience": None if recipe.early_stopping is None else recipe.early_stopping.patience,
        "derived": dict(reasons),
    }


def preflight_records(findings: Sequence[Findings]) -> tuple[PreflightFindings, ...]:
    """Preflight's findings in the layout of report.json."""
    return tuple(
        PreflightFindings(**{**asdict(one), "problems": tuple(one.problems), "warnings": tuple(one.warnings)})
        for one in findings
    )


def _epochs_before_last_stage(inputs: Inputs, student: str) -> int:
    return sum(stage.epochs for stage in inputs.resolved.students[student].stages[:-1])


def _job_notes(inputs: Inputs, job: Job, result: Mapping[str, Any]) -> list[str]:
    notes = []
    if TRAINED_BY in result:
        notes.append(
            f"{job.name}: as run {result[TRAINED_BY]} trained it, from the same start, data, settings and seed"
        )
    if "trained" in result:
        notes.append(
            f"{job.name}: {result['trained']:,} parameters trained, heads and adapters, which were then added to the {result['parameters']:,} of its models"
        )
    if result.get("halved"):
        notes.append(
            f"{job.name}: out of the device's memory {result['halved']} times; steps were taken in smaller forward passes: "
            "lower train.tokens_per_forward"
        )
    if result["skipped"]:
        notes.append(f"{job.name}: {result['skipped']} updates skipped for a NaN or Inf loss")
    if result["status"] == "early_stopped":
        notes.append(f"{job.name}: stopped early, weights of epoch {result['best_epoch'] + 1} kept")
    elif job.mode != "supervised" and result["best_epoch"] < _epochs_before_last_stage(inputs, job.student):
        notes.append(
            f"{job.name}: weights of epoch {result['best_epoch'] + 1} kept: the last stage did not better the score on validation"
        )
    for task, faults in result.get("left_out", {}).items():
        shown = ", ".join(f"{count:,} {fault}" for fault, count in faults.items() if count)
        if shown:
            notes.append(f"{job.name}: texts of {task} that are not learnt: {shown}")
    for task, limit in result.get("repeat_limits", {}).items():
        notes.append(repeats_note(job.name, task, limit))
    if "schedules" in result:
        notes.append(schedule_note(job.name, result["schedules"]["kept"], result["schedules"]["tried"]))
    if job.mode == "distilled":
        cut = {task: count for task, count in result["truncated"].items() if count}
        notes += [
            f"{job.student}: {count} {inputs.data[task].task.kind.truncates} of {task} truncated to max_length"
            for task, count in cut.items()
        ]
        notes += [
            f"{job.student}: {count} references of {task} truncated to target_length"
            for task, count in result.get("truncated_targets", {}).items()
            if count
        ]
    return notes
