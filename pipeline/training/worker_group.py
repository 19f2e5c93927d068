"""The Ray Train group that runs the trainings of `pipeline.training.jobs`.

There is one group for all of them because starting a group costs as much as a small student's epoch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import errors
from pipeline.files import write_atomically
from pipeline.run_folder import ray_folder
from pipeline.training.jobs import Plan, train_jobs
from pipeline.training.loop import Report
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
    failure = _failure_file(plan.run_dir, plan.launch_id)
    if failure.exists():
        return
    torch.set_num_threads(plan.threads or max(1, int(plan.cpus)))
    workers = Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    try:
        train_jobs(plan, workers, report or (lambda epochs, scores: None))
    except errors.TutelageError as error:
        write_atomically(failure, json.dumps([type(error).__name__, error.cause, error.remedy]))
        if workers.world > 1:
            raise  # the others may be waiting for this one


def _alone() -> Any:
    """Torch settings of a group of one worker: no process group, since its store would listen on every interface."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class Alone(TorchConfig):
        backend_cls = Backend

    return Alone()


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
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig  # what ray.train.FailureConfig is, for type checkers

    train, failure = plan.group, _failure_file(plan.run_dir, plan.launch_id)
    if train.workers == 1:
        torch_config: TorchConfig = _alone()
    else:
        torch_config = TorchConfig(backend="nccl" if train.gpus_per_worker >= 1 else "gloo")
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"plan": [ray.put(plan)], "report": report},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in worker_resources(plan).items() if amount},
        ),
        torch_config=torch_config,
        run_config=ray.train.RunConfig(
            name=plan.launch_id,
            storage_path=str(ray_folder(plan.run_dir)),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=2),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if not failure.exists():
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise errors.ExhaustedError(
                f"the student workers failed {train.max_failures + 1} times: {lines[-1].strip()}",
                "Run the same command again to go on from the last checkpoint, with --debug for the whole traceback.",
            ) from error
    finally:
        shutil.rmtree(ray_folder(plan.run_dir), ignore_errors=True)
    if failure.exists():
        kind, cause, remedy = json.loads(failure.read_text())
        failure.unlink()
        raise getattr(errors, kind)(cause, remedy)


def _failure_file(run_dir: Path, launch_id: str) -> Path:
    return run_dir / f".failure-{launch_id}.json"
