"""One trial: trains the config with its values replaced, by `pipeline.training.jobs`, and reports epochs to Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from pipeline.config.recipe import Facts
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.files import write_atomically
from pipeline.run_folder import first_stages_folder, job_folder, stop_file
from pipeline.shared_runs import Behind, of_trial, worked_on
from pipeline.training.checkpoint import (
    adopt_checkpoint,
    newest_checkpoint,
    remove_checkpoints,
    remove_unsent,
)
from pipeline.training.jobs import is_finished, train_jobs
from pipeline.training.kept import Kept
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import Report
from pipeline.training.plan import new_plan
from pipeline.training.result import read_facts
from pipeline.training.step import Workers
from pipeline.training.worker_group import run_worker_group
from pipeline.urls import cache_folder, join
from teachers.spec import HiddenTargets, TokenTargets
from tune.folds import Fold, fold_name, mean_scores, write_pooled
from tune.space import Values, student_of, with_values
from tune.study import trial_name

TAKEOVERS = "takeovers.json"
FOLD = "fold"
"""Of what a trial reports: how many folds it has trained."""
KEPT = Kept()
"""Of the trials that this process has trained; a trial that fails ends its process."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a study share; sent to the cluster once.

    config: the study's, with absolute local paths · facts: what trials derive values from · folder: of all trials' folders, on the driver's machine where
    they lie behind a URL · cpus: of each worker ·
    teacher_keys, hidden, tokens and teacher_folders: as in `pipeline.training.plan.Plan` · folds: of `tune.folds`; a trial trains once for each.
    """

    config: RunConfig
    facts: Facts
    folder: Path
    data: Mapping[str, TaskData]
    teacher_keys: Mapping[str, str]
    teacher_folders: Mapping[str, str]
    cpus: float
    hidden: Mapping[str, HiddenTargets] = field(default_factory=dict)
    tokens: Mapping[str, TokenTargets] = field(default_factory=dict)
    folds: Sequence[Fold] = ()

    @property
    def study_url(self) -> str | None:
        """The URL of the study's folder, where it lies behind one."""
        return None if self.config.runs_url is None else join(self.config.runs_url, self.folder.parent.name)

    @property
    def url(self) -> str | None:
        """The URL of all trials' folders, where they lie behind one."""
        return None if self.study_url is None else join(self.study_url, self.folder.name)

    @property
    def first_stages(self) -> Path:
        """The folder of first stages that trainings share: of the study, or of the machine where no folder is everyone's."""
        study = self.folder.parent if self.study_url is None else cache_folder(self.study_url)
        return first_stages_folder(study)

    @property
    def own(self) -> Fold:
        """What trainings read that are validated on the validation split."""
        return Fold(self.data, self.teacher_keys, self.teacher_folders, self.hidden, self.tokens)


def trial_config(
    config: RunConfig, folder: Path, number: int, values: Values, seed: int | None = None
) -> RunConfig:
    """The config of trial `number`: `values` in their places, the searched student alone, no baseline. seed: None: the
    config's."""
    student = student_of(config)
    changed = with_values(config, values)
    return changed.model_copy(
        update={
            "name": trial_name(number),
            "runs_dir": str(folder),
            "students": {student: changed.students[student]},
            "baselines": (),
            "tune": None,
            "seed": config.seed if seed is None else seed,
        }
    )


def trial_job(config: RunConfig) -> Job:
    """The training job of every trial of a study."""
    return Job(student_of(config), "distilled")


def run_trial(point: Mapping[str, Any], *, shared: Shared) -> None:
    """Ray Tune's trainable: trains `point`, `{"number": n, "values": {path: value}}`, with a `seed` of its own or the
    config's, from its folder's last checkpoint.

    One worker trains in this process, several in a Ray Train group of their own, by the same loop. Raises what training
    raises. In a population, `takeovers` of the point counts how often it took over another trial's weights and values.
    """
    given = trial_config(shared.config, shared.folder, point["number"], point["values"], point.get("seed"))
    url = None if shared.url is None else join(shared.url, given.name)
    behind = None if url is None else Behind(url, url)
    with worked_on(behind, given.run_dir, stop_file(given.run_dir), of_trial) as (own, _):
        if behind is not None:
            remove_unsent(own)
        _run_trial(point, given.model_copy(update={"runs_dir": str(own.parent)}), shared)


def _run_trial(point: Mapping[str, Any], config: RunConfig, shared: Shared) -> None:
    """As `run_trial`. config: the trial's, whose folder is one that this process works in."""
    if stop_file(config.run_dir).exists():
        return
    job = trial_job(shared.config)
    try:
        if shared.folds:
            _run_folds(config, job, shared)
            return
        folder = job_folder(config.run_dir, job)
        _take_over(folder, point.get("takeovers", 0))
        mutable = shared.config.tune is not None and shared.config.tune.scheduler == "pbt"
        _train(config, shared.own, shared, partial(report_to_tune, folder if mutable else None))
    finally:
        KEPT.drop_unused()


def _run_folds(config: RunConfig, job: Job, shared: Shared) -> None:
    """Trains once for each fold, reports the mean after each, and writes the trial's result before the last report."""
    finished = list[Path]()
    for number, fold in enumerate(shared.folds, 1):
        if stop_file(config.run_dir).exists():
            return
        own = config.model_copy(update={"name": fold_name(number), "runs_dir": str(config.run_dir)})
        _train(own, fold, shared, None, stop=stop_file(config.run_dir))
        if not is_finished(own.run_dir, job):  # it was asked to stop
            return
        finished.append(job_folder(own.run_dir, job))
        remove_checkpoints(finished[-1])  # no run trains on a fold
        if number == len(shared.folds):
            write_pooled(job_folder(config.run_dir, job), finished)
        epochs = sum(len(read_facts(folder)["epoch_seconds"]) for folder in finished)
        ray.tune.report({"epoch": epochs, FOLD: number, **mean_scores(finished)})


def _train(
    config: RunConfig, reads: Fold, shared: Shared, report: Report | None, stop: Path | None = None
) -> None:
    """Trains one student. report: to Tune, after every epoch, or None · stop: the stop file, by default the run's own."""
    plan = new_plan(
        config,
        shared.facts,
        reads.data,
        reads.teacher_keys,
        reads.teacher_folders,
        reads.hidden,
        reads.tokens,
    )
    plan = replace(
        plan,
        cpus=shared.cpus,
        trial=True,
        first_stages=shared.first_stages,
        stop=stop or plan.stop,
    )
    if config.train.workers > 1 and report is None:
        run_worker_group(plan)
        return
    if config.train.workers > 1:
        run_worker_group(plan, report=report_to_train, callbacks=[TuneReportCallback()])
        return
    torch.set_num_threads(max(1, int(plan.cpus)))
    device = torch.device("cuda" if config.train.gpus_per_worker else "cpu")
    train_jobs(plan, Workers(device=device), report or (lambda epochs, scores: None), KEPT)


def report_to_tune(folder: Path | None, epochs: int, scores: Mapping[str, float]) -> None:
    """Reports an epoch to Tune; with `folder`, also its newest checkpoint, which other trials may take over."""
    result = {"epoch": epochs, **scores}
    if folder is None:
        ray.tune.report(result)
        return
    newest = newest_checkpoint(folder)
    assert newest is not None, "an epoch is reported after its checkpoint"
    ray.tune.report(result, checkpoint=ray.tune.Checkpoint.from_directory(str(newest)))


def report_to_train(epochs: int, scores: Mapping[str, float]) -> None:
    """Reports an epoch to the worker group's controller, which reports it to Tune. Called on every worker."""
    ray.train.report({"epoch": epochs, **scores})


def _take_over(folder: Path, takeovers: int) -> None:
    """Replaces this trial's checkpoint by another trial's, where population-based training has decided so since the
    trial last started. Otherwise Tune offers a copy of this trial's own checkpoint, which may be older than that in
    `folder` and is ignored."""
    folder.mkdir(parents=True, exist_ok=True)
    file, checkpoint = folder / TAKEOVERS, ray.tune.get_checkpoint()
    last = json.loads(file.read_text()) if file.exists() else 0
    if takeovers != last and checkpoint is not None:
        with checkpoint.as_directory() as source:
            adopt_checkpoint(Path(source), folder)
    write_atomically(file, json.dumps(takeovers))


def curve(folder: Path) -> list[dict[str, Any]]:
    """A trial's validation lines of metrics.jsonl, one an epoch. folder: of its training."""
    return [point for point in read_metrics(folder / METRICS) if "macro/score" in point["metrics"]]
