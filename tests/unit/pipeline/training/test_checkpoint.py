"""Checkpoints: whole or not there, whatever kills the write or damages the disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.training.checkpoint import (
    INDEX,
    adopt_checkpoint,
    keep_newest,
    load_checkpoint,
    newest_checkpoint,
    remove_checkpoints,
    remove_unsent,
    save_checkpoint,
)

ROOT = Path(__file__).resolve().parents[4]


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((40, 10), float(step)), "steps": torch.tensor(step)},
        "optimizer": {"moment": torch.arange(400, dtype=torch.float64) * step},
        "rng": {"0": torch.arange(16, dtype=torch.uint8)},
    }


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, tensors_of(step), {"step": step, "score": 0.1 * step, "task": None})


def step_of(folder: Path) -> int | None:
    """The step of what is loaded, after checking that all of it belongs to that step."""
    restored = load_checkpoint(folder)
    if restored is None:
        return None
    step: int = restored.state["step"]
    assert restored.state == {"step": step, "score": 0.1 * step, "task": None}
    for group, tensors in tensors_of(step).items():
        assert restored.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert restored.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(restored.tensors[group][name], tensor)
    return step


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- saved and loaded


def test_roundtrip_is_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45], dtype=torch.float32)
    shared = torch.arange(12.0).reshape(3, 4)
    groups = {"model": {"odd": odd, "transposed": shared.T, "half": odd.to(torch.bfloat16)}}
    save_checkpoint(tmp_path, 1, groups, {"position": [1, 2.5, "x", None]})
    restored = load_checkpoint(tmp_path)
    assert restored is not None
    assert restored.state == {"position": [1, 2.5, "x", None]}
    for name, tensor in groups["model"].items():
        loaded = restored.tensors["model"][name]
        assert loaded.shape == tensor.shape
        assert (
            loaded.contiguous().view(torch.uint8).tolist() == tensor.contiguous().view(torch.uint8).tolist()
        )


def test_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1, 9, 10, 200)
    assert names_in(tmp_path) == ["step-00000010", "step-00000200"]
    assert step_of(tmp_path) == 200


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    save_checkpoint(tmp_path, 2, tensors_of(2), {"step": 2, "score": 0.2, "task": None})
    assert names_in(tmp_path) == ["step-00000001", "step-00000002"]
    assert step_of(tmp_path) == 2


def test_there_may_be_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "absent") is None


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert {file.suffix for file in (tmp_path / "step-00000001").iterdir()} == {".safetensors", ".json"}


# ---------------------------------------------------------------- killed while writing

MOMENTS = {  # name of a test → a call of the writer, which of them, and the step that is restored afterwards
    "some tensors written": ("save_file", 2, 1),
    "all written, none synced": ("sync", 1, 1),
    "about to be renamed": ("rename", 1, 1),
    "renamed, folder not synced": ("sync", 6, 2),
    "two new ones, an old one to remove": ("rmtree", 5, 3),
}
# For each moment a process of its own saves steps 2 and 3 and kills itself, as `kill -9` does, when its Nth call comes.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from pipeline.training import checkpoint
from tests.unit.pipeline.training.test_checkpoint import save

def arm(name, count):
    owner = {"rename": Path, "rmtree": checkpoint.shutil}.get(name, checkpoint)
    real, calls = getattr(owner, name), []

    def killing(*args, **options):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, killing)

for folder, (name, count, _) in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        arm(name, count)
        save(Path(folder), 2, 3)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each moment, with a checkpoint of step 1 and what the killed writer left."""
    root = tmp_path_factory.mktemp("killed")
    for moment in MOMENTS:
        save(root / moment, 1)
    plan = json.dumps({str(root / moment): call for moment, call in MOMENTS.items()})
    command = [sys.executable, "-c", KILLED, plan]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(MOMENTS), done.stderr
    return root


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_writing(killed: Path, moment: str) -> None:
    folder, step = killed / moment, MOMENTS[moment][2]
    assert any(name.startswith(".part-") for name in names_in(folder)) == (step == 1)
    assert step_of(folder) == step
    assert not any(name.startswith(".part-") for name in names_in(folder))
    save(folder, 4, 5)
    assert names_in(folder) == ["step-00000004", "step-00000005"]


# ---------------------------------------------------------------- damaged on disk


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def flip_high(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[3] |= 0x80
    file.write_bytes(bytes(data))


def edit_step(file: Path) -> None:
    text = file.read_text()
    assert '"step": 2' in text
    file.write_text(text.replace('"step": 2', '"step": 6'))


def unlist(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "files": {}}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit in a tensor": lambda folder: flip(folder / "model.safetensors", -5),
    "bit in a header": lambda folder: flip(folder / "optimizer.safetensors", 12),
    "tensors cut": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "tensors empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "tensors gone": lambda folder: (folder / "rng.safetensors").unlink(),
    "index cut": lambda folder: os.truncate(folder / INDEX, 20),
    "index empty": lambda folder: os.truncate(folder / INDEX, 0),
    "index gone": lambda folder: (folder / INDEX).unlink(),
    "index no longer text": lambda folder: flip_high(folder / INDEX),
    "index of another kind": lambda folder: (folder / INDEX).write_text("[]"),
    "a digit of the state": lambda folder: edit_step(folder / INDEX),
    "files unlisted": lambda folder: unlist(folder / INDEX),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(tmp_path, 1, 2)
    DAMAGE[damage](tmp_path / "step-00000002")
    with caplog.at_level(logging.WARNING):
        assert step_of(tmp_path) == 1
    assert names_in(tmp_path) == ["step-00000001", "step-00000002.corrupt"]
    assert "step-00000002" in caplog.text
    assert "step-00000002.corrupt, going one back" in caplog.text
    save(tmp_path, 2)  # trained again from step 1
    assert step_of(tmp_path) == 2


def test_bits_all_over_the_index_count(tmp_path: Path) -> None:
    save(tmp_path / "whole", 1)
    index = (tmp_path / "whole" / "step-00000001" / INDEX).read_bytes()
    loaded = []
    for position in range(0, len(index), 3):
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged", dirs_exist_ok=True)
        flip(tmp_path / "damaged" / "step-00000001" / INDEX, position)
        if load_checkpoint(tmp_path / "damaged") is not None:
            loaded.append(index[position : position + 1])
        shutil.rmtree(tmp_path / "damaged")
    assert loaded == []


def test_all_damaged_is_none_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        flip(tmp_path / f"step-0000000{step}" / "model.safetensors", -1)
    assert load_checkpoint(tmp_path) is None
    assert len(caplog.records) == 2
    assert names_in(tmp_path) == ["step-00000001.corrupt", "step-00000002.corrupt"]


def test_damaged_again_after_it_was_set_aside(tmp_path: Path) -> None:
    for _ in range(2):
        save(tmp_path, 1, 2)
        flip(tmp_path / "step-00000002" / "model.safetensors", -1)
        assert step_of(tmp_path) == 1


# ---------------------------------------------------------------- disk full

# Mounts 256 KiB of memory over a folder, in a name space of its own, and saves what fits and what does not.
FULL = """
import subprocess, sys
from pathlib import Path
import torch
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import ExhaustedError

folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], check=True)
save_checkpoint(folder, 1, {"model": {"w": torch.ones(10_000)}}, {"step": 1})
try:
    save_checkpoint(folder, 2, {"model": {"w": torch.ones(100_000)}}, {"step": 2})
except ExhaustedError as error:
    print(error.exit_code, error.cause)
print([path.name for path in folder.iterdir()], load_checkpoint(folder).state)
"""


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mounts = unshare and subprocess.run(
        [unshare, "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False
    )
    if not unshare or not mounts or mounts.returncode:
        pytest.skip("this user may not mount a small file system in a name space of its own")
    done = subprocess.run(
        [unshare, "-rm", sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"4 the disk is full: a checkpoint in {tmp_path} needs 400000 bytes; the previous one is intact",
        "['step-00000001'] {'step': 1}",
    ], done.stderr


def test_a_write_that_fails_otherwise_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_checkpoint(tmp_path / "file", 1, tensors_of(1), {})


# ---------------------------------------------------------------- handed on


def test_the_newest_is_the_last_one_written(tmp_path: Path) -> None:
    save(tmp_path, 9, 10)
    (tmp_path / "step-00000011.corrupt").mkdir()
    (tmp_path / ".part-00000012").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000010"
    assert newest_checkpoint(tmp_path / "absent") is None


def test_all_but_the_newest_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 8, 9)
    keep_newest(tmp_path)
    assert names_in(tmp_path) == ["step-00000009"]
    assert load_checkpoint(tmp_path) is not None
    keep_newest(tmp_path / "absent")


@pytest.mark.parametrize("own", [(), (3,), (400, 500)])
def test_another_trainings_checkpoint_takes_the_place_of_all(tmp_path: Path, own: tuple[int, ...]) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    save_checkpoint(theirs, 40, tensors_of(40), {"progress": {"step": 40}})
    (theirs / "step-00000040").rename(theirs / "checkpoint_000003")  # as Tune calls its copy
    mine.mkdir()
    save(mine, *own)
    (mine / ".part-incoming").mkdir()  # an attempt that was killed
    (mine / "metrics.jsonl").write_text("kept")
    adopt_checkpoint(theirs / "checkpoint_000003", mine)
    assert names_in(mine) == ["metrics.jsonl", "step-00000040"]
    restored = load_checkpoint(mine)
    assert restored is not None
    assert restored.state == {"progress": {"step": 40}}
    assert torch.equal(restored.tensors["model"]["weight"], tensors_of(40)["model"]["weight"])
    assert names_in(theirs) == ["checkpoint_000003"]


def test_removing_leaves_the_rest(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000003.corrupt").mkdir()
    (tmp_path / "result.json").write_text("{}")
    remove_checkpoints(tmp_path)
    assert names_in(tmp_path) == ["result.json"]
    remove_checkpoints(tmp_path / "absent")


def test_a_checkpoint_that_was_not_sent_whole_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "small-distilled"
    whole = save_checkpoint(folder, 1, {"model": {"w": torch.ones(2)}}, {"step": 1})
    torn = save_checkpoint(folder, 2, {"model": {"w": torch.ones(2)}}, {"step": 2})
    (torn / INDEX).unlink()
    remove_unsent(tmp_path)
    assert whole.exists()
    assert not torn.exists()
