"""The trainings of a run, one after another: every student, distilled and supervised. No Ray here.

Each training is a `Job` with its own folder under ``checkpoints/``. A finished job's folder has ``result.json``; the job
is skipped when the worker group, or the whole command, starts again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline import errors
from pipeline.batch import Encoded
from pipeline.config.recipe import StudentRecipe, TaskLoss
from pipeline.config.resolved import (
    Job,
    Mode,
    StudentLoss,
    StudentSettings,
    jobs_of,
)
from pipeline.config.schema import RunConfig
from pipeline.files import write_atomically
from pipeline.losses import ON_POLICY, LossWeights
from pipeline.models import fingerprint, resolve
from pipeline.run_folder import RESULT, job_folder, live_teacher_folder, student_folder
from pipeline.tasks.scores import score_of
from pipeline.training import fine_tune
from pipeline.training.baseline import PLAIN, best_schedule
from pipeline.training.checkpoint import (
    adopt_checkpoint,
    keep_newest,
    newest_checkpoint,
    remove_checkpoints,
)
from pipeline.training.encoded import encoded
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.kept import Kept
from pipeline.training.live import Host, LiveTeachers
from pipeline.training.live_teacher import LocalTeacher
from pipeline.training.log import METRICS
from pipeline.training.loop import Report, StopWatch, Trainer
from pipeline.training.own import goes_on
from pipeline.training.plan import Plan, start_folder
from pipeline.training.repeats import chosen_by_validation, limited, repeat_limits
from pipeline.training.result import read_facts, read_predictions, write_result
from pipeline.training.sets import task_sets
from pipeline.training.shared_baseline import schedules_of
from pipeline.training.stage import LABELS_ALONE, LossPlan, Stage, one_stage
from pipeline.training.step import Workers, forced_scores, predict
from students.adapters import merge_adapters
from students.export import save_task
from students.student import MultiTaskStudent, build_student
from teachers.ensemble import stored_predictions
from teachers.store import Store


def is_finished(run_dir: Path, job: Job) -> bool:
    """Whether the job has its result file, which is written last."""
    return (job_folder(run_dir, job) / RESULT).is_file()


def take_over(run_dir: Path, job: Job, source: Path) -> bool:
    """Puts a copy of a trial's training, which has ended, where `job` of a run would train the same: the run resumes it,
    trains nothing, and tests and saves the student. source: the trial's `job_folder`.

    False, and nothing is changed, where the run has begun the job or the trial's weights are not there any more.
    """
    folder, weights = job_folder(run_dir, job), newest_checkpoint(source)
    if weights is None or is_finished(run_dir, job) or newest_checkpoint(folder) is not None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / METRICS, (source / METRICS).read_bytes())
    adopt_checkpoint(weights, folder)
    return True


# ---------------------------------------------------------------- in the workers


def train_jobs(
    plan: Plan,
    workers: Workers,
    report: Report = lambda epochs, scores: None,
    kept: Kept | None = None,
    host: Callable[[str], Host] | None = None,
) -> None:
    """Runs the unfinished jobs one after another; returns early once the stop file exists.

    kept: encoded examples and stored targets of earlier calls in this process; of this call's jobs they are added · host: gives a teacher that is
    trained on by its name, by default one in this process.
    """
    should_stop, kept = StopWatch(plan.stop), kept or Kept()
    store = kept.get(("store", plan.store), lambda: Store(plan.store))
    for job in plan.jobs:
        if is_finished(plan.run_dir, job):
            continue
        if should_stop() and workers.world == 1:
            return
        own_plan = of_best_teachers(plan, job.student, store) if job.mode == "best_teacher" else plan
        if not (supervised := job.mode == "supervised"):
            own_plan = after_round(own_plan, job.student)
        settings = own_plan.students[job.student]
        folder, schedules = start_folder(settings, plan.teacher_folders), {PLAIN: settings.train}
        live = _live_teachers(plan, job, host)
        job_sets = task_sets(own_plan, folder, job.student, None if supervised else store, kept, live)
        if supervised:
            schedules = schedules_of(settings, [plan.data[task] for task in settings.lengths])
        try:
            status = train_job(
                own_plan,
                job,
                folder,
                job_sets,
                workers=workers,
                should_stop=should_stop,
                schedules=schedules,
                report=report,
                live=live,
            )
        finally:
            if live is not None:
                live.close()
        if status == "interrupted":
            return


def after_round(plan: Plan, student: str) -> Plan:
    """The plan in which the student starts from its model of the round before, where it goes on with its weights."""
    settings = goes_on(plan.students[student], plan.before.get(student))
    return replace(plan, students={**plan.students, student: settings})


def _live_teachers(plan: Plan, job: Job, host: Callable[[str], Host] | None) -> LiveTeachers | None:
    """The teachers that are trained on beside a job; None where it has none."""
    live = plan.live
    if live is None or job != Job(live.together.student, "distilled"):
        return None

    def local(name: str) -> Host:
        return LocalTeacher(live.open(name, plan.data[live.specs[name].task.name], plan.seed))

    return live.teachers(host or local)


def of_best_teachers(plan: Plan, student: str, store: Store) -> Plan:
    """The plan with all weight of a task on its teacher with the best score on validation, the first one of equals."""
    aggregations = dict(plan.aggregations)
    for name in plan.students[student].lengths:
        data, together = plan.data[name], plan.aggregations[name]
        keys = {teacher: plan.teacher_keys[teacher] for teacher, weight in together.weights.items() if weight}
        validation = data.splits["validation"]
        scores = {
            teacher: score_of(data.task, values, validation)
            for teacher, values in stored_predictions(data.task, validation, keys, store).items()
        }
        best = max(scores, key=lambda teacher: scores[teacher])
        aggregations[name] = replace(together, weights={one: float(one == best) for one in together.weights})
    return replace(plan, aggregations=aggregations)


def train_job(
    plan: Plan,
    job: Job,
    folder: Path,
    sets: Sequence[TaskSet],
    workers: Workers,
    should_stop: Callable[[], bool],
    schedules: Mapping[str, StudentRecipe],
    report: Report,
    live: LiveTeachers | None = None,
) -> str:
    """Trains one job from its last checkpoint and writes its result; returns the training's status.

    folder: the model that the student starts from · schedules: by name. Each of several schedules trains in its own
    folder inside the job's, and the student with the best validation score is kept · live: teachers that are trained on meanwhile, which are
    saved at the end.
    """
    target = job_folder(plan.run_dir, job)
    folders = {name: target / name if len(schedules) > 1 else target for name in schedules}

    def fit(name: str) -> Trainer:
        return _fit(
            plan,
            job,
            folder,
            sets,
            workers=workers,
            should_stop=should_stop,
            train=schedules[name],
            report=report,
            target=folders[name],
            live=live,
        )

    scores: dict[str, float] = {}
    trained: dict[str, int] = {}
    for name in schedules:
        trainer = fit(name)
        if trainer.progress.status == "interrupted":
            return trainer.progress.status
        scores[name], trained[name] = trainer.progress.best_score, len(trainer.progress.epoch_seconds)
    if live is not None:
        live.export({teacher: live_teacher_folder(plan.run_dir, teacher) for teacher in live.hosts})
    kept = best_schedule(scores)
    if kept != name:
        trainer = fit(kept)  # loads its last checkpoint: nothing is trained
    facts = asdict(trainer.progress)
    if len(schedules) > 1:
        tried = [
            {"name": one, "epochs": own.epochs, "trained": trained[one], "score": scores[one]}
            for one, own in schedules.items()
        ]
        facts["schedules"] = {"kept": kept, "tried": tried}
        if workers.rank == 0:
            write_atomically(target / METRICS, (folders[kept] / METRICS).read_bytes())
    if plan.trial:
        _validated(trainer, target, facts)
    else:
        _test(plan, job, trainer, sets, facts)
    if workers.rank == 0:
        if plan.trial:
            keep_newest(target)  # if it wins, a run takes it over
        else:
            remove_checkpoints(target)
        for name in schedules:
            shutil.rmtree(target / name, ignore_errors=True)
    return trainer.progress.status


def _fit(
    plan: Plan,
    job: Job,
    folder: Path,
    sets: Sequence[TaskSet],
    workers: Workers,
    should_stop: Callable[[], bool],
    train: StudentRecipe,
    report: Report,
    target: Path,
    live: LiveTeachers | None,
) -> Trainer:
    """Trains one student by one schedule, from the last checkpoint in `target` if there is one."""
    settings, tasks = plan.students[job.student], [task_set.task for task_set in sets]
    student = build_student(
        folder,
        tasks,
        layers=settings.layers,
        dropout=train.dropout,
        seed=plan.seed,
        hidden={one.task.name: sum(one.hidden.widths) for one in sets if one.hidden is not None},
        lora=train.lora,
        trained=_trained_models(plan, job),
    )
    feed = Feed(
        sets,
        train.batch_size,
        train.tokens_per_forward,
        seed=plan.seed,
        sampling=train.task_sampling,
        workers=workers,
        live=live,
    )
    stages = stages_of(settings, job.mode, train)
    trainer = Trainer(
        student,
        feed,
        train,
        stages,
        target,
        should_stop=should_stop,
        report=report,
        first_stages=plan.first_stages,
        strategy=plan.group.strategy,
    )
    trainer.fit()
    return trainer


def _trained_models(plan: Plan, job: Job) -> dict[str, Path]:
    """The folders of a student's models of the round before, by task, where it goes on with their weights."""
    before = plan.before.get(job.student)
    if before is None or job.mode == "supervised":
        return {}
    return {task: resolve(start, None, f"students.{job.student}") for task, start in before.starts.items()}


def _validated(trainer: Trainer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes a trial's result, with the validation predictions of the weights kept: the search pairs trials by example."""
    predictions = trainer.validation_predictions()
    if trainer.workers.rank == 0:
        write_result(folder, facts, predictions)


def _test(plan: Plan, job: Job, trainer: Trainer, sets: Sequence[TaskSet], facts: Mapping[str, Any]) -> None:
    """Predicts the test splits with a trained student; writes the predictions and the job's result."""
    student, workers = trainer.student, trainer.workers
    settings, tokenizer = plan.students[job.student], sets[0].tokenizer
    tokens = settings.train.tokens_per_forward
    written = trainer.validation_predictions() if any(chosen_by_validation(one.task) for one in sets) else {}
    if settings.train.lora is not None:
        facts = {**facts, "trained": trained_count(student)}
        merge_adapters(student.encoder)  # before anything is scored: the saved folder answers with the sums
    limits = repeat_limits(student, sets, written, tokens, workers)
    sets = [
        replace(one, task=limited(one.task, limits[one.task.name]["ngram"]))
        if one.task.name in limits
        else one
        for one in sets
    ]
    student.tasks = {one.task.name: one.task for one in sets}
    data = {one.task.name: replace(plan.data[one.task.name], task=one.task) for one in sets}
    texts = {
        name: encoded(own.task.head, tokenizer, own.splits["test"], settings.lengths[name])
        for name, own in data.items()
    }
    predictions = {
        name: predict(student, own.task, texts[name], tokens, workers, tokenizer)
        for name, own in data.items()
    }
    forced = {
        name: forced_scores(student, own.task, texts[name], tokens, workers)
        for name, own in data.items()
        if own.task.kind.writes
    }
    if workers.rank == 0:
        truncated = {
            s.task.name: s.train.truncated + s.validation.truncated + texts[s.task.name].truncated
            for s in sets
        }
        cut = {s.task.name: _cut_targets(s, texts[s.task.name]) for s in sets if s.task.kind.writes}
        left_out = {s.task.name: s.left_out for s in sets if s.left_out}
        result = {
            **facts,
            "truncated": truncated,
            "truncated_targets": cut,
            "parameters": parameter_count(student),
            "left_out": left_out,
            "forced": forced,
            **({"repeat_limits": limits} if limits else {}),
        }
        _finish(plan, job, student, tokenizer, predictions=predictions, result=result)


def _cut_targets(task_set: TaskSet, test: Encoded) -> int:
    """How many references of a task are cut at `target_length`."""
    return sum(one.targets.truncated for one in (task_set.train, task_set.validation, test) if one.targets)


def _finish(
    plan: Plan,
    job: Job,
    student: MultiTaskStudent,
    tokenizer: Any,
    predictions: Mapping[str, NDArray[Any]],
    result: Mapping[str, Any],
) -> None:
    folder, exports = job_folder(plan.run_dir, job), dict[str, str]()
    if job.mode == "distilled":
        for task in student.tasks:
            exported = student_folder(plan.run_dir, job.student, task)
            exported.parent.mkdir(parents=True, exist_ok=True)
            save_task(student, task, tokenizer, exported)
            exports[task] = fingerprint(exported)
        result = {**result, "saved": exports}
    write_result(folder, result, predictions)


def stages_of(settings: StudentSettings, mode: Mode, train: StudentRecipe) -> Sequence[Stage]:
    """The stages of a training; a baseline has one."""
    if mode == "supervised" or not settings.stages:
        return one_stage(train, loss_plan(settings.loss, mode))
    return [
        Stage(
            loss_plan(one.loss, mode),
            one.epochs,
            one.learning_rate,
            one.head_learning_rate,
            one.unfreeze,
            {task: loss.text for task, loss in one.loss.tasks.items()},
        )
        for one in settings.stages
    ]


def loss_plan(loss: StudentLoss, mode: Mode) -> LossPlan:
    """The loss of a training: the student's, or for a baseline the hard loss alone with the same task weights and smoothing.

    Where hidden states alone are learnt a task's weight is 1, or 0: they are in variances, alike for all tasks, and a search over the weights trains such a
    first stage once.
    """
    if mode == "supervised":
        alone = {
            task: replace(LABELS_ALONE, task=one.weight, label_smoothing=one.label_smoothing)
            for task, one in loss.tasks.items()
        }
        return LossPlan(alone)
    weights = {
        task: LossWeights(_terms(one), one.temperature, _weight(one), one.label_smoothing, one.beta)
        for task, one in loss.tasks.items()
    }
    return LossPlan(weights, loss.annealing)


def _weight(loss: TaskLoss) -> float:
    """The weight of the whole task."""
    return loss.weight if loss.hard or loss.soft else float(loss.weight > 0)


def _terms(loss: TaskLoss) -> dict[str, float]:
    """The weights of the loss's terms; hidden only where it has any. A position of an own text has one term, of weight 1."""
    terms = {"hard": loss.hard, "soft": loss.soft}
    if loss.hidden:
        terms["hidden"] = loss.hidden
    return {**terms, ON_POLICY: 1.0} if loss.on_policy else terms


def parameter_count(student: MultiTaskStudent) -> int:
    """Number of parameters of the tasks' models, which are exported; a shared one counts once."""
    return sum(parameter.numel() for parameter in student.models.parameters())


def trained_count(student: MultiTaskStudent) -> int:
    """Number of parameters that train: adapters, heads and projections where the student has adapters."""
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)


def read_result(run_dir: Path, job: Job) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A finished job's facts and its (M, C) predictions on the test splits, by task. Raises `CorruptError`."""
    folder = job_folder(run_dir, job)
    return read_facts(folder), read_predictions(folder)


def check_results(config: RunConfig) -> None:
    """Raises `CorruptError` where a finished job's result or saved student is damaged.

    Called before anything else is trained.
    """
    for job in jobs_of(config):
        if not is_finished(config.run_dir, job):
            continue
        facts, _ = read_result(config.run_dir, job)
        beside = job.mode == "distilled" and set(config.tasks_of(job.student)) & set(config.co_trained_tasks)
        for teacher in config.co_trained if beside else ():
            if not fine_tune.is_finished(folder := live_teacher_folder(config.run_dir, teacher)):
                raise errors.CorruptError(
                    f"{folder}: a file is missing or its checksum does not match",
                    f"Remove {job_folder(config.run_dir, job)}: `tutelage train` trains student and teachers again.",
                )
        for task in facts.get("saved", {}):
            check_saved(config.run_dir, job, task)


def check_saved(run_dir: Path, job: Job, task: str) -> None:
    """Raises `CorruptError` where a finished job's saved student of the task is not what was saved."""
    folder = student_folder(run_dir, job.student, task)
    if read_facts(job_folder(run_dir, job)).get("saved", {}).get(task) != fingerprint(folder):
        raise errors.CorruptError(
            f"{folder}: a file is missing or its checksum does not match",
            f"Remove {job_folder(run_dir, job)}: `tutelage train` trains the student again.",
        )
