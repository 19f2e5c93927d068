"""TeacherActor: a thin Ray shell over `Teacher`. All logic is in teachers.teacher, where tests reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from pipeline.config import ServingConfig
from pipeline.models import resolve
from pipeline.tasks import Task
from teachers.teacher import Teacher


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher as its actors need it: where its model is, its task, how it is hosted, its name in the store."""

    name: str
    model: str
    revision: str | None
    task: Task
    serving: ServingConfig
    key: str


class TeacherActor:
    """Hosts one replica of one teacher."""

    def __init__(self, spec: TeacherSpec) -> None:
        torch.set_num_threads(max(1, int(spec.serving.cpus)))
        self._teacher = Teacher(
            resolve(spec.model, spec.revision, f"teachers.{spec.name}"),
            spec.task,
            dtype=spec.serving.dtype,
            tokens_per_batch=spec.serving.tokens_per_batch,
            device="cuda" if ray.get_gpu_ids() else "cpu",
        )

    def ready(self) -> int:
        """Process id, once the model is loaded."""
        return os.getpid()

    def label(self, inputs: Mapping[str, Sequence[str]]) -> tuple[NDArray[np.float32], int]:
        """See `Teacher.label`."""
        return self._teacher.label(inputs)


def requested(serving: ServingConfig) -> dict[str, float]:
    """What one replica asks of the cluster, in Ray's resource names."""
    return {"CPU": serving.cpus, "GPU": serving.gpus, **serving.resources}


def start(spec: TeacherSpec) -> ActorHandle[Any]:
    """A new replica; restarts are the pool's business, so that a hang and a death are handled alike."""
    options = {
        "num_cpus": spec.serving.cpus,
        "num_gpus": spec.serving.gpus,
        "resources": spec.serving.resources,
    }
    actor: Any = ray.remote(TeacherActor)
    replica: ActorHandle[Any] = actor.options(**options, max_restarts=0, max_task_retries=0).remote(spec)
    return replica
