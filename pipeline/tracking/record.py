"""Functions that record a stage's values in MLflow; each takes the tracker and the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config.resolved import Job, StudentSettings
from pipeline.config.schema import RunConfig
from pipeline.config.view import flatten, flatten_values
from pipeline.errors import InterruptedRunError, StoppedError
from pipeline.report.page import advice_line, verdict
from pipeline.report.schema import Report
from pipeline.tracking.tracker import NullTracker, Params, Role, Tags, Tracker, open_tracker

Note = Callable[[str], None]
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's page shows as a run's description, in Markdown


@contextmanager
def recorded_run(
    config: RunConfig,
    role: Role,
    group: str | None,
    note: Note,
    derived: Mapping[str, float] | None = None,
    *,
    enabled: bool = True,
) -> Iterator[Tracker]:
    """MLflow's run of the whole command; at the end it gets the command's status.

    group: name of the group of seeds, if any · note: shows the user one line · derived: values that the config does not
    give, by dotted path, recorded beside the config's · enabled: false records nothing.
    """
    tracker = open_tracker(config, config.run_dir) if enabled else NullTracker()
    tags = {"tasks": ",".join(config.tasks), **({"group": group} if group else {})}
    tracker.run("", config.name, role, tags, flatten(config) | dict(derived or {}))
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


def training_began(
    tracker: Tracker, key: str, name: str, role: Role, tags: Tags, settings: Params, metrics: Path
) -> None:
    """Begins a child run for one training. metrics: the metrics.jsonl to send · settings: params, may be nested."""
    tracker.run(key, name, role, tags, flatten_values(settings))
    tracker.follow(key, metrics)


def job_began(tracker: Tracker, config: RunConfig, job: Job, own: StudentSettings, metrics: Path) -> None:
    """Begins the child run of a student's or a baseline's training. own: the student's settings."""
    distilled = job.mode == "distilled"
    tags = {"tasks": ",".join(config.tasks), "student": job.student, "mode": job.mode}
    settings: dict[str, Any] = {"train": own.train.model_dump(mode="json"), "seed": config.seed}
    if distilled:
        tags["teachers"] = ",".join(config.teachers)
        settings["loss"] = asdict(own.loss)
    settings["student"] = config.students[job.student].model_dump(
        mode="json", include={"model", "init_from", "layers"}
    )
    role: Role = "student" if distilled else "baseline"
    training_began(tracker, job.name, job.name, role, tags, settings, metrics)


def best_metrics(scores: Mapping[str, float]) -> dict[str, float]:
    """Validation scores of the kept weights as metrics `best/<metric>`, beside the scores by epoch."""
    return {f"best/{name}": score for name, score in scores.items()}


def test_scores(tracker: Tracker, report: Report) -> None:
    """Logs test scores and latencies: each student's and baseline's to its own run, the ensemble's to the parent run."""
    parent: dict[str, float] = {"test/macro/ensemble": report.macro.ensemble}
    for student, macro in report.macro.students.items():
        values = {"test/macro/score": macro.score, "retention/macro": macro.retention}
        values["times_faster"] = report.versus_teachers[student].times_faster
        baseline = {"test/macro/score": macro.supervised}
        for task, results in report.tasks.items():
            scored = results.students[student]
            name = f"test/{task}/{results.metric}"
            values |= {
                name: scored.score,
                f"retention/{task}": scored.retention,
                f"test/{task}/ece": scored.ece,
            }
            if (latency := report.latency.tasks[task].students.get(student)) is not None:
                values[f"latency_ms/{task}"] = latency.best_ms
            baseline[name] = scored.supervised
            parent[f"test/{task}/ensemble"] = results.ensemble
        tracker.metrics(Job(student, "distilled").name, _numbers(values))
        tracker.metrics(
            "",
            _numbers({f"test/macro/{student}": macro.score, f"retention/{student}": macro.retention}),
        )
        if macro.supervised is not None:
            tracker.metrics(Job(student, "supervised").name, _numbers(baseline))
    tracker.metrics("", parent)


def advice(tracker: Tracker, report: Report) -> None:
    """The advice as the tag `advice`, its codes, and as the description with the verdict: on the parent run all of it,
    on a student's run what names the student. Both are set where there is none, too: an earlier launch may have had some."""
    runs = {"": (report.advice, verdict(report))}
    for student in report.macro.students:
        own = tuple(one for one in report.advice if one.key.startswith(f"students.{student}."))
        runs[Job(student, "distilled").name] = (own, "")
    for key, (given, lead) in runs.items():
        codes = ",".join(dict.fromkeys(one.code for one in given))
        lines = "\n".join(f"- {advice_line(one)}" for one in given)
        note = "\n\n".join(part for part in (lead, lines and f"Advice:\n\n{lines}") if part)
        tracker.tags(key, {"advice": codes or "none", DESCRIPTION: note})


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
