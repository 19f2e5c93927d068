"""`tutelage train` on a Ray that was there before and is there after, from a folder that has none of the code."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ray.util import get_node_ip_address
from safetensors.torch import load_file
from torch import equal

from pipeline.training.log import METRICS
from tests.conftest import TinyModel
from tests.integration.command import (
    BIN,
    TUTELAGE,
    Command,
    all_processes,
    listening,
    started,
    tutelage,
    wait_until,
)
from tests.integration.conftest import MakeRun, csv_section

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""As the shells of a cluster's users have it."""


def free_port() -> int:
    """A port at which nothing listens, at any address of this machine, and that nobody gets before it is used.

    It is below the ports that the kernel gives to whoever asks for any, as each of Ray's processes does, and above those of
    Ray's workers: two servers of gRPC share a port without an error, and a call reaches either.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Head(NamedTuple):
    """A cluster of one node: `ray start`, its address, and the URL to which jobs are submitted."""

    command: Command
    address: str
    jobs: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster with ports and folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie below it
    port, dashboard = free_port(), free_port()
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "num-cpus": 2,
        "object-store-memory": 150_000_000,
        "include-dashboard": "true",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "temp-dir": folder,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    try:
        with started(
            str(BIN / "ray"), "start", "--head", "--block", *arguments, cwd=folder, environment=TOKEN
        ) as command:
            wait_until(lambda: "Ray runtime started" in command.output, lambda: command.output, 120)
            yield Head(command, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, tiny_model: TinyModel) -> Path:
    """A folder with a run that names everything by relative paths: one teacher to be fine-tuned, two students."""
    folder = tmp_path_factory.mktemp("cluster")
    mood = csv_section(folder / "small", ("bad", "good"), 48)
    files = mood["data"]["data_files"]
    mood["data"]["data_files"] = {split: os.path.relpath(file, folder) for split, file in files.items()}
    shutil.copytree(tiny_model("bert"), folder / "bert")
    make_run(
        folder,
        tasks={"mood": mood},
        teachers={
            "only": {
                "task": "mood",
                "model": "bert",
                "preflight": "warn",
                "fine_tune": {"batch_size": 10},
            }
        },
        students={"cut": {"init_from": "only", "layers": 1}, "bare": {"model": "bert"}},
        train={"epochs": 2, "batch_size": 10},
        baselines=[],
        tracking={"enabled": False},
    )
    return folder


def test_a_run_on_a_cluster_that_was_there(head: Head, workplace: Path) -> None:
    """The workers have another working directory than the command, which has none of the code."""
    ray = head.command
    done = tutelage("train", "run.yaml", f"cluster.address={head.address}", cwd=workplace, environment=TOKEN)
    assert done.process.returncode == 0, done.output
    report = json.loads((workplace / "runs" / "first" / "report.json").read_text())
    assert report["teacher_forwards"] == {"only": 48 + 24 + 24}
    assert report["tasks"]["mood"]["students"].keys() == {"cut", "bare"}
    assert not any("raylet" in title or "gcs_server" in title for title in done.ever)  # none of its own
    assert ray.process.poll() is None

    def ours() -> list[str]:
        return [title for title in ray.left() if re.search("TeacherActor|_fine_tune_task|RayTrain", title)]

    wait_until(lambda: not ours(), lambda: f"left on the cluster: {ours()}", 20)


@pytest.mark.timeout(900)
def test_a_submitted_job_whose_driver_dies_is_gone_on_with(
    head: Head, workplace: Path, tmp_path: Path
) -> None:
    """Killed while its students train; the same job again ends with the weights of a run that nothing disturbed."""

    def train(runs: Path) -> tuple[str, ...]:
        options = ("train.epochs=30", "train.cpus_per_worker=1")  # as many threads everywhere
        return "train", "run.yaml", *options, f"runs_dir={runs}"

    def submitted(name: str) -> tuple[str, ...]:
        options = ("--address", head.jobs, "--working-dir", ".", "--submission-id", name)
        job = (TUTELAGE, *train(tmp_path / "job"), "cluster.address=auto")
        return str(BIN / "ray"), "job", "submit", *options, "--", *job

    def drivers() -> list[int]:
        return [
            pid
            for pid, (_, _, title) in all_processes().items()
            if f"runs_dir={tmp_path / 'job'}" in title and TUTELAGE in title.split()[:2]
        ]

    curve = tmp_path / "job" / "first" / "checkpoints" / "cut-distilled" / METRICS
    with started(*submitted("one"), cwd=workplace, environment=TOKEN) as command:
        wait_until(
            lambda: command.ended() or (curve.exists() and curve.stat().st_size > 0),
            lambda: command.output,
            400,
        )
        assert not command.ended(), command.output
        (driver,) = drivers()
        os.kill(driver, signal.SIGKILL)
        assert command.wait() != 0
        assert "failed" in command.output
    with started(*submitted("two"), cwd=workplace, environment=TOKEN) as command:
        assert command.wait(400) == 0, command.output
        assert "soft targets: 96 from the store, 0 computed" in command.output
        assert "Job 'two' succeeded" in command.output
    assert head.command.process.poll() is None

    alone = tutelage(*train(tmp_path / "alone"), "cluster.cpus=2", cwd=workplace)
    assert alone.process.returncode == 0, alone.output
    students = "first/students/cut/mood/model.safetensors"
    job, undisturbed = (load_file(tmp_path / runs / students) for runs in ("job", "alone"))
    assert all(equal(weight, job[name]) for name, weight in undisturbed.items())


LOOPBACK = re.compile(r"(0100007F|0{16}(FFFF|0{4})0000(0100007F|01000000)):")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what listens")
def test_a_private_ray_listens_on_loopback_alone(workplace: Path) -> None:
    """From its start through labelling until one worker trains.

    Of two workers PyTorch's store, by which they meet, listens on every interface: it takes no address.
    """
    options = ("name=private", "train.epochs=1000")
    curve = workplace / "runs" / "private" / "checkpoints" / "cut-distilled" / METRICS
    elsewhere: set[str] = set()
    seen: set[str] = set()
    with started(TUTELAGE, "train", "run.yaml", *options, cwd=workplace) as command:

        def trains() -> bool:
            seen.update(listening(command.process.pid))
            elsewhere.update(address for address in seen if not LOOPBACK.match(address))
            return command.ended() or (curve.exists() and curve.stat().st_size > 0)

        wait_until(trains, lambda: command.output, 400)
        assert not command.ended(), command.output
    assert len(seen) > 5
    assert elsewhere == set()


def test_no_cluster_at_the_address(workplace: Path) -> None:
    started_at = time.monotonic()
    done = tutelage(
        "train", "run.yaml", "name=nowhere", f"cluster.address=127.0.0.1:{free_port()}", cwd=workplace
    )
    assert done.process.returncode == 2, done.output
    assert re.search(
        r"^error: cluster.address: no Ray cluster at 127\.0\.0\.1:\d+: .+\n  \S", done.output, re.MULTILINE
    )
    assert "Traceback" not in done.output
    assert time.monotonic() - started_at < 60


# ---------------------------------------------------------------- a cluster that grows


@pytest.fixture
def growing_head(tmp_path: Path) -> Iterator[Head]:
    """A cluster of one node whose autoscaler starts a node for a teacher when one is asked for: processes of this machine."""
    folder, port, ip = Path(tempfile.mkdtemp(prefix="ray-")), free_port(), get_node_ip_address()
    lists = (
        "setup_commands",
        "initialization_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    )
    config: dict[str, Any] = {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{ip}:{port}",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "labeller": {"resources": {"CPU": 1, "teacher": 1}, "node_config": {}, "max_workers": 1},
        },
        **{name: [] for name in lists},
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    options = {
        "autoscaling-config": tmp_path / "autoscaler.json",
        "port": port,
        "num-cpus": 1,
        "object-store-memory": 100_000_000,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    grows = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", **TOKEN}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    try:
        with started(
            str(BIN / "ray"), "start", "--head", "--block", *arguments, cwd=folder, environment=grows
        ) as command:
            wait_until(lambda: "Ray runtime started" in command.output, lambda: command.output, 120)
            yield Head(command, f"{ip}:{port}", "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_replicas_wait_for_nodes_that_an_autoscaler_starts(
    growing_head: Head, workplace: Path, tmp_path: Path
) -> None:
    """Two replicas of a teacher on nodes that are not there, of which one comes: the run says what it waits for, and goes on."""
    serving = {"teachers.only.serving.resources": "{teacher: 1}", "teachers.only.serving.replicas": "2"}
    options = [f"{name}={value}" for name, value in serving.items()]
    done = tutelage(
        "train",
        "run.yaml",
        *options,
        "train.epochs=1",
        f"runs_dir={tmp_path / 'runs'}",
        f"cluster.address={growing_head.address}",
        cwd=workplace,
        environment={"RAY_FAKE_CLUSTER": "1", **TOKEN},
        timeout_s=500,
    )
    assert done.process.returncode == 0, done.output
    assert re.search(
        r"only: waiting for a node, no node has 1 CPU, 1 teacher; the cluster has 1 CPU", done.output
    )
    report = json.loads((tmp_path / "runs" / "first" / "report.json").read_text())
    assert report["teacher_forwards"] == {"only": 48 + 24 + 24}
