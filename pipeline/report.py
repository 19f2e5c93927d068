"""What a run found: test-set outputs → `report.json`, `report.md` and figures.

`build` computes every number, `write` puts them into a folder; report.md and compare.py read nothing but the
numbers. Scores are shares (0.862) in JSON and points (86.2) in prose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples
from pipeline.checkpoint import write_atomically
from pipeline.evaluate import bootstrap
from pipeline.shown import NOTHING, markdown_table, measured, percent, points, signed
from pipeline.significance import CLEAR_GAP, gap_recovered, retention
from pipeline.tasks import Task

CLEAR_ERRORS = 2.0  # a difference within this many standard errors is called noise
COMPARED = ("supervised", "Δ", "retention", "gap recovered ¹")


@dataclass(frozen=True)
class TaskResults:
    """What everybody said about one task's n test examples.

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
        return self.task.metric


@dataclass(frozen=True)
class RunFacts:
    """What else is known about a run.

    teacher_forwards: examples each teacher ran this time · soft_targets: distinct examples the run needs of it ·
    timings_s: seconds by stage · first_step_s: from the
    launch to the first student's first step, None where none trained · size: ``{"students": {name: {"parameters": n, "bytes": n}}, "teachers": …}`` ·
    latency_ms: ``{"students": {name: ms an example}, "teachers": …}`` · versions: by package · curves: by job,
    ``{"step": n, "epoch": n, "metrics": {"macro/score": x, "<task>/<metric>": x, …}}`` an evaluation; a student's
    job has its name, its baseline's name starts with it · preflight: `teachers.preflight.Findings` as dicts ·
    group: the runs of other seeds that this one belongs to, None for a run alone.
    """

    name: str
    seed: int
    teacher_forwards: dict[str, int]
    soft_targets: dict[str, int]
    timings_s: dict[str, float]
    size: dict[str, dict[str, dict[str, int]]]
    latency_ms: dict[str, dict[str, float]]
    versions: dict[str, str]
    first_step_s: float | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    preflight: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    group: str | None = None


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
    return {"ensemble": ensemble, "students": macro}


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
    from pipeline import figures  # brings in matplotlib

    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=_scalar) + "\n"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for name, png in figures.draw(report, tasks, facts).items():
        written.append(write_atomically(folder / "figures" / name, png))
    page = markdown(report, [path.name for path in written])
    written.append(write_atomically(folder / "report.md", page))
    written.append(write_atomically(folder / "report.json", text))
    return written


def _scalar(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} does not fit into JSON")


# ---------------------------------------------------------------- report.md


def markdown(report: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """report.md's text, with those of `figures` (file names under figures/) that it knows."""
    blocks = [
        f"# {report['name']}",
        verdict(report),
        *_picture("retention.png", "Share of the ensemble", figures),
    ]
    blocks += _macro_section(report)
    for task, values in report["tasks"].items():
        blocks += _task_section(task, values, figures)
    if "curves.png" in figures:
        blocks += ["## Learning curves", *_picture("curves.png", "Validation score by epoch", figures)]
    blocks += [*_preflight_section(report["preflight"]), *_cost_section(report), *_run_section(report)]
    return "\n\n".join(blocks) + "\n"


def verdict(report: Mapping[str, Any]) -> str:
    """One paragraph in plain words: the best student, what it keeps, costs and owes to its teachers."""
    macro = report["macro"]
    ranked = sorted(macro["students"], key=lambda name: -macro["students"][name]["score"])
    best, row = ranked[0], macro["students"][ranked[0]]
    tasks = list(report["tasks"].values())
    metrics = {task["metric"] for task in tasks}
    what = metrics.pop() if len(metrics) == 1 else "each by its own metric"
    over = f"{what} on {next(iter(report['tasks']))}"
    if len(tasks) > 1:
        over = f"mean of {len(tasks)} tasks, {what}"
    lead = f"scores {points(row['score'])} points where the ensemble scores 0"
    if row["retention"] is not None:
        verb = "keeps" if row["retention"] < 1 else "reaches"
        lead = f"{verb} {percent(row['retention'])} of the ensemble: {points(row['score'])} points against"
        lead += f" {points(macro['ensemble'])}"
    sentences = [f"**{best}** {lead} ({over})."]
    if cost := _cost(report, best):
        sentences.append(f"It is {cost}.")
    sentences.append(_owed(report, best))
    for name in ranked[1:]:
        other = macro["students"][name]
        cost = _cost(report, name, brief=True)
        kept = "" if other["retention"] is None else f" ({percent(other['retention'])} of the ensemble)"
        size = f" and is {cost}" if cost else ""
        sentences.append(f"**{name}** scores {points(other['score'])}{kept}{size}. {_owed(report, name)}")
    return " ".join(sentences)


def _cost(report: Mapping[str, Any], student: str, brief: bool = False) -> str:
    """`6.3 times smaller than … and 4.6 times faster than …`, as far as known; brief: without the `than …`."""
    ratio = report["versus_teachers"][student]
    teachers = sum(len(task["teachers"]) for task in report["tasks"].values())
    crowd = f"the {teachers} teachers together" if teachers > 1 else "its teacher"
    parts = []
    if (smaller := ratio["times_smaller"]) is not None:
        parts.append(_times(smaller, "smaller", "larger") + ("" if brief else f" than {crowd}"))
    if (faster := ratio["times_faster"]) is not None:
        whom = (
            "a task's teachers one after another" if teachers > len(report["tasks"]) else "a task's teacher"
        )
        parts.append(_times(faster, "faster", "slower") + ("" if brief else f" than {whom}"))
    return " and ".join(parts)


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more}" if ratio >= 1 else f"{1 / ratio:.1f} times {less}"


def _owed(report: Mapping[str, Any], student: str) -> str:
    """What the student owes to its teachers, measured against the same student without them."""
    row = report["macro"]["students"][student]
    if row["supervised"] is None:
        return "It has no supervised baseline in this run, so nothing here says what the teachers were worth."
    delta, error = row["score"] - row["supervised"], row["delta_error"]
    size = f"{points(abs(delta))} points"
    margin = f"standard error of the difference {points(error)}"
    level = signed(delta) == "0.0"
    if delta <= 0 or level:
        how = "is level with it" if level else f"is {size} below"
        clear = delta <= -CLEAR_ERRORS * error < 0
        text = (
            f"It does not beat its supervised baseline ({points(row['supervised'])}): it {how} ({margin}). "
        )
        text += "Here the teachers did harm." if clear else "Nothing here shows that the teachers helped."
    elif delta < CLEAR_ERRORS * error:
        text = (
            f"It is {size} above its supervised baseline ({points(row['supervised'])}), which is within the noise "
            f"of this test set ({margin}): not yet evidence that the teachers helped."
        )
    else:
        text = f"It is {size} above its supervised baseline ({points(row['supervised'])}; {margin})"
        gap = row["gap_recovered"]
        text += "." if gap is None else f", recovering {percent(gap)} of the gap to the ensemble."
    tasks = {name: task["students"][student] for name, task in report["tasks"].items()}
    behind = [
        f"{name} ({signed(one['score'] - one['supervised'])})"
        for name, one in tasks.items()
        if one["score"] <= one["supervised"]
    ]
    if behind and delta > 0 and not level:
        text += f" On {', '.join(behind)} it does not beat it."
    return text


def _macro_section(report: Mapping[str, Any]) -> list[str]:
    macro = report["macro"]
    rows = [["ensemble", points(macro["ensemble"]), *[NOTHING] * 4]]
    rows += [[f"**{name}**", *_cells(row)] for name, row in macro["students"].items()]
    metrics = ", ".join(f"{name}: {task['metric']}" for name, task in report["tasks"].items())
    return [
        "## All tasks",
        f"Unweighted mean of the tasks' test scores ({metrics}), in points.",
        markdown_table(["model", "score", *COMPARED], rows),
        "Δ: student − supervised (the same student from the same start, trained on labels alone), ± its standard "
        "error, paired by example (bootstrap). Standard errors cover the choice of test examples, not of the seed: "
        "one seed is one draw"
        + (f", group.md of {report['group']} has the others." if report["group"] else "."),
        "¹ (student − supervised) ÷ (ensemble − supervised). Left out (–) without a baseline, and where the ensemble "
        f"is less than {points(CLEAR_GAP)} points above it: with no gap to recover, the ratio would be noise.",
    ]


def _task_section(task: str, values: Mapping[str, Any], figures: Sequence[str]) -> list[str]:
    splits = ", ".join(f"{count:,} {split}" for split, count in values["examples"].items())
    labels = f"{len(values['labels'])} labels; " if values["labels"] else ""
    metrics, blank = values["metrics"], [NOTHING] * 5
    calibrated = "ece" in metrics["ensemble"]

    def ece(one: Mapping[str, Any]) -> list[str]:
        return [f"{one['ece']:.3f}"] if calibrated else []

    rows = [
        [name, points(score), *blank, *ece(metrics["teachers"][name])]
        for name, score in values["teachers"].items()
    ]
    rows.append(["ensemble", points(values["ensemble"]), *blank, *ece(metrics["ensemble"])])
    for name, row in values["students"].items():
        rows.append([f"**{name}**", *_cells(row), percent(row["agreement"]), *ece(row)])
    pictures = [
        one
        for name in values["students"]
        for stem in ("confusion", "scatter")
        for one in _picture(f"{stem}-{name}@{task}.png", f"{name} on {task}", figures)
    ]
    head = ["model", values["metric"], *COMPARED, "agreement", *(["ECE"] if calibrated else [])]
    calibration = " ECE: expected calibration error, 15 bins." if calibrated else ""
    blocks = [
        f"## {task}",
        f"{values['kind']}: {splits} examples; {labels}an answer that never changes scores at best "
        f"{points(values['majority'])}; aggregation: {values['aggregation']}. A score's standard error is "
        f"{points(values['standard_error'])} points (bootstrap): read smaller differences between models as noise.",
        markdown_table(head, rows),
        f"Agreement: share of answers in which the student agrees with the ensemble.{calibration}",
        *(f"Note: {note}" for note in values["notes"]),
        _details(metrics),
        *_picture(f"reliability-{task}.png", f"Reliability on {task}", figures),
    ]
    return [*blocks, " ".join(pictures)] if pictures else blocks


def _details(metrics: Mapping[str, Any]) -> str:
    """Every metric of every model, folded away."""
    models = {
        **metrics["teachers"],
        "ensemble": metrics["ensemble"],
        **{f"**{name}**": one for name, one in metrics["students"].items()},
        **{f"{name}, supervised": one for name, one in metrics["supervised"].items()},
    }
    names = list(metrics["ensemble"])
    rows = [[model, *(measured(name, one[name]) for name in names)] for model, one in models.items()]
    table = markdown_table(["model", *names], rows)
    return f"<details><summary>All metrics</summary>\n\n{table}\n\n</details>"


def preflight_cells(findings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of `teachers.preflight.Findings`, given as dicts."""
    rows = [
        [
            one["teacher"],
            f"{points(one['score'])} {one['metric']}",
            points(one["majority"]),
            NOTHING if one["entropy"] is None else f"{one['entropy']:.2f}",
            NOTHING if one["ece"] is None else f"{one['ece']:.3f}",
            ", ".join(f"{name} {points(share)}" for name, share in one["agreement"].items()) or NOTHING,
            percent(one["truncated"]),
        ]
        for one in findings
    ]
    return ["teacher", "score", "constant", "entropy", "ECE", "agrees with", "truncated"], rows


def _preflight_section(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the teachers did on validation before they labelled anything."""
    if not findings:
        return []
    warnings = [f"Note: {one['teacher']}: {problem}." for one in findings for problem in one["problems"]]
    asked = max(one["examples"] for one in findings)
    return [
        "## Teachers before labelling",
        markdown_table(*preflight_cells(findings)),
        f"On at most {asked} validation examples. Constant: the score of the best answer that never changes; "
        "entropy: mean ÷ ln(classes), 1 says nothing.",
        *warnings,
    ]


def _cost_section(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for group in ("students", "teachers"):
        size, latency = report["size"].get(group, {}), report["latency_ms"].get(group, {})
        for name in dict.fromkeys([*size, *latency]):
            ratios = report["versus_teachers"].get(name, {}) if group == "students" else {}
            times = [ratios.get(key) for key in ("times_smaller", "times_faster")]
            row = [f"**{name}**" if group == "students" else name]
            row += (
                [f"{size[name]['parameters']:,}", f"{size[name]['bytes'] / 1e6:.1f}"]
                if name in size
                else [NOTHING] * 2
            )
            row += [f"{latency[name]:.2f}" if name in latency else NOTHING]
            rows.append(row + [NOTHING if ratio is None else f"{ratio:.1f}×" for ratio in times])
    labelled = [
        [name, f"{count:,}", f"{report['soft_targets'].get(name, 0):,}"]
        for name, count in report["teacher_forwards"].items()
    ]
    ratio = report["forwards_ratio"]
    share = NOTHING if ratio is None else f"{ratio:.2f}"
    return [
        "## Size and latency",
        markdown_table(["model", "parameters", "MB", "ms an example", "smaller ²", "faster ²"], rows),
        "² than all teachers together, in parameters; than a task's teachers one after another, mean over tasks.",
        "## Teacher forwards",
        markdown_table(["teacher", "examples run this time", "soft targets needed"], labelled),
        f"Forwards ÷ (examples × teachers): {share}. 1 is each example labelled once by each of its teachers, however "
        "many epochs and students read it; 0 is everything read from the store.",
    ]


def _run_section(report: Mapping[str, Any]) -> list[str]:
    timings = [[stage, f"{seconds:.1f}"] for stage, seconds in report["timings_s"].items()]
    timings.append(["total", f"{sum(report['timings_s'].values()):.1f}"])
    if report["first_step_s"] is not None:
        timings.append(["launch to first step", f"{report['first_step_s']:.1f}"])
    versions = [[package, version] for package, version in report["versions"].items()]
    blocks = [
        "## Run",
        markdown_table(["stage", "seconds"], timings),
        f"Seed {report['seed']}.",
        markdown_table(["package", "version"], versions),
    ]
    return blocks + [f"Note: {note}" for note in report["notes"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Score, supervised, Δ, retention, gap recovered."""
    if row["supervised"] is None:
        delta = supervised = NOTHING
    else:
        supervised = points(row["supervised"])
        delta = f"{signed(row['score'] - row['supervised'])} ± {points(row['delta_error'])}"
    return [points(row["score"]), supervised, delta, percent(row["retention"]), percent(row["gap_recovered"])]


def _picture(name: str, caption: str, figures: Sequence[str]) -> list[str]:
    return [f"![{caption}](figures/{name})"] if name in figures else []
