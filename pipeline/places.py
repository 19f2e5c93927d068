"""Places on the cluster: resources that are reserved for one teacher before its process starts.

So the wait for resources, which may last as long as another teacher's work or a new node's start, is told from a process
that hangs. A place is a Ray placement group of one bundle, which an autoscaler counts as demand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ExhaustedError

if TYPE_CHECKING:
    import ray

POLL_S = 0.5
SHOWN_S = 5.0  # a free place is reserved sooner


class Place:
    """Resources of one node, once they are free. request: amounts by Ray's names."""

    def __init__(self, request: Mapping[str, float]) -> None:
        from ray.util import placement_group

        self._request = dict(request)
        self._group = placement_group([{name: amount for name, amount in request.items() if amount}])

    @property
    def reserved(self) -> bool:
        """Whether the resources are reserved now: a node that is lost takes its places with it."""
        from ray.util import placement_group_table

        return bool(placement_group_table(self._group)["state"] == "CREATED")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the Ray actor or task that takes the place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        others = {name: amount for name, amount in self._request.items() if name not in ("CPU", "GPU")}
        return {
            "num_cpus": self._request.get("CPU", 0),
            "num_gpus": self._request.get("GPU", 0),
            "resources": others,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, 0),
        }

    def release(self) -> None:
        """Frees the resources, and ends what still runs on them."""
        from ray.util import remove_placement_group

        remove_placement_group(self._group)


@dataclass(frozen=True)
class Patience:
    """How to wait for nodes that the cluster does not have.

    nodes_s: for how many seconds · show: gets one line about what is waited for.
    """

    nodes_s: float = 900.0
    show: Callable[[str], None] = lambda line: None


PATIENCE = Patience()


class Wait:
    """The wait of one teacher's `count` processes for their places: shown once, and ended with an error only where none of them has a place
    and no node of the cluster could hold one. Places that other work takes are waited for without a limit.

    name: for messages, as in ``teacher large``.
    """

    def __init__(self, name: str, request: Mapping[str, float], count: int, patience: Patience) -> None:
        self._name, self._request, self._count, self._patience = name, request, count, patience
        self._begun = time.monotonic()
        self._no_node: float | None = None  # since when no node could hold one
        self._shown = set[bool]()

    def check(self, waiting: int) -> None:
        """To be called while `waiting` of them have no place. Raises `ExhaustedError` after `Patience.nodes_s`."""
        nodes, now, needs = node_resources(), time.monotonic(), shown(self._request)
        held = any(fits(self._request, node) for node in nodes)
        self._no_node = None if held else self._no_node or now
        cause = f"no node has {needs}; the cluster has {shown(total(nodes))}"
        if held and now - self._begun > SHOWN_S:
            others = f"{self._count - waiting} of {self._count} started, " if self._count > 1 else ""
            self._show(held, f"{self._name}: {others}waiting for {needs}")
        elif self._no_node is not None:
            self._show(held, f"{self._name}: waiting for a node, {cause}")
            if waiting == self._count and now - self._no_node > self._patience.nodes_s:
                raise ExhaustedError(
                    f"{self._name}: for {self._patience.nodes_s:g} s {cause}",
                    "Add nodes, or lower the teacher's serving section; what is done is kept.",
                )

    def _show(self, held: bool, line: str) -> None:
        if held not in self._shown:
            self._shown.add(held)
            self._patience.show(line)


def run_placed(
    requests: Mapping[str, Mapping[str, float]],
    start: Callable[[str, Place], ray.ObjectRef[Any]],
    patience: Patience,
    poll: Callable[[Mapping[str, float]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, ray.ObjectRef[Any]]]:
    """Starts a Ray task for each name once its place is reserved; yields (name, its result) as they end, and frees its place.

    requests: by name, as in ``fine-tuning large`` · poll: called about twice a second with the seconds since the start of each
    task that runs, by name · should_stop: once it returns true, no more tasks start. A task still running when the iterator is closed
    keeps its place.
    """
    import ray

    waiting = {name: Place(request) for name, request in requests.items()}
    waits = {name: Wait(name, request, 1, patience) for name, request in requests.items()}
    running: dict[ray.ObjectRef[Any], tuple[str, Place, float]] = {}
    try:
        while running or (waiting and not should_stop()):
            for name in [name for name, place in waiting.items() if place.reserved]:
                place = waiting.pop(name)
                running[start(name, place)] = (name, place, time.monotonic())
            for name in waiting:
                waits[name].check(1)
            if running:
                done, _ = ray.wait(list(running), timeout=POLL_S)
            else:
                done = []
                time.sleep(POLL_S)
            now = time.monotonic()
            poll({name: now - since for name, _, since in running.values()})
            for ref in done:
                name, place, _ = running.pop(ref)
                place.release()
                yield name, ref
    finally:
        for place in waiting.values():
            place.release()


def node_resources() -> list[Mapping[str, float]]:
    """What each living node of the cluster has in all, by Ray's names."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fits(request: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Whether an empty node could hold the request."""
    return all(amount <= node.get(name, 0) + 1e-6 for name, amount in request.items())


def total(nodes: list[Mapping[str, float]]) -> dict[str, float]:
    """The sum over nodes."""
    names = dict.fromkeys(name for node in nodes for name in node)
    return {name: sum(node.get(name, 0) for node in nodes) for name in names}


def shown(resources: Mapping[str, float]) -> str:
    """`2 CPU, 1 GPU`: the resources that are not 0, without memory and Ray's own node markers."""
    amounts = [
        f"{amount:g} {name}"
        for name, amount in resources.items()
        if amount and ":" not in name and name not in ("memory", "object_store_memory")
    ]
    return ", ".join(amounts) or "nothing"
