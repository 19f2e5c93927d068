"""Connects to an existing Ray cluster, or starts a private local Ray; disconnects at the end."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError, ExhaustedError
from pipeline.stop import kill_descendants

logger = logging.getLogger(__name__)
OBJECT_STORE_BYTES = (
    150_000_000  # chunks of text and logits pass through; Ray's default takes 30% of the memory
)
CONNECT_S = 10.0
WATCH_S = 1.0
PRIVATE_LOST_S, LOST_S = 0.0, 50.0
"""Seconds after which a Ray that is gone counts as lost: a private one, and a cluster, whose control process may come again."""
NODE_ENDS, NODE_LOST = "Raylet is terminated", "its node has ended"
LOST_REMEDY = "Was the machine out of memory? Run the same command again; it goes on from what is done."
_connected = False  # whether this process is within a `connected` block
NO_CLUSTER = "Start it, correct the address, set RAY_AUTH_MODE=token if it requires its token, or set cluster.address to null."


def lock_private_ray(config: RunConfig) -> None:
    """Restricts the private local Ray, and gloo in its workers, to loopback, and sets a random token for it.

    Call it before Ray is imported, which reads both then. Variables that the user has set stay.
    """
    if config.cluster.address is not None:
        return
    # despite its name it is read on every system; ray.init(_node_ip_address="127.0.0.1") is replaced by the
    # machine's address in Ray 2.60, and all but the dashboard then listen on every interface
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def connected(config: RunConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Ray, as configured in `cluster`, for the length of the block. An inner block uses the Ray of the outer one.

    dashboard: whether a private Ray starts its dashboard, on loopback. Ray Train needs the dashboard's State API to free
    the resources of a worker group whose driver was killed, as a search may kill a trial.

    Raises `ConfigError` where no cluster answers at `cluster.address`, `ExhaustedError` where a private Ray does not start.
    """
    global _connected
    if _connected:
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = config.cluster.address
    if address is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not preempted
        # Ray Train trains in a thread, and glibc never keeps a thread's large tensors but in the arena of all (`freed_memory_kept`)
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        try:
            ray.init(
                address="local",
                num_cpus=config.cluster.cpus or os.cpu_count(),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # of any type, where a process of Ray does not start in time
            raise ExhaustedError(
                f"Ray did not start: {_reason(error)}",
                "Is the machine busy, or its memory or disk full? Run the same command again.",
            ) from error
    else:
        # of students' workers: Ray Train's own minute is less than an autoscaler's node takes
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{config.cluster.nodes_timeout_s:g}")
        _check_listens(address)
        try:
            ray.init(
                address=address, runtime_env=_own_code(), log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"cluster.address: no Ray cluster at {address}: {_reason(error)}", NO_CLUSTER
            ) from None
    node_ended, ended = threading.Event(), threading.Event()
    _notices_in_a_line(node_ended if address is None else None)
    _connected = True
    if not (address or "").startswith("ray://"):  # its server on the cluster watches
        threading.Thread(
            target=_watch,
            args=(ended, node_ended, PRIVATE_LOST_S if address is None else LOST_S),
            daemon=True,
        ).start()
    try:
        yield
    finally:
        _connected = False
        ended.set()
        ray.shutdown()


def _watch(ended: threading.Event, node_ended: threading.Event, limit_s: float) -> None:
    """Ends this process with two lines where Ray's control process, or all nodes, have been gone for `limit_s`.

    node_ended: set where Ray has reported that its node ends, seconds before it ends this process as well. After a minute Ray would
    abort it with a page of its own; without nodes it would wait for some, which a private Ray never gets.
    What is done is on disk, and calls to Ray may hang now, so nothing is closed.
    """
    import ray

    control, since, lost = ray.get_runtime_context().gcs_address, None, None
    while not ended.wait(WATCH_S):
        with suppress(Exception):  # Ray may be closing, or may not answer in time
            lost = NODE_LOST if node_ended.is_set() else _lost(control, ray.nodes)
        since = None if lost is None else since or time.monotonic()
        if since is not None and time.monotonic() - since >= limit_s and not ended.is_set():
            print(f"error: Ray was lost: {lost}\n  {LOST_REMEDY}", file=sys.stderr, flush=True)
            kill_descendants()
            os._exit(ExhaustedError.exit_code)


def _lost(control: str, nodes: Callable[[], Sequence[Mapping[str, Any]]]) -> str | None:
    """What of Ray is gone; None where it is there. control: host and port of its control process."""
    host, _, port = control.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except TimeoutError:
        return None  # a busy machine
    except OSError:
        return "its control process has ended"
    return None if any(node["Alive"] for node in nodes()) else NODE_LOST


def _notices_in_a_line(node_ended: threading.Event | None) -> None:
    """Has what Ray's nodes report in several lines, such as that one was lost, logged in one.

    node_ended: set where a node's Ray has ended; None: that is logged as well. Ray 2.60 has no setting for it; a version without
    the private function prints as it does.
    """
    worker: Any = sys.modules.get("ray._private.worker")

    def show(notice: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        for text in notice.get("lines", ()):
            if node_ended is not None and (text.startswith(NODE_ENDS) or _lost_node(text)):
                node_ended.set()
                continue
            logger.warning("Ray: %s", shortened(text))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = show


def shortened(notice: str) -> str:
    """A notice of Ray in one line: of a node that was lost its address, of others the first sentence."""
    if lost := _lost_node(notice):
        return f"node {lost} was lost"
    line = next((line.strip() for line in notice.splitlines() if line.strip()), "")
    return line.split(". ")[0].removesuffix(".")


def _lost_node(notice: str) -> str | None:
    """The address of the node of which a notice says that it was lost; None for another notice."""
    lost = re.match(r"The node with node id.*address: (\S+) .*marked dead", notice, re.DOTALL)
    return lost[1] if lost else None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_listens(address: str) -> None:
    """Raises `ConfigError` where nothing listens at `host:port` or `ray://host:port`: Ray would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme not in ("", "ray") or not parts.hostname or ":" not in parts.netloc:
        return  # `auto` and others that Ray itself resolves
    try:
        with socket.create_connection((parts.hostname, parts.port or 0), timeout=CONNECT_S):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(f"cluster.address: no Ray cluster at {address}: {error}", NO_CLUSTER) from None


def _own_code() -> dict[str, list[str]]:
    """The runtime environment that sends this code to the cluster's workers, so that driver and workers run the same."""
    folders = []
    for package in ("pipeline", "teachers", "students", "tune"):
        spec = find_spec(package)
        assert spec is not None, "all four are in one distribution"
        folders += list(spec.submodule_search_locations or [])[:1]
    return {"py_modules": folders}


def check_gpus(config: RunConfig) -> None:
    """Raises `ConfigError` if the config requests GPUs from a private local Ray and this machine has none."""
    gpus_by_key = {
        f"teachers.{name}.serving.gpus": teacher.serving.gpus for name, teacher in config.teachers.items()
    }
    gpus_by_key["train.gpus_per_worker"] = config.train.gpus_per_worker
    requesting = [path for path, gpus in gpus_by_key.items() if gpus]
    if config.cluster.address is not None or not requesting:
        return
    import torch

    if torch.cuda.device_count() == 0:
        raise ConfigError(
            f"{requesting[0]}: a GPU is requested, this machine has none",
            "Set it to 0, or give cluster.address.",
        )


def check_room(config: RunConfig) -> None:
    """Raises `ConfigError` if the private local Ray has too few CPUs or lacks a custom resource. Ray must be running."""
    if config.cluster.address is not None:
        return
    import ray

    available = ray.cluster_resources()
    for name, teacher in config.teachers.items():
        needed = {"CPU": teacher.serving.cpus, "GPU": teacher.serving.gpus, **teacher.serving.resources}
        _check_fits(f"teachers.{name}.serving", needed, available)
    train = config.train
    needed = {"CPU": cpus_per_worker(config), "GPU": train.gpus_per_worker, **train.resources_per_worker}
    together = {key: amount * train.workers for key, amount in needed.items()}
    _check_fits("train", together, available)
    for (
        name
    ) in config.co_trained:  # of CPUs they reserve none: see `pipeline.training.live_actor.remote_teacher`
        serving = config.teachers[name].serving
        for key, amount in {"GPU": serving.gpus, **serving.resources}.items():
            together[key] = together.get(key, 0) + amount
        _check_fits(f"co_train: the student and the teachers up to {name}", together, available)


def _check_fits(path: str, needed: dict[str, float], available: dict[str, float]) -> None:
    for resource, amount in needed.items():
        if amount > available.get(resource, 0) + 1e-6:
            raise ConfigError(
                f"{path}: requests {amount:g} {resource}, this machine has {available.get(resource, 0):g}",
                "Request less, raise cluster.cpus, or give cluster.address.",
            )


def cpus_per_worker(config: RunConfig) -> float:
    """CPUs of each training worker: as configured, 1 on a cluster, else the machine's divided among the workers."""
    if config.train.cpus_per_worker is not None:
        return config.train.cpus_per_worker
    if config.cluster.address is not None:
        return 1
    return max(1, (config.cluster.cpus or os.cpu_count() or 1) // config.train.workers)
