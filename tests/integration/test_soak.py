"""Kill -9 of any process of a run or a search, at any moment, again and again: the same command always comes to the same weights.

`make soak` has 200 kills, `SOAK=n` any other number, `SOAK_VICTIMS=raylet,gcs` some victims alone. What the killed processes leave behind is left alone, as on a person's machine.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.command import QUIET, TUTELAGE, processes_of
from tests.integration.conftest import MakeRun

KILLS = int(os.environ.get("SOAK", "2"))
"""In the usual tests few, for their time."""
A_ROUND = 4
"""Kills until a run must come to its end."""
ENDINGS = {0, 3, 4, -signal.SIGKILL}
"""A killed command, and what README's table has for processes that are lost: but for these every ending is a fault."""
AT_ITS_START = "Failed to get the system config from raylet"
VICTIMS = {
    "driver": r"bin/tutelage ",
    "raylet": r"raylet/raylet ",
    "gcs": r"gcs/gcs_server ",
    "teacher": r"^ray::TeacherActor",
    "fine-tuning": r"^ray::_fine_tune_task",
    "preflight": r"^ray::_predict_task",
    "student": r"^ray::RayTrainWorker",
    "controller": r"^ray::TrainController",
    "trial": r"^ray::.*(TrialActor|ImplicitFunc|trainable)",
}
VICTIMS = {
    kind: pattern
    for kind, pattern in VICTIMS.items()
    if kind in os.environ.get("SOAK_VICTIMS", ",".join(VICTIMS)).split(",")
}

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900 + 150 * KILLS)]


@dataclass
class Launches:
    """One command, launched until it has come to its end. kills: by victim · faults: what must not happen."""

    folder: Path
    arguments: tuple[str, ...]
    draw: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0

    def to_the_end(self, kills: int, within_s: float) -> None:
        """kills: at most · within_s: the seconds of an undisturbed run, over which they are drawn."""
        sessions: list[int] = []
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        try:
            while True:
                log = self.folder / f"launch-{len(sessions)}.log"
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        [TUTELAGE, *self.arguments],
                        cwd=self.folder,
                        env={**own, **QUIET},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                sessions.append(process.pid)
                moments = [
                    self.draw.uniform(0, within_s) for _ in range(min(kills, self.draw.choice((1, 1, 2))))
                ]
                kills -= self._kill_at(sorted(moments), process)
                code = self._end(process, 240)
                text = log.read_text(errors="replace")
                if code == 1 and AT_ITS_START in text:
                    code = 4  # Ray ends the process while it connects, before any of our code runs on it
                if code not in ENDINGS or "Traceback" in text:
                    self.faults.append(f"exit {code}: {text[-2000:]}")
                    return
                if code == 0:
                    return
                if len(sessions) > 20:
                    self.faults.append(f"no end after {len(sessions)} launches: {text[-2000:]}")
                    return
        finally:
            for session in sessions:
                for pid in processes_of(session):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _kill_at(self, moments: list[float], process: subprocess.Popen[bytes]) -> int:
        """Kills a process at each moment, in seconds from now; returns how many."""
        begun, done = time.monotonic(), 0
        for moment in moments:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, begun + moment - time.monotonic()))
                return done
            alive = processes_of(process.pid)
            by_kind = {
                kind: [pid for pid, title in alive.items() if re.search(pattern, title)]
                for kind, pattern in VICTIMS.items()
            }
            kinds = sorted(kind for kind, pids in by_kind.items() if pids)
            if not kinds:
                continue
            kind = self.draw.choice(kinds)
            with suppress(ProcessLookupError):
                os.kill(self.draw.choice(sorted(by_kind[kind])), signal.SIGKILL)
                self.kills[kind] += 1
                done += 1
        return done

    def _end(self, process: subprocess.Popen[bytes], limit_s: float) -> int:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.faults.append(f"hangs after {dict(self.kills)}")
            process.kill()
            return process.wait()


def results(runs: Path) -> dict[str, str]:
    """Hashes of all weights of students and fine-tuned teachers below a runs folder, and the scores of its reports."""
    found = {}
    for file in sorted(runs.glob("*/students/**/model.safetensors")) + sorted(
        runs.glob("_teachers/*/teacher/model.safetensors")
    ):
        found[str(file.relative_to(runs))] = blake2b(file.read_bytes(), digest_size=16).hexdigest()
    for file in sorted(runs.glob("*/report.json")):
        report = json.loads(file.read_text())
        scores = {
            task: {name: one["score"] for name, one in result["students"].items()}
            for task, result in report["tasks"].items()
        }
        found[str(file.relative_to(runs))] = json.dumps(scores, sort_keys=True)
    for file in sorted(runs.glob("*/trials/*/checkpoints/*/result.json")):
        found[str(file.relative_to(runs))] = json.dumps(json.loads(file.read_text())["kept"], sort_keys=True)
    return found


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The run of `make_run` with one task, tracked, and a search of three trials, one after another."""
    for section in ("tasks", "teachers"):
        config[section] = {name: one for name, one in config[section].items() if name.startswith("mood")}
    config["students"] = {"cut": config["students"]["cut"]}
    config["train"] = {**config["train"], "epochs": 12, "checkpoint_steps": 3, "early_stopping": None}
    config["tune"] = {
        "student": "cut",
        "space": {"loss.temperature": {"choice": [1, 2, 4]}},
        "algorithm": "grid",
        "scheduler": "none",
        "trials": 3,
        "concurrency": 1,
    }
    return config


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    file = make_run(folder)
    file.write_text(yaml.safe_dump(small(yaml.safe_load(file.read_text()))))
    return folder


def test_any_kill_at_any_moment_changes_no_weight(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = ("train", "train", "train", "tune")
    draw = random.Random(int(os.environ.get("SOAK_SEED", "0")))
    undisturbed: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for command in dict.fromkeys(commands):
        runs = workplace / f"undisturbed-{command}"
        begun = time.monotonic()
        one = Launches(workplace, (command, "run.yaml", f"runs_dir={runs}"), draw)
        one.to_the_end(0, 0)
        assert not one.faults, one.faults
        seconds[command], undisturbed[command] = time.monotonic() - begun, results(runs)
        assert len(undisturbed[command]) > 2
    kills, lines, number = Counter[str](), list[str](), 0
    while (left := KILLS - kills.total()) > 0:
        command = commands[number % len(commands)]
        runs = workplace / f"round-{number}"
        one = Launches(workplace, (command, "run.yaml", f"runs_dir={runs}"), draw)
        one.to_the_end(min(A_ROUND, left), seconds[command])
        kills += one.kills
        lines += [f"round {number}, {command}, {dict(one.kills)}: {fault}" for fault in one.faults]
        if not one.faults and (got := results(runs)) != undisturbed[command]:
            lines.append(
                f"round {number}, {command}, {dict(one.kills)}: {_difference(got, undisturbed[command])}"
            )
        number += 1
        with capfd.disabled():
            if KILLS > 20:
                print(f"{kills.total()} of {KILLS} kills in {number} rounds, {len(lines)} faults", flush=True)
    report = f"{kills.total()} kills, {dict(kills)}, in {number} rounds: {len(lines)} faults"
    with capfd.disabled():
        print(f"\n{report}")
    assert not lines, "\n".join([report, *lines])


def _difference(got: Mapping[str, str], expected: Mapping[str, str]) -> str:
    changed = sorted(name for name in got.keys() & expected.keys() if got[name] != expected[name])
    return f"missing {sorted(expected.keys() - got.keys())}, more {sorted(got.keys() - expected.keys())}, other {changed}"
