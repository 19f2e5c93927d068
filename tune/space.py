"""Dotted config path → distribution, and back: values → config. What cannot be searched is refused before Ray starts."""

from __future__ import annotations

import fnmatch
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Distribution, RunConfig, TuneConfig
from pipeline.config_load import parse_config
from pipeline.config_view import RESULT_FREE
from pipeline.errors import ConfigError
from pipeline.tasks import kind_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from ray.tune.search.sample import Domain

Values = Mapping[str, Any]
"""A trial's value by dotted path."""

MACRO = "macro/score"
SHARED = {  # what every trial shares, or what makes it one of this study
    "teachers.*": "it would make other teachers or other soft targets, which all trials share",
    "tasks.*.data.*": "it would change the examples, whose soft targets all trials share",
    "tasks.*": "it would change the task itself, whose soft targets all trials share",
    "name": "it names the study",
    "seeds": "a trial has one seed",
    "baselines": "trials have none",
}
SEARCHABLE_IN_TASKS = "tasks.*.aggregation.*"
MUTABLE = ("loss.*", "aggregation.*", "tasks.*.aggregation.*", "*train.learning_rate", "*train.weight_decay")
"""What population-based training may change in the middle of a training."""


def checked(config: RunConfig) -> TuneConfig:
    """The config's `tune`, once everything in it is known to work. Raises `ConfigError`.

    Each key is tried with its lowest and highest value, or each of its choices, the others as the config has
    them. A combination that fails only together fails its trial.
    """
    tune = config.tune
    if tune is None:
        raise ConfigError("tune: missing", "Add a `tune` section with a `space`; docs/config.md shows one.")
    student = student_of(config)
    for metric in tune.metrics:
        _check_metric(config, metric)
    for path, distribution in tune.space.items():
        _check_path(path, student, config, tune)
        for value in _extremes(distribution):
            try:
                with_values(config, {path: value})
            except ConfigError as error:
                raise ConfigError(f"tune.space.{path} = {value!r}: {error.cause}", error.remedy) from None
    if tune.algorithm == "grid" and (size := len(list(_grid(tune)))) > tune.trials:
        raise ConfigError(
            f"tune.space: the grid has {size} points, tune.trials allows {tune.trials}",
            f"Set tune.trials to {size}, or take choices away.",
        )
    return tune


def student_of(config: RunConfig) -> str:
    """The student that is searched. Raises `ConfigError` where that is not clear."""
    assert config.tune is not None, "`checked` comes first"
    student = config.tune.student
    known = ", ".join(config.students)
    if student is None and len(config.students) > 1:
        raise ConfigError("tune.student: there are several students", f"Name one of {known}.")
    if student is not None and student not in config.students:
        raise ConfigError(f"tune.student: there is no {student!r}", f"Name one of {known}.")
    return student or next(iter(config.students))


def modes(config: RunConfig) -> tuple[str, ...]:
    """`max` or `min` for each of the metrics."""
    tune = config.tune
    assert tune is not None, "`checked` comes first"
    if isinstance(tune.mode, tuple):
        return tune.mode
    return tuple(tune.mode or ("min" if _is_error(config, metric) else "max") for metric in tune.metrics)


def with_values(config: RunConfig, values: Values) -> RunConfig:
    """The config with `values` in their places, checked as a whole. Raises `ConfigError`."""
    tree = config.model_dump(mode="json")
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for key in parents:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise ConfigError(f"{path}: {key} has no keys of its own", "Give the path of a key.")
        node[leaf] = value
    return parse_config(tree)


def values_of(config: RunConfig, space: Mapping[str, Distribution]) -> dict[str, Any] | None:
    """What the config itself has at the paths of `space`; None where one of them is outside its distribution.

    A weight that is not there is 1, as everywhere.
    """
    found: dict[str, Any] = {}
    tree = config.model_dump(mode="json")
    for path, distribution in space.items():
        node: Any = tree
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if node is None and _is_weight(path):
            node = 1.0
        if node is None and path.startswith("students."):  # what a student does not set, the run sets
            node = _inherited(tree, path)
        if not _inside(distribution, node):
            return None
        found[path] = node
    return found


def domains(tune: TuneConfig) -> dict[str, Domain]:
    """The space as Ray Tune's own distributions."""
    import ray.tune

    return {
        path: ray.tune.choice(list(one.choice))
        if one.choice is not None
        else getattr(ray.tune, one.kind)(*one.arguments)
        for path, one in tune.space.items()
    }


def distributions(tune: TuneConfig) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    from ray.tune.search.optuna import OptunaSearch

    return dict(OptunaSearch.convert_search_space(domains(tune)))


def points(config: RunConfig) -> list[dict[str, Any]] | None:
    """The trials' values where they are known up front: `grid` and `random`; None where a search finds them.

    A longer list starts with a shorter one's points. The config's own values come first in a random search, so
    that its winner is never worse than what the user had.
    """
    tune = config.tune
    assert tune is not None, "`checked` comes first"
    if tune.algorithm == "grid":
        return list(_grid(tune))
    if tune.algorithm == "tpe":
        return None
    own = values_of(config, tune.space)
    first = [] if own is None else [own]
    return [*first, *itertools.islice(_random(tune), tune.trials - len(first))]


def _grid(tune: TuneConfig) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(one.arguments for one in tune.space.values())):
        yield dict(zip(tune.space, values, strict=True))


def _random(tune: TuneConfig) -> Iterator[dict[str, Any]]:
    """One point after another: each has a seed of its own, so that their number does not matter."""
    known = domains(tune)
    for number in itertools.count():
        state = np.random.RandomState(random.Random(f"{tune.seed}/{number}").randrange(2**32))
        yield {path: _plain(domain.sample(random_state=state)) for path, domain in known.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_weight(path: str) -> bool:
    return path.rsplit(".", 2)[-2:-1] in (["task_weights"], ["teacher_weights"])


def _inherited(tree: Mapping[str, Any], path: str) -> Any:
    """What the run has at the place of `students.<s>.loss.…` or `students.<s>.train.…`."""
    node: Any = tree
    for key in path.split(".")[2:]:
        node = node.get(key) if isinstance(node, dict) else None
    return 1.0 if node is None and _is_weight(path) else node


def _inside(distribution: Distribution, value: Any) -> bool:
    if distribution.choice is not None:
        return value in distribution.choice
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    low, high = distribution.arguments[:2]
    if distribution.kind in ("randint", "lograndint"):
        return isinstance(value, int) and low <= value < high
    if distribution.kind == "quniform":
        steps = (value - low) / distribution.arguments[2]
        return bool(low <= value <= high and abs(steps - round(steps)) < 1e-9)
    return bool(low <= value <= high)


def _extremes(distribution: Distribution) -> Sequence[Any]:
    if distribution.choice is not None:
        return distribution.choice
    low, high = distribution.arguments[:2]
    return (low, high - 1) if distribution.kind in ("randint", "lograndint") else (low, high)


def _check_path(path: str, student: str, config: RunConfig, tune: TuneConfig) -> None:
    where = f"tune.space.{path}"
    why = next((why for shape, why in SHARED.items() if fnmatch.fnmatch(path, shape)), None)
    if why is not None and not fnmatch.fnmatch(path, SEARCHABLE_IN_TASKS):
        raise ConfigError(f"{where}: {why}", _instead(path, student))
    if path.startswith("students.") and not path.startswith(f"students.{student}."):
        raise ConfigError(f"{where}: the student searched is {student}", "Set tune.student, or drop the key.")
    if path.startswith("tune.") or any(fnmatch.fnmatch(path, shape) for shape in RESULT_FREE):
        raise ConfigError(f"{where}: it changes no result, there is nothing to search", "Drop the key.")
    if path in ("train.workers", "train.gpus_per_worker"):
        raise ConfigError(f"{where}: all trials get the same resources", "Drop the key.")
    if tune.scheduler == "pbt" and not any(fnmatch.fnmatch(path, shape) for shape in MUTABLE):
        raise ConfigError(
            f"{where}: population-based training changes values in the middle of a training, this one cannot change",
            "Set tune.scheduler to asha, or drop the key.",
        )


def _instead(path: str, student: str) -> str:
    if path.endswith(".max_length"):
        task = path.split(".")[1] if path.startswith("tasks.") else "<task>"
        return (
            f"Search students.{student}.max_length.{task}: the student's own length changes no soft target."
        )
    return "Change it by hand and search again; a search is over what students make of the same soft targets."


def _check_metric(config: RunConfig, metric: str) -> None:
    if metric == MACRO:
        return
    known = [MACRO]
    for task, settings in config.tasks.items():
        kind = kind_of(settings)
        known += [f"{task}/{one}" for one in (*kind.metrics, *kind.errors)]
    if metric not in known:
        raise ConfigError(f"tune.metric: there is no {metric!r}", f"Known: {', '.join(known)}.")


def _is_error(config: RunConfig, metric: str) -> bool:
    task, _, name = metric.rpartition("/")
    return task in config.tasks and name in kind_of(config.tasks[task]).errors
