"""`tutelage train` with `runs_dir: s3://…`, on a node that sees none of the driver's files, against a real S3 server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from pyarrow import fs
from safetensors.torch import load_file
from torch import equal

from tests.conftest import TinyModel
from tests.integration.command import BIN, TUTELAGE, Command, started, tutelage, wait_until
from tests.integration.conftest import MakeRun, csv_section
from tests.integration.test_cluster import free_port, listens

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="hides folders from a node by a mount namespace"),
]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
HIDDEN = 'mount -t tmpfs hidden "$1" && shift && exec "$@"'
"""A shell's command after which the folder $1 is empty for what follows."""


class Bucket:
    """A bucket of an S3 server."""

    def __init__(self, port: int) -> None:
        self.url = f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        self._fs, self._root = fs.FileSystem.from_uri(f"{self.url}&allow_bucket_creation=true")
        self._fs.create_dir("bucket")

    def names(self) -> set[str]:
        """Of all files."""
        infos = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{self._root}/") for info in infos if info.is_file}

    def fetch(self, name: str, folder: Path) -> Path:
        """A file's copy."""
        file = folder / name.replace("/", "_")
        with self._fs.open_input_stream(f"{self._root}/{name}") as stream:
            file.write_bytes(stream.read())
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
        tracking={"enabled": False},
    )
    return folder


def home(folder: Path, name: str) -> dict[str, str]:
    """The environment of a process with a home and a cache of its own."""
    own = folder / name
    own.mkdir(exist_ok=True)
    return {"HOME": str(own), "XDG_CACHE_HOME": str(own / "cache"), "HF_HOME": str(own / "hf")}


@pytest.fixture(scope="module")
def cluster(
    workplace: Path, keys: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a head without CPUs and a node for teachers and students, from which `workplace` is hidden."""
    ray, homes = str(BIN / "ray"), tmp_path_factory.mktemp("homes")
    folders = [Path(tempfile.mkdtemp(prefix="ray-")) for _ in range(2)]  # short: sockets lie below them
    port = free_port()
    address = f"127.0.0.1:{port}"

    def options(**more: object) -> list[str]:
        every = {"node-ip-address": "127.0.0.1", "object-store-memory": 150_000_000, **more}
        every |= {"dashboard-agent-listen-port": free_port()}
        return [f"--{name.replace('_', '-')}={value}" for name, value in every.items()]

    head = [ray, "start", "--head", "--block"]
    head += options(port=port, num_cpus=0, include_dashboard="false", temp_dir=folders[0])
    head += [f"--ray-client-server-port={free_port()}"]
    resources = json.dumps({"teacher": 1, "student": 2})
    node = [ray, "start", "--block", f"--address={address}", *options(num_cpus=2, resources=resources)]
    hidden = ["unshare", "--mount", "sh", "-c", HIDDEN, "sh", str(workplace)]
    try:
        with started(*head, cwd=folders[0], environment={**TOKEN, **keys, **home(homes, "head")}) as first:
            wait_until(lambda: "Ray runtime started" in first.output, lambda: first.output, 120)
            there = {**TOKEN, **keys, **home(homes, "node")}
            with started(*hidden, *node, cwd=folders[1], environment=there) as second:
                wait_until(lambda: "Ray runtime started" in second.output, lambda: second.output, 120)
                yield address
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def test_a_run_without_a_shared_folder(
    cluster: str, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    """Killed while its students train, gone on with from a machine that has nothing of it, and once more."""
    run = (TUTELAGE, "train", "run.yaml", f"runs_dir={bucket.url}", f"cluster.address={cluster}")

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
    cluster: str, bucket: Bucket, workplace: Path, keys: Mapping[str, str], tmp_path: Path
) -> None:
    run = (TUTELAGE, "train", "run.yaml", "name=stopped", f"runs_dir={bucket.url}")
    more = (f"cluster.address={cluster}", "train.epochs=2000")

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


def test_what_cannot_be_a_runs_dir_is_refused_at_once(workplace: Path, keys: Mapping[str, str]) -> None:
    done = tutelage("check", "run.yaml", "runs_dir=nosuch://bucket/runs", cwd=workplace, environment=keys)
    assert done.process.returncode == 2, done.output
    assert "runs_dir nosuch://bucket/runs cannot be opened" in done.output
    assert "Traceback" not in done.output
