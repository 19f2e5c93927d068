"""What the actors and tasks that host a teacher need of it, by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.schema import ServingConfig
from pipeline.soft import Layer
from pipeline.tasks import Task


@dataclass(frozen=True)
class HiddenTargets:
    """A teacher's hidden targets. key: their name in the store · layer: whose vectors they are."""

    key: str
    layer: Layer


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher.

    name: in the config · model, revision: a folder or a hub id · serving: how it is hosted · key: its name in the
    store · max_length: tokens a sequence, None for the task's · labels: its label mapping, if the config has one · hidden: its
    hidden targets, None where no student learns from them.
    """

    name: str
    model: str
    revision: str | None
    task: Task
    serving: ServingConfig
    key: str
    max_length: int | None = None
    labels: Mapping[str, str | None] | None = None
    hidden: HiddenTargets | None = None


def requested(serving: ServingConfig) -> dict[str, float]:
    """The resources of one replica, by Ray's names."""
    return {"CPU": serving.cpus, "GPU": serving.gpus, **serving.resources}
