"""One run from config to report: prepare → fine-tune → label → train → evaluate → report.

Every stage skips what is done already, so that the same command resumes wherever the last one stopped.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipeline import co_trained
from pipeline.cluster import check_room, connected
from pipeline.config import view as config_view
from pipeline.config.resolved import Job, jobs_of
from pipeline.config.schema import RunConfig
from pipeline.display.display import Display
from pipeline.display.progress import StageProgress
from pipeline.places import Patience, Wait
from pipeline.prepare import (
    Inputs,
    augment_inputs,
    fine_tuning_requests,
    prepare,
    teacher_curves,
    teacher_specs,
)
from pipeline.report import build as reports
from pipeline.report.advice import advise
from pipeline.report.evidence import evidence_of
from pipeline.report.model_card import write_model_card
from pipeline.report.results import ensemble_scores, run_facts, task_results
from pipeline.report.rounds import round_notes
from pipeline.report.schema import Report
from pipeline.round_before import (
    Folders,
    fingerprints_before,
    folders_before,
    own_specs,
    students_before,
)
from pipeline.run_folder import (
    CONFIG,
    TIMINGS,
    job_folder,
    refuse_changes,
    stop_file,
    student_folder,
    write_settings,
)
from pipeline.shared_runs import fetch_weights, followed, held, send_models, send_weights, teacher_sources
from pipeline.stages import Stages, first_step
from pipeline.stop import StopSignals
from pipeline.tracking import record
from pipeline.tracking.tracker import Role, Tracker
from pipeline.tracking.views import views_of_run
from pipeline.training import jobs as training
from pipeline.training.baseline import LONGER, PLAIN, SHORTER
from pipeline.training.fine_tune import WORK, Request, fine_tune_all, is_finished
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.own import Before
from pipeline.training.plan import new_plan, start_folder
from pipeline.training.shared_baseline import baseline_folder, publish, take
from pipeline.training.threads import faster_threads
from pipeline.training.worker_group import run_worker_group, worker_resources
from pipeline.urls import join, without_secrets
from teachers.checks import Findings, refuse
from teachers.forced import forced_pairs
from teachers.pool import Labelling, fill_store
from teachers.preflight import preflight
from teachers.spec import HiddenTargets, TeacherSpec, TokenTargets
from teachers.store import Store

POLL_S = 0.5
STAGES = ("fine_tune", "preflight", "label", "train", "evaluate")
LABEL_STAGES = STAGES[:3]


@dataclass
class Run:
    """A run under way: the objects that its stages share."""

    config: RunConfig
    inputs: Inputs
    display: Display
    stop: StopSignals
    tracker: Tracker
    stages: Stages
    keys: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, HiddenTargets] = field(default_factory=dict)
    tokens: dict[str, TokenTargets] = field(default_factory=dict)
    folders_before: Folders = field(default_factory=dict)
    before: dict[str, Before] = field(default_factory=dict)
    labelled: dict[str, Labelling] = field(default_factory=dict)
    findings: list[Findings] = field(default_factory=list)
    group: str | None = None
    order: Sequence[str] = STAGES
    sync: Callable[[], None] = lambda: None

    def begin(
        self,
        stage: str,
        what: str,
        noun: str = "",
        unit: str = "",
        expected: Mapping[str, float] | None = None,
    ) -> None:
        """Begins a stage of `order`: records its time, shows its progress; other arguments: see `StageProgress`."""
        self.stages.begin(stage)
        place = f"stage {self.order.index(stage) + 1} of {len(self.order)}"
        title = f"{place}, {stage.replace('_', '-')}"
        self.display.stage(StageProgress(title, noun, unit, expected or {}), what)


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
                    _label_at_the_end(run)
        else:
            run.labelled = {name: Labelling() for name in config.teachers}
            _preflight(run, on_ray=False)
            run.inputs = co_trained.at_the_end(config, run.inputs)
            run.keys = _store_keys(config, run.inputs)
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


@contextmanager
def running(
    config: RunConfig,
    display: Display,
    tracked: bool = True,
    group: str | None = None,
    role: Role = "parent",
    check: Callable[[Inputs], None] = lambda inputs: None,
) -> Iterator[Run]:
    """Locks the run folder, handles signals and opens MLflow; at the end closes MLflow's run with the run's status.

    check: raises where the inputs do not fit, before anything is written.
    """
    stages = Stages()
    inputs, folders = prepare(config), folders_before(config)
    check(inputs)
    with held(config, display.line) as sync, StopSignals(config.run_dir) as stop:
        if any(task.augment is not None for task in config.tasks.values()):
            refuse_changes(config)  # before hours of a masked language model's work
            inputs = _with_variants(config, inputs, display, stages, stop)
            check(inputs)
        fingerprints = {**inputs.fingerprints(config), **fingerprints_before(folders)}
        derived = inputs.resolved.derived()
        refuse_changes(config, fingerprints, derived)
        if tracked or (config.run_dir / CONFIG).exists():
            write_settings(config, fingerprints, derived)
        for note in [*round_notes(config), *config_view.notes(inputs.resolved), *_data_notes(inputs)]:
            display.line(note)
        if tracked and config.tracking.enabled and config.runs_url and config.tracking.uri is None:
            display.line(
                f"MLflow: its database cannot lie behind runs_dir and stays on this machine, in {config.runs_path}; "
                "tracking.uri may name a server"
            )
        data = record.data_sets(config, inputs.data)
        with record.recorded_run(
            config, role, group, display.line, derived, data=data, enabled=tracked
        ) as tracker:
            if tracked:
                stages.keep(config.run_dir / TIMINGS)
            try:
                yield Run(
                    config,
                    inputs,
                    display,
                    stop,
                    tracker,
                    stages,
                    folders_before=folders,
                    group=group,
                    sync=sync,
                )
            finally:
                stages.end()


def _with_variants(
    config: RunConfig, inputs: Inputs, display: Display, stages: Stages, stop: StopSignals
) -> Inputs:
    """The inputs with every task's variants; what a masked language model answered in an earlier run is not asked again."""
    stages.begin("augment")
    tasks = {f"augment {name}": 1.0 for name, task in config.tasks.items() if task.augment is not None}
    display.stage(
        StageProgress("augment", "tasks", "masked words", tasks), f"variants of {_count(len(tasks), 'task')}"
    )

    def progress(task: str, done: int, total: int) -> None:
        display.bar(f"augment {task}", done, total)

    inputs = augment_inputs(config, inputs, progress, stop.check)
    stages.begin("start")
    return inputs


def _data_notes(inputs: Inputs) -> list[str]:
    return [note for data in inputs.data.values() for note in data.notes]


def _is_trained(run: Run) -> bool:
    """Whether all teachers, soft targets and students are complete."""
    if run.inputs.to_fine_tune() or not all(
        training.is_finished(run.config.run_dir, job) for job in jobs_of(run.config)
    ):
        return False
    config, inputs = run.config, co_trained.at_the_end(run.config, run.inputs)
    store, keys = Store(config.store_path), _store_keys(config, inputs)
    wanted = {
        name: np.concatenate([one.keys for one in co_trained.stored_examples(config, data)])
        for name, data in inputs.data.items()
    }
    return not any(
        len(store.missing(keys[name], wanted[teacher.task])) for name, teacher in config.teachers.items()
    )


def _store_keys(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    return {spec.name: spec.key for spec in teacher_specs(config, inputs)}


# ---------------------------------------------------------------- stages


def make_targets(run: Run) -> None:
    """Makes and checks the teachers and stores all their soft targets. Ray must be up."""
    run.stop.listen()
    check_room(run.config)
    own = [folder for by_task in run.folders_before.values() for folder in by_task.values()]
    send_models(run.config, [*run.inputs.bases.values(), *run.inputs.starts.values(), *own])
    _fine_tune(run)
    _preflight(run, on_ray=True)
    _label(run)


def _patience(run: Run) -> Patience:
    """How to wait for nodes. A private Ray has one, and teachers take turns on it: that is not worth a line."""
    cluster = run.config.cluster
    show = run.display.line if cluster.address is not None else lambda line: None
    return Patience(cluster.nodes_timeout_s, show)


def _fine_tune(run: Run) -> None:
    run.stages.begin("fine_tune")
    requests = fine_tuning_requests(run.config, run.inputs)
    if requests:
        what = f"{len(requests)} of {len(run.config.teachers)} teachers"
        lengths = {
            f"teacher {one.name}": one.config.epochs
            * len(run.inputs.data[one.task.name].without_variants().labelled_train())
            for one in requests
        }
        run.begin("fine_tune", what, "teachers", "steps", lengths)
    for request in requests:
        tags = {"task": request.task.name, "teachers": request.name}
        settings, metrics = request.config.model_dump(mode="json"), request.folder / WORK / METRICS
        key = f"teacher/{request.name}"
        record.training_began(run.tracker, run.config, key, request.name, "teacher", tags, settings, metrics)

    def poll(request: Request) -> None:
        run.stages.tick()
        _show_progress(run.display, f"teacher {request.name}", request.folder / WORK / METRICS)
        if is_finished(request.folder):
            run.display.end(f"teacher {request.name}", "stopped early")

    if requests:
        stop = stop_file(run.config.run_dir).absolute()
        with followed(run.config, [request.folder for request in requests]):
            fine_tune_all(requests, run.inputs.data, stop, poll, run.stop, _patience(run))
    for request in requests:
        if is_finished(request.folder):  # or the run was stopped
            poll(request)
            run.tracker.finish(f"teacher/{request.name}", "FINISHED")
    run.stop.check()


def _preflight(run: Run, *, on_ray: bool) -> None:
    """Checks every teacher before it labels; raises `TeacherError` for a teacher that should not be distilled."""
    config = run.config
    run.begin("preflight", _count(len(config.teachers), "teacher"))
    validation = {name: data.splits["validation"] for name, data in run.inputs.data.items()}
    specs = teacher_specs(config, run.inputs)
    curves = teacher_curves(run.inputs)
    run.findings = preflight(
        specs,
        validation,
        config.preflight_dir,
        on_ray=on_ray,
        check=run.stop.check,
        curves=curves,
        patience=_patience(run),
    )
    for warning in refuse(run.findings, lambda name: config.teachers[name].preflight == "warn"):
        run.display.line(warning)
    run.stop.check()


def _label(run: Run) -> None:
    """Stores the targets of all teachers but those that are trained on, which answer in the training itself."""
    trained_on = set(run.config.co_trained)
    specs = [spec for spec in teacher_specs(run.config, run.inputs) if spec.name not in trained_on]
    if specs:
        _label_by(run, specs, _count(len(specs), "teacher"))
    if trained_on:
        run.display.line(
            f"not stored, but answered in the training: targets of {', '.join(run.config.co_trained)}"
        )


def _label_at_the_end(run: Run) -> None:
    """Stores the predictions on validation and test of the teachers that were trained on: the report compares with them."""
    run.inputs = co_trained.at_the_end(run.config, run.inputs)
    specs = teacher_specs(run.config, run.inputs, run.config.co_trained)
    what = f"{_count(len(specs), 'teacher')} as they are now, on validation and test"
    _label_by(run, specs, what, "evaluate")


def _label_by(run: Run, specs: Sequence[TeacherSpec], what: str, stage: str = "label") -> None:
    config, data = run.config, run.inputs.data
    needed = {spec.name: co_trained.stored_count(config, data[spec.task.name]) for spec in specs}
    lengths = {f"labelling {name}": count for name, count in needed.items()}
    run.begin(stage, what, "teachers", "examples", lengths)
    store = Store(config.store_path)
    run.keys |= {spec.name: spec.key for spec in specs}
    run.hidden |= {spec.name: spec.hidden for spec in specs if spec.hidden is not None}
    for spec in specs:
        task = spec.task
        facts = {
            "teacher": spec.name,
            "model": spec.model,
            "task": task.name,
            "kind": task.kind.name,
            "columns": list(task.head.columns),
            "max_length": spec.max_length or task.head.max_length,
            "dtype": spec.dtype,
        }
        _describe(run, store, spec.key, facts)
        if spec.hidden is not None:
            own = {**facts, "columns": None, "layer": spec.hidden.layer.index}
            _describe(run, store, spec.hidden.key, own)

    def progress(teacher: str, done: int, total: int) -> None:
        run.stages.tick()
        run.display.bar(f"labelling {teacher}", done, total)

    examples = {name: co_trained.stored_examples(config, task_data) for name, task_data in data.items()}
    trained_on = {
        name: [one.splits[split] for split in ("train", "validation")] for name, one in data.items()
    }
    done = fill_store(specs, examples, store, progress, run.stop, trained_on, _patience(run))
    run.labelled |= done
    run.stop.check()
    forwards = sum(one.forwards for one in done.values())
    run.display.line(f"soft targets: {sum(needed.values()) - forwards} from the store, {forwards} computed")
    _ask_students_before(run, store)
    _force(run, store, specs)


def _describe(run: Run, store: Store, key: str, facts: Mapping[str, object]) -> None:
    """Records in the store what stands under `key`, and that the run reads it."""
    store.describe(key, facts)
    url = run.config.runs_url
    if url is None:
        store.use(key, str(run.config.run_dir.absolute()), platform.node())
    else:  # on no machine
        store.use(key, without_secrets(join(url, run.config.name)), "")


def _ask_students_before(run: Run, store: Store) -> None:
    """Stores what the students of the round before write for the sources of train, or predict on train."""
    config, data = run.config, run.inputs.data
    own = own_specs(config, run.inputs, run.folders_before)
    run.before = students_before(config, run.inputs, run.folders_before, own)
    specs = [spec for by_task in own.values() for spec in by_task.values()]
    if not specs:
        return
    run.stages.begin("write")
    for spec in specs:
        facts = {
            "teacher": spec.name,
            "model": spec.model,
            "task": spec.task.name,
            "kind": spec.task.kind.name,
        }
        _describe(run, store, spec.key, facts)

    def progress(student: str, done: int, total: int) -> None:
        run.stages.tick()
        run.display.bar(f"round before: {student}", done, total)

    train = {name: [one.splits["train"]] for name, one in data.items()}
    done = fill_store(specs, train, store, progress, run.stop, patience=_patience(run))
    run.stop.check()
    computed = sum(one.forwards for one in done.values())
    needed = sum(len(np.unique(data[spec.task.name].splits["train"].keys)) for spec in specs)
    run.display.line(f"of the round before: {needed - computed} from the store, {computed} computed")


def _force(run: Run, store: Store, specs: Sequence[TeacherSpec]) -> None:
    """Stores the token targets of teachers from which a student learns them, along the texts that it may learn."""
    forced = [spec.along_texts() for spec in specs if spec.tokens is not None]
    run.tokens = {spec.name: spec.tokens for spec in forced if spec.tokens is not None}
    if not forced:
        return
    pairs = {}
    if run.before:
        run.stages.begin("score")
    for name in dict.fromkeys(spec.task.name for spec in forced):
        keys = {spec.name: spec.key for spec in specs if spec.task.name == name}
        keys |= {
            f"{student} before": one.keys[name] for student, one in run.before.items() if name in one.keys
        }
        pairs[name] = [forced_pairs(run.inputs.data[name], keys, store)]
    for spec in forced:
        facts = {
            "teacher": spec.name,
            "model": spec.model,
            "task": spec.task.name,
            "kind": spec.task.kind.name,
        }
        own = {**facts, "token_targets": run.tokens[spec.name].form.model_dump(mode="json")}
        _describe(run, store, spec.key, own)

    def progress(teacher: str, done: int, total: int) -> None:
        run.stages.tick()
        run.display.bar(f"token targets of {teacher}", done, total)

    done = fill_store(forced, pairs, store, progress, run.stop, patience=_patience(run))
    run.stop.check()
    computed = sum(one.forwards for one in done.values())
    needed = sum(len(pairs[spec.task.name][0]) for spec in forced)
    run.display.line(f"token targets: {needed - computed} texts from the store, {computed} computed")


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
        Wait("students", worker_resources(plan), plan.group.workers, _patience(run)).check(plan.group.workers)
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
        _show_progress(run.display, job.name, file, final=file == files[0])
        if training.is_finished(run.config.run_dir, job):
            run.display.end(job.name, "stopped early")


def _show_progress(display: Display, what: str, file: Path, *, final: bool = True) -> None:
    points = read_metrics(file)
    if not points:
        return
    scores = [p["metrics"]["macro/score"] for p in points if "macro/score" in p["metrics"]]
    note = f"validation {100 * scores[-1]:.1f}" if scores else ""
    last = points[-1]
    if last["step"] < last["total"] or (
        final and "macro/score" in last["metrics"]
    ):  # the score is logged last
        display.bar(what, last["step"], last["total"], note)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- report


def _report(run: Run, register: str | None = None) -> Report:
    scored = f"{_count(len(run.config.students), 'student')} on {_count(len(run.config.tasks), 'task')}"
    run.begin("evaluate", scored)
    config, tracker = run.config, run.tracker
    notes = [
        *round_notes(config),
        *config_view.notes(run.inputs.resolved),
        *_data_notes(run.inputs),
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
