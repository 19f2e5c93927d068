"""Test-set predictions of a run → report.json, report.md and figures.

`build` computes every number, `write` writes the files. `pipeline.report.page` and `pipeline.compare.rows` read only
the numbers. Scores are shares (0.862) in JSON and points (86.2) in prose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.kinds import METRICS
from pipeline.config.resolved import Mode
from pipeline.files import write_atomically
from pipeline.report.json_file import to_json
from pipeline.report.page import markdown
from pipeline.report.schema import (
    MeanSection,
    MeanStudentScores,
    Metrics,
    Report,
    StandardErrors,
    TaskLatencies,
    TaskReport,
    TaskStudentScores,
    VersusTeachers,
)
from pipeline.report.texts import scoring_notes, written_examples
from pipeline.report.types import RunFacts, TaskResults
from pipeline.run_folder import FIGURES, REPORT, REPORT_PAGE
from pipeline.significance import gap_recovered, retention
from pipeline.tasks.scores import bootstrap

# ---------------------------------------------------------------- numbers


def build(tasks: Mapping[str, TaskResults], facts: RunFacts) -> Report:
    """Every number of a run.

    macro: unweighted mean over the tasks' primary metrics; its retention and gap are ratios of those means.

    gap_recovered = (student − supervised) ÷ (ensemble − supervised). It is None where there is no supervised
    baseline, and where the ensemble is less than 0.5 points above it: there is no gap to recover then, and a
    division by nearly zero (or by a negative number) would turn noise into any percentage. retention is None where
    the ensemble scores 0.

    Raises `ValueError` where shapes or names do not fit, `DataError` where a gold label is missing.
    """
    students = list(dict.fromkeys(name for results in tasks.values() for name in results.students))
    for task, results in tasks.items():
        if unknown := set(results.supervised) - set(results.students):
            raise ValueError(f"{task}: baselines of {sorted(unknown)}, which are no students of it")
    if not students:
        raise ValueError("no task, or no student, to report on")
    by_task = {task: _task(results) for task, results in tasks.items()}
    forwards, needed = sum(facts.teacher_forwards.values()), sum(facts.soft_targets.values())
    return Report(
        name=facts.name,
        group=facts.group,
        seed=facts.seed,
        tasks=by_task,
        macro=_macro(by_task, students),
        teacher_forwards=facts.teacher_forwards,
        soft_targets=facts.soft_targets,
        forwards_ratio=forwards / needed if needed else None,
        timings_s=facts.timings_s,
        launches=facts.launches,
        first_step_s=facts.first_step_s,
        size=facts.size,
        latency=facts.latency,
        versus_teachers={name: _versus_teachers(name, by_task, facts) for name in students},
        versions=facts.versions,
        preflight=facts.preflight,
        recipes=facts.recipes,
        fine_tunings=facts.fine_tunings,
        notes=tuple(facts.notes),
    )


def _task(results: TaskResults) -> TaskReport:
    task, test, metric = results.task, results.test, results.metric

    def scores(mode: Mode, models: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, float]]:
        forced = results.forced.get(mode, {})
        return {
            name: {**task.scoring.scores(values, test), **forced.get(name, {})}
            for name, values in models.items()
        }

    metrics = Metrics(
        teachers={name: task.scoring.scores(values, test) for name, values in results.teachers.items()},
        students=scores("distilled", results.students),
        supervised=scores("supervised", results.supervised),
        ensemble=task.scoring.scores(results.ensemble, test),
    )
    resampled = _resampled(results)
    students = {}
    for name, values in results.students.items():
        baseline = results.supervised.get(name)
        supervised = None if baseline is None else metrics.supervised[name][metric]
        difference = None if baseline is None else resampled["students", name] - resampled["supervised", name]
        score, ensemble = metrics.students[name][metric], metrics.ensemble[metric]
        students[name] = TaskStudentScores(
            score=score,
            ensemble=ensemble,
            supervised=supervised,
            retention=retention(score, ensemble, METRICS[metric].better),
            gap_recovered=gap_recovered(score, supervised, ensemble, METRICS[metric].better),
            delta_error=None if difference is None else float(difference.std()),
            **_of_best_teacher(results, name, resampled),
            agreement=task.scoring.agreement(values, results.ensemble, test),
            ece=metrics.students[name].get("ece"),
        )
    return TaskReport(
        kind=task.kind.name,
        metric=metric,
        teachers={name: values[metric] for name, values in metrics.teachers.items()},
        ensemble=metrics.ensemble[metric],
        students=students,
        examples=results.examples,
        labels=tuple(task.reading.labels),
        majority=task.scoring.constant_score(test),
        standard_error=max(float(scores.std()) for scores in resampled.values()),
        standard_errors=_standard_errors(resampled),
        aggregation=results.aggregation,
        metrics=metrics,
        variants=results.variants,
        texts=written_examples(results),
        notes=(*results.notes, *scoring_notes(results)),
    )


def _of_best_teacher(
    results: TaskResults, name: str, resampled: Mapping[tuple[str, str], NDArray[np.float64]]
) -> dict[str, float]:
    """The scores of the student that learnt from the task's best teacher alone; nothing without one."""
    values = results.best_teacher.get(name)
    if values is None:
        return {}
    difference = resampled["students", name] - resampled["best_teacher", name]
    score = results.task.scoring.scores(values, results.test)[results.metric]
    return {"best_teacher": score, "best_teacher_error": float(difference.std())}


def _resampled(results: TaskResults) -> dict[tuple[str, str], NDArray[np.float64]]:
    """By (group, name): the metric of ensemble, students and baselines on the same bootstrap draws of the test set."""
    predictions = {("ensemble", ""): results.ensemble}
    predictions |= {("students", name): values for name, values in results.students.items()}
    predictions |= {("supervised", name): values for name, values in results.supervised.items()}
    predictions |= {("best_teacher", name): values for name, values in results.best_teacher.items()}
    statistics = [results.task.scoring.statistics(values, results.test) for values in predictions.values()]
    return dict(zip(predictions, bootstrap(statistics, results.task.scoring.score_of), strict=True))


def _standard_errors(resampled: Mapping[tuple[str, str], NDArray[np.float64]]) -> StandardErrors:
    errors = {model: float(scores.std()) for model, scores in resampled.items()}
    return StandardErrors(
        ensemble=errors["ensemble", ""],
        students={name: error for (group, name), error in errors.items() if group == "students"},
        supervised={name: error for (group, name), error in errors.items() if group == "supervised"},
    )


def _macro(by_task: Mapping[str, TaskReport], students: Iterable[str]) -> MeanSection:
    """Unweighted means over tasks; a student that lacks a baseline in some task has no macro baseline."""
    return MeanSection(
        ensemble=float(np.mean([task.ensemble for task in by_task.values()])),
        students={
            name: _mean({task: one.students[name] for task, one in by_task.items() if name in one.students})
            for name in students
        },
        standard_errors=_macro_errors([task.standard_errors for task in by_task.values()]),
    )


def _mean(by_task: Mapping[str, TaskStudentScores]) -> MeanStudentScores:
    """One student's mean over tasks. The tasks' test sets are independent, so their variances add up."""
    rows = list(by_task.values())
    score, ensemble = (float(np.mean([getattr(row, of) for row in rows])) for of in ("score", "ensemble"))
    baselines = [row.supervised for row in rows if row.supervised is not None]
    errors = [row.delta_error for row in rows if row.delta_error is not None]
    compared = len(baselines) == len(rows)
    supervised = float(np.mean(baselines)) if compared else None
    return MeanStudentScores(
        tasks=tuple(by_task),
        score=score,
        ensemble=ensemble,
        supervised=supervised,
        retention=retention(score, ensemble),
        gap_recovered=gap_recovered(score, supervised, ensemble),
        delta_error=math.sqrt(sum(error**2 for error in errors)) / len(rows) if compared else None,
    )


def _macro_errors(tasks: Sequence[StandardErrors]) -> StandardErrors:
    """Standard errors of means over tasks, whose test examples are independent of each other; a student's over the tasks
    that it learns.

    A baseline that is missing in one of its student's tasks has neither mean nor error.
    """

    def of_means(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for one in tasks for name in one.students):
            learnt = [own for own, one in zip(errors, tasks, strict=True) if name in one.students]
            if all(name in own for own in learnt):
                means[name] = math.hypot(*(own[name] for own in learnt)) / len(learnt)
        return means

    return StandardErrors(
        ensemble=math.hypot(*(task.ensemble for task in tasks)) / len(tasks),
        students=of_means([task.students for task in tasks]),
        supervised=of_means([task.supervised for task in tasks]),
    )


def _versus_teachers(student: str, by_task: Mapping[str, TaskReport], facts: RunFacts) -> VersusTeachers:
    learnt = {name: task for name, task in by_task.items() if student in task.students}
    teachers = [name for task in learnt.values() for name in task.teachers]
    smaller = None
    sizes, own_size = facts.size.teachers, facts.size.students.get(student)
    if own_size and own_size.parameters and all(name in sizes for name in teachers):
        smaller = sum(sizes[name].parameters for name in teachers) / own_size.parameters
    timed = {name: models for name, models in facts.latency.tasks.items() if name in learnt}
    faster = _times_faster(student, timed)
    complete = set(faster) == set(learnt)
    return VersusTeachers(
        times_smaller=smaller,
        times_faster=float(np.mean(list(faster.values()))) if complete else None,
        times_faster_by_task=faster,
    )


def _times_faster(student: str, tasks: Mapping[str, TaskLatencies]) -> dict[str, float]:
    """By task: the sum of its teachers' latencies ÷ the student's; only tasks where both are known."""
    return {
        task: sum(teacher.best_ms for teacher in models.teachers.values()) / models.students[student].best_ms
        for task, models in tasks.items()
        if models.teachers and student in models.students
    }


# ---------------------------------------------------------------- files


def write(
    report: Report,
    tasks: Mapping[str, TaskResults],
    facts: RunFacts,
    folder: Path,
    links: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes figures/*.png, report.md and, last, report.json into `folder`; returns their paths.

    links: see `pipeline.report.page.links_section`.

    Each file is written atomically. Where report.json exists, all other files exist.
    """
    from pipeline.report import figures  # brings in matplotlib

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    written = []
    for name, png in figures.draw(report, tasks, facts).items():
        written.append(write_atomically(folder / FIGURES / name, png))
    page = markdown(report, [path.name for path in written], links)
    written.append(write_atomically(folder / REPORT_PAGE, page))
    written.append(write_atomically(folder / REPORT, to_json(report)))
    return written
