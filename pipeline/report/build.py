"""What a run found: test-set outputs → `report.json`, and with it `report.md` and figures.

`build` computes every number, `write` puts them into a folder; `pipeline.report.page` and `pipeline.compare.rows` read
nothing but the numbers. Scores are shares (0.862) in JSON and points (86.2) in prose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_atomically
from pipeline.report.page import markdown
from pipeline.report.types import RunFacts, TaskResults
from pipeline.run_folder import FIGURES, REPORT, REPORT_PAGE
from pipeline.significance import gap_recovered, retention
from pipeline.tasks.scores import bootstrap

# ---------------------------------------------------------------- numbers


def build(tasks: Mapping[str, TaskResults], facts: RunFacts) -> dict[str, Any]:
    """The report as JSON-ready data: DESIGN section 7's keys and a few more.

    macro: unweighted mean over the tasks' primary metrics; its retention and gap are ratios of those means.

    gap_recovered = (student − supervised) ÷ (ensemble − supervised) is None where there is no supervised baseline,
    and where the ensemble is not at least 0.5 points above it: there is no gap to recover then, and a division
    by nearly zero (or by a negative number) would turn noise into any percentage. retention is None where the
    ensemble scores 0.

    Raises `ValueError` where shapes or names do not fit, `DataError` where a gold label is missing.
    """
    students = list(next(iter(tasks.values())).students) if tasks else []
    for task, results in tasks.items():
        if set(results.students) != set(students) or not set(results.supervised) <= set(students):
            raise ValueError(f"{task}: students {sorted(results.students)}, elsewhere {sorted(students)}")
    if not students:
        raise ValueError("no task, or no student, to report on")
    by_task = {task: _task(results) for task, results in tasks.items()}
    forwards, needed = sum(facts.teacher_forwards.values()), sum(facts.soft_targets.values())
    return {
        "name": facts.name,
        "group": facts.group,
        "tasks": by_task,
        "macro": _macro(by_task, students),
        "teacher_forwards": dict(facts.teacher_forwards),
        "soft_targets": dict(facts.soft_targets),
        "forwards_ratio": forwards / needed if needed else None,
        "timings_s": dict(facts.timings_s),
        "first_step_s": facts.first_step_s,
        "size": facts.size,
        "latency_ms": facts.latency_ms,
        "versus_teachers": {name: _versus_teachers(name, by_task, facts) for name in students},
        "seed": facts.seed,
        "versions": dict(facts.versions),
        "preflight": list(facts.preflight),
        "notes": list(facts.notes),
    }


def _task(results: TaskResults) -> dict[str, Any]:
    """One task's part of report.json."""
    task, test, metric = results.task, results.test, results.metric
    said = {
        "teachers": results.teachers,
        "students": results.students,
        "supervised": results.supervised,
    }
    metrics: dict[str, Any] = {
        group: {name: task.scores(values, test) for name, values in models.items()}
        for group, models in said.items()
    }
    metrics["ensemble"] = task.scores(results.ensemble, test)
    ensemble = metrics["ensemble"][metric]
    spread = _resampled(results)
    students = {}
    for name, values in results.students.items():
        baseline = results.supervised.get(name)
        supervised = None if baseline is None else metrics["supervised"][name][metric]
        difference = None if baseline is None else spread["students", name] - spread["supervised", name]
        students[name] = {
            **_ratios(metrics["students"][name][metric], supervised, ensemble),
            "agreement": task.agreement(values, results.ensemble, test),
            "ece": metrics["students"][name].get("ece"),
            "delta_error": None if difference is None else float(difference.std()),
        }
    return {
        "kind": task.kind,
        "metric": metric,
        "teachers": {name: values[metric] for name, values in metrics["teachers"].items()},
        "ensemble": ensemble,
        "students": students,
        "examples": dict(results.examples),
        "labels": list(task.labels),
        "majority": task.constant_score(test),
        "standard_error": max(float(scores.std()) for scores in spread.values()),
        "standard_errors": _standard_errors(spread),
        "aggregation": results.aggregation,
        "metrics": metrics,
        "notes": list(results.notes),
    }


def _resampled(results: TaskResults) -> dict[tuple[str, str], NDArray[np.float64]]:
    """The metric of ensemble, students and baselines on the same bootstrap draws of the test examples."""
    said = {("ensemble", ""): results.ensemble}
    said |= {("students", name): values for name, values in results.students.items()}
    said |= {("supervised", name): values for name, values in results.supervised.items()}
    statistics = [results.task.statistics(values, results.test) for values in said.values()]
    return dict(zip(said, bootstrap(statistics, results.task.score_of), strict=True))


def _standard_errors(resampled: Mapping[tuple[str, str], NDArray[np.float64]]) -> dict[str, Any]:
    """The standard error of each model's score, in the form of `metrics`: ensemble, students, supervised."""
    errors = {model: float(scores.std()) for model, scores in resampled.items()}
    grouped = {
        role: {name: error for (group, name), error in errors.items() if group == role}
        for role in ("students", "supervised")
    }
    return {"ensemble": errors["ensemble", ""], **grouped}


def _ratios(score: float, supervised: float | None, ensemble: float) -> dict[str, float | None]:
    return {
        "score": score,
        "supervised": supervised,
        "retention": retention(score, ensemble),
        "gap_recovered": gap_recovered(score, supervised, ensemble),
    }


def _macro(by_task: Mapping[str, dict[str, Any]], students: Iterable[str]) -> dict[str, Any]:
    """Unweighted means over tasks; a student without a baseline in every task has no macro baseline."""
    ensemble = float(np.mean([task["ensemble"] for task in by_task.values()]))
    macro = {}
    for name in students:
        rows = [task["students"][name] for task in by_task.values()]
        supervised = None
        error = None
        if all(row["supervised"] is not None for row in rows):
            supervised = float(np.mean([row["supervised"] for row in rows]))
            error = math.sqrt(sum(row["delta_error"] ** 2 for row in rows)) / len(rows)
        score = float(np.mean([row["score"] for row in rows]))
        macro[name] = {**_ratios(score, supervised, ensemble), "delta_error": error}
    errors = _macro_errors([task["standard_errors"] for task in by_task.values()])
    return {"ensemble": ensemble, "students": macro, "standard_errors": errors}


def _macro_errors(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Standard errors of means over tasks, whose test examples are independent of each other's.

    A baseline that is missing in some task has no error, as it has no mean.
    """

    def of_mean(errors: Sequence[float]) -> float:
        return math.hypot(*errors) / len(tasks)

    grouped = {
        role: {
            name: of_mean([task[role][name] for task in tasks])
            for name in tasks[0][role]
            if all(name in task[role] for task in tasks)
        }
        for role in ("students", "supervised")
    }
    return {"ensemble": of_mean([task["ensemble"] for task in tasks]), **grouped}


def _versus_teachers(
    student: str, by_task: Mapping[str, dict[str, Any]], facts: RunFacts
) -> dict[str, float | None]:
    """How many times smaller than all teachers together, and faster than a task's teachers one after another.

    The latter is a mean over tasks. None where a size or a time is missing.
    """
    answers: dict[str, float | None] = {"times_smaller": None, "times_faster": None}
    teachers = [name for task in by_task.values() for name in task["teachers"]]
    size, latency = facts.size, facts.latency_ms
    parts, own = size.get("teachers", {}), size.get("students", {}).get(student)
    if own and own["parameters"] and all(name in parts for name in teachers):
        answers["times_smaller"] = sum(parts[name]["parameters"] for name in teachers) / own["parameters"]
    times, own_time = latency.get("teachers", {}), latency.get("students", {}).get(student)
    if own_time and all(name in times for name in teachers):
        answers["times_faster"] = sum(times[name] for name in teachers) / len(by_task) / own_time
    return answers


# ---------------------------------------------------------------- files


def write(
    report: Mapping[str, Any], tasks: Mapping[str, TaskResults], facts: RunFacts, folder: Path
) -> list[Path]:
    """Write figures/*.png, report.md and, last, report.json into `folder`; return their paths.

    Each file appears whole or not at all, and report.json is there only once the rest is.
    """
    from pipeline.report import figures  # brings in matplotlib

    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=_scalar) + "\n"
    written = []
    for name, png in figures.draw(report, tasks, facts).items():
        written.append(write_atomically(folder / FIGURES / name, png))
    page = markdown(report, [path.name for path in written])
    written.append(write_atomically(folder / REPORT_PAGE, page))
    written.append(write_atomically(folder / REPORT, text))
    return written


def _scalar(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} does not fit into JSON")
