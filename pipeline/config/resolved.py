"""The resolved config: the settings of each student and the aggregation of each task, as frozen objects.

A student's or task's own keys replace those of the run's sections, and weights are normalised. Other code takes these
objects; only code that records or compares configs reads the config itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.explain import overlay
from pipeline.config.schema import AggregationConfig, LossConfig, RunConfig, Strategy, TrainConfig
from pipeline.errors import ConfigError

Mode = Literal["distilled", "supervised"]
ALL_ZERO = "Give at least one of them a weight above 0."


@dataclass(frozen=True)
class Job:
    """One training of one student."""

    student: str
    mode: Mode

    @property
    def name(self) -> str:
        """The name of the training's folder and MLflow run."""
        return f"{self.student}-{self.mode}"


@dataclass(frozen=True)
class StudentSettings:
    """The settings of one student.

    init_from, model: the teacher whose layers it starts from, or a hub id or folder; the other one is None · lengths:
    most tokens per sequence, by task · loss: hard and soft sum to 1; every task has a weight (their mean is 1) and a
    temperature · notes: the values that were normalised, one line each.
    """

    name: str
    init_from: str | None
    model: str | None
    revision: str | None
    layers: int | tuple[int, ...] | None
    lengths: Mapping[str, int]
    train: TrainConfig
    loss: LossConfig
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class TaskAggregation:
    """The aggregation of a task's teachers into one target. weights: by teacher, in the config's order, sum 1 · notes:
    the values that were normalised."""

    strategy: Strategy
    weights: Mapping[str, float]
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Resolved:
    """Every student's settings by name and every task's aggregation by task."""

    students: Mapping[str, StudentSettings]
    aggregations: Mapping[str, TaskAggregation]


def resolve_config(config: RunConfig) -> Resolved:
    """The whole config resolved. Raises `ConfigError` where an overlay is not valid or weights are all 0."""
    return Resolved(
        {name: student_settings(config, name) for name in config.students},
        {task: task_aggregation(config, task) for task in config.tasks},
    )


def student_settings(config: RunConfig, name: str) -> StudentSettings:
    """One student's settings. Raises `ConfigError`."""
    student = config.students[name]
    loss, notes = _student_loss(config, name)
    lengths = {task: student.max_length.get(task, own.data.max_length) for task, own in config.tasks.items()}
    return StudentSettings(
        name,
        student.init_from,
        student.model,
        student.revision,
        student.layers,
        lengths,
        overlay(config.train, student.train, ("students", name, "train")),
        loss,
        tuple(notes),
    )


def _student_loss(config: RunConfig, name: str) -> tuple[LossConfig, list[str]]:
    given: LossConfig = overlay(config.loss, config.students[name].loss, ("students", name, "loss"))
    weights, notes = {task: given.task_weights.get(task, 1.0) for task in config.tasks}, []
    total, whole = given.hard + given.soft, sum(weights.values())
    if not total:
        raise ConfigError(f"loss: hard and soft are both 0 (student {name})", ALL_ZERO)
    if not whole:
        raise ConfigError(f"loss.task_weights: every task has weight 0 (student {name})", ALL_ZERO)
    changes = {
        "hard": given.hard / total,
        "soft": given.soft / total,
        "task_weights": {task: weight * len(weights) / whole for task, weight in weights.items()},
        "task_temperatures": {
            task: given.task_temperatures.get(task, given.temperature) for task in config.tasks
        },
    }
    loss = given.model_copy(update=changes)
    if abs(total - 1) > 1e-9:
        notes += [
            f"loss weights of {name} normalised to sum to 1: hard {loss.hard:.3g}, soft {loss.soft:.3g}"
        ]
    if given.task_weights:
        notes += [f"task weights of {name} normalised to a mean of 1: {_shown(loss.task_weights)}"]
    return loss, notes


def task_aggregation(config: RunConfig, task: str) -> TaskAggregation:
    """One task's aggregation. Raises `ConfigError`."""
    own: AggregationConfig = overlay(
        config.aggregation, config.tasks[task].aggregation, ("tasks", task, "aggregation")
    )
    given = {name: own.teacher_weights.get(name, 1.0) for name in config.teachers_of(task)}
    total, notes = sum(given.values()), tuple[str, ...]()
    if not total:
        raise ConfigError(f"aggregation.teacher_weights: every teacher of {task} has weight 0", ALL_ZERO)
    weights = {name: weight / total for name, weight in given.items()}
    if given.keys() & own.teacher_weights.keys() and abs(total - 1) > 1e-9:
        notes = (f"teacher weights of {task} normalised to sum to 1: {_shown(weights)}",)
    return TaskAggregation(own.strategy, weights, notes)


def _shown(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def jobs_of(config: RunConfig) -> list[Job]:
    """Every student distilled, then every student's baselines."""
    distilled = [Job(student, "distilled") for student in config.students]
    return distilled + [Job(student, mode) for mode in config.baselines for student in config.students]


# ---------------------------------------------------------------- paths


def absolute_model(model: str) -> str:
    """The absolute path of a folder; a hub id unchanged."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config for processes that have a working directory of their own, as Ray's workers have."""
    students = {
        name: student.model_copy(update={"model": student.model and absolute_model(student.model)})
        for name, student in config.students.items()
    }
    return config.model_copy(
        update={
            "runs_dir": str(Path(config.runs_dir).absolute()),
            "students": students,
            "store": config.store.model_copy(update={"path": config.store_path}),
        }
    )
