"""The teachers of a run made and checked, and what they answer stored: the stages before students train. Each skips what is done."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline import co_trained
from pipeline.cluster import check_room
from pipeline.config.schema import RunConfig
from pipeline.prepare import (
    Inputs,
    fine_tuning_requests,
    teacher_curves,
    teacher_specs,
)
from pipeline.round_before import (
    own_specs,
    students_before,
)
from pipeline.run_folder import (
    stop_file,
)
from pipeline.running import Run, patience_of, show_progress
from pipeline.shared_runs import followed, send_models
from pipeline.shown import counted
from pipeline.tracking import record
from pipeline.training.fine_tune import WORK, Request, fine_tune_all, is_finished
from pipeline.training.log import METRICS
from pipeline.urls import join, without_secrets
from teachers.checks import refuse
from teachers.forced import forced_pairs
from teachers.pool import fill_store
from teachers.preflight import preflight
from teachers.spec import TeacherSpec
from teachers.store import Store


def make_targets(run: Run) -> None:
    """Makes and checks the teachers and stores all their soft targets. Ray must be up."""
    run.stop.listen()
    check_room(run.config)
    own = [folder for by_task in run.folders_before.values() for folder in by_task.values()]
    send_models(run.config, [*run.inputs.bases.values(), *run.inputs.starts.values(), *own])
    _fine_tune(run)
    check_teachers(run, on_ray=True)
    _label(run)


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
        show_progress(run.display, f"teacher {request.name}", request.folder / WORK / METRICS)
        if is_finished(request.folder):
            run.display.end(f"teacher {request.name}", "stopped early")

    if requests:
        stop = stop_file(run.config.run_dir).absolute()
        with followed(run.config, [request.folder for request in requests]):
            fine_tune_all(requests, run.inputs.data, stop, poll, run.stop, patience_of(run))
    for request in requests:
        if is_finished(request.folder):  # or the run was stopped
            poll(request)
            run.tracker.finish(f"teacher/{request.name}", "FINISHED")
    run.stop.check()


def check_teachers(run: Run, *, on_ray: bool) -> None:
    """Checks every teacher before it labels; raises `TeacherError` for a teacher that should not be distilled."""
    config = run.config
    run.begin("preflight", counted(len(config.teachers), "teacher"))
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
        patience=patience_of(run),
    )
    for warning in refuse(run.findings, lambda name: config.teachers[name].preflight == "warn"):
        run.display.line(warning)
    run.stop.check()


def _label(run: Run) -> None:
    """Stores the targets of all teachers but those that are trained on, which answer in the training itself."""
    trained_on = set(run.config.co_trained)
    specs = [spec for spec in teacher_specs(run.config, run.inputs) if spec.name not in trained_on]
    if specs:
        _label_by(run, specs, counted(len(specs), "teacher"))
    if trained_on:
        run.display.line(
            f"not stored, but answered in the training: targets of {', '.join(run.config.co_trained)}"
        )


def label_at_the_end(run: Run) -> None:
    """Stores the predictions on validation and test of the teachers that were trained on: the report compares with them."""
    run.inputs = co_trained.at_the_end(run.config, run.inputs)
    specs = teacher_specs(run.config, run.inputs, run.config.co_trained)
    what = f"{counted(len(specs), 'teacher')} as they are now, on validation and test"
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
    done = fill_store(specs, examples, store, progress, run.stop, trained_on, patience_of(run))
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
    done = fill_store(specs, train, store, progress, run.stop, patience=patience_of(run))
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
        frames = any(run.tokens[spec.name].frames for spec in forced if spec.task.name == name)
        pairs[name] = [forced_pairs(run.inputs.data[name], keys, store, frames)]
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

    done = fill_store(forced, pairs, store, progress, run.stop, patience=patience_of(run))
    run.stop.check()
    computed = sum(one.forwards for one in done.values())
    needed = sum(len(pairs[spec.task.name][0]) for spec in forced)
    run.display.line(f"token targets: {needed - computed} texts from the store, {computed} computed")


def store_keys(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    return {spec.name: spec.key for spec in teacher_specs(config, inputs)}
