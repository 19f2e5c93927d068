"""Names of metrics in MLflow, where the part before the last ``/`` is the section of a chart.

A name ends with what a section compares: the task. So a section is one question: ``test`` is the test score by task,
``loss/soft`` the soft loss by task. ``macro`` is the mean over the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline.config.kinds import SKILL
from pipeline.config.schema import RunConfig

MACRO = "macro/score"  # the training loop's name of the mean over the tasks
Part = Literal["validation", "best", "test"]


def metrics_of(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """The metrics of each task, its own first: the one that selects and compares its models."""
    return {
        name: tuple(
            dict.fromkeys(
                (
                    task.metric or task.declared.metrics[0].name,
                    *(m.name for m in (*task.declared.metrics, *task.declared.forced)),
                    SKILL,
                )
            )
        )
        for name, task in config.tasks.items()
    }


def shown_name(part: Part, metric: str, metrics: Mapping[str, tuple[str, ...]]) -> str:
    """The name in MLflow of a score that the training loop calls ``<task>/<metric>``, ``macro/score`` or ``macro/skill``.

    ``<part>/<task>`` for the task's own metric, ``<part>/<metric>/<task>`` for another one, ``<part>/macro`` for the
    mean. What is no score of a task keeps its name, behind ``best/`` or ``test/``: ``loss/hard/<task>``, ``train/skipped_steps``.
    part: `validation` by epoch, `best` for validation scores of the weights kept, `test` · metrics: see `metrics_of`.
    """
    if metric == MACRO:
        return f"{part}/macro"
    if metric == f"macro/{SKILL}":
        return f"{part}/{SKILL}/macro"
    task, _, measure = metric.rpartition("/")
    if measure not in metrics.get(task, ()):
        return metric if part == "validation" else f"{part}/{metric}"
    return f"{part}/{task}" if measure == metrics[task][0] else f"{part}/{measure}/{task}"
