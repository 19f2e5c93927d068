"""One run from config to report: prepare → fine-tune → label → train → evaluate → report.

Every stage skips what is done already, so that the same command resumes wherever the last one stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import check_room, connected
from pipeline.config import view as config_view
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.display import Display
from pipeline.errors import ConfigError, InterruptedRunError, StoppedError
from pipeline.files import read_object, write_atomically
from pipeline.prepare import Inputs, prepare, reachable, teacher_specs
from pipeline.report import build as reports
from pipeline.report.model_card import write_model_card
from pipeline.report.results import Stages, ensemble_scores, run_facts, task_results
from pipeline.stop import StopSignals, locked
from pipeline.tracking.tracker import NullTracker, Role, Tracker, best_metrics, open_tracker
from pipeline.training import jobs as training
from pipeline.training.fine_tune import WORK, Request, fine_tune_all, is_finished
from pipeline.training.jobs import Job, job_folder, jobs_of
from pipeline.training.loop import METRICS, read_metrics
from teachers.pool import Labelling, fill_store
from teachers.preflight import Findings, preflight, refuse
from teachers.store import Store

POLL_S = 0.5


@dataclass
class Run:
    """A run under way: what its stages share."""

    config: RunConfig
    inputs: Inputs
    display: Display
    stop: StopSignals
    tracker: Tracker
    stages: Stages
    keys: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, Labelling] = field(default_factory=dict)
    findings: list[Findings] = field(default_factory=list)
    group: str | None = None


def train(
    config: RunConfig, display: Display, group: str | None = None, register: str | None = None
) -> dict[str, Any]:
    """The whole run; returns its report. Raises any `TutelageError`.

    group: whose seed it is, if any · register: name in MLflow's model registry for its students, with
    ``-<task>`` where there are several tasks.
    """
    with running(config, display, group=group) as run:
        training.check_results(config)
        if not _is_trained(run):
            with connected(config):
                make_targets(run)
                _train_students(run)
        else:
            run.keys = _store_keys(run)
            run.labelled = {name: Labelling() for name in config.teachers}
            _preflight(run, on_ray=False)
            display.line("nothing left to train; evaluating again")
            for job in jobs_of(config):
                _track_job(run, job)
        return _report(run, register)


def label(config: RunConfig, display: Display) -> dict[str, Labelling]:
    """Teachers made and the store filled, no student trained; returns what each teacher did."""
    with running(config, display, record=False) as run:
        with connected(config):
            make_targets(run)
        return run.labelled


@contextmanager
def running(
    config: RunConfig, display: Display, record: bool = True, group: str | None = None, role: Role = "parent"
) -> Iterator[Run]:
    """The run folder locked, signals handled, MLflow open; closed with the right status whatever happens."""
    stages = Stages()
    inputs = prepare(config)
    with locked(config.run_dir), StopSignals(config.run_dir) as stop:
        _settle(config, inputs, record)
        for note in [*config_view.notes(config), *_data_notes(inputs)]:
            display.line(note)
        tracker = open_tracker(config, config.run_dir) if record else NullTracker()
        run = Run(config, inputs, display, stop, tracker, stages, group=group)
        tags = {"tasks": ",".join(config.tasks), **({"group": group} if group else {})}
        tracker.run("", config.name, role, tags, config_view.flatten(config))
        try:
            yield run
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
                display.line(
                    f"MLflow did not answer: {outcome.points_lost} points and {outcome.operations_lost} other calls are "
                    "not recorded there; the run folder has everything, and the same command sends it again"
                )


def _settle(config: RunConfig, inputs: Inputs, record: bool) -> None:
    """Refuses to go on in a folder begun with another config or other data; writes both down."""
    settings, contents = config.run_dir / "config.yaml", config.run_dir / "inputs.json"
    fingerprints = inputs.fingerprints(config)
    if settings.exists():
        _refuse_changes(config, config_view.differences(load_config(settings), config))
    if contents.exists():
        before = read_object(
            contents, f"Remove {contents} if data and models are what the run was begun with."
        )
        changed = [path for path, value in fingerprints.items() if before.get(path, value) != value]
        _refuse_changes(config, [f"{path}: its content has changed" for path in changed])
    if record or settings.exists():
        write_atomically(settings, config_view.to_yaml(config))
        write_atomically(contents, json.dumps(fingerprints, indent=1))


def _refuse_changes(config: RunConfig, changed: Sequence[str]) -> None:
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise ConfigError(
            f"{config.run_dir} was begun with something else: {'; '.join(changed[:3])}{more}",
            f"Give the run another name (name=…), put it back as it was, or remove {config.run_dir}.",
        )


def _data_notes(inputs: Inputs) -> list[str]:
    return [note for data in inputs.data.values() for note in data.notes]


def _is_trained(run: Run) -> bool:
    """Whether teachers, soft targets and students are all there."""
    if run.inputs.to_fine_tune() or not all(
        training.is_finished(run.config.run_dir, job) for job in jobs_of(run.config)
    ):
        return False
    store, keys = Store(run.config.store_path), _store_keys(run)
    return not any(
        len(
            store.missing(
                keys[name], np.concatenate([e.keys for e in run.inputs.data[teacher.task].all_examples()])
            )
        )
        for name, teacher in run.config.teachers.items()
    )


def _store_keys(run: Run) -> dict[str, str]:
    return {spec.name: spec.key for spec in teacher_specs(run.config, run.inputs)}


# ---------------------------------------------------------------- stages


def make_targets(run: Run) -> None:
    """Teachers made, looked at, and all their soft targets in the store. Ray must be up."""
    run.stop.listen()
    check_room(run.config)
    run.stages.done("start")
    _fine_tune(run)
    _preflight(run, on_ray=True)
    _label(run)


def _fine_tune(run: Run) -> None:
    names = run.inputs.to_fine_tune()
    requests = [_request(run, name) for name in names]
    if requests:
        run.display.line(f"fine-tuning {len(requests)} of {len(run.config.teachers)} teachers")
    for request in requests:
        tags = {"task": request.task, "teachers": request.name}
        run.tracker.run(
            f"teacher/{request.name}", request.name, "teacher", tags, request.config.model_dump(mode="json")
        )
        run.tracker.follow(f"teacher/{request.name}", request.folder / WORK / METRICS)

    def poll(request: Request) -> None:
        _show_progress(run.display, f"teacher {request.name}", request.folder / WORK / METRICS)
        if is_finished(request.folder):
            run.display.end(f"teacher {request.name}", "stopped early")

    if requests:
        stop = training.stop_file(run.config.run_dir).absolute()
        fine_tune_all(requests, run.inputs.data, stop, poll, run.stop)
    for request in requests:
        if is_finished(request.folder):  # or the run was stopped
            poll(request)
            run.tracker.finish(f"teacher/{request.name}", "FINISHED")
    run.stop.check()
    run.stages.done("fine_tune")


def _request(run: Run, name: str) -> Request:
    teacher = run.config.teachers[name]
    assert teacher.fine_tune is not None, "only those are asked for"
    folder = run.inputs.teachers[name].parent.absolute()
    return Request(
        name,
        reachable(teacher.model),
        teacher.revision,
        folder,
        teacher.fine_tune,
        teacher.serving,
        teacher.task,
        teacher.max_length,
    )


def _preflight(run: Run, *, on_ray: bool) -> None:
    """Looks at every teacher before it labels; stops at one that is not worth it."""
    config = run.config
    validation = {name: data.splits["validation"] for name, data in run.inputs.data.items()}
    specs = teacher_specs(config, run.inputs)
    run.findings = preflight(specs, validation, config.preflight_dir, on_ray=on_ray, check=run.stop.check)
    for warning in refuse(run.findings, lambda name: config.teachers[name].preflight == "warn"):
        run.display.line(warning)
    run.stop.check()
    run.stages.done("preflight")


def _label(run: Run) -> None:
    config, data = run.config, run.inputs.data
    store, specs = Store(config.store_path), teacher_specs(config, run.inputs)
    run.keys = {spec.name: spec.key for spec in specs}
    for spec in specs:
        task = spec.task
        facts = {
            "teacher": spec.name,
            "model": spec.model,
            "task": task.name,
            "kind": task.kind,
            "columns": list(task.columns),
            "max_length": spec.max_length or task.max_length,
            "dtype": spec.serving.dtype,
        }
        store.describe(spec.key, facts)

    def progress(teacher: str, done: int, total: int) -> None:
        run.display.bar(f"labelling {teacher}", done, total)

    examples = {name: task_data.all_examples() for name, task_data in data.items()}
    run.labelled = fill_store(specs, examples, store, progress, run.stop)
    run.stop.check()
    forwards = sum(done.forwards for done in run.labelled.values())
    needed = sum(data[teacher.task].distinct() for teacher in config.teachers.values())
    run.display.line(f"soft targets: {needed - forwards} from the store, {forwards} computed")
    run.stages.done("label")


def _train_students(run: Run) -> None:
    config = run.config
    jobs = [job for job in jobs_of(config) if not training.is_finished(config.run_dir, job)]
    if jobs:
        run.display.line(f"training {', '.join(job.name for job in jobs)}")
    for job in jobs_of(config):  # the report has scores for the finished ones, too
        _track_job(run, job)
    folders = {name: str(folder.absolute()) for name, folder in run.inputs.teachers.items()}
    plan = training.new_plan(config, run.inputs.data, run.keys, folders)
    if jobs:
        in_thread(lambda: training.launch(plan), lambda: _show_jobs(run, jobs))
    run.stop.check()
    firsts = [_first_step(job_folder(config.run_dir, job)) for job in jobs]
    run.stages.done("train")
    if any(firsts):
        run.stages.first_step = min(filter(None, firsts)) - run.stages.started


def _track_job(run: Run, job: Job) -> None:
    config = run.config
    role: Role = "student" if job.mode == "distilled" else "baseline"
    tags = {"tasks": ",".join(config.tasks), "student": job.student, "mode": job.mode}
    if job.mode == "distilled":
        tags["teachers"] = ",".join(config.teachers)
    settings = {"train": config.train_of(job.student).model_dump(mode="json"), "seed": config.seed}
    if job.mode == "distilled":
        settings["loss"] = config.loss_of(job.student).model_dump(mode="json")
    settings["student"] = config.students[job.student].model_dump(
        mode="json", include={"model", "init_from", "layers"}
    )
    run.tracker.run(job.name, job.name, role, tags, config_view.flatten_values(settings))
    run.tracker.follow(job.name, job_folder(config.run_dir, job) / METRICS)


def in_thread(work: Callable[[], None], poll: Callable[[], None]) -> None:
    """Runs `work` off the main thread, where signals are ours and not Ray Train's; re-raises what it raises."""
    with ThreadPoolExecutor(max_workers=1) as threads:
        future = threads.submit(work)
        while not future.done():
            poll()
            time.sleep(POLL_S)
    poll()
    future.result()


def _show_jobs(run: Run, jobs: list[Job]) -> None:
    for job in jobs:
        _show_progress(run.display, job.name, job_folder(run.config.run_dir, job) / METRICS)
        if training.is_finished(run.config.run_dir, job):
            run.display.end(job.name, "stopped early")


def _show_progress(display: Display, what: str, file: Path) -> None:
    points = read_metrics(file)
    if not points:
        return
    scores = [p["metrics"]["macro/score"] for p in points if "macro/score" in p["metrics"]]
    note = f"validation {100 * scores[-1]:.1f}" if scores else ""
    last = points[-1]
    if (
        last["step"] < last["total"] or "macro/score" in last["metrics"]
    ):  # the last step's score comes after it
        display.bar(what, last["step"], last["total"], note)


def _first_step(folder: Path) -> float | None:
    points = read_metrics(folder / METRICS)
    return float(points[0]["time"]) if points and points[0]["step"] == 1 else None


# ---------------------------------------------------------------- report


def _report(run: Run, register: str | None = None) -> dict[str, Any]:
    config, tracker = run.config, run.tracker
    notes = [*config_view.notes(config), *_data_notes(run.inputs)]
    tasks = task_results(config, run.inputs.data, run.keys)
    validation = ensemble_scores(config, run.inputs.data, run.keys, "validation")
    facts = run_facts(
        config, run.inputs, run.labelled, run.stages, notes, run.findings, run.group, validation
    )
    run.stages.done("evaluate")
    facts.timings_s["evaluate"] = round(run.stages.seconds["evaluate"], 2)
    report = reports.build(tasks, facts)
    files = reports.write(report, tasks, facts, config.run_dir)
    _log_scores(run, report)
    _log_kept(run)
    for student in config.students:
        for task in config.tasks:
            folder = config.run_dir / "students" / student / task
            write_model_card(folder, config, report, student, tasks[task].task)
            if (opener := tasks[task].task.pipeline) is not None:
                tracker.model(student_key(student), f"{student}-{task}", folder, opener)
                if register is not None:
                    version = register if len(config.tasks) == 1 else f"{register}-{task}"
                    run.display.line(f"registering {task} of {student} as {version}")
                    tracker.register(student_key(student), f"{student}-{task}", version)
            else:  # no pipeline that MLflow could load it with: the folder itself
                tracker.artifacts(student_key(student), folder, f"models/{task}")
                if register is not None:
                    run.display.line(f"{task} is not registered: transformers has no pipeline for its kind")
    for job in jobs_of(config):
        tracker.finish(job.name, "FINISHED")
    tracker.artifacts("", config.run_dir / "config.yaml")
    for file in files:
        tracker.artifacts("", file, "figures" if file.suffix == ".png" else None)
    return report


def student_key(student: str) -> str:
    """The tracker's key of a distilled student's run."""
    return Job(student, "distilled").name


def _log_scores(run: Run, report: Mapping[str, Any]) -> None:
    """Test scores as metrics of each run's own, and the ensemble's of the parent."""
    tracker = run.tracker
    parent: dict[str, float] = {"test/macro/ensemble": report["macro"]["ensemble"]}
    for student, macro in report["macro"]["students"].items():
        values = {"test/macro/score": macro["score"], "retention/macro": macro["retention"]}
        base = {"test/macro/score": macro["supervised"]}
        for task, results in report["tasks"].items():
            scored = results["students"][student]
            name = f"test/{task}/{results['metric']}"
            values |= {
                name: scored["score"],
                f"retention/{task}": scored["retention"],
                f"test/{task}/ece": scored["ece"],
            }
            base[name] = scored["supervised"]
            parent[f"test/{task}/ensemble"] = results["ensemble"]
        tracker.metrics(student_key(student), _numbers(values))
        tracker.metrics(
            "",
            _numbers({f"test/macro/{student}": macro["score"], f"retention/{student}": macro["retention"]}),
        )
        if run.config.baselines:
            tracker.metrics(Job(student, "supervised").name, _numbers(base))
    tracker.metrics("", parent)


def _log_kept(run: Run) -> None:
    """What each student and baseline scored on validation with the weights it keeps: with early stopping, not its last."""
    for job in jobs_of(run.config):
        result, _ = training.read_result(run.config.run_dir, job)
        run.tracker.metrics(job.name, best_metrics(result["kept"]))


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
