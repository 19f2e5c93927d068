"""What the benchmarks share: the demo's data, paired timing, printing."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import TaskData, load_task

ASSETS = Path(".cache/assets")


def demo_task(name: str, train: int, validation: int = 100, test: int = 100) -> TaskData:
    """A text-classification task of the demo with that many examples in each split; `make demo` fetches its data."""
    files: dict[str, str | tuple[str, ...]] = {split: str(ASSETS / name / f"{split}.csv") for split in SPLITS}
    limit = {"train": train, "validation": validation, "test": test}
    data = DataConfig(path="csv", data_files=files, max_length=64, limit=limit)  # type: ignore[arg-type]
    return load_task(name, TaskConfig(kind="text-classification", data=data))


def paired(runs: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Each measure's values over `runs` rounds, in alternating order (A B, B A …), after one discarded round."""
    values: list[list[float]] = [[] for _ in measures]
    for number in range(runs + 1):
        order = list(enumerate(measures))
        for i, measure in order if number % 2 else reversed(order):
            value = measure()
            if number:
                values[i].append(value)
    return values


def spread(values: Sequence[float]) -> str:
    """`1.020 (0.990-1.050)`: median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above ÷ below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error; NaN for one seed, and where a difference is NaN."""
    count = len(differences)
    error = float(np.std(differences, ddof=1)) / count**0.5 if count > 1 else float("nan")
    return float(np.mean(differences)), error


def machine() -> str:
    """The machine and the versions, for the first line of a benchmark's output."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
