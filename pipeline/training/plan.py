"""What a worker group is given: the plan of a run's trainings. No config in it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from pipeline.cluster import cpus_per_worker
from pipeline.config.recipe import Facts
from pipeline.config.resolved import (
    Job,
    StudentSettings,
    StudentStart,
    TaskAggregation,
    jobs_of,
    resolve_config,
    transfer_limits,
    with_absolute_paths,
)
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.data.splits import TaskData
from pipeline.models import resolve
from pipeline.run_folder import stop_file
from pipeline.shared_runs import Behind, behind, model_source
from pipeline.training.live_teacher import LivePlan
from pipeline.training.own import Before
from teachers.spec import HiddenTargets, TeacherSpec, TokenTargets


@dataclass(frozen=True)
class Plan:
    """Everything that the worker group needs, by value; its paths are absolute.

    store: folder or URL · teacher_keys: name in the store by teacher · teacher_folders: model folder by teacher, for
    `init_from` · launch_id: identifies this start of the worker group · group: the run's `train`, with the number of
    workers and their resources · cpus: CPUs per worker · stop: while this file exists, trainings write a checkpoint
    and end · hidden: each teacher's hidden targets, by teacher, where a student learns from them · tokens: their token targets, likewise · trial: true for a trial
    of a search, which is scored on validation only: it makes no test predictions, exports no student, and reports its
    epochs to the search · threads: threads per worker; None: one per CPU · first_stages: as of
    `pipeline.training.loop.Trainer` · urls: of the run's folder, where that is behind a URL: each worker then has paths of its own ·
    before: each student in the round before, where there is one · live: the teachers that are trained on, None without.
    """

    run_dir: Path
    jobs: Sequence[Job]
    seed: int
    students: Mapping[str, StudentSettings]
    aggregations: Mapping[str, TaskAggregation]
    data: Mapping[str, TaskData]
    store: str
    teacher_keys: Mapping[str, str]
    teacher_folders: Mapping[str, str]
    launch_id: str
    group: TrainConfig
    cpus: float
    stop: Path
    hidden: Mapping[str, HiddenTargets] = field(default_factory=dict)
    tokens: Mapping[str, TokenTargets] = field(default_factory=dict)
    trial: bool = False
    threads: int | None = None
    first_stages: Path | None = None
    urls: Behind | None = None
    before: Mapping[str, Before] = field(default_factory=dict)
    live: LivePlan | None = None


def start_folder(settings: StudentStart, teacher_folders: Mapping[str, str | Path]) -> Path:
    """The folder of the model that a student starts from."""
    if settings.init_from is not None:
        return resolve(str(teacher_folders[settings.init_from]), None, f"students.{settings.name}")
    assert settings.model is not None, "the config has checked it"
    return resolve(settings.model, settings.revision, f"students.{settings.name}")


def new_plan(
    config: RunConfig,
    facts: Facts,
    data: Mapping[str, TaskData],
    teacher_keys: Mapping[str, str],
    teacher_folders: Mapping[str, str],
    hidden: Mapping[str, HiddenTargets] = MappingProxyType({}),
    tokens: Mapping[str, TokenTargets] = MappingProxyType({}),
    before: Mapping[str, Before] = MappingProxyType({}),
    live: Mapping[str, TeacherSpec] = MappingProxyType({}),
) -> Plan:
    """A plan for one launch of the worker group.

    live: the teachers that are trained on · facts: what the values are derived from that the config leaves out · data: may have more texts of other tasks than the
    config takes, as the data that the trials of a search share.
    """
    resolved = resolve_config(with_absolute_paths(config), facts)
    run_dir = config.run_dir.absolute()
    limits = transfer_limits(config)
    students = {
        name: replace(own, model=own.model and (model_source(config, Path(own.model)) or own.model))
        for name, own in resolved.students.items()
    }
    return Plan(
        run_dir,
        jobs_of(config),
        config.seed,
        students,
        resolved.aggregations,
        {name: own.within(limits.get(name)) for name, own in data.items()},
        config.store_path,
        teacher_keys,
        teacher_folders,
        f"{config.name}-{uuid.uuid4().hex[:8]}",
        config.train,
        cpus_per_worker(config),
        stop_file(run_dir),
        dict(hidden),  # a proxy cannot be pickled
        dict(tokens),
        urls=behind(config, config.name),
        before=dict(before),
        live=None
        if resolved.co_training is None
        else LivePlan(
            resolved.co_training, dict(live), config.cluster.address is None, config.cluster.nodes_timeout_s
        ),
    )
