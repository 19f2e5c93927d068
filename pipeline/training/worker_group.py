"""The Ray Train group that runs the trainings of `pipeline.training.jobs`.

There is one group for all of them because starting a group costs as much as a small student's epoch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipeline import errors
from pipeline.config.schema import TrainConfig
from pipeline.files import write_atomically
from pipeline.run_folder import failure_file, ray_folder
from pipeline.shared_runs import of_worker, worked_on
from pipeline.synced import UrlFolder
from pipeline.training.checkpoint import remove_unsent
from pipeline.training.jobs import train_jobs
from pipeline.training.loop import Report
from pipeline.training.plan import Plan
from pipeline.training.step import Workers


def run_worker(payload: dict[str, Any]) -> None:
    """Ray Train's per-worker function: joins the group and runs the jobs.

    A `TutelageError` is written to a file for the driver instead of raised: Ray Train would restart the group, which
    would fail in the same way.
    """
    import ray
    import ray.train
    import ray.train.torch

    plan: Plan = ray.get(payload["plan"][0])
    report: Report | None = payload["report"]
    context = ray.train.get_context()
    torch.set_num_threads(plan.threads or max(1, int(plan.cpus)))
    workers = Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    wanted = of_worker(workers.rank)
    with worked_on(plan.urls, plan.run_dir, plan.stop, wanted) as (run_dir, stop):
        failure = failure_file(run_dir, plan.launch_id)
        if failure.exists():
            return
        if plan.urls is not None:
            remove_unsent(run_dir)
        host = None
        if plan.live is not None:
            from pipeline.training.live_actor import remote_teacher

            host = partial(remote_teacher, plan, payload["plan"][0])
        try:
            own = replace(plan, run_dir=run_dir, stop=stop)
            train_jobs(own, workers, report or (lambda epochs, scores: None), host=host)
        except errors.TutelageError as error:
            write_atomically(failure, json.dumps([type(error).__name__, error.cause, error.remedy]))
            if workers.world > 1:
                raise  # the others may be waiting for this one


def worker_resources(plan: Plan) -> dict[str, float]:
    """The resources of one worker, by Ray's names."""
    train = plan.group
    return {"CPU": plan.cpus, "GPU": train.gpus_per_worker, **train.resources_per_worker}


def run_worker_group(
    plan: Plan,
    *,
    report: Report | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Trains all jobs in a Ray Train worker group; blocks. Raises a worker's error, or `ExhaustedError`.

    report: see `pipeline.training.loop.Trainer`; called on every worker · callbacks: Ray Train's.
    """
    import ray
    import ray.train
    from ray.train.v2.api.config import FailureConfig  # what ray.train.FailureConfig is, for type checkers

    train = plan.group
    storage, filesystem = _storage(plan)
    trainer = _trainer(
        train,
        train_loop_config={"plan": [ray.put(plan)], "report": report},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in worker_resources(plan).items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=plan.launch_id,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=2),
            callbacks=list(callbacks),
        ),
    )
    reported = None
    try:
        trainer.fit()
        reported = _failure(plan)
    except ray.train.TrainingFailedError as error:
        if (reported := _failure(plan)) is None:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise errors.ExhaustedError(
                f"the students' training failed: {lines[-1].strip()}",
                "Run the same command again to go on from the last checkpoint, with --debug for the whole traceback.",
            ) from error
    finally:
        if plan.urls is None:
            shutil.rmtree(ray_folder(plan.run_dir), ignore_errors=True)
        else:
            UrlFolder(plan.urls.run).delete_folder(ray_folder(plan.run_dir).name)
    if reported is not None:
        kind, cause, remedy = reported
        raise getattr(errors, kind)(cause, remedy)


def _trainer(train: TrainConfig, **settings: Any) -> Any:
    """Ray Train's trainer of `run_worker`. settings: the arguments that all of Ray Train's trainers take.

    A group of one worker has no process group: its store would listen on every interface, and Ray Train's controller would import
    torch for it, which takes seconds.
    """
    if train.workers == 1:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return DataParallelTrainer(run_worker, **settings)
    from ray.train.torch import TorchConfig, TorchTrainer

    backend = TorchConfig(backend="nccl" if train.gpus_per_worker >= 1 else "gloo")
    return TorchTrainer(run_worker, torch_config=backend, **settings)


def _storage(plan: Plan) -> tuple[str, Any]:
    """Path and pyarrow file system of Ray Train's own files; None for this machine's."""
    folder = ray_folder(plan.run_dir)
    return (str(folder), None) if plan.urls is None else UrlFolder(plan.urls.run).storage(folder.name)


def _failure(plan: Plan) -> list[str] | None:
    """Class, cause and remedy of the error that a worker has reported, or None; the file goes."""
    file = failure_file(plan.run_dir, plan.launch_id)
    if plan.urls is None:
        if not file.exists():
            return None
        text = file.read_text()
        file.unlink()
    else:
        run = UrlFolder(plan.urls.run)
        if not run.exists(file.name):
            return None
        text = run.read(file.name).decode()
        run.delete(file.name)
    reported: list[str] = json.loads(text)
    return reported
