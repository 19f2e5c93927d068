"""What the actors and tasks that host a teacher need of it, by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.arithmetic import Dtype
from pipeline.config.generation import TokenTargetsConfig
from pipeline.config.schema import ServingConfig
from pipeline.soft import Layer
from pipeline.tasks import Task
from pipeline.tasks.pairs import FORCED_FIELDS


@dataclass(frozen=True)
class HiddenTargets:
    """A teacher's hidden targets. key: their name in the store · layer: whose vectors they are."""

    key: str
    layer: Layer


@dataclass(frozen=True)
class TokenTargets:
    """A teacher's distributions along given texts. key: their name in the store · form: what is stored of each · frames: whether it labels frames, so that they
    are of recordings alone."""

    key: str
    form: TokenTargetsConfig
    frames: bool = False


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher.

    name: in the config · model, revision: a folder, a URL or a hub id · source: where the nodes of a cluster find the model, None: by `model` · serving: how it is hosted · key: its name in the
    store · dtype: the arithmetic of its forward · max_length: tokens a sequence, None for the task's · labels: its label mapping, if the config has one · hidden: its
    hidden targets, None where no student learns from them · tokens: its token targets, likewise · forced: whether it does not
    write, but is forced along the texts that it is given, so that `key` is that of its token targets.
    """

    name: str
    model: str
    revision: str | None
    task: Task
    serving: ServingConfig
    key: str
    dtype: Dtype = "fp32"
    max_length: int | None = None
    labels: Mapping[str, str | None] | None = None
    hidden: HiddenTargets | None = None
    tokens: TokenTargets | None = None
    forced: bool = False
    source: str | None = None

    @property
    def opened(self) -> str:
        """What a process on any node opens."""
        return self.source or self.model

    @property
    def fields(self) -> tuple[str, ...]:
        """The inputs of an example that it reads."""
        return FORCED_FIELDS if self.forced else self.task.reading.fields

    def along_texts(self) -> TeacherSpec:
        """The same teacher, to be forced along texts. Raises ValueError where no student learns from token targets."""
        if self.tokens is None:
            raise ValueError(f"{self.name} has no token targets")
        return replace(self, key=self.tokens.key, hidden=None, forced=True)


def requested(serving: ServingConfig) -> dict[str, float]:
    """The resources of one replica, by Ray's names."""
    return {"CPU": serving.cpus, "GPU": serving.gpus, **serving.resources}
