"""What a report is made from: the test-set outputs of a task, and the facts of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples
from pipeline.report.schema import Latencies, PreflightFindings, Sizes
from pipeline.tasks import Task


@dataclass(frozen=True)
class TaskResults:
    """Every model's predictions for one task's n test examples.

    task: what metric and labels they are scored by · test: the examples · examples: count by split · teachers,
    ensemble, students, supervised: (M, C) values as `Task.scores` takes them, by name; a supervised baseline
    under its student's name (may be empty) · aggregation: the strategy · notes: for the reader.
    """

    task: Task
    test: Examples
    examples: dict[str, int]
    teachers: dict[str, NDArray[np.floating]]
    ensemble: NDArray[np.floating]
    students: dict[str, NDArray[np.floating]]
    supervised: dict[str, NDArray[np.floating]]
    aggregation: str
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The task's."""
        return self.task.scoring.metric


@dataclass(frozen=True)
class RunFacts:
    """What else is known about a run.

    teacher_forwards: examples each teacher ran this time · soft_targets: distinct examples the run needs of it ·
    timings_s: seconds by stage over so many launches · first_step_s: from the launch to the first student's first
    step, None where none took its first · versions: by package · curves: by job,
    ``{"step": n, "epoch": n, "metrics": {"macro/score": x, "<task>/<metric>": x, …}}`` an evaluation; a student's
    job has its name, its baseline's name starts with it · ensemble_validation: the ensembles' validation scores under
    the curves' names, empty where they are not known · group: the runs of other seeds that this one belongs to,
    None for a run alone.
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
    notes: list[str] = field(default_factory=list)
    group: str | None = None
