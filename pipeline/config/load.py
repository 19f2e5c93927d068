"""A YAML file and overrides → a checked `RunConfig`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import ValidationError

from pipeline.config.explain import explain
from pipeline.config.resolved import student_settings, task_aggregation
from pipeline.config.schema import LONGEST_NAME, RunConfig, Strategy, strategies
from pipeline.errors import ConfigError, one_of


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, lay `key.path=value` overrides over it, validate the whole.

    Raises `ConfigError` with the path of the wrong key and, for an unknown key, the nearest name.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", "Give the path of a run's YAML file."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8", "Save the file as UTF-8.") from None
    try:
        tree = OmegaConf.create(text)
        if not OmegaConf.is_dict(tree):
            raise ValueError
        merged = OmegaConf.merge(tree, _dotlist(overrides))
        data = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except RecursionError:
        raise ConfigError(f"{file}: nested too deep to be read", "A config is a few levels deep.") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AssertionError) as error:
        cause = " ".join(str(error).split()) or "not a mapping of keys to values"
        raise ConfigError(f"{file}: {cause}", _remedy(error)) from None
    return parse_config(data)


def _remedy(error: Exception) -> str:
    """What helps against an error of YAML or OmegaConf."""
    match error:
        case MissingMandatoryValue():
            return "Give the key a value: ??? stands for one that must be given."
        case InterpolationResolutionError() | GrammarParseError():
            return (
                "Write ${key.path} with the whole path of a key of this file, or \\${…} for the text itself."
            )
        case yaml.constructor.ConstructorError() if "duplicate key" in str(error):
            return "Every key may stand once: remove or rename one of the two."
        case yaml.MarkedYAMLError():
            return "Correct the YAML at that line: indentation, quotes, brackets, a blank after each colon."
        case _:
            return "Write the config as `key: value` lines; docs/config.md lists the keys."


def parse_config(data: Any) -> RunConfig:
    """Validate a config given as plain dicts and lists. Raises `ConfigError`."""
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, RunConfig, ()) from None
    _check_references(config)
    _check_seeds(config)
    return config


def _dotlist(overrides: Sequence[str]) -> Any:
    for override in overrides:
        if not re.match(r"[^=\s]+=", override):
            raise ConfigError(
                f"override {override!r} is not key.path=value", "Write for instance train.epochs=1."
            )
    return OmegaConf.from_dotlist(list(overrides))


GROUP_KEYS = {"workers", "cpus_per_worker", "gpus_per_worker", "resources_per_worker", "max_failures"}


def _check_references(config: RunConfig) -> None:
    """Names that must exist elsewhere in the config."""
    for name, teacher in config.teachers.items():
        _known(f"teachers.{name}.task", teacher.task, config.tasks)
    for task in config.tasks:
        if not config.teachers_of(task):
            raise ConfigError(
                f"tasks.{task}: no teacher", f"Add a teacher with `task: {task}`, or drop the task."
            )
        _check_kind(task, config, task_aggregation(config, task).strategy)
        own = config.tasks[task].aggregation.get("teacher_weights", {})
        for name in (*config.aggregation.teacher_weights, *own):
            _known(f"aggregation.teacher_weights.{name}", name, config.teachers)
        for name in own:
            ours = dict.fromkeys(config.teachers_of(task))
            _known(f"tasks.{task}.aggregation.teacher_weights.{name}", name, ours)
    for name, student in config.students.items():
        if student.init_from is not None:
            _known(f"students.{name}.init_from", student.init_from, config.teachers)
        student_settings(config, name)  # checks the overlays
        for key in sorted(GROUP_KEYS & student.train.keys()):
            raise ConfigError(
                f"students.{name}.train.{key}: one worker group trains all students", f"Set train.{key}."
            )
        for key in ("task_weights", "task_temperatures"):
            for task in (*getattr(config.loss, key), *student.loss.get(key, {})):
                _known(f"loss.{key}.{task}", task, config.tasks)
        for task in student.max_length:
            _known(f"students.{name}.max_length.{task}", task, config.tasks)


def _check_seeds(config: RunConfig) -> None:
    """Several seeds: each once, no single one beside them, and names for their runs."""
    if not config.seeds:
        return
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"seeds: one stands twice in {list(config.seeds)}", "Give each seed once.")
    if config.seed != RunConfig.model_fields["seed"].default:
        raise ConfigError("seed and seeds are both given", "Drop seed, or drop seeds.")
    longest = max((config.name_of_seed(seed) for seed in config.seeds), key=len)
    if len(longest) > LONGEST_NAME:
        raise ConfigError(
            f"name: {longest} has more than {LONGEST_NAME} characters", "Give the group a shorter name."
        )


def _check_kind(task: str, config: RunConfig, strategy: Strategy) -> None:
    """What a task's kind and data rule out."""
    own = config.tasks[task]
    try:
        kind = own.declared
    except ConfigError as error:
        raise ConfigError(f"tasks.{task}.{error.cause}", error.remedy) from None
    labelled = own.data.unlabelled is None
    others = f"Set tasks.{task}.aggregation.strategy to {one_of(strategies(kind, labelled=labelled))}."
    if strategy not in strategies(kind, labelled=True):
        cause = f"tasks.{task}: strategy {strategy} is made for probabilities, a {kind.problem} has none"
        raise ConfigError(cause, others)
    if strategy not in strategies(kind, labelled=labelled):
        cause = f"tasks.{task}: strategy {strategy} needs labels, data.unlabelled has none"
        raise ConfigError(cause, others)


def _known(path: str, name: str, names: Mapping[str, object]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
        raise ConfigError(f"{path}: there is no {name!r}", hint)
