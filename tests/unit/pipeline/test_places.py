"""Waiting for nodes: what is shown, and when it ends. Places themselves: tests/integration/test_pool.py."""

from __future__ import annotations

import time

import pytest

from pipeline import places
from pipeline.errors import ExhaustedError
from pipeline.places import Patience, Wait, fits, shown, total

GPU = {"CPU": 2.0, "GPU": 1.0}


class Cluster:
    """Nodes, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[dict[str, float]] = [{"CPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0}]
        self.now = 100.0
        monkeypatch.setattr(places, "node_resources", lambda: self.nodes)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_resources_are_shown_without_what_ray_adds() -> None:
    assert (
        shown({"CPU": 2.0, "GPU": 0.5, "TPU": 0.0, "memory": 5.0, "node:10.0.0.1": 1.0}) == "2 CPU, 0.5 GPU"
    )
    assert shown({"memory": 1.0}) == "nothing"
    assert total([{"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}]) == {"CPU": 3.0, "GPU": 1.0}


def test_a_request_must_fit_one_node() -> None:
    assert fits(GPU, {"CPU": 2.0, "GPU": 1.0})
    assert not fits(GPU, {"CPU": 4.0})
    assert not any(fits({"CPU": 3.0}, node) for node in ({"CPU": 2.0}, {"CPU": 2.0}))


def test_a_node_that_does_not_come_ends_the_wait_in_time(cluster: Cluster) -> None:
    lines: list[str] = []
    wait = Wait("teacher large", GPU, 1, Patience(60, lines.append))
    for seconds in (0, 30, 30):
        cluster.now += seconds
        wait.check(1)
    assert lines == ["teacher large: waiting for a node, no node has 2 CPU, 1 GPU; the cluster has 4 CPU"]
    cluster.now += 1
    with pytest.raises(
        ExhaustedError, match="teacher large: for 60 s no node has 2 CPU, 1 GPU; the cluster has 4 CPU"
    ):
        wait.check(1)


def test_a_node_that_comes_and_goes_begins_the_wait_anew(cluster: Cluster) -> None:
    wait = Wait("teacher large", GPU, 1, Patience(60))
    wait.check(1)
    cluster.now += 50
    cluster.nodes.append({"CPU": 4.0, "GPU": 1.0})
    wait.check(1)
    cluster.nodes.pop()
    cluster.now += 50
    wait.check(1)
    cluster.now += 59
    wait.check(1)


def test_a_place_that_other_work_takes_is_waited_for_without_a_limit(cluster: Cluster) -> None:
    lines: list[str] = []
    wait = Wait("teacher large", {"CPU": 4.0}, 3, Patience(60, lines.append))
    for seconds in (0, 4, 4, 10_000):
        cluster.now += seconds
        wait.check(2)
    assert lines == ["teacher large: 1 of 3 started, waiting for 4 CPU"]


def test_some_that_run_do_not_end_for_want_of_others(cluster: Cluster) -> None:
    lines: list[str] = []
    wait = Wait("teacher large", GPU, 3, Patience(60, lines.append))
    for _ in range(3):
        cluster.now += 100
        wait.check(2)
    assert len(lines) == 1
