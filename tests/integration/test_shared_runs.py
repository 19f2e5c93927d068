"""`tutelage train` with `runs_dir: s3://…`, on a node that sees none of the driver's files, against a real S3 server."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs
from safetensors.torch import load_file
from torch import equal

from pipeline.synced import UrlFolder
from tests.conftest import TinyModel
from tests.integration.command import (
    BIN,
    TUTELAGE,
    Command,
    processes_of,
    started,
    tutelage,
    wait_until,
)
from tests.integration.conftest import MakeRun, csv_section
from tests.integration.test_cluster import free_port, listens

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="hides folders from a node by a mount namespace"),
]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
HIDDEN = 'mount -t tmpfs hidden "$1" && shift && exec "$@"'
"""A shell's command after which the folder $1 is empty for what follows."""


class Bucket:
    """A folder in a bucket of an S3 server."""

    def __init__(self, port: int, folder: str = "runs") -> None:
        self._port = port
        self.url = f"s3://bucket/{folder}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        self._fs, self._root = fs.FileSystem.from_uri(f"{self.url}&allow_bucket_creation=true")
        self._fs.create_dir("bucket")

    def beside(self, folder: str) -> Bucket:
        """Another folder of the bucket."""
        return Bucket(self._port, folder)

    def names(self) -> set[str]:
        """Of all files."""
        infos = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{self._root}/") for info in infos if info.is_file}

    def fetch(self, name: str, folder: Path) -> Path:
        """A file's copy."""
        file = folder / name.replace("/", "_")
        UrlFolder(self.url).fetch(name, file, 0)
        return file


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, str]]:
    """What a client of the S3 server has in its environment."""
    values = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield values


@pytest.fixture(scope="module")
def bucket(keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    port, folder = free_port(), tmp_path_factory.mktemp("s3")
    with started(sys.executable, "-m", "moto.server", "-p", str(port), cwd=folder) as server:
        wait_until(lambda: listens(port), lambda: server.output, 60)
        yield Bucket(port)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, tiny_model: TinyModel) -> Path:
    """A folder with a run whose data and model are named by relative paths, and that asks for the node with `teacher` and `student`."""
    folder = tmp_path_factory.mktemp("shared")
    mood = csv_section(folder / "small", ("bad", "good"), 48)
    files = mood["data"]["data_files"]
    mood["data"]["data_files"] = {split: os.path.relpath(file, folder) for split, file in files.items()}
    shutil.copytree(tiny_model("bert"), folder / "bert")
    teacher = {"task": "mood", "model": "bert", "preflight": "warn", "serving": {"resources": {"teacher": 1}}}
    make_run(
        folder,
        tasks={"mood": mood},
        teachers={"only": {**teacher, "fine_tune": {"epochs": 2, "batch_size": 10}}},
        students={"cut": {"init_from": "only", "layers": 1}, "bare": {"model": "bert"}},
        train={
            "epochs": 3,
            "batch_size": 10,
            "workers": 2,
            "cpus_per_worker": 1,
            "resources_per_worker": {"student": 1},
            "checkpoint_steps": 2,
        },
        baselines=[],
        stages=[],
        tracking={"enabled": False},
    )
    return folder


def home(folder: Path, name: str) -> dict[str, str]:
    """The environment of a process with a home and a cache of its own."""
    own = folder / name
    own.mkdir(exist_ok=True)
    return {"HOME": str(own), "XDG_CACHE_HOME": str(own / "cache"), "HF_HOME": str(own / "hf")}


class Cluster:
    """A head without CPUs, a node for teachers and one for students, from which the folder `hidden` is hidden."""

    def __init__(self, hidden: Path, homes: Path, keys: Mapping[str, str], stack: ExitStack) -> None:
        self._hidden, self._homes, self._keys, self._stack = hidden, homes, keys, stack
        self._nodes: dict[str, Command] = {}
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        more = {"port": port, "num-cpus": 0, "include-dashboard": "false", "temp-dir": self._folder("head")}
        self._start("head", "--head", **more, **{"ray-client-server-port": free_port()})

    def join(self, name: str, cpus: int, **resources: int) -> None:
        """Starts a node."""
        more = {"num-cpus": cpus, "resources": json.dumps(resources)}
        self._start(name, f"--address={self.address}", **more)

    def lose(self, name: str) -> None:
        """Kills all processes of a node at once."""
        for pid in processes_of(self._nodes[name].process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _folder(self, name: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"ray-{name}-"))  # short: sockets lie below it
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _start(self, name: str, *arguments: str, **options: object) -> None:
        every = {"node-ip-address": "127.0.0.1", "object-store-memory": 150_000_000, **options}
        every |= {"dashboard-agent-listen-port": free_port()}
        ray = [str(BIN / "ray"), "start", "--block", *arguments, *(f"--{k}={v}" for k, v in every.items())]
        if name != "head":
            ray = ["unshare", "--mount", "sh", "-c", HIDDEN, "sh", str(self._hidden), *ray]
        there = {**TOKEN, **self._keys, **home(self._homes, name)}
        command = self._stack.enter_context(started(*ray, cwd=self._folder(name), environment=there))
        wait_until(lambda: "Ray runtime started" in command.output, lambda: command.output, 120)
        self._nodes[name] = command


@pytest.fixture(scope="module")
def cluster(
    workplace: Path, keys: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(workplace, tmp_path_factory.mktemp("homes"), keys, stack)
        cluster.join("teachers", 1, teacher=1)
        cluster.join("students", 2, student=2)
        yield cluster


def test_a_run_without_a_shared_folder(
    cluster: Cluster, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    """Killed while its students train, gone on with from a machine that has nothing of it, and once more."""
    run = (TUTELAGE, "train", "run.yaml", f"runs_dir={bucket.url}", f"cluster.address={cluster.address}")

    def driver(name: str) -> dict[str, str]:
        return {**TOKEN, **keys, **home(tmp_path, name)}

    def trains() -> bool:
        return any("/checkpoints/cut-distilled/step-" in f"/{name}" for name in bucket.names())

    with started(*run, "train.epochs=12", cwd=workplace, environment=driver("first")) as command:
        wait_until(lambda: command.ended() or trains(), lambda: command.output, 300)
        assert not command.ended(), command.output
        command.send(signal.SIGKILL)
        command.wait()
    assert "first/.lease" in bucket.names()
    teachers = {name for name in bucket.names() if name.startswith("_teachers/")}

    with started(*run, "train.epochs=12", cwd=workplace, environment=driver("second")) as command:
        assert command.wait(400) == 0, command.output
        assert "waiting 20 s for a sign of life" in command.output
        assert "soft targets: 96 from the store, 0 computed" in command.output
        assert "both in   s3://bucket/runs/first" in command.output
        assert "secret" not in command.output
    names = bucket.names()
    assert {name for name in names if name.startswith("_teachers/")} == teachers
    for name in ("config.yaml", "report.json", "report.md", "students/cut/mood/model.safetensors"):
        assert f"first/{name}" in names
    assert not [name for name in names if "step-" in name or name.startswith(("first/ray", "first/.lease"))]

    options = (f"--runs-dir={bucket.url}", "--to=csv")
    compared = tutelage("compare", "first", *options, cwd=tmp_path, environment=driver("elsewhere"))
    assert compared.process.returncode == 0, compared.output
    assert {"cut", "bare"} <= {line.split(",")[1] for line in compared.output.splitlines()}

    third = tutelage(*run[1:], "train.epochs=12", cwd=workplace, environment=driver("third"))
    assert third.process.returncode == 0, third.output
    assert "nothing left to train" in third.output

    alone = tutelage(
        "train", without_resources(workplace), "train.epochs=12", "cluster.cpus=2", cwd=workplace
    )
    assert alone.process.returncode == 0, alone.output
    here = workplace / "runs" / "first" / "students" / "cut" / "mood" / "model.safetensors"
    theirs = load_file(bucket.fetch("first/students/cut/mood/model.safetensors", tmp_path))
    assert all(equal(weight, theirs[name]) for name, weight in load_file(here).items())


def without_resources(folder: Path) -> str:
    """The run's file for a private Ray, which has no resources of such names."""
    config = yaml.safe_load((folder / "run.yaml").read_text())
    del config["teachers"]["only"]["serving"], config["train"]["resources_per_worker"]
    (folder / "alone.yaml").write_text(yaml.safe_dump(config))
    return "alone.yaml"


def test_ctrl_c_reaches_a_training_that_sees_no_stop_file(
    cluster: Cluster, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    run = (TUTELAGE, "train", "run.yaml", "name=stopped", f"runs_dir={bucket.url}")
    more = (f"cluster.address={cluster.address}", "train.epochs=2000")

    def logged(command: Command) -> bool:
        return command.ended() or "stopped/checkpoints/cut-distilled/metrics.jsonl" in bucket.names()

    with started(
        *run, *more, cwd=workplace, environment={**TOKEN, **keys, **home(tmp_path, "here")}
    ) as command:
        wait_until(lambda: logged(command), lambda: command.output, 300)
        command.send(signal.SIGINT)
        assert command.wait(120) == 130, command.output
    left = {name for name in bucket.names() if name.startswith("stopped/")}
    assert any("/step-" in name for name in left)
    assert "stopped/STOP" not in left
    assert "stopped/.lease" not in left


def test_nodes_that_are_lost_are_waited_for(
    cluster: Cluster, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    """The teachers' node while it labels, the students' while they train: the run goes on where others come."""
    other = bucket.beside("elsewhere")
    run = (TUTELAGE, "train", "run.yaml", "name=lost", f"runs_dir={other.url}")
    more = (f"cluster.address={cluster.address}", "train.epochs=12", "train.max_failures=5")
    environment = {**TOKEN, **keys, **home(tmp_path, "here")}
    with started(*run, *more, cwd=workplace, environment=environment) as command:

        def reached(what: Callable[[], bool]) -> None:
            wait_until(lambda: command.ended() or what(), lambda: command.output, 200)
            assert not command.ended(), command.output

        reached(lambda: "stage 3 of 5" in command.output)
        cluster.lose("teachers")
        cluster.join("teachers", 1, teacher=1)
        reached(lambda: any("lost/checkpoints/cut-distilled/step-" in name for name in other.names()))
        cluster.lose("students")
        cluster.join("students", 2, student=2)
        assert command.wait(300) == 0, command.output
        assert command.output.count(" was lost") == 2
        assert "raylet" not in command.output
    theirs = load_file(other.fetch("lost/students/cut/mood/model.safetensors", tmp_path))
    undisturbed = load_file(bucket.fetch("first/students/cut/mood/model.safetensors", tmp_path))
    assert all(equal(weight, theirs[name]) for name, weight in undisturbed.items())


def test_a_file_that_is_replaced_while_it_is_read_comes_whole(bucket: Bucket) -> None:
    folder, ended = UrlFolder(bucket.beside("replaced").url), threading.Event()
    folder.write("text", bytes([1]))

    def replace() -> None:
        for length in itertools.count(2):  # each text repeats a byte that tells its length
            if ended.is_set():
                return
            folder.write("text", bytes([length % 256]) * length)

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(replace)
        try:
            read = [folder.read("text") for _ in range(200)]
        finally:
            ended.set()
        writing.result()
    assert len(set(read)) > 1
    assert all(text == bytes([len(text) % 256]) * len(text) for text in read)


@pytest.mark.timeout(900)
def test_a_search_without_a_shared_folder(
    cluster: Cluster, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    """Killed after its first trial, gone on with from a machine that has nothing of it: the scores of a search in a folder."""
    config = yaml.safe_load((workplace / "run.yaml").read_text())
    config |= {"name": "searched", "students": {"bare": {"model": "bert"}}}
    config["train"] |= {"workers": 1, "epochs": 4}
    space = {"loss.soft": {"choice": [0.2, 0.5, 0.9]}}
    config["tune"] = {"space": space, "trials": 3, "algorithm": "grid", "scheduler": "none", "concurrency": 2}
    (workplace / "search.yaml").write_text(yaml.safe_dump(config))
    other = bucket.beside("searches")
    run = ("tune", "search.yaml", f"runs_dir={other.url}", f"cluster.address={cluster.address}")

    def driver(name: str) -> dict[str, str]:
        return {**TOKEN, **keys, **home(tmp_path, name)}

    def trials() -> dict[str, dict[str, Any]]:
        names = [name for name in other.names() if name.endswith("/trial.json")]
        return {name: json.loads(other.fetch(name, tmp_path).read_text()) for name in sorted(names)}

    def some_finished() -> bool:
        return any(one["status"] == "finished" for one in trials().values())

    with started(TUTELAGE, *run, cwd=workplace, environment=driver("searcher")) as command:
        wait_until(lambda: command.ended() or some_finished(), lambda: command.output, 300)
        assert not command.ended(), command.output
        command.send(signal.SIGKILL)
        command.wait()
    before = {name: one for name, one in trials().items() if one["status"] == "finished"}

    done = tutelage(*run, cwd=workplace, environment=driver("another"), timeout_s=400)
    assert done.process.returncode == 0, done.output
    after = trials()
    assert {name: after[name] for name in before} == before, "ended trials are not run again"
    assert "bare-distilled was trained by the search" in done.output
    assert "_trainable" not in done.output, "Tune prints nothing of its own"
    names = other.names()
    for name in ("searched-study/study.json", "searched-study/best.yaml", "searched/report.json"):
        assert name in names
    assert not [name for name in names if "step-" in name or "/ray/" in name]

    config["runs_dir"] = "runs"
    del config["teachers"]["only"]["serving"], config["train"]["resources_per_worker"]
    (workplace / "alone.yaml").write_text(yaml.safe_dump(config))
    alone = tutelage("tune", "alone.yaml", "cluster.cpus=2", cwd=workplace, timeout_s=400)
    assert alone.process.returncode == 0, alone.output
    for name, one in after.items():
        here = json.loads((workplace / "runs" / name).read_text())
        assert (one["status"], one["values"], one["scores"]) == ("finished", here["values"], here["scores"])


def test_what_cannot_be_a_runs_dir_is_refused_at_once(workplace: Path, keys: Mapping[str, str]) -> None:
    done = tutelage("check", "run.yaml", "runs_dir=nosuch://bucket/runs", cwd=workplace, environment=keys)
    assert done.process.returncode == 2, done.output
    assert "runs_dir nosuch://bucket/runs cannot be opened" in done.output
    assert "Traceback" not in done.output
