"""Connecting to Ray: once for blocks within blocks, and given back whatever happens. A stand-in plays Ray."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import _lost, connected, shortened
from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.errors import ExhaustedError
from tests.conftest import TinyRun


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ray is asked for, in order."""
    asked: list[str] = []

    def init(**_: Any) -> None:
        asked.append("init")

    fake = SimpleNamespace(
        init=init,
        shutdown=lambda: asked.append("shutdown"),
        get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:1"),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    return asked


@pytest.fixture
def config(tiny_run: TinyRun) -> RunConfig:
    return parse_config(tiny_run())


def test_a_block_within_another_uses_the_same_ray(calls: list[str], config: RunConfig) -> None:
    with connected(config):
        for _ in range(2):
            with connected(config):
                assert calls == ["init"]
        assert calls == ["init"]
    assert calls == ["init", "shutdown"]


def test_a_block_after_another_starts_ray_anew(calls: list[str], config: RunConfig) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), connected(config), connected(config):
            raise RuntimeError("a seed that failed")
    assert calls == ["init", "shutdown", "init", "shutdown"]


def test_ray_that_does_not_start_is_tried_again(
    calls: list[str], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(sys.modules["ray"], "init", fail)
        with pytest.raises(ExhaustedError, match="Ray did not start: no room"), connected(config):
            pytest.fail("not connected")
    with connected(config):
        assert calls == ["init"]


def test_what_of_ray_is_gone() -> None:
    with socket.socket() as control:
        control.bind(("127.0.0.1", 0))
        control.listen()
        address = f"127.0.0.1:{control.getsockname()[1]}"
        assert _lost(address, lambda: [{"Alive": False}, {"Alive": True}]) is None
        assert _lost(address, lambda: [{"Alive": False}]) == "its node has ended"
    assert _lost(address, lambda: [{"Alive": True}]) == "its control process has ended"


def test_a_notice_of_ray_is_one_line() -> None:
    lost = (
        "The node with node id: fc48884f and address: 192.0.2.2 and node name: 192.0.2.2 has been marked dead because the"
        " detector has missed too many heartbeats from it. This can happen when a \t(1) raylet crashes unexpectedly \n"
        "\t(2) raylet has lagging heartbeats due to slow network or busy workload."
    )
    assert shortened(lost) == "node 192.0.2.2 was lost"
    assert shortened("\n  A worker died. Reasons (1) many.\nMore of it.\n") == "A worker died"
    assert shortened("") == ""
