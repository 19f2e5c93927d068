"""The round before a run, where the run is a later round: its students' folders, as models that write and predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.arithmetic import Dtype
from pipeline.cluster import cpus_per_worker
from pipeline.config.generation import GenerationConfig
from pipeline.config.rounds import SamplingConfig
from pipeline.config.schema import RunConfig, ServingConfig
from pipeline.errors import ConfigError
from pipeline.models import fingerprint
from pipeline.prepare import Inputs, served_dtype
from pipeline.run_folder import student_folder
from pipeline.shared_runs import model_source
from pipeline.tasks import Task
from pipeline.tasks.writing import writing_head
from pipeline.training.own import Before
from teachers.spec import TeacherSpec
from teachers.store import Store
from teachers.store_key import store_key

Folders = Mapping[str, Mapping[str, Path]]
"""A student's model of the round before, by student and task."""


def folders_before(config: RunConfig) -> dict[str, dict[str, Path]]:
    """The models of the students in the round before; none where the run is no later round.

    Raises `ConfigError` where one is missing.
    """
    if config.rounds is None or config.rounds.after is None:
        return {}
    run_dir = config.runs_path.absolute() / config.rounds.after
    folders = {
        name: {task: student_folder(run_dir, name, task) for task in config.tasks_of(name)}
        for name in config.students
    }
    for folder in (folder for own in folders.values() for folder in own.values()):
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"rounds.after: there is no student in {folder}",
                "Train the rounds by the config that has `rounds` without `after`: it makes each round after the one before.",
            )
    return folders


def fingerprints_before(folders: Folders) -> dict[str, str]:
    """Hashes of the models, as of `Inputs.fingerprints`."""
    return {
        f"rounds.after.{name}.{task}": fingerprint(folder)
        for name, own in folders.items()
        for task, folder in own.items()
    }


def own_specs(config: RunConfig, inputs: Inputs, folders: Folders) -> dict[str, dict[str, TeacherSpec]]:
    """The students of the round before as models that write for their tasks' train sources, or predict, by student and task."""
    rounds, store = config.rounds, Store(config.store_path)
    if rounds is None or not rounds.share:
        return {}
    train = config.train
    serving = ServingConfig(
        replicas=train.workers,
        cpus=cpus_per_worker(config),
        gpus=train.gpus_per_worker,
        resources=train.resources_per_worker,
        tokens_per_forward=train.tokens_per_forward,
    )

    def spec(name: str, task: Task, folder: Path) -> TeacherSpec:
        length = inputs.resolved.students[name].lengths[task.name]

        def key_of(dtype: Dtype) -> str:
            return store_key(folder, task, dtype, max_length=length)

        dtype = served_dtype(serving, task.kind.continuous, lambda dtype: store.holds(key_of(dtype)))
        return TeacherSpec(
            name=f"{name} on {task.name}",
            model=str(folder),
            revision=None,
            task=task,
            serving=serving,
            key=key_of(dtype),
            dtype=dtype,
            max_length=length,
            source=model_source(config, folder),
        )

    return {
        name: {
            task: spec(name, sampled_task(inputs.data[task].task, rounds.sampling), folder)
            for task, folder in own.items()
        }
        for name, own in folders.items()
    }


def sampled_task(task: Task, sampling: SamplingConfig) -> Task:
    """The task as its student writes in a round, with nothing of `generation` but the language; of a kind that does not write unchanged."""
    if not task.kind.writes:
        return task
    head = writing_head(task)
    length = min(sampling.max_new_tokens or head.target_length, head.target_length)
    drawn = head.of_model(
        None, GenerationConfig(temperature=sampling.temperature, language=head.generation.language)
    )
    return replace(task, head=replace(drawn, target_length=length))


def students_before(
    config: RunConfig, inputs: Inputs, folders: Folders, specs: Mapping[str, Mapping[str, TeacherSpec]]
) -> dict[str, Before]:
    """What each student takes from itself in the round before: see `rounds.warm_start` and `rounds.share`."""
    if config.rounds is None:
        return {}
    before = {}
    for name, own in folders.items():
        # a model that writes has the decoder as well
        tasks = sorted(own, key=lambda task: not inputs.data[task].task.kind.writes)
        writes = inputs.data[tasks[0]].task.kind.writes
        goes_on = writes if config.rounds.warm_start is None else config.rounds.warm_start
        starts = {task: model_source(config, own[task]) or str(own[task]) for task in tasks if goes_on}
        keys = {task: spec.key for task, spec in specs.get(name, {}).items()}
        before[name] = Before(starts, config.rounds.share, keys)
    return before
