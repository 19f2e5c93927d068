"""A teacher as whoever hosts it needs it, by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.schema import ServingConfig
from pipeline.tasks import Task


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher as its actors need it: where its model is, its task, how it is hosted, its name in the store; its
    own max_length and label mapping, if any."""

    name: str
    model: str
    revision: str | None
    task: Task
    serving: ServingConfig
    key: str
    max_length: int | None = None
    labels: Mapping[str, str | None] | None = None


def requested(serving: ServingConfig) -> dict[str, float]:
    """What one replica asks of the cluster, in Ray's resource names."""
    return {"CPU": serving.cpus, "GPU": serving.gpus, **serving.resources}
