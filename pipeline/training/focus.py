"""Worst task first: tasks that are further behind their teachers' ensemble get more of a training.

The gap of a task is the share of the ensemble's skill that the student lacks, on validation (`pipeline.tasks.skill`): in
units of no task, so that gaps of different kinds can be compared. It is measured after every epoch and smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SMOOTHING = 0.5
"""Share of the earlier gaps in the next: one validation score is noisy."""
LARGEST_FACTOR = 4.0
"""Bound of a gap in units of the mean gap, and of its inverse: no task is forgotten, and none takes all."""


@dataclass
class Focus:
    """The state of a training that attends to the worst tasks; kept in its checkpoints.

    gaps: smoothed, by task; empty before the first validation · drawn: batches that earlier epochs drew, by task.
    """

    gaps: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, int] = field(default_factory=dict)

    def measure(self, skills: Mapping[str, float], ensemble: Mapping[str, float]) -> None:
        """Takes in an epoch's skills of the student, by task. ensemble: the ensembles' skills."""
        for task, skill in skills.items():
            gap = remaining(skill, ensemble[task])
            self.gaps[task] = SMOOTHING * self.gaps.get(task, gap) + (1 - SMOOTHING) * gap

    def factors(self) -> dict[str, float]:
        """What both the number of a task's steps and its loss are multiplied by, so that their product, its share of the
        training, goes with its gap; empty before the first validation."""
        return {task: math.sqrt(ratio) for task, ratio in relative_gaps(self.gaps).items()}


def remaining(skill: float, ensemble: float) -> float:
    """The share of the ensemble's skill that a student lacks, from 0 to 1; 0 where the ensemble has none to give."""
    return min(max(1 - skill / ensemble, 0.0), 1.0) if ensemble > 0 else 0.0


def relative_gaps(gaps: Mapping[str, float]) -> dict[str, float]:
    """Gaps ÷ their mean, within the bounds of `LARGEST_FACTOR`; all 1 where no task has a gap."""
    mean = sum(gaps.values()) / max(1, len(gaps))
    if mean == 0:
        return dict.fromkeys(gaps, 1.0)
    return {task: min(max(gap / mean, 1 / LARGEST_FACTOR), LARGEST_FACTOR) for task, gap in gaps.items()}
