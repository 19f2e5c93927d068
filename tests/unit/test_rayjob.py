"""rayjob.yaml and Dockerfile: valid by KubeRay's own schema, closed to the outside, with the pods that a run asks for, and
an image that can be built from what is in the repository.

The schema is the `spec` of ``ray.io/v1`` RayJob in the CRD of KubeRay 1.7 (Apache-2.0), without descriptions, and with unknown keys
refused, which Kubernetes drops in silence. Not covered: Kubernetes itself, and the layers below COPY, which are `make install`'s.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

ROOT = Path(__file__).resolve().parents[2]
JOB: dict[str, Any] = yaml.safe_load((ROOT / "rayjob.yaml").read_text(encoding="utf-8"))
CLUSTER: dict[str, Any] = JOB["spec"]["rayClusterSpec"]
SCHEMA = json.loads((ROOT / "tests" / "data" / "kuberay-1.7-rayjob-spec.json").read_text(encoding="utf-8"))
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
PODS = {
    "submitter": JOB["spec"]["submitterPodTemplate"],
    "head": CLUSTER["headGroupSpec"]["template"],
    **{name: group["template"] for name, group in GROUPS.items()},
}
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def container(pod: str) -> dict[str, Any]:
    (one,) = PODS[pod]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


# ---------------------------------------------------------------- rayjob.yaml


def test_kuberay_accepts_it() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    Draft202012Validator(SCHEMA).validate(JOB["spec"])


@pytest.mark.parametrize("path", ["backofLimit", "rayClusterSpec.headGroupSpec.template.spec.container"])
def test_an_unknown_key_is_refused(path: str) -> None:  # else the test above would show nothing
    spec = copy.deepcopy(JOB["spec"])
    *parents, key = path.split(".")
    section = spec
    for parent in parents:
        section = section[parent]
    section[key] = 1
    with pytest.raises(ValidationError, match=key):
        Draft202012Validator(SCHEMA).validate(spec)


def test_the_head_offers_no_work() -> None:
    assert CLUSTER["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_gpu_groups_scale_from_nothing_and_carry_their_resource(name: str) -> None:
    group, limits = GROUPS[name], container(name)["resources"]["limits"]
    assert CLUSTER["enableInTreeAutoscaling"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert group["maxReplicas"] >= 1
    assert {"teacher", "student"} & set(group["resources"]) == {name}
    assert group["resources"]["GPU"] == limits["nvidia.com/gpu"]
    assert group["resources"]["CPU"] == limits["cpu"]


def test_a_lost_cluster_is_made_anew_and_goes_when_the_job_is_done() -> None:
    spec = JOB["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_all_pods_have_one_image_with_the_versions_of_the_lock() -> None:
    images = {container(pod)["image"] for pod in PODS}
    assert images == {f"REGISTRY/tutelage:{VERSION}"}
    assert re.search(rf"^ray==({re.escape(CLUSTER['rayVersion'])})$", LOCK, re.MULTILINE)


@pytest.mark.parametrize("pod", ["head", "teacher", "student"])
def test_pods_share_the_volume_and_have_memory_for_the_object_store(pod: str) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in PODS[pod]["spec"]["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert (mounts["shared"], mounts["memory"]) == ("/mnt/tutelage", "/dev/shm")
    assert volumes["memory"]["emptyDir"]["medium"] == "Memory"


def test_the_head_reads_the_config_that_the_job_names() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container("head")["volumeMounts"]}
    assert JOB["spec"]["entrypoint"] == f"tutelage train {mounts['run']}/run.yaml"


def test_requests_need_a_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("pod", list(PODS))
def test_no_pod_runs_as_root(pod: str) -> None:
    security = container(pod)["securityContext"]
    assert security["runAsNonRoot"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


# ---------------------------------------------------------------- Dockerfile

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [line.partition(" ")[::2] for line in LINES if line and not line.startswith("#")]
COPIED = [(*step.split()[:-1], step.split()[-1]) for name, step in STEPS if name == "COPY"]


def test_the_image_is_of_a_python_that_the_package_accepts() -> None:
    assert STEPS[0] == ("FROM", "python:3.11-slim-bookworm")
    assert STEPS[-1] == ("USER", "tutelage")


@pytest.mark.parametrize("command", [step for name, step in STEPS if name == "RUN"])
def test_every_step_is_well_formed_shell(command: str) -> None:
    result = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_is_copied_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sent) == sorted(source for *sources, _ in COPIED for source in sources)


def test_the_package_is_built_from_what_is_copied(tmp_path: Path) -> None:
    work, wheels = tmp_path / "work", tmp_path / "wheels"
    work.mkdir()
    for *sources, target in COPIED:
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, work / target, ignore=ignored)
            else:
                shutil.copy(ROOT / source, work / target)
    assert STEPS[-3] == ("RUN", ".venv/bin/pip install -q --no-cache-dir --no-deps --no-build-isolation .")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
        ".",
    ]
    result = subprocess.run(pip, cwd=work, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = wheels.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("pipeline", "teachers", "students", "tune"):
        expected = {str(file.relative_to(ROOT)) for file in (ROOT / package).rglob("*.py")}
        assert expected <= names
    assert f"tutelage-{VERSION}.dist-info/entry_points.txt" in names
