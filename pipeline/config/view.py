"""A config shown, flattened, compared with another."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from pipeline.config.redact import redact
from pipeline.config.resolved import Resolved
from pipeline.config.schema import RunConfig

RESULT_FREE = (  # keys that change how and where a run is executed, not its results
    "runs_dir",
    "store.*",
    "tracking.*",
    "cluster.*",
    "tune",
    "tune.*",
    "rounds.count",  # each round is a run of its own
    "teachers.*.serving.replicas",
    "teachers.*.serving.cpus",
    "teachers.*.serving.gpus",
    "teachers.*.serving.resources*",
    "teachers.*.serving.in_flight",
    "teachers.*.serving.timeout_s",
    "teachers.*.serving.restarts",
    "teachers.*.preflight",
    "*train.checkpoint_steps",
    "teachers.*.fine_tune.checkpoint_steps",
    "*train.max_failures",
    "*train.cpus_per_worker",
    "*train.resources_per_worker*",
)


def flatten(config: RunConfig) -> dict[str, Any]:
    """The resolved config as `dotted.path → scalar`, secrets redacted."""
    return flatten_values(config.model_dump(mode="json"))


def flatten_values(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dicts as `dotted.path → leaf`, secrets redacted; empty dicts are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else str(key)
        flat |= (
            flatten_values(value, here) if isinstance(value, dict) and value else {here: redact(here, value)}
        )
    return flat


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back; secrets redacted."""

    def clean(node: Any, path: str = "") -> Any:
        if isinstance(node, dict):
            return {key: clean(value, f"{path}.{key}") for key, value in node.items()}
        return redact(path, node)

    data = clean(config.model_dump(mode="json"))
    # PyYAML would not quote 1e3, which it reads as a number
    text: str = OmegaConf.to_yaml(OmegaConf.create(data))
    return text


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`path: old → new` for every key that would change the results.

    A group's seeds may change: each seed has its own run folder.
    """
    if old.seeds and new.seeds:
        old = old.model_copy(update={"seeds": new.seeds})
    before, after = (
        {path: value for path, value in flatten(config).items() if value != {}} for config in (old, new)
    )
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return [f"{path}: {before.get(path)!r} → {after.get(path)!r}" for path in paths if changes_results(path)]


def changes_results(path: str) -> bool:
    """Whether another value of the key at a dotted path may change a run's results."""
    return not any(fnmatch.fnmatch(path, pattern) for pattern in RESULT_FREE)


def notes(resolved: Resolved) -> list[str]:
    """What was normalised, one line each."""
    lines = [note for one in resolved.aggregations.values() for note in one.notes]
    lines += [note for one in resolved.students.values() for note in one.notes]
    return lines
