"""One run from config to report: prepare → fine-tune → label → train → evaluate → report.

Every stage skips what is done already, so that the same command resumes wherever the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipeline import co_trained
from pipeline.cluster import connected
from pipeline.config import view as config_view
from pipeline.config.resolved import Job, jobs_of
from pipeline.config.schema import RunConfig
from pipeline.display.display import Display
from pipeline.places import Wait
from pipeline.prepare import (
    teacher_specs,
)
from pipeline.report import build as reports
from pipeline.report.advice import advise
from pipeline.report.evidence import evidence_of
from pipeline.report.model_card import write_model_card
from pipeline.report.results import ensemble_scores, run_facts, task_results
from pipeline.report.rounds import round_notes
from pipeline.report.schema import Report
from pipeline.run_folder import (
    CONFIG,
    job_folder,
    student_folder,
)
from pipeline.running import LABEL_STAGES, Run, data_notes, patience_of, running, show_progress
from pipeline.shared_runs import fetch_weights, send_weights, teacher_sources
from pipeline.shown import counted
from pipeline.stages import first_step
from pipeline.targets import check_teachers, label_at_the_end, make_targets, store_keys
from pipeline.tracking import record
from pipeline.tracking.views import views_of_run
from pipeline.training import jobs as training
from pipeline.training.baseline import LONGER, PLAIN, SHORTER
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.plan import new_plan, start_folder
from pipeline.training.shared_baseline import baseline_folder, publish, take
from pipeline.training.threads import faster_threads
from pipeline.training.worker_group import run_worker_group, worker_resources
from teachers.pool import Labelling
from teachers.store import Store

POLL_S = 0.5


def distil(
    config: RunConfig,
    display: Display,
    group: str | None = None,
    register: str | None = None,
    trained: Mapping[Job, Path] = MappingProxyType({}),
) -> Report:
    """Runs all stages; returns the report. Raises any `TutelageError`.

    group: name of the group of seeds, if the run belongs to one · register: name in MLflow's model registry for its
    students, with ``-<task>`` added where there are several tasks · trained: folders of trials that are trainings of this
    run's jobs (`pipeline.training.jobs.take_over`).
    """
    with running(config, display, group=group) as run:
        training.check_results(config)
        for job, source in trained.items():
            fetch_weights(config, source)
            if training.take_over(config.run_dir, job, source):
                send_weights(config, job_folder(config.run_dir, job))
                display.line(f"{job.name} was trained by the search, in {source}")
        if not _is_trained(run):
            with connected(config):
                make_targets(run)
                _train_students(run)
                if config.co_trained:
                    label_at_the_end(run)
        else:
            run.labelled = {name: Labelling() for name in config.teachers}
            check_teachers(run, on_ray=False)
            run.inputs = co_trained.at_the_end(config, run.inputs)
            run.keys = store_keys(config, run.inputs)
            display.line("nothing left to train; evaluating again")
            for job in jobs_of(config):
                _record_job(run, job)
        return _report(run, register)


def label(config: RunConfig, display: Display) -> dict[str, Labelling]:
    """Makes the teachers and fills the store, without training a student; returns each teacher's labelling."""
    with running(config, display, tracked=False) as run:
        run.order = LABEL_STAGES
        with connected(config):
            make_targets(run)
        return run.labelled


def _is_trained(run: Run) -> bool:
    """Whether all teachers, soft targets and students are complete."""
    if run.inputs.to_fine_tune() or not all(
        training.is_finished(run.config.run_dir, job) for job in jobs_of(run.config)
    ):
        return False
    config, inputs = run.config, co_trained.at_the_end(run.config, run.inputs)
    store, keys = Store(config.store_path), store_keys(config, inputs)
    wanted = {
        name: np.concatenate([one.keys for one in co_trained.stored_examples(config, data)])
        for name, data in inputs.data.items()
    }
    return not any(
        len(store.missing(keys[name], wanted[teacher.task])) for name, teacher in config.teachers.items()
    )


def _train_students(run: Run) -> None:
    run.stages.begin("train")
    config, baselines = run.config, _baseline_folders(run)
    taken = {job: take(folder, job_folder(config.run_dir, job)) for job, folder in baselines.items()}
    run.sync()
    jobs = [job for job in jobs_of(config) if not training.is_finished(config.run_dir, job)]
    if jobs:
        settings = run.inputs.resolved.students
        lengths = {job.name: settings[job.student].train.epochs for job in jobs}
        run.begin("train", ", ".join(lengths), "trainings", "steps", lengths)
    for job in jobs_of(config):  # the report has scores for the finished ones, too
        _record_job(run, job)
        if name := taken.get(job):
            run.display.line(f"{job.name}: run {name} has trained the same baseline; it is taken over")
            run.tracker.tags(job.name, {"trained_by": name})
    folders = teacher_sources(config, run.inputs.teachers)
    live = {spec.name: spec for spec in teacher_specs(config, run.inputs, config.co_trained)}
    plan = new_plan(
        config,
        run.inputs.facts,
        run.inputs.data,
        run.keys,
        folders,
        run.hidden,
        run.tokens,
        run.before,
        live,
    )
    if jobs:
        plan = replace(plan, threads=_threads(run, plan.cpus))
        Wait("students", worker_resources(plan), plan.group.workers, patience_of(run)).check(
            plan.group.workers
        )
        in_thread(lambda: run_worker_group(plan), lambda: _show_jobs(run, jobs))
    run.sync()
    run.stop.check()
    for job, folder in baselines.items():
        publish(job_folder(config.run_dir, job), folder, config.name)
    points = [read_metrics(job_folder(config.run_dir, job) / METRICS) for job in jobs]
    run.stages.first_step_s = first_step(run.stages.started, points)


def _baseline_folders(run: Run) -> dict[Job, Path]:
    """Where runs share each supervised baseline of this run."""
    config, inputs = run.config, run.inputs
    return {
        job: baseline_folder(
            config.baselines_dir,
            settings := inputs.resolved.students[job.student],
            start_folder(settings, inputs.teachers),
            inputs.data,
            config.seed,
        )
        for job in jobs_of(config)
        if job.mode == "supervised"
    }


def _record_job(run: Run, job: Job) -> None:
    settings, metrics = (
        run.inputs.resolved.students[job.student],
        job_folder(run.config.run_dir, job) / METRICS,
    )
    data = record.data_sets(run.config, run.inputs.data)
    record.job_began(run.tracker, run.config, job, settings, metrics, data)


def _threads(run: Run, cpus: float) -> int:
    """Number of threads of each training worker: its CPUs, or fewer where that is faster on this machine now."""
    threads, train = max(1, int(cpus)), run.config.train
    if run.config.cluster.address is not None or train.gpus_per_worker or train.cpus_per_worker is not None:
        return threads  # another machine, or no matter, or the user has decided
    faster, seconds = faster_threads(threads)
    if faster < threads:
        run.display.line(
            f"training with {faster} thread a worker: on this machine, as busy as it is, {threads} threads take "
            f"{seconds[threads] / seconds[faster]:.1f} times as long"
        )
    return faster


def in_thread(work: Callable[[], None], poll: Callable[[], None]) -> None:
    """Runs `work` in another thread and re-raises its errors.

    Ray Train installs signal handlers only in the main thread, where ours must stay.
    """
    with ThreadPoolExecutor(max_workers=1) as threads:
        future = threads.submit(work)
        while not future.done():
            poll()
            time.sleep(POLL_S)
    poll()
    future.result()


def _show_jobs(run: Run, jobs: list[Job]) -> None:
    run.stages.tick()
    for job in jobs:
        folder = job_folder(run.config.run_dir, job)
        # a baseline tries several schedules, one after the other
        files = [folder / METRICS, *(folder / name / METRICS for name in (LONGER, SHORTER, PLAIN))]
        file = next(filter(Path.exists, files), files[0])
        show_progress(run.display, job.name, file, final=file == files[0])
        if training.is_finished(run.config.run_dir, job):
            run.display.end(job.name, "stopped early")


# ---------------------------------------------------------------- report


def _report(run: Run, register: str | None = None) -> Report:
    scored = f"{counted(len(run.config.students), 'student')} on {counted(len(run.config.tasks), 'task')}"
    run.begin("evaluate", scored)
    config, tracker = run.config, run.tracker
    notes = [
        *round_notes(config),
        *config_view.notes(run.inputs.resolved),
        *data_notes(run.inputs),
        *co_trained.notes(config),
    ]
    tasks = task_results(config, run.inputs.data, run.keys)
    run.stop.check()
    validation = ensemble_scores(config, run.inputs.data, run.keys, "validation")
    facts = run_facts(
        config, run.inputs, run.labelled, run.stages, notes, run.findings, run.group, validation
    )
    run.stop.check()
    report = reports.build(tasks, facts)
    advice = advise(evidence_of(config, run.inputs, run.keys, report, tasks, facts))
    report = report.model_copy(update={"advice": advice})
    run.stop.check()
    links = record.links(tracker, config, views_of_run(config, run.group))
    files = reports.write(report, tasks, facts, config.run_dir, links)
    record.test_scores(tracker, report)
    record.described(tracker, config, report)
    for student in config.students:
        own = {name: results for name, results in tasks.items() if student in results.students}
        for name, results in own.items():
            folder, opener = student_folder(config.run_dir, student, name), results.task.kind.pipeline
            write_model_card(folder, config, report, run.inputs.resolved.students[student], results.task)
            version = register if register is None or len(own) == 1 else f"{register}-{name}"
            record.exported_student(tracker, student, name, folder, opener, version, run.display.line)
    for job in jobs_of(config):
        result, _ = training.read_result(config.run_dir, job)
        tracker.metrics(job.name, record.best_metrics(config, result["kept"]))
        tracker.finish(job.name, "FINISHED")
    record.written_files(tracker, [config.run_dir / CONFIG, *files])
    return report
