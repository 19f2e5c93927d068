"""Functions that record a stage's values in MLflow; each takes the tracker and the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import DataConfig
from pipeline.config.redact import redact
from pipeline.config.resolved import Job, StudentSettings
from pipeline.config.schema import RunConfig
from pipeline.config.view import flatten, flatten_values
from pipeline.errors import InterruptedRunError, StoppedError
from pipeline.report.page import advice_line, overview, verdict
from pipeline.report.schema import Advice, Report, Size
from pipeline.tracking.calls import DESCRIPTION, DataSet
from pipeline.tracking.names import metrics_of, shown_name
from pipeline.tracking.tracker import NullTracker, Params, Role, Tags, Tracker, open_tracker
from pipeline.tracking.uri import server_page
from pipeline.tracking.views import View, page, views_of_run, views_of_study

if TYPE_CHECKING:
    from pipeline.data.splits import TaskData

Note = Callable[[str], None]
MARK = "Runs of Tutelage"
ABOUT = f"""{MARK}. **Views**, at the top right, has the students of each run by test score, the same compared \
by task, and the trials of each search.

One row a command, named as its run; its children, behind the +, are one run a model. The tag `role` says what a run is: \
`parent` (a whole run: verdict, report.md, settings), `student` (trained with its teachers), `baseline` (the same student \
trained on labels alone), `teacher`, `ensemble` (a task's teachers together), `study` (a search), `trial` (one of its \
trainings).

Metrics end with the task, `macro` is the mean over the tasks, and what stands before it is the section of its chart: \
`test/movies` is the test score on movies in that task's own metric, `validation/…` the same by epoch on validation, \
`best/…` on validation of the weights kept. Scores are shares of 1."""


@contextmanager
def recorded_run(
    config: RunConfig,
    role: Role,
    group: str | None,
    note: Note,
    derived: Mapping[str, float] | None = None,
    *,
    data: Sequence[DataSet] = (),
    enabled: bool = True,
) -> Iterator[Tracker]:
    """MLflow's run of the whole command; at the end it gets the command's status.

    group: name of the group of seeds, if any · note: shows the user one line · derived: values that the config does not
    give, by dotted path, recorded beside the config's · data: the run's data sets · enabled: false records nothing.
    """
    tracker = open_tracker(config, config.run_dir) if enabled else NullTracker()
    run_began(tracker, config, role, group, derived, data)
    try:
        yield tracker
        tracker.finish("", "FINISHED")
    except (InterruptedRunError, StoppedError):
        tracker.finish("", "KILLED")
        raise
    except BaseException:
        tracker.finish("", "FAILED")
        raise
    finally:
        outcome = tracker.close()
        if outcome.points_lost or outcome.operations_lost:
            note(
                f"MLflow did not answer: {outcome.points_lost} points and {outcome.operations_lost} other calls are "
                "not recorded there; the run folder has everything, and the same command sends it again"
            )


def run_began(
    tracker: Tracker,
    config: RunConfig,
    role: Role,
    group: str | None = None,
    derived: Mapping[str, float] | None = None,
    data: Sequence[DataSet] = (),
) -> None:
    """Begins the run of the whole command, and saves the views of the experiment's page that show its children."""
    tags = {"tasks": ",".join(config.tasks), "run": config.name, **({"group": group} if group else {})}
    tracker.run("", config.name, role, tags, flatten(config) | dict(derived or {}))
    tracker.inputs("", data)
    tracker.experiment(
        ABOUT, MARK, views_of_study(config) if role == "study" else views_of_run(config, group)
    )


def data_sets(config: RunConfig, data: Mapping[str, TaskData]) -> list[DataSet]:
    """The tasks' data as MLflow shows it; nothing is loaded again."""
    return [
        DataSet(
            name,
            task_data.fingerprint(),
            {split: len(examples) for split, examples in task_data.splits.items()},
            *_source(config.tasks[name].data),
        )
        for name, task_data in data.items()
    ]


def _source(data: DataConfig) -> tuple[str, dict[str, str]]:
    """MLflow's kind of source, and the source: the files, or the folder or id of the data set."""
    files = [
        file
        for some in (data.data_files or {}).values()
        for file in ([some] if isinstance(some, str) else some)
    ]
    if files or Path(data.path).exists():
        return "local", {"uri": str(redact("uri", ", ".join(map(str, files)) or data.path))}
    return "hugging_face", {"path": data.path, **({"config_name": data.name} if data.name else {})}


def training_began(
    tracker: Tracker,
    config: RunConfig,
    key: str,
    name: str,
    role: Role,
    tags: Tags,
    settings: Params,
    metrics: Path,
) -> None:
    """Begins a child run for one training. metrics: the metrics.jsonl to send · settings: params, may be nested."""
    tracker.run(key, name, role, tags, flatten_values(settings))
    tracker.follow(key, metrics, partial(shown_name, "validation", metrics=metrics_of(config)))


def job_began(
    tracker: Tracker,
    config: RunConfig,
    job: Job,
    own: StudentSettings,
    metrics: Path,
    data: Sequence[DataSet] = (),
) -> None:
    """Begins the child run of a student's or a baseline's training. own: the student's settings · data: what it learns."""
    taught = job.mode != "supervised"
    tasks = config.tasks_of(job.student)
    tags = {"tasks": ",".join(tasks), "student": job.student, "mode": job.mode}
    settings: dict[str, Any] = {"train": own.train.model_dump(mode="json"), "seed": config.seed}
    if taught:
        tags["teachers"] = ",".join(name for task in tasks for name in config.teachers_of(task))
        settings["loss"] = asdict(own.loss)
        for number, stage in enumerate(own.stages, 1):
            settings[f"stage_{number}"] = {k: v for k, v in asdict(stage).items() if k != "reasons"}
    settings["student"] = config.students[job.student].model_dump(
        mode="json", include={"model", "init_from", "layers"}
    )
    role: Role = "student" if job.mode == "distilled" else "baseline"
    training_began(tracker, config, job.name, job.name, role, tags, settings, metrics)
    tracker.inputs(job.name, data)


def best_metrics(config: RunConfig, scores: Mapping[str, float]) -> dict[str, float]:
    """Validation scores of the kept weights as metrics ``best/…``, beside the scores by epoch.

    scores: by ``<task>/<metric>`` and ``macro/score``.
    """
    metrics = metrics_of(config)
    return {shown_name("best", name, metrics): score for name, score in scores.items()}


def test_scores(tracker: Tracker, report: Report) -> None:
    """Logs test scores, sizes and latencies of each model to its own run, of which ensemble and ready teachers get one
    here; the means over the tasks to the parent run as well."""
    parent: dict[str, float | None] = {"test/macro/ensemble": report.macro.ensemble}
    for student, macro in report.macro.students.items():
        parent |= {f"test/macro/{student}": macro.score, f"retention/macro/{student}": macro.retention}
        tracker.metrics(Job(student, "distilled").name, _numbers(_student_scores(report, student)))
        if macro.supervised is not None:
            own = report.tasks_of(student)
            rows = {task: results.students[student].supervised for task, results in own.items()}
            baseline = {**_scores(rows, macro.supervised), **_parameters(report.size.students.get(student))}
            tracker.metrics(Job(student, "supervised").name, _numbers(baseline))
        best = {task: own.students[student].best_teacher for task, own in report.tasks_of(student).items()}
        known = [score for score in best.values() if score is not None]
        if known:
            baseline = _scores(best, sum(known) / len(known))
            tracker.metrics(Job(student, "best_teacher").name, _numbers(baseline))
    together = {task: results.ensemble for task, results in report.tasks.items()}
    _finished(tracker, "ensemble", "ensemble", "ensemble", _scores(together, report.macro.ensemble))
    for task, results in report.tasks.items():
        for teacher, score in results.teachers.items():
            values = {
                f"test/{task}": score,
                "cost/latency_ms": report.latency.teacher_ms(teacher, task),
                **_parameters(report.size.teachers.get(teacher)),
            }
            _finished(tracker, f"teacher/{teacher}", teacher, "teacher", values, task)
    for task, results in report.tasks.items():
        parent |= {
            f"variants/{method}/{task}": float(made.count) for method, made in results.variants.items()
        }
    tracker.metrics("", _numbers(parent))


def _scores(by_task: Mapping[str, float | None], mean: float) -> dict[str, float | None]:
    return {"test/macro": mean, **{f"test/{task}": score for task, score in by_task.items()}}


def _parameters(size: Size | None) -> dict[str, float | None]:
    return {"cost/parameters": None if size is None else float(size.parameters)}


def _student_scores(report: Report, student: str) -> dict[str, float | None]:
    """A student's metrics on test, and what it costs."""
    macro, versus = report.macro.students[student], report.versus_teachers[student]
    rows = {task: results.students[student] for task, results in report.tasks_of(student).items()}
    values = _scores({task: row.score for task, row in rows.items()}, macro.score)
    values |= {
        "retention/macro": macro.retention,
        "cost/latency_ms": report.latency.student_ms(student),
        **_parameters(report.size.students.get(student)),
        "cost/times_faster": versus.times_faster,
        "cost/times_smaller": versus.times_smaller,
    }
    for task, row in rows.items():
        values |= {f"retention/{task}": row.retention, f"test/ece/{task}": row.ece}
        if (latency := report.latency.tasks[task].students.get(student)) is not None:
            values[f"latency_ms/{task}"] = latency.best_ms
    return values


def _finished(
    tracker: Tracker, key: str, name: str, role: Role, values: Mapping[str, float | None], task: str = ""
) -> None:
    """A child run of a model that is not trained in this launch: begun, or continued, and ended."""
    tracker.run(key, name, role, {"task": task, "teachers": name} if task else {}, {})
    tracker.metrics(key, _numbers(values))
    tracker.finish(key, "FINISHED")


def described(tracker: Tracker, config: RunConfig, report: Report) -> None:
    """Describes the parent run by the addresses of its views, its verdict, the table of its students and the advice;
    a student's run by the advice that names it. The tag `advice` has the codes. All are set where there is no advice,
    too: an earlier launch may have had some."""
    whole = [*_line_of(tracker, views_of_run(config, report.group)), verdict(report), overview(report)]
    runs: dict[str, tuple[Sequence[Advice], list[str]]] = {"": (report.advice, whole)}
    for student in report.macro.students:
        own = [one for one in report.advice if one.key.startswith(f"students.{student}.")]
        runs[Job(student, "distilled").name] = (own, [])
    for key, (given, parts) in runs.items():
        codes = ",".join(dict.fromkeys(one.code for one in given))
        lines = "\n".join(f"- {advice_line(one)}" for one in given)
        note = "\n\n".join([*parts, *([f"Advice:\n\n{lines}"] if lines else [])])
        tracker.tags(key, {"advice": codes or "none", DESCRIPTION: note})


def described_study(tracker: Tracker, config: RunConfig, paragraphs: Sequence[str]) -> None:
    """Describes a study's run by the addresses of its views and the head of study.md. config: the study's own."""
    tracker.tags("", {DESCRIPTION: "\n\n".join([*_line_of(tracker, views_of_study(config)), *paragraphs])})


def _line_of(tracker: Tracker, views: Sequence[View]) -> list[str]:
    """The addresses of views as one line of Markdown, none before MLflow has answered."""
    links = links_within(tracker, views)
    return [" · ".join(f"[{title}]({address})" for title, address in links.items())] if links else []


def links_within(tracker: Tracker, views: Sequence[View]) -> dict[str, str]:
    """Addresses of views by title, as MLflow's own pages understand them at whatever host and port; empty before MLflow
    has answered."""
    if (experiment := tracker.experiment_id) is None:
        return {}
    return {view.title: page(experiment, view.key, view.charts) for view in views}


def links(tracker: Tracker, config: RunConfig, views: Sequence[View]) -> dict[str, str] | None:
    """Addresses of views by title, for files; None where nothing is recorded, empty before MLflow has answered."""
    if not config.tracking.enabled or (base := server_page(config)) is None:
        return None
    return {title: f"{base}/{within}" for title, within in links_within(tracker, views).items()}


def exported_student(
    tracker: Tracker,
    student: str,
    task: str,
    folder: Path,
    pipeline: str | None,
    version: str | None,
    note: Note,
) -> None:
    """Logs one task's exported folder as an MLflow model, or as plain artifacts if transformers has no pipeline for it.

    version: name in MLflow's registry, or None to register nothing · note: shows the user one line.
    """
    key, name = Job(student, "distilled").name, f"{student}-{task}"
    if pipeline is None:
        tracker.artifacts(key, folder, f"models/{task}")
        if version is not None:
            note(f"{task} is not registered: transformers has no pipeline for its kind")
        return
    tracker.model(key, name, folder, pipeline)
    if version is not None:
        note(f"registering {task} of {student} as {version}")
        tracker.register(key, name, version)


def written_files(tracker: Tracker, files: Sequence[Path]) -> None:
    """Logs files as artifacts of the parent run, pictures in a folder `figures`."""
    for file in files:
        tracker.artifacts("", file, "figures" if file.suffix == ".png" else None)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
