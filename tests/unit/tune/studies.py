"""Searches and trials made up by hand, for the tests of the search. No Ray here, no models, no files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pipeline.config.load import parse_config
from pipeline.config.recipe import Facts
from pipeline.config.schema import RunConfig
from pipeline.report.schema import TrialStatus
from tests.unit.pipeline.facts import facts_of
from tune.study import Trial

SPACE: dict[str, Any] = {
    "loss.temperature": {"uniform": [1, 8]},
    "loss.task_weights.movies": {"loguniform": [0.25, 4]},
    "students.half.layers": {"choice": [1, 2, [0, 3]]},
}
RUN: dict[str, Any] = {
    "name": "run",
    "tasks": {
        "movies": {"kind": "text-classification", "data": {"path": "csv"}},
        "stars": {"kind": "text-classification", "problem": "regression", "data": {"path": "csv"}},
    },
    "teachers": {
        "movies-big": {"task": "movies", "model": "big"},
        "movies-tiny": {"task": "movies", "model": "tiny", "fine_tune": {}},
        "stars-big": {"task": "stars", "model": "big"},
    },
    "students": {"half": {"init_from": "movies-big", "layers": 2}, "tiny": {"model": "tiny"}},
    "train": {"epochs": 4, "early_stopping": None},
}


def plain(
    space: Mapping[str, Any] = SPACE, run: Mapping[str, Any] | None = None, **tune: Any
) -> dict[str, Any]:
    """A run that searches student `half`, as plain dicts. run: other values by dotted path."""
    tree = copy.deepcopy(RUN)
    for path, value in (run or {}).items():
        *sections, leaf = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return {**tree, "tune": {"student": "half", "metric": "macro/score", "space": dict(space), **tune}}


def search_of(
    space: Mapping[str, Any] = SPACE, run: Mapping[str, Any] | None = None, **tune: Any
) -> RunConfig:
    """`plain`, parsed."""
    return parse_config(plain(space, run, **tune))


def with_facts(config: RunConfig) -> tuple[RunConfig, Facts]:
    """The config and what its missing values are derived from."""
    return config, facts_of(config)


def trial_of(
    number: int,
    score: float | None = None,
    status: TrialStatus = "finished",
    *,
    values: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
    **more: Any,
) -> Trial:
    """A trial with a macro score, the same on `movies`."""
    own = {} if score is None else {"macro/score": score, "movies/accuracy": score}
    given = {"loss.temperature": 1.0 + number} if values is None else dict(values)
    return Trial(number, given, status, scores={**own, **(scores or {})}, **more)
