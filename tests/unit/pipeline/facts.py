"""The same facts for every task and model of a config, for tests in which they do not matter."""

from __future__ import annotations

from pipeline.config.recipe import Facts, ModelFacts, TaskFacts
from pipeline.config.schema import RunConfig

EVEN = TaskFacts(labels=2, continuous=False, examples=320, labelled=320, majority=0.5)
BASE = ModelFacts(width=768)


def facts_of(config: RunConfig) -> Facts:
    """Tasks of 320 examples and two labels that are equally frequent, models of width 768."""
    return Facts(
        dict.fromkeys(config.tasks, EVEN),
        dict.fromkeys(config.students, BASE),
        dict.fromkeys(config.teachers, BASE),
    )
