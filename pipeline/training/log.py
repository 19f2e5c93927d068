"""metrics.jsonl: what a training measures while it runs. The driver follows the file; the training knows no MLflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.files import write_atomically

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"


def append_metrics(file: Path, line: Mapping[str, Any]) -> None:
    """Adds a point: `step`, `time` and `metrics` by name, and whatever else it has."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def trim_metrics(file: Path, step: int) -> None:
    """Drops the points after `step`, because their steps are taken again."""
    kept = [line for line in read_metrics(file) if line["step"] <= step]
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The points of a metrics.jsonl.

    Leaves out a last line that is still being written. Leaves out damaged lines with a warning: a report's curves
    depend on them, its scores do not.
    """
    if not file.exists():
        return []
    points, damaged = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            point = json.loads(line)
            points.append({**point, "step": int(point["step"]), "metrics": dict(point["metrics"])})
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        _warn_damaged(file, damaged)
    return points


@cache  # a file is read twice a second while a training runs: one warning is enough
def _warn_damaged(file: Path, lines: int) -> None:
    logger.warning("%s: %d lines are damaged; its curves lack them", file, lines)
