"""cluster.yaml: valid by Ray's own rules, closed to the outside, and with the nodes that a run asks for.

Not covered: AWS itself. No node is started, and image, filesystem and prices are the user's to fill in.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def commands() -> Iterator[str]:
    """Every shell command in the file."""
    for key, value in CLUSTER.items():
        if key.endswith("_commands"):
            yield from value


def starts(key: str) -> str:
    """The one command under `key` that starts Ray."""
    (found,) = [command for command in CLUSTER[key] if "ray start" in command]
    assert isinstance(found, str)
    return found


def test_ray_accepts_it() -> None:
    prepared = prepare_config(CLUSTER)  # as `ray up` does: Ray's defaults for AWS, then our keys over them
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    assert prepared["provider"]["type"] == "aws"


def test_ray_refuses_an_unknown_key() -> None:  # else the test above would show nothing
    with pytest.raises(Exception, match="workers_max"):
        validate_config(prepare_config(CLUSTER | {"workers_max": 3}))


def test_the_head_offers_no_work() -> None:
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert "--num-cpus=0" in starts("head_start_ray_commands")


@pytest.mark.parametrize("group", ["teacher", "student"])
def test_gpu_groups_scale_from_nothing_and_carry_their_resource(group: str) -> None:
    node = CLUSTER["available_node_types"][group]
    assert node["resources"]["GPU"] >= 1
    assert node["resources"]["CPU"] >= 1
    others = {"teacher", "student"} & set(node["resources"])
    assert others == {group}
    assert node["min_workers"] == 0
    assert node["max_workers"] >= 1


def test_there_is_room_for_every_group() -> None:
    types = CLUSTER["available_node_types"]
    assert set(types) == {"head", "teacher", "student"}
    assert CLUSTER["max_workers"] == sum(node["max_workers"] for node in types.values())


@pytest.mark.parametrize("key", STARTS)
def test_ray_starts_with_token_authentication(key: str) -> None:
    before = starts(key).partition("ray start")[0]
    assert "export RAY_AUTH_MODE=token;" in before


def test_every_node_gets_the_token_and_keeps_it_to_itself() -> None:
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in CLUSTER["setup_commands"])
    assert any("export RAY_AUTH_MODE=token" in command for command in CLUSTER["setup_commands"])


def test_the_dashboard_is_on_loopback() -> None:
    assert re.findall(r"--dashboard-host[= ](\S+)", TEXT) == ["127.0.0.1"]
    assert not [command for command in commands() if "0.0.0.0" in command]


def test_no_port_but_ssh_is_opened() -> None:
    assert "security_group" not in CLUSTER["provider"]  # Ray's own: ssh, and all within the group
    for node in CLUSTER["available_node_types"].values():
        assert not {"SecurityGroupIds", "SecurityGroups", "NetworkInterfaces"} & set(node["node_config"])
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_nodes_install_the_lock_and_the_wheel() -> None:
    assert CLUSTER["file_mounts"]["~/tutelage/requirements.lock"] == "requirements.lock"
    assert CLUSTER["file_mounts"]["~/tutelage/dist"] == "dist"
    setup = "\n".join(CLUSTER["setup_commands"])
    order = [
        setup.index(part) for part in ("'^torch=='", "-r ~/tutelage/requirements.lock", "tutelage-*.whl")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("key", STARTS)
def test_ray_start_knows_every_flag(key: str) -> None:
    known = {flag for option in scripts.start.params for flag in option.opts}
    given = set(re.findall(r"(--[a-z-]+)", starts(key).partition("ray start")[2]))
    assert given
    assert given <= known


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_well_formed_shell(command: str) -> None:
    result = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
