"""Seconds of the stages of a run, over all its launches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import read_object, write_atomically

EVERY_S = 10.0  # between two writes within a stage


class Stages:
    """Seconds by stage. The first stage, `start`, begins with the object.

    After `keep` they include the seconds of earlier launches of the same run, and are written to a file: at the end of
    each stage, and every few seconds within a stage that calls `tick`. So the file also has the time of a killed launch.
    """

    def __init__(self) -> None:
        self.launches = 1
        self.started = time.time()
        self.first_step_s: float | None = None
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "start", time.perf_counter()
        self._file: Path | None = None

    def keep(self, file: Path) -> None:
        """Adds the seconds in `file`, if it exists, and writes to it from now on. Raises `CorruptError`."""
        if file.exists():
            remedy = f"Remove {file}: the report will lack the times of earlier launches, and nothing else."
            before = read_object(file, remedy)
            self.launches = before["launches"] + 1
            for stage, seconds in before["seconds"].items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._file = file
        self._write()

    def begin(self, stage: str) -> None:
        """Begins `stage`; ends the stage before it."""
        self._book()
        self._stage = stage

    def tick(self) -> None:
        """Writes the seconds if the last write was long ago; for repeated calls within a long stage."""
        if time.perf_counter() - self._since > EVERY_S:
            self._book()

    def end(self) -> None:
        """Ends the last stage."""
        self._book()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, up to now."""
        self._book()
        return {stage: round(seconds, 2) for stage, seconds in self._seconds.items()}

    def _book(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since = now
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            content = {"launches": self.launches, "seconds": self._seconds}
            write_atomically(self._file, json.dumps(content, indent=1))


def first_step(started: float, trainings: Iterable[Sequence[Mapping[str, Any]]]) -> float | None:
    """Seconds from a launch to its first training step.

    started: Unix time of the launch · trainings: the lines of each training's metrics.jsonl, also those of earlier
    launches. None where this launch logged nothing, or where its first line belongs to a training that it resumed:
    lines are written every few steps, so the time of that training's first step is not known.
    """
    lines = [line for training in trainings for line in training if line["time"] >= started]
    if not lines:
        return None
    first = min(lines, key=lambda line: float(line["time"]))
    return round(float(first["time"]) - started, 2) if first["step"] == 1 else None
