"""The rows of `compare`: students of several runs, groups and searches, read from their JSON files.

A row is a student of one run, of all the runs of a group (one for each seed), or of one trial of a search. No model is
run; `pipeline.significance` computes the means over seeds and their test.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

import yaml

from pipeline.errors import DataError
from pipeline.report.group import outcome_of
from pipeline.report.json_file import read
from pipeline.report.rounds import RoundsReport
from pipeline.report.schema import GroupReport, Report, Size, StudyReport
from pipeline.run_folder import CONFIG, GROUP, REPORT, ROUNDS, STUDY
from pipeline.significance import Outcome, Spread

RUNS_DIR = Path("runs")
MACRO = "macro/score"
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A teacher of a task in the reports of one row. score: a share, mean over seeds."""

    task: str
    """``<task>/<metric>``."""
    name: str
    score: float
    parameters: int | None
    latency_ms: float | None


@dataclass(frozen=True)
class Trial:
    """One trial of a search."""

    study: str
    number: int
    status: str
    best: bool
    pareto: bool | None
    """Whether no other trial beats it in one of the metrics without losing in another; None where there is but one."""
    epochs: int | None
    seconds: float | None
    values: Mapping[str, Any]
    """Value by dotted path of the config key."""


@dataclass(frozen=True)
class Row:
    """One student. A field that is not known is None."""

    run: str
    """Name of the run, group or study."""
    student: str
    macro: Outcome | None
    """Scores as means over the tasks."""
    tasks: Mapping[str, Outcome]
    """Scores by ``<task>/<metric>``."""
    seeds: int = 1
    teachers: tuple[Teacher, ...] = ()
    parameters: int | None = None
    latency_ms: float | None = None
    """Milliseconds per example, mean over tasks and seeds."""
    busy: bool = False
    """Whether latencies were measured on a busy machine, under one seed at least."""
    trial: Trial | None = None
    delta_error: float | None = None
    """Standard error of macro's Δ over the choice of test examples; None for several seeds."""

    @property
    def split(self) -> Literal["test", "validation"]:
        """The split of its scores: validation for trials, which never use test."""
        return "test" if self.trial is None else "validation"


def load(names: Sequence[str | Path] = (), runs_dir: Path = RUNS_DIR) -> list[Row]:
    """Every student in the reports that `names` select; test scores first, then by falling macro score.

    A name is the folder of a run, group or search, or one of their JSON files. Any other name selects every run, group
    and search under `runs_dir` with that name or MLflow experiment. Without names: every run under `runs_dir` that has
    a report. Two or more runs of one group become one row per student.

    Raises `DataError` where a report is missing or cannot be read, or there is no run at all.
    """
    if names:
        files = [file for name in names for file in _files(name, runs_dir)]
    else:
        files = sorted(runs_dir.glob(f"*/{REPORT}"))
        if not files:
            raise DataError(
                f"no finished run under {runs_dir}", "Run `tutelage train RUN.yaml`, or name run folders."
            )
    rows: list[Row] = []
    reports: list[tuple[Path, Report]] = []
    for file in {file.absolute(): file for file in files}.values():
        try:
            if file.name == STUDY:
                rows += _trials(read(file, StudyReport))
            else:
                reports.append((file, read(file, Report)))
        except DataError as error:
            if names:
                raise
            logger.warning("%s; it is left out", error.cause)
    for members in _groups(reports):
        rows += _students(members)
    return sorted(rows, key=_rank)


def _rank(row: Row) -> tuple[bool, float, str, str, int]:
    score = row.macro.score.mean if row.macro else float("-inf")
    return row.split != "test", -score, row.run, row.student, row.trial.number if row.trial else 0


# ---------------------------------------------------------------- which files


def _files(name: str | Path, runs_dir: Path) -> list[Path]:
    """The report.json and study.json files that a name selects."""
    path = Path(name)
    if path.is_dir() and (known := _within(path)):
        return known
    if path.is_file():
        return _members(path) if path.name == GROUP else [path]
    if files := [file for folder in _experiment(str(name), runs_dir) for file in _within(folder)]:
        return files
    if path.exists() or len(path.parts) != 1:
        remedy = "Give a run's folder (`runs/<name>`) whose `tutelage train` has finished."
        raise DataError(f"{path / REPORT if path.suffix != '.json' else path}: there is no report", remedy)
    if (runs_dir / name / CONFIG).is_file():
        raise DataError(
            f"{runs_dir / name} has no report yet: it is not finished", "Run its `tutelage train` to the end."
        )
    everything = sorted({known for _, names in _experiments(runs_dir) for known in names})
    near = difflib.get_close_matches(str(name), everything, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else "Give a run's folder, or the name of an experiment."
    raise DataError(f"there is no finished run or experiment {str(name)!r} under {runs_dir}", hint)


def _within(folder: Path) -> list[Path]:
    """The report.json and study.json files of a folder; none where it is not a run, group, search, or what stands for rounds."""
    if (folder / STUDY).exists():
        return [folder / STUDY]
    if (folder / ROUNDS).exists():
        students = read(folder / ROUNDS, RoundsReport).students.values()
        runs = dict.fromkeys(run for own in students for one in own.rounds for run in one.runs)
        return [folder.absolute().parent / run / REPORT for run in runs]
    if (folder / GROUP).exists():
        return _members(folder / GROUP)
    return [folder / REPORT] if (folder / REPORT).exists() else []


def _members(group: Path) -> list[Path]:
    """The reports of a group's runs."""
    return [group.absolute().parent.parent / run / REPORT for run in read(group, GroupReport).runs]


def _experiment(name: str, runs_dir: Path) -> list[Path]:
    """Folders under `runs_dir` with that name or experiment."""
    return [folder for folder, names in _experiments(runs_dir) if name in names]


def _experiments(runs_dir: Path) -> Iterator[tuple[Path, set[str]]]:
    """Each folder with a report, and its names: the folder's, the run's and the experiment's."""
    for folder in sorted(path for path in runs_dir.glob("*") if _within(path)):
        try:
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
            names = [config["name"], (config.get("tracking") or {}).get("experiment")]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            names = []  # its config cannot be read: it has only its folder's name
        yield folder, {folder.name, *(str(name) for name in names if name is not None)}


# ---------------------------------------------------------------- one file → rows


def _groups(reports: Sequence[tuple[Path, Report]]) -> Iterator[list[tuple[Path, Report]]]:
    """Lists of reports, one list per group; a report without group, or the only one of its group, is its own list.

    Runs belong to one group only if their folders lie side by side and they were scored on the same tasks.
    """
    groups: dict[Any, list[tuple[Path, Report]]] = {}
    for file, report in reports:
        folder = file.absolute().parent
        tasks = tuple((name, task.metric) for name, task in report.tasks.items())
        group = report.group
        key = (folder.parent, group, tasks, tuple(report.macro.students)) if group else folder
        groups.setdefault(key, []).append((file, report))
    yield from groups.values()


def _students(members: Sequence[tuple[Path, Report]]) -> list[Row]:
    """One row per student. members: one report, or one for each seed."""
    reports = [report for _, report in members]
    first = reports[0]
    name = first.group if first.group and len(members) > 1 else members[0][0].absolute().parent.name
    tasks = {f"{task}/{values.metric}": task for task, values in first.tasks.items()}
    teachers = tuple(_teachers(reports))
    return [
        Row(
            run=name,
            student=student,
            macro=outcome_of([report.macro for report in reports], student),
            tasks={
                shown: outcome_of([report.tasks[task] for report in reports], student)
                for shown, task in tasks.items()
                if student in first.tasks[task].students
            },
            seeds=len(reports),
            teachers=teachers,
            parameters=_parameters(first.size.students, student),
            latency_ms=_over_seeds([report.latency.student_ms(student) for report in reports]),
            busy=any(report.latency.busy is not None for report in reports),
            delta_error=first.macro.students[student].delta_error if len(reports) == 1 else None,
        )
        for student in first.macro.students
    ]


def _teachers(reports: Sequence[Report]) -> Iterator[Teacher]:
    for task, values in reports[0].tasks.items():
        for name in values.teachers:
            yield Teacher(
                f"{task}/{values.metric}",
                name,
                fmean(report.tasks[task].teachers[name] for report in reports),
                _parameters(reports[0].size.teachers, name),
                _over_seeds([report.latency.teacher_ms(name, task) for report in reports]),
            )


def _parameters(sizes: Mapping[str, Size], name: str) -> int | None:
    return sizes[name].parameters if name in sizes else None


def _over_seeds(latencies: Sequence[float | None]) -> float | None:
    """The mean; None where a seed has no latency."""
    times = [one for one in latencies if one is not None]
    return fmean(times) if len(times) == len(latencies) else None


def _trials(study: StudyReport) -> list[Row]:
    """One row per trial, with validation scores: the searched metrics and each task's own metric."""
    rows, shown = [], {MACRO, *study.metrics, *study.ensemble}
    for one in study.trials:
        scores = {name: Outcome(Spread((score,))) for name, score in one.scores.items() if name in shown}
        trial = Trial(
            study=study.name,
            number=one.number,
            status=one.status,
            best=one.best,
            pareto=one.pareto if len(study.metrics) > 1 else None,
            epochs=one.epochs,
            seconds=one.seconds,
            values=one.values,
        )
        macro = scores.pop(MACRO, None)
        rows.append(Row(study.name, study.student, macro, scores, trial=trial))
    return rows
