"""A config resolved once after it is loaded: what is trained, hosted and aggregated, as small frozen objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.schema import RunConfig

Mode = Literal["distilled", "supervised"]


@dataclass(frozen=True)
class Job:
    """One training of one student."""

    student: str
    mode: Mode

    @property
    def name(self) -> str:
        """The name of its folder and of its MLflow run."""
        return f"{self.student}-{self.mode}"


def jobs_of(config: RunConfig) -> list[Job]:
    """Every student distilled, then every student's baselines."""
    distilled = [Job(student, "distilled") for student in config.students]
    return distilled + [Job(student, mode) for mode in config.baselines for student in config.students]
