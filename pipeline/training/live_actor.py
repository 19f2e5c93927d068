"""Teachers that are trained on, each in an actor of its own; the actor's logic is `LiveTeacher`.

The student's worker starts them and ends with them. A lost actor is replaced, without the student: the new one reads the teacher's latest
state and takes the batches since then again, so that nobody's weights depend on the loss.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from safetensors import SafetensorError

from pipeline.batch import Ragged
from pipeline.errors import ExhaustedError, TutelageError
from pipeline.places import POLL_S, Patience, Place, Wait
from pipeline.training.checkpoint import errno_of
from pipeline.training.live import Host, LiveTargets
from pipeline.training.live_teacher import LiveTeacher
from pipeline.training.plan import Plan
from teachers.spec import TeacherSpec, requested

Value = TypeVar("Value")


class LiveTeacherActor:
    """Hosts one teacher that is trained on. It is opened by the first call, whose error then says what is wrong with it."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan, self._name = plan, name
        self._teacher: LiveTeacher | None = None

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of `LiveTeacher`. Raises `ExhaustedError` where the disk is full."""
        try:
            self._teacher = self._teacher or self._opened()
            return getattr(self._teacher, method)(*arguments)
        except (OSError, SafetensorError) as error:
            if errno_of(error) not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ExhaustedError(
                f"the disk is full: {error}", "Free some space and run the same command again; it resumes."
            ) from None

    def _opened(self) -> LiveTeacher:
        live = self._plan.live
        assert live is not None, "its student is trained by this plan"
        spec = live.specs[self._name]
        torch.set_num_threads(max(1, int(spec.serving.cpus)))
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        return live.open(self._name, self._plan.data[spec.task.name], self._plan.seed, device)


@dataclass(eq=False)
class _Call(Generic[Value]):
    """A call of a teacher: a `pipeline.training.live.Reply`. done: whether its result has been taken."""

    host: RemoteTeacher
    method: str
    arguments: tuple[Any, ...]
    ref: Any = None
    done: bool = False

    def get(self) -> Value:
        """Waits for the result; a lost actor is replaced meanwhile."""
        value: Value = self.host.wait(self)
        self.done, self.ref = True, None  # a reference keeps the result in memory
        return value


class RemoteTeacher:
    """A `pipeline.training.live.Host`: one actor after another, each in a place of its own on the cluster.

    start: gives a new actor in a place (None where it asks for no resources) · request: the resources, by Ray's names. An actor that dies, or does not answer
    for `timeout_s`, is replaced, at most `serving.restarts` times.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        start: Callable[[Place | None], ActorHandle[Any]],
        request: dict[str, float],
        patience: Patience,
    ) -> None:
        self._spec, self._new, self._request, self._patience = spec, start, request, patience
        self._actor: ActorHandle[Any] | None = None
        self._place: Place | None = None
        self._begun: list[_Call[Any]] = []
        """The calls that bring a new actor to the latest saved state."""
        self._since: list[_Call[Any]] = []
        """The calls after it, in their order."""
        self._restarts = 0

    def begin(self, total_steps: int) -> None:
        """See `Host`."""
        self._start()
        self._begun = [self._send("begin", total_steps)]
        self._since = []

    def targets(self, rows: NDArray[np.int64]) -> _Call[LiveTargets]:
        """See `Host`."""
        return self._log(self._send("targets", rows))

    def learn(self, step: int, rows: NDArray[np.int64], predictions: Ragged | None) -> None:
        """See `Host`. What it raises, later calls raise as well."""
        self._log(self._send("learn", step, rows, predictions))

    def save(self, file: Path) -> _Call[None]:
        """See `Host`."""
        return self._log(self._send("save", file))

    def saved(self, file: Path) -> None:
        """See `Host`."""
        self._begun = [self._begun[0], _Call(self, "load", (file,), done=True)]
        self._since = [one for one in self._since if one.method == "targets" and not one.done]

    def load(self, file: Path) -> _Call[int]:
        """See `Host`."""
        call: _Call[int] = self._send("load", file)
        self._begun, self._since = [self._begun[0], call], []
        return call

    def export(self, folder: Path) -> _Call[None]:
        """See `Host`."""
        return self._log(self._send("export", folder))

    def close(self) -> None:
        """See `Host`."""
        if self._actor is not None:
            ray.kill(self._actor)
        if self._place is not None:
            self._place.release()
        self._actor = self._place = None

    def wait(self, call: _Call[Value]) -> Value:
        """The result of a call. Raises what the call raised, or `ExhaustedError` after too many restarts."""
        while True:
            try:
                value: Value = ray.get(call.ref, timeout=self._spec.serving.timeout_s)
                return value
            except (RayActorError, GetTimeoutError) as error:
                self._replace((str(error).strip().splitlines() or [type(error).__name__])[0])
            except RayTaskError as error:
                if isinstance(error.cause, TutelageError):
                    raise error.cause from None
                raise ExhaustedError(
                    f"teacher {self._spec.name} failed: {error.cause}",
                    "Run again with --debug for the whole traceback.",
                ) from error

    def _log(self, call: _Call[Value]) -> _Call[Value]:
        self._since.append(call)
        return call

    def _send(self, method: str, *arguments: Any) -> _Call[Any]:
        call = _Call[Any](self, method, arguments)
        self._resend(call)
        return call

    def _resend(self, call: _Call[Any]) -> None:
        assert self._actor is not None, "begun"
        call.ref = self._actor.call.remote(call.method, *call.arguments)

    def _start(self) -> None:
        """Starts an actor, once the cluster has a place for it."""
        self.close()
        if self._request:
            self._place = Place(self._request)
            wait = Wait(f"teacher {self._spec.name}", self._request, 1, self._patience)
            while not self._place.reserved:
                wait.check(1)
                time.sleep(POLL_S)
        self._actor = self._new(self._place)

    def _replace(self, reason: str) -> None:
        """Starts another actor, which comes to where the lost one was."""
        self._restarts += 1
        if self._restarts > self._spec.serving.restarts:
            raise ExhaustedError(
                f"teacher {self._spec.name}: its actor was lost for the {self._restarts}. time: {reason}",
                f"See the node's memory, or raise teachers.{self._spec.name}.serving.restarts; the same command goes on from the last checkpoint.",
            )
        self._start()
        for call in (*self._begun, *(one for one in self._since if one.method == "learn" or not one.done)):
            self._resend(call)


def remote_teacher(plan: Plan, plan_ref: ray.ObjectRef[Plan], name: str) -> Host:
    """The teacher in an actor that this process starts. plan_ref: of the plan, which the actor reads.

    On a private Ray it asks for no CPUs: the machine is the student's and its teachers' alone, and in turns they need it both.
    """
    assert plan.live is not None, "its student is trained by this plan"
    spec = plan.live.specs[name]
    request = {key: amount for key, amount in requested(spec.serving).items() if amount}
    if plan.live.private:
        request.pop("CPU", None)

    def start(place: Place | None) -> ActorHandle[Any]:
        actor: Any = ray.remote(LiveTeacherActor)
        options: dict[str, Any] = {"num_cpus": 0} if place is None else place.options
        handle: ActorHandle[Any] = actor.options(**options, max_restarts=0, max_task_retries=0).remote(
            plan_ref, name
        )
        return handle

    return RemoteTeacher(spec, start, request, Patience(plan.live.nodes_timeout_s))
