"""Goodput: seconds of a training that nothing disturbs ÷ seconds of the same training with its worker killed once a minute.

    python -m benchmarks.goodput RUN.yaml [--epochs 100] [--every 60] [key=value …]

The run's students alone, without baselines and early stopping, twice: undisturbed, and with `kill -9` of the training
worker every so many seconds, counted from the first step that is logged. Seconds are those of the stage `train` in report.json, so that a
worker's start, at the beginning and after each kill, is part of both. Teachers and soft targets are made in the first
run. Both must end with the same weights.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.common import machine
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.report.schema import Report
from pipeline.run_folder import CHECKPOINTS, REPORT, STUDENTS
from pipeline.training.log import METRICS

TUTELAGE = str(Path(sys.executable).parent / "tutelage")
WORKER = "ray::RayTrainWorker"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--every", type=float, default=60.0, help="seconds between kills; default: %(default)s"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    own = [
        *arguments.overrides,
        f"train.epochs={arguments.epochs}",
        "train.early_stopping=null",
        "train.max_failures=1000",
        "baselines=[]",
    ]
    print(machine(), flush=True)
    calm, _ = train(arguments.config, [*own, "name=goodput-calm"], None)
    killed, kills = train(arguments.config, [*own, "name=goodput-killed"], arguments.every)
    configs = [load_config(arguments.config, [*own, f"name=goodput-{name}"]) for name in ("calm", "killed")]
    same = weights(configs[0]) == weights(configs[1])
    print(
        f"train {calm:.0f} s undisturbed, {killed:.0f} s with {kills} kills: goodput {calm / killed:.3f}; "
        f"{(killed - calm) / max(1, kills):.1f} s a kill; weights {'the same' if same else 'DIFFERENT'}"
    )


def train(config: str, overrides: Sequence[str], every_s: float | None) -> tuple[float, int]:
    """Seconds of the stage `train`, and how often its worker was killed. every_s: seconds between kills, None for none."""
    run = load_config(config, overrides)
    process, kills, next_kill = subprocess.Popen([TUTELAGE, "train", config, *overrides]), 0, float("inf")
    while process.poll() is None:
        time.sleep(0.2)
        if every_s is None:
            continue
        if next_kill == float("inf") and any((run.run_dir / CHECKPOINTS).glob(f"*/{METRICS}")):
            next_kill = time.monotonic() + every_s
        if time.monotonic() >= next_kill:
            kills += kill(process.pid)
            next_kill += every_s
    if process.returncode:
        raise SystemExit(process.returncode)
    report = Report.model_validate_json((run.run_dir / REPORT).read_text())
    return report.timings_s["train"], kills


def kill(driver: int) -> int:
    """Kills the training worker of a run, and counts it."""
    for one in psutil.Process(driver).children(recursive=True):
        try:
            if (one.cmdline() or [""])[0].startswith(WORKER):
                os.kill(one.pid, signal.SIGKILL)
                return 1
        except (psutil.Error, ProcessLookupError):
            continue
    return 0


def weights(config: RunConfig) -> dict[str, str]:
    """A hash of each saved student's weights."""
    folder = config.run_dir / STUDENTS
    return {
        file.relative_to(folder).as_posix(): blake2b(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("model.safetensors"))
    }


if __name__ == "__main__":
    main()
