"""A private local Ray, or an existing cluster: connected, quiet, and left as it was."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import urlsplit

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError, ExhaustedError

OBJECT_STORE_BYTES = (
    150_000_000  # chunks of text and logits pass through; Ray's default takes 30% of the memory
)
CONNECT_S = 10.0
_connected = False  # whether this process is within a `connected` block
NO_CLUSTER = "Start it, mend the address, set RAY_AUTH_MODE=token if it asks for its token, or set cluster.address to null."


def lock_private_ray(config: RunConfig) -> None:
    """Keeps the private local Ray, and gloo in its workers, on loopback, and gives it a token of its own.

    Ray reads both when it is imported: to be called before. What the user has set is left alone.
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
    """Ray, as `cluster` has it, for as long as the block runs. A block within another uses the outer one's.

    dashboard: with a private Ray's, on loopback. Without it a worker group whose driver was killed, as a trial of a
    search may be, keeps its resources: Ray Train asks the dashboard's State API which to free.

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
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
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
        except Exception as error:  # what Ray raises where a process of its own is not there in time
            raise ExhaustedError(
                f"Ray did not start: {_reason(error)}",
                "Is the machine busy, or its memory or disk full? Run the same command again.",
            ) from error
    else:
        _check_listens(address)
        try:
            ray.init(
                address=address, runtime_env=_own_code(), log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"cluster.address: no Ray cluster at {address}: {_reason(error)}", NO_CLUSTER
            ) from None
    _connected = True
    try:
        yield
    finally:
        _connected = False
        ray.shutdown()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_listens(address: str) -> None:
    """Raises `ConfigError` where nothing listens at `host:port` or `ray://host:port`: Ray would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme not in ("", "ray") or not parts.hostname or ":" not in parts.netloc:
        return  # auto and the like: for Ray to find
    try:
        with socket.create_connection((parts.hostname, parts.port or 0), timeout=CONNECT_S):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(f"cluster.address: no Ray cluster at {address}: {error}", NO_CLUSTER) from None


def _own_code() -> dict[str, list[str]]:
    """Ships this very code to the cluster's workers, so that driver and workers never differ."""
    folders = []
    for package in ("pipeline", "teachers", "students", "tune"):
        spec = find_spec(package)
        assert spec is not None, "all four are in one distribution"
        folders += list(spec.submodule_search_locations or [])[:1]
    return {"py_modules": folders}


def check_gpus(config: RunConfig) -> None:
    """Raises `ConfigError` if a private local Ray is asked for GPUs that this machine has not."""
    wanted = {
        f"teachers.{name}.serving.gpus": teacher.serving.gpus for name, teacher in config.teachers.items()
    }
    wanted["train.gpus_per_worker"] = config.train.gpus_per_worker
    asking = [path for path, gpus in wanted.items() if gpus]
    if config.cluster.address is not None or not asking:
        return
    import torch

    if torch.cuda.device_count() == 0:
        raise ConfigError(
            f"{asking[0]}: a GPU is asked for, this machine has none", "Set it to 0, or give cluster.address."
        )


def check_room(config: RunConfig) -> None:
    """Raises `ConfigError` if the private local Ray has too few CPUs or lacks a custom resource. Ray must be up."""
    if config.cluster.address is not None:
        return
    import ray

    has = ray.cluster_resources()
    for name, teacher in config.teachers.items():
        asks = {"CPU": teacher.serving.cpus, "GPU": teacher.serving.gpus, **teacher.serving.resources}
        _check_fits(f"teachers.{name}.serving", asks, has)
    train = config.train
    asks = {"CPU": cpus_per_worker(config), "GPU": train.gpus_per_worker, **train.resources_per_worker}
    _check_fits("train", {key: amount * train.workers for key, amount in asks.items()}, has)


def _check_fits(path: str, asks: dict[str, float], has: dict[str, float]) -> None:
    for resource, amount in asks.items():
        if amount > has.get(resource, 0) + 1e-6:
            raise ConfigError(
                f"{path}: asks for {amount:g} {resource}, this machine offers {has.get(resource, 0):g}",
                "Ask for less, raise cluster.cpus, or give cluster.address.",
            )


def cpus_per_worker(config: RunConfig) -> float:
    """CPUs of each training worker."""
    if config.train.cpus_per_worker is not None:
        return config.train.cpus_per_worker
    if config.cluster.address is not None:
        return 1
    return max(1, (config.cluster.cpus or os.cpu_count() or 1) // config.train.workers)
