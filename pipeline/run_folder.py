"""A run's folder: the paths in it, its lock, and the check that refuses another config or other data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config.load import load_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.config.view import differences, to_yaml
from pipeline.errors import ConfigError, LockedError
from pipeline.files import read_object, write_atomically

CONFIG, INPUTS = "config.yaml", "inputs.json"
DERIVED = "derived"
"""The key of inputs.json with the derived values."""
REPORT, REPORT_PAGE = "report.json", "report.md"
GROUP, GROUP_PAGE = "group.json", "group.md"
ROUNDS, ROUNDS_PAGE = "rounds.json", "rounds.md"
STUDY, STUDY_PAGE, BEST_CONFIG = "study.json", "study.md", "best.yaml"
FIGURES = "figures"
TRIAL = "trial.json"
TIMINGS = "timings.json"
CHECKPOINTS, STUDENTS, TEACHERS = "checkpoints", "students", "teachers"
RESULT = "result.json"
LEDGER = "mlflow.json"
RAY = "ray"
FAILURE = "failure-"
"""First part of the name of a file in which a worker reports an error to the driver."""


def job_folder(run_dir: Path, job: Job) -> Path:
    """The folder of a training's checkpoints, metrics.jsonl and result."""
    return run_dir / CHECKPOINTS / job.name


def student_folder(run_dir: Path, student: str, task: str) -> Path:
    """The exported Hugging Face folder of one of a student's tasks."""
    return run_dir / STUDENTS / student / task


def live_teacher_folder(run_dir: Path, teacher: str) -> Path:
    """The folder of a teacher that the run has trained on, in the layout of a fine-tuned teacher's."""
    return run_dir / TEACHERS / teacher


def trials_folder(run_dir: Path) -> Path:
    """The folder with the run folders of a search's trials."""
    return run_dir / "trials"


def finals_folder(run_dir: Path) -> Path:
    """The folder of a study's finals: trainings of its best few trials and of its default under every seed."""
    return run_dir / "finals"


def first_stages_folder(run_dir: Path) -> Path:
    """The folder of the first stages that a study's trainings share."""
    return run_dir / "first-stages"


def stop_file(run_dir: Path) -> Path:
    """Path of the stop file: while it exists, trainings write a checkpoint and end."""
    return run_dir / "STOP"


def ray_folder(run_dir: Path) -> Path:
    """The folder of Ray's own files while it trains or searches."""
    return run_dir / RAY


def failure_file(run_dir: Path, launch_id: str) -> Path:
    """The file in which a worker of a launch reports an error to the driver."""
    return run_dir / f"{FAILURE}{launch_id}.json"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run folder for this process. Raises `LockedError` if another launch has it.

    The lock is the operating system's and ends with its process, so a dead launch leaves none behind.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, for instance
        raise ConfigError(
            f"{run_dir} cannot be made: {error.strerror}", "Give another folder: runs_dir."
        ) from None
    try:
        held = FileLock(run_dir / ".lock").acquire(timeout=0)
    except Timeout:
        raise LockedError(
            f"another launch is using {run_dir}",
            "Wait for it or stop it, or give this run another name: name=…",
        ) from None
    with held:
        yield


def refuse_changes(
    config: RunConfig,
    fingerprints: Mapping[str, str] | None = None,
    derived: Mapping[str, float] | None = None,
) -> None:
    """Raises `ConfigError` where the folder was begun with another config, with other content of what it names, or by
    a version that derives other values for the keys that the config leaves out.

    fingerprints: hash of the content by config key (``tasks.movies.data``); None: the config alone is compared ·
    derived: value by dotted path.
    """
    settings, contents = config.run_dir / CONFIG, config.run_dir / INPUTS
    if settings.exists():
        _refuse(config, differences(load_config(settings), config))
    if fingerprints is not None and contents.exists():
        before = read_object(
            contents, f"Remove {contents} if data and models are what the run was begun with."
        )
        changed = [key for key, value in fingerprints.items() if before.get(key, value) != value]
        _refuse(config, [f"{key}: its content has changed" for key in changed])
        old = before.get(DERIVED, {})
        _refuse(
            config,
            [
                f"{key}: {old[key]:g} → {value:g}, as this version derives it"
                for key, value in (derived or {}).items()
                if old.get(key, value) != value
            ],
            "go on with the version that began it",
        )


def write_settings(
    config: RunConfig,
    fingerprints: Mapping[str, str] | None = None,
    derived: Mapping[str, float] | None = None,
) -> None:
    """Writes the config, the fingerprints and the derived values with which `refuse_changes` compares."""
    write_atomically(config.run_dir / CONFIG, to_yaml(config))
    if fingerprints is not None:
        contents = {**fingerprints, DERIVED: dict(derived or {})}
        write_atomically(config.run_dir / INPUTS, json.dumps(contents, indent=1))


def _refuse(config: RunConfig, changed: Sequence[str], way: str = "put it back as it was") -> None:
    if not changed:
        return
    more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
    parts = "-round…" if config.in_rounds else "-seed…" if config.seeds else ""
    folders = f"{config.run_dir} and {config.run_dir}{parts}" if parts else str(config.run_dir)
    raise ConfigError(
        f"{config.run_dir} was begun with something else: {'; '.join(changed[:3])}{more}",
        f"Give this one another name (name=…), {way}, or remove {folders}.",
    )
