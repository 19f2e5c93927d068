"""TeacherActor: a thin Ray shell over `Predictor`, whose file has all of the logic, where tests reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from pipeline.models import resolve
from pipeline.places import Place
from pipeline.predictor import Labels, Predictor
from teachers.spec import TeacherSpec


class TeacherActor:
    """Hosts one replica of one teacher."""

    def __init__(self, spec: TeacherSpec) -> None:
        torch.set_num_threads(max(1, int(spec.serving.cpus)))
        self._form = spec.tokens.form if spec.forced and spec.tokens is not None else None
        self._teacher = Predictor(
            resolve(spec.opened, spec.revision, f"teachers.{spec.name}"),
            spec.task,
            dtype=spec.dtype,
            tokens_per_forward=spec.serving.tokens_per_forward,
            device="cuda" if ray.get_gpu_ids() else "cpu",
            max_length=spec.max_length,
            labels=spec.labels,
            where=f"teachers.{spec.name}",
            layer=None if spec.hidden is None else spec.hidden.layer,
        )

    def ready(self) -> int:
        """The actor's process id; answers once the model is loaded."""
        return os.getpid()

    def label(self, inputs: Mapping[str, Sequence[Any]]) -> Labels:
        """See `Predictor.label`, and `Predictor.force` for a teacher that is forced along texts."""
        if self._form is not None:
            return self._teacher.force(inputs, self._form)
        return self._teacher.label(inputs)


def start(spec: TeacherSpec, place: Place) -> ActorHandle[Any]:
    """A new replica in its place. Ray restarts none: the pool does, so that it handles a hanging replica and a dead one alike."""
    actor: Any = ray.remote(TeacherActor)
    replica: ActorHandle[Any] = actor.options(**place.options, max_restarts=0, max_task_retries=0).remote(
        spec
    )
    return replica
