"""The inputs of a report: the test-set outputs of a task, and the facts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pipeline.batch import Examples
from pipeline.config.resolved import Mode
from pipeline.report.schema import (
    Latencies,
    PreflightFindings,
    RecipeRecord,
    Sizes,
    StudentRecord,
    VariantsRecord,
)
from pipeline.tasks import Task


@dataclass(frozen=True)
class TaskResults:
    """Every model's predictions for one task's n test examples.

    task: has the metric and the labels · test: the examples · examples: number by split · teachers, ensemble,
    students, supervised: (M, C) predictions as `Scoring.scores` takes them, by name; a supervised baseline has its
    student's name (may be empty) · aggregation: the strategy · best_teacher: of the same students from each task's best teacher alone (may be empty) · forced: by mode and
    student the scores along the gold texts (`pipeline.config.kinds.Kind.forced`), none of kinds without · notes: lines for the report · variants: what `augment` made
    of the training texts, by method.
    """

    task: Task
    test: Examples
    examples: dict[str, int]
    teachers: dict[str, NDArray[Any]]
    ensemble: NDArray[Any]
    students: dict[str, NDArray[Any]]
    supervised: dict[str, NDArray[Any]]
    aggregation: str
    best_teacher: dict[str, NDArray[Any]] = field(default_factory=dict)
    forced: Mapping[Mode, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    variants: dict[str, VariantsRecord] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the task's metric."""
        return self.task.scoring.metric


@dataclass(frozen=True)
class RunFacts:
    """The other facts of a run.

    teacher_forwards: examples that each teacher labelled in this launch · soft_targets: distinct examples that the
    run needs of each teacher · timings_s: seconds by stage, over all `launches` · first_step_s: seconds from the
    launch to the first step of its first student, None where it began none · versions: by package · curves: by job,
    one ``{"step": n, "epoch": n, "metrics": {"macro/score": x, "<task>/<metric>": x, …}}`` for each evaluation; a
    student's job has the student's name, its baseline's name starts with it · ensemble_validation: the ensembles'
    validation scores under the curves' names, empty where they are not known · recipes, fine_tunings: how students and
    teachers were trained, by name · group: name of the group of seeds,
    None for a single run.
    """

    name: str
    seed: int
    teacher_forwards: dict[str, int]
    soft_targets: dict[str, int]
    timings_s: dict[str, float]
    size: Sizes
    latency: Latencies
    versions: dict[str, str]
    launches: int = 1
    first_step_s: float | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    ensemble_validation: dict[str, float] = field(default_factory=dict)
    preflight: tuple[PreflightFindings, ...] = ()
    recipes: dict[str, StudentRecord] = field(default_factory=dict)
    fine_tunings: dict[str, RecipeRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    group: str | None = None
