"""Everything that can be known before Ray starts: data, models, label spaces, hardware, what is done already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import check_gpus
from pipeline.config.resolved import absolute_model, student_settings, task_aggregation
from pipeline.config.schema import RunConfig, needs_labels, strategies
from pipeline.data import TaskData, load_tasks
from pipeline.errors import ConfigError, TeacherError, one_of
from pipeline.models import check_length, fingerprint, open_config, open_tokenizer, resolve
from pipeline.training.fine_tune import TEACHER, Request, is_finished, teacher_folder
from pipeline.training.jobs import start_folder
from students.layer_init import layer_indices
from teachers.spec import TeacherSpec
from teachers.teacher import check_teacher, store_key


@dataclass(frozen=True)
class Inputs:
    """A run's data and where its models are.

    bases: the folder each teacher is made of, or is · teachers: the folder each one is served from; that of a
    teacher still to be fine-tuned does not exist yet.
    """

    data: Mapping[str, TaskData]
    bases: Mapping[str, Path]
    teachers: Mapping[str, Path]

    def fingerprints(self, config: RunConfig) -> dict[str, str]:
        """Content of all that the config only names: a run may not go on when any of it has changed."""
        found = {f"tasks.{name}.data": data.fingerprint() for name, data in self.data.items()}
        found |= {f"teachers.{name}.model": fingerprint(folder) for name, folder in self.bases.items()}
        for name, student in config.students.items():
            if student.model is not None:
                found[f"students.{name}.model"] = fingerprint(resolve(student.model, student.revision, name))
        return found

    def to_fine_tune(self) -> list[str]:
        """Teachers that are not there yet."""
        return [
            name
            for name, folder in self.teachers.items()
            if folder != self.bases[name] and not is_finished(folder.parent)
        ]


def prepare(config: RunConfig) -> Inputs:
    """Loads and checks. Raises `ConfigError`, `DataError` or `TeacherError`, all of them exit code 2."""
    check_gpus(config)
    bases = {
        name: resolve(absolute_model(teacher.model), teacher.revision, f"teachers.{name}")
        for name, teacher in config.teachers.items()
    }
    students = {name: student_settings(config, name) for name in config.students}
    starts = {name: start_folder(settings, bases) for name, settings in students.items()}
    tokenizers = {folder: open_tokenizer(folder) for folder in (*bases.values(), *starts.values())}
    data = load_tasks(config)
    teachers: dict[str, Path] = {}
    for name, teacher in config.teachers.items():
        task, where = data[teacher.task].task, f"teachers.{name}"
        if teacher.fine_tune is None:
            check_teacher(bases[name], task, where, teacher.max_length, teacher.labels)
            teachers[name] = bases[name]
        else:
            check_length(bases[name], teacher.max_length or task.head.max_length, where)
            if teacher.labels is not None:
                raise ConfigError(
                    f"{where}.labels: a teacher that is fine-tuned learns the task's labels", "Remove labels."
                )
            folder = teacher_folder(
                config.teachers_dir,
                name,
                bases[name],
                data[teacher.task],
                teacher.fine_tune,
                teacher.max_length,
            )
            teachers[name] = folder / TEACHER
    for name, student in students.items():
        try:
            layer_indices(student.layers, open_config(starts[name]).num_hidden_layers)
        except ConfigError as error:
            raise ConfigError(f"students.{name}.{error.cause}", error.remedy) from None
        for length in student.lengths.values():
            check_length(starts[name], length, f"students.{name}")
    _check_known(config, data, bases)
    _check_tokenizers(config, data, bases, starts, tokenizers)
    _check_labels(config, data)
    return Inputs(data, bases, teachers)


def _check_labels(config: RunConfig, data: Mapping[str, TaskData]) -> None:
    """Strategies that look at labels have them: `pipeline.config.load` knows of data.unlabelled, not of null labels."""
    for task, task_data in data.items():
        strategy, train = task_aggregation(config, task).strategy, task_data.splits["train"]
        missing = len(train) - len(task_data.labelled_train())
        if missing and needs_labels(strategy):
            others = one_of(strategies(task_data.task.kind, labelled=False))
            raise ConfigError(
                f"tasks.{task}: strategy {strategy} needs labels, {missing} of {len(train)} examples of train have none",
                f"Set tasks.{task}.aggregation.strategy to {others}, or leave those examples out.",
            )


def _check_tokenizers(
    config: RunConfig,
    data: Mapping[str, TaskData],
    bases: Mapping[str, Path],
    starts: Mapping[str, Path],
    tokenizers: Mapping[Path, Any],
) -> None:
    """Every model can read its tasks' examples: one of each is tried."""

    def read(task: str, folder: Path, length: int | None) -> None:
        one = data[task].splits["validation"].take(np.array([0]))
        data[task].task.head.encode(tokenizers[folder], one.inputs, length)

    for name, teacher in config.teachers.items():
        read(teacher.task, bases[name], teacher.max_length)
    for name, student in config.students.items():
        for task in config.tasks:
            read(task, starts[name], student.max_length.get(task))


def _check_known(config: RunConfig, data: Mapping[str, TaskData], bases: Mapping[str, Path]) -> None:
    """Every label of a task is known to one of its teachers: else they would unteach it."""
    for task in config.tasks:
        unknown: set[str] = set(data[task].task.reading.labels)
        for name, weight in task_aggregation(config, task).weights.items():
            teacher = config.teachers[name]
            if weight == 0:
                continue
            if teacher.fine_tune is not None:
                unknown.clear()
                continue
            groups = check_teacher(
                bases[name], data[task].task, f"teachers.{name}", teacher.max_length, teacher.labels
            )
            if groups is None:
                unknown.clear()
            else:
                unknown -= {
                    label
                    for label, group in zip(data[task].task.reading.labels, groups, strict=True)
                    if group
                }
        if unknown:
            raise TeacherError(
                f"tasks.{task}: no teacher knows {sorted(unknown)} of {list(data[task].task.reading.labels)}",
                "Add a teacher that does, map a label of a teacher's to it, or leave the label out of the data.",
            )


def teacher_specs(config: RunConfig, inputs: Inputs, names: Iterable[str] | None = None) -> list[TeacherSpec]:
    """The teachers `names`, by default all, as their hosts need them; they must be there."""
    specs = []
    for name in config.teachers if names is None else names:
        teacher = config.teachers[name]
        task, folder = inputs.data[teacher.task].task, inputs.teachers[name]
        tuned = teacher.fine_tune is not None
        key = store_key(folder, task, teacher.serving.dtype, teacher.max_length, teacher.labels)
        specs.append(
            TeacherSpec(
                name,
                str(folder) if tuned else absolute_model(teacher.model),
                None if tuned else teacher.revision,
                task,
                teacher.serving,
                key,
                teacher.max_length,
                teacher.labels,
            )
        )
    return specs


def fine_tuning_requests(config: RunConfig, inputs: Inputs) -> list[Request]:
    """The teachers that are yet to be made, as the tasks that make them need them."""
    requests = []
    for name in inputs.to_fine_tune():
        teacher = config.teachers[name]
        assert teacher.fine_tune is not None, "only those are made"
        requests.append(
            Request(
                name,
                absolute_model(teacher.model),
                teacher.revision,
                inputs.teachers[name].parent,
                teacher.fine_tune,
                teacher.serving,
                teacher.task,
                teacher.max_length,
            )
        )
    return requests
