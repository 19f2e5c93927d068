"""Base model → teacher: a student of one task that learns from labels alone, by the same loop.

The result is a plain Hugging Face folder, named by the content of everything that made it, so that no
fine-tuning is ever repeated.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config.recipe import TeacherRecipe
from pipeline.config.schema import ServingConfig
from pipeline.curve import Curve
from pipeline.data.splits import TaskData
from pipeline.errors import CorruptError, ExhaustedError, LockedError, TutelageError
from pipeline.files import read_object, write_atomically
from pipeline.memory import trim_memory
from pipeline.models import fingerprint, resolve
from pipeline.places import PATIENCE, Patience, Place, run_placed
from pipeline.shared_runs import Behind, to_stop, worked_on
from pipeline.synced import leased
from pipeline.tasks import Task
from pipeline.training.checkpoint import remove_unsent
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import Progress, StopWatch, Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Workers
from pipeline.training.tokenizer import trained_tokenizer
from students.adapters import merge_adapters
from students.export import save_task
from students.student import build_student
from teachers.spec import requested

logger = logging.getLogger(__name__)
RECIPE = 2  # raise when the same inputs would give another teacher
FREE = {"checkpoint_steps"}
STOP_WAIT_S = 30.0  # for a step and its checkpoint; a task that takes longer ends with its driver
TEACHER = "teacher"
ASIDE = "teacher.corrupt"
FACTS = "fine_tune.json"
WORK = "work"


def teacher_folder(
    root: Path,
    name: str,
    base: Path,
    data: TaskData,
    config: TeacherRecipe,
    max_length: int | None = None,
) -> Path:
    """The folder of the teacher that `config` makes of `base` on `data`: `root`/<name>-<hash of all three>."""
    settings = config.model_dump(mode="json", exclude=FREE, exclude_none=True)
    facts = [
        RECIPE,
        fingerprint(base),
        settings,
        list(data.task.reading.labels),
        max_length or data.task.head.max_length,
        data.task.scoring.metric,
    ]
    if data.task.head.decoding:
        facts.append(dict(data.task.head.decoding))
    digest = blake2b(json.dumps(facts).encode(), digest_size=8)
    for examples in (data.without_variants().labelled_train(), data.splits["validation"]):
        digest.update(examples.keys.tobytes() + examples.labels.values.tobytes())
    return root / f"{name}-{digest.hexdigest()}"


def is_finished(folder: Path) -> bool:
    """Whether the folder has a complete teacher whose files match the fingerprint in `FACTS`, the file written last.

    Logs one warning for a damaged teacher; `fine_tune` makes it again.
    """
    if not (folder / FACTS).is_file():
        return False
    try:
        facts = read_object(folder / FACTS, "It is made anew.")
    except CorruptError as error:
        _warn_damaged(error.cause)
        return False
    # a teacher of an earlier version has no fingerprint
    whole = (folder / TEACHER).is_dir() and facts.get("fingerprint") in (None, fingerprint(folder / TEACHER))
    if not whole:
        _warn_damaged(f"{folder / TEACHER}: a file is missing or its checksum does not match")
    return whole


@cache  # `is_finished` is called twice a second: one warning is enough
def _warn_damaged(cause: str) -> None:
    logger.warning("%s; the teacher is set aside as %s and made anew", cause, ASIDE)


def _set_aside(folder: Path) -> None:
    """Renames a damaged teacher instead of deleting it: a user may have changed it on purpose."""
    if (folder / FACTS).exists():
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
        if (folder / TEACHER).exists():
            (folder / TEACHER).rename(folder / ASIDE)
        (folder / FACTS).unlink()


def read_curve(folder: Path) -> Curve:
    """The validation curve of the fine-tuning in `folder`; it stays when the teacher is reused."""
    return Curve.of(read_metrics(folder / WORK / METRICS))


def fine_tune(
    base: Path,
    data: TaskData,
    config: TeacherRecipe,
    folder: Path,
    workers: Workers | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    max_length: int | None = None,
) -> Progress:
    """Trains `base` on the task's labelled texts, without their variants, selects on validation, writes `folder`/teacher.

    Renames a damaged teacher in `folder`. Resumes from its own checkpoints in `folder`/work. Returns with status
    "interrupted" once `should_stop` returns true.
    """
    _set_aside(folder)
    tokenizer = trained_tokenizer(base, [data.task])
    task_set = TaskSet.of(data.without_variants(), tokenizer, max_length)
    student = build_student(base, [task_set.task], dropout=config.dropout, seed=config.seed, lora=config.lora)
    feed = Feed([task_set], config.batch_size, config.tokens_per_forward, seed=config.seed, workers=workers)
    progress = Trainer(
        student, feed, config, one_stage(config, LossPlan()), folder / WORK, should_stop=should_stop
    ).fit()
    if progress.status != "interrupted":
        if config.lora is not None:
            merge_adapters(student.encoder)
        save_task(student, task_set.task.name, tokenizer, folder / TEACHER)
        facts = {
            "validation_score": progress.best_score,
            "steps": progress.step,
            "truncated": task_set.train.truncated,
            "fingerprint": fingerprint(folder / TEACHER),
        }
        write_atomically(
            folder / FACTS,
            json.dumps({**facts, "config": config.model_dump(mode="json")}, indent=1),
        )
        for checkpoint in (folder / WORK).glob(
            "step-*"
        ):  # metrics.jsonl stays: the tracker may still read it
            shutil.rmtree(checkpoint)
    return progress


# ---------------------------------------------------------------- on Ray


@dataclass(frozen=True)
class Request:
    """One teacher to make. task: as it has it · urls: of its folder, where that is behind a URL."""

    name: str
    model: str
    revision: str | None
    folder: Path
    config: TeacherRecipe
    serving: ServingConfig
    task: Task
    max_length: int | None = None
    urls: Behind | None = None


def fine_tune_all(
    requests: Sequence[Request],
    data: Mapping[str, TaskData],
    stop: Path,
    on_poll: Callable[[Request], None] = lambda request: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
) -> None:
    """Runs one Ray task per request with its teacher's resources, in parallel where the cluster has room; blocks.

    stop: while this file exists, each task writes a checkpoint and ends · on_poll: called about twice a second for
    each request that waits or runs. A task whose worker dies starts again from its checkpoint. Raises the first task's
    `TutelageError`, or an `ExhaustedError` that names the teacher; before that it creates `stop` and waits for the
    other tasks.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    refs = {name: ray.put(task_data.without_variants()) for name, task_data in data.items()}
    by_name = {f"fine-tuning {request.name}": request for request in requests}
    left, running = dict(by_name), dict[str, tuple[ray.ObjectRef[None], Place]]()
    progress = _Progress()

    def start(name: str, place: Place) -> ray.ObjectRef[None]:
        request = by_name[name]
        remote = ray.remote(_fine_tune_task).options(**place.options, max_retries=request.serving.restarts)
        ref = remote.remote(request, refs[request.task.name], stop)
        running[name] = (ref, place)
        return ref

    def poll(seconds: Mapping[str, float]) -> None:
        for request in left.values():
            on_poll(request)
        if not should_stop():
            progress.check({name: by_name[name] for name in seconds})

    needs = {name: requested(one.serving) for name, one in by_name.items()}
    tasks = run_placed(needs, start, patience, poll, should_stop)
    name = ""
    try:
        for name, ref in tasks:
            del left[name], running[name]
            ray.get(ref, timeout=by_name[name].serving.timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, TutelageError):
            raise error.cause from None
        raise ExhaustedError(f"{name} failed: {error.cause}", "Run again with --debug.") from error
    except RayError as error:
        raise ExhaustedError(
            f"{name}: its worker died: {str(error).splitlines()[0]}",
            "See the node's memory; the same command goes on from its checkpoint.",
        ) from error
    finally:
        tasks.close()  # type: ignore[attr-defined]
        if running:  # Ray 2.60 aborts the driver when it cancels a task that just ends
            stop.touch()
            ray.wait([ref for ref, _ in running.values()], num_returns=len(running), timeout=STOP_WAIT_S)
            for _, place in running.values():
                place.release()


class _Progress:
    """Ends a wait for fine-tunings of which none begins, ends or writes metrics."""

    def __init__(self) -> None:
        self._state: object = None
        self._since = time.monotonic()

    def check(self, running: Mapping[str, Request]) -> None:
        files = {name: request.folder / WORK / METRICS for name, request in running.items()}
        state = {name: file.stat().st_mtime if file.exists() else 0.0 for name, file in files.items()}
        limit = max((request.serving.timeout_s for request in running.values()), default=0.0)
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        elif running and time.monotonic() - self._since > limit:
            raise ExhaustedError(
                f"{', '.join(running)}: nothing moved for {limit:g} s",
                "See the nodes' load, or raise timeout_s in the teacher's serving section; the same command goes on from its checkpoint.",
            )


def _fine_tune_task(request: Request, data: TaskData, stop: Path) -> None:
    import ray
    import torch

    torch.set_num_threads(max(1, int(request.serving.cpus)))
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    while True:  # another run may be making the same teacher
        try:
            with _alone_at(request), worked_on(request.urls, request.folder, stop) as (folder, own_stop):
                if request.urls is not None:
                    remove_unsent(folder)
                if not is_finished(folder):
                    base = resolve(request.model, request.revision, f"teachers.{request.name}")
                    workers = Workers(device=device)
                    fine_tune(
                        base,
                        replace(data, task=request.task),
                        request.config,
                        folder,
                        workers,
                        StopWatch(own_stop),
                        max_length=request.max_length,
                    )
                    trim_memory()  # of the optimiser's state: Ray keeps the process for a while
                return
        except (Timeout, LockedError):
            if to_stop(request.urls, stop):
                return


def _alone_at(request: Request) -> AbstractContextManager[object]:
    """Holds the teacher's folder for this process. Raises `Timeout` or `LockedError` after a while."""
    if request.urls is not None:
        return leased(request.urls.folder)
    request.folder.mkdir(parents=True, exist_ok=True)
    return FileLock(request.folder / ".lock").acquire(timeout=1)
