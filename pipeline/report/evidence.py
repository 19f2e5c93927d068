"""A finished run's files → the evidence that its advice is computed from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.co_trained import at_the_end, have_ended
from pipeline.config.resolved import Job, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.curve import Curve
from pipeline.data.quality import MUCH_TRUNCATED
from pipeline.data.splits import TaskData
from pipeline.errors import ConfigError
from pipeline.models import positions
from pipeline.prepare import Inputs, teacher_curves, teacher_specs
from pipeline.report.advice import Evidence, TaskEvidence, Truncation
from pipeline.report.ensembles import TaskTeachers
from pipeline.report.schema import Report
from pipeline.report.types import RunFacts, TaskResults
from pipeline.run_folder import job_folder
from pipeline.tasks.label_counts import label_counts
from pipeline.training.result import read_facts
from teachers.ensemble import stored_predictions
from teachers.store import Store

MOST = 2000
"""Validation examples whose stored soft targets are read: weights are searched in seconds, whatever the kind."""


def evidence_of(
    config: RunConfig,
    inputs: Inputs,
    keys: Mapping[str, str],
    report: Report,
    results: Mapping[str, TaskResults],
    facts: RunFacts,
) -> Evidence:
    """The evidence of a finished run. keys: name in the store by teacher."""
    store = Store(config.store_path)
    return Evidence(
        report=report,
        tasks={
            name: _task_evidence(config, inputs, data, keys, store, results=results[name], facts=facts)
            for name, data in inputs.data.items()
        },
        students={name: Curve.of(facts.curves[name]) for name in config.students},
        baselines={
            name: Curve.of(facts.curves.get(Job(name, "supervised").name, ())) for name in config.students
        },
        teachers=teacher_curves(inputs),
    )


def _task_evidence(
    config: RunConfig,
    inputs: Inputs,
    data: TaskData,
    keys: Mapping[str, str],
    store: Store,
    *,
    results: TaskResults,
    facts: RunFacts,
) -> TaskEvidence:
    return TaskEvidence(
        results=results,
        teachers=task_teachers(config, data, keys, store),
        train_counts=label_counts(data.task, data.splits["train"].labels),
        truncated=_truncations(config, inputs, data, facts),
        validation_key=validation_key(config, data),
    )


def task_teachers(config: RunConfig, data: TaskData, keys: Mapping[str, str], store: Store) -> TaskTeachers:
    """A task's teachers on at most `MOST` validation examples, always the same ones. keys: name in the store by teacher.

    Raises `CorruptError` where the store lacks a soft target.
    """
    task, validation = data.task, data.splits["validation"]
    validation = validation.take(np.sort(np.argsort(validation.keys, kind="stable")[:MOST]))
    together = task_aggregation(config, task.name)
    predictions = stored_predictions(task, validation, {one: keys[one] for one in together.weights}, store)
    return TaskTeachers(task, validation, predictions, together.weights, together.strategy)


def checked_keys(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    """Name in the store by teacher. Raises `ConfigError` where a teacher, or a soft target of validation, is yet to be made."""
    remedy = "Run `tutelage train RUN.yaml` first, or `tutelage label RUN.yaml`, which trains no student."
    for name in inputs.to_fine_tune():
        raise ConfigError(f"teachers.{name} is not fine-tuned yet", remedy)
    if not have_ended(config):
        raise ConfigError(
            f"the run is yet to train {', '.join(config.co_trained)} on",
            "Run `tutelage train RUN.yaml` first.",
        )
    inputs = at_the_end(config, inputs)
    keys, store = {spec.name: spec.key for spec in teacher_specs(config, inputs)}, Store(config.store_path)
    for name, teacher in config.teachers.items():
        wanted = inputs.data[teacher.task].splits["validation"].keys
        if missing := len(store.missing(keys[name], wanted)):
            cause = f"teachers.{name}: the store {config.store_path} lacks {missing} of {len(wanted)} validation soft targets"
            raise ConfigError(cause, remedy)
    return keys


def validation_key(config: RunConfig, data: TaskData) -> str:
    """The config key that makes a task's validation split larger: its limit, the share held out, or the split itself."""
    own, where = config.tasks[data.task.name].data, f"tasks.{data.task.name}.data"
    if own.limit.get("validation") == len(data.splits["validation"]):
        return f"{where}.limit.validation"
    if any(note.startswith(f"{data.task.name}: no validation split") for note in data.notes):
        return f"{where}.holdout"
    return f"{where}.splits.validation"


def _truncations(config: RunConfig, inputs: Inputs, data: TaskData, facts: RunFacts) -> dict[str, Truncation]:
    """By the config key of each max_length, the largest share that a model with it truncates, where that is much.

    Students: of all splits. Teachers: of preflight's examples.
    """
    task, shares = data.task, dict[str, Truncation]()
    shared = f"tasks.{task.name}.data.max_length"
    models = []
    for name, student in config.students.items():
        if task.name not in config.tasks_of(name):
            continue
        cut = read_facts(job_folder(config.run_dir, Job(name, "distilled")))
        units = sum(
            task.head.truncatable(task.reading.counts(examples.inputs)) for examples in data.all_examples()
        )
        key = f"students.{name}.max_length.{task.name}" if task.name in student.max_length else shared
        share = cut["truncated"][task.name] / max(1, units)
        models.append((key, share, inputs.resolved.students[name].lengths[task.name], inputs.starts[name]))
    for one in facts.preflight:
        if one.task == task.name:
            own = config.teachers[one.teacher].max_length
            key = shared if own is None else f"teachers.{one.teacher}.max_length"
            models.append((key, one.truncated, own or task.head.max_length, inputs.bases[one.teacher]))
    for key, share, length, folder in models:
        if share > max(MUCH_TRUNCATED, shares[key].share if key in shares else 0.0):
            shares[key] = Truncation(share, length, positions(folder))
    return shares
