"""Everything that can be known before Ray starts: data, models, label spaces, hardware, what is done already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster import check_gpus
from pipeline.config import RunConfig
from pipeline.data import TaskData, load_tasks
from pipeline.errors import ConfigError
from pipeline.models import check_length, fingerprint, open_config, open_tokenizer, resolve
from students.layer_init import layer_indices
from teachers.fine_tune import TEACHER, is_finished, teacher_folder
from teachers.teacher import check_teacher


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
    bases = {name: resolve(t.model, t.revision, f"teachers.{name}") for name, t in config.teachers.items()}
    starts = {
        name: bases[student.init_from]
        if student.init_from
        else resolve(student.model or "", student.revision, f"students.{name}")
        for name, student in config.students.items()
    }
    for folder in dict.fromkeys((*bases.values(), *starts.values())):
        open_tokenizer(folder)
    data = load_tasks(config)
    teachers: dict[str, Path] = {}
    for name, teacher in config.teachers.items():
        task, where = data[teacher.task].task, f"teachers.{name}"
        if teacher.fine_tune is None:
            check_teacher(bases[name], task, where)
            teachers[name] = bases[name]
        else:
            check_length(bases[name], task.max_length, where)
            folder = teacher_folder(
                config.teachers_dir, name, bases[name], data[teacher.task], teacher.fine_tune
            )
            teachers[name] = folder / TEACHER
    for name, student in config.students.items():
        try:
            layer_indices(student.layers, open_config(starts[name]).num_hidden_layers)
        except ConfigError as error:
            raise ConfigError(f"students.{name}.{error.cause}", error.remedy) from None
        for task_data in data.values():
            check_length(starts[name], task_data.task.max_length, f"students.{name}")
    return Inputs(data, bases, teachers)
