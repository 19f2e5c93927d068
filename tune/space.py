"""Dotted config path → distribution, and values → config. Keys that cannot be searched are refused before Ray starts."""

from __future__ import annotations

import fnmatch
import itertools
import math
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.fields import LONGEST_NAME
from pipeline.config.kinds import SKILL
from pipeline.config.load import parse_config
from pipeline.config.recipe import Facts
from pipeline.config.resolved import (
    resolve_config,
    student_loss,
    student_settings,
    student_stages,
    student_start,
    student_train,
    task_aggregation,
)
from pipeline.config.schema import RunConfig
from pipeline.config.search import Distribution, TuneConfig
from pipeline.config.view import RESULT_FREE
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from ray.tune.search.sample import Domain

Values = Mapping[str, Any]
"""A trial's value by dotted path."""

MACRO = "macro/score"
SHARED = {  # what all trials of a study have in common, and why it cannot be searched
    "teachers.*": "it would make other teachers or other soft targets, which all trials share",
    "tasks.*.augment.*": "it would make other variants, whose soft targets all trials share",
    "tasks.*.data.*": "it would change the examples, whose soft targets all trials share",
    "tasks.*": "it would change the task itself, whose soft targets all trials share",
    "name": "it names the study",
    "students.*.tasks": "scores over other tasks cannot be compared",
    "seeds": "a trial has one seed",
    "baselines": "trials have none",
}
SEARCHABLE_IN_TASKS = ("tasks.*.aggregation.*", "tasks.*.transfer.limit")
MUTABLE = (
    *("loss.*", "students.*.loss.*", "aggregation.*", "tasks.*.aggregation.*"),
    *("*train.learning_rate", "*train.head_learning_rate", "*train.weight_decay"),
)
"""Keys that population-based training may change in the middle of a training."""


def checked(config: RunConfig) -> TuneConfig:
    """The config's `tune`, after all checks. Raises `ConfigError`.

    Each key is checked with its lowest and highest value, or each of its choices, while the other keys keep the config's
    values. Values that are invalid only in combination fail their trial.
    """
    tune = config.tune
    if tune is None:
        raise ConfigError("tune: missing", "Add a `tune` section with a `space`; docs/config.md shows one.")
    student = student_of(config)
    for metric in tune.metrics:
        _check_metric(config, metric)
    for path, distribution in tune.space.items():
        _check_path(path, student, config, tune)
        _check_values(config, path, distribution, student)
    if tune.algorithm == "grid" and (size := math.prod(len(one.arguments) for one in tune.space.values())) > (
        tune.trials
    ):
        raise ConfigError(
            f"tune.space: the grid has {size} points, tune.trials allows {tune.trials}",
            f"Set tune.trials to {size}, or take choices away.",
        )
    _check_names(config)
    _check_population(config, student, tune)
    _check_folds(config, tune)
    return tune


def check_derived(config: RunConfig, facts: Facts) -> None:
    """Raises `ConfigError` where `tune.grace_epochs` is longer than any trial, or a trial needs hidden targets that the
    config's own training does not; apart from `checked`, since epochs and stages may be derived from the data."""
    tune = config.tune
    assert tune is not None, "`checked` comes first"
    student = student_of(config)
    for path, distribution in tune.space.items():
        for value in _extremes(distribution):
            changed = student_settings(with_values(config, {path: value}), student, facts)
            if changed.hidden and not changed.lengths.keys() <= resolve_config(config, facts).hidden:
                raise ConfigError(
                    f"tune.space.{path}: teachers make hidden targets only where the config itself has a loss on them",
                    "Give the config itself a loss or a stage with hidden above 0, or drop the key.",
                )
            writing = {task for task in changed.soft if facts.tasks[task].writes}
            if not writing <= resolve_config(config, facts).soft:
                raise ConfigError(
                    f"tune.space.{path}: teachers are forced along texts only where the config itself has a soft loss on them",
                    f"Give the config itself loss.soft above 0 for {min(writing)}, or drop the key.",
                )
    length, unit = (most_epochs(config, facts), "epochs") if tune.folds is None else (tune.folds, "folds")
    longest = length - (tune.scheduler == "pbt")  # which changes nothing after a last epoch
    if tune.scheduler != "none" and tune.grace_epochs > longest:
        raise ConfigError(
            f"tune.grace_epochs: {tune.grace_epochs}, more than {longest} would change nothing in {length} {unit}",
            "Lower it, or set tune.scheduler to none.",
        )


def student_of(config: RunConfig) -> str:
    """The name of the student that is searched. Raises `ConfigError` where `tune.student` does not determine one."""
    assert config.tune is not None, "`checked` comes first"
    student = config.tune.student
    names = ", ".join(config.students)
    if student is None and len(config.students) > 1:
        raise ConfigError("tune.student: there are several students", f"Name one of {names}.")
    if student is not None and student not in config.students:
        raise ConfigError(f"tune.student: there is no {student!r}", f"Name one of {names}.")
    return student or next(iter(config.students))


def most_epochs(config: RunConfig, facts: Facts) -> int:
    """The number of epochs of the longest possible trial."""
    assert config.tune is not None, "`checked` comes first"
    student = student_of(config)
    extremes = (
        with_values(config, {path: value})
        for path, one in config.tune.space.items()
        for value in _extremes(one)
    )
    return max(student_settings(one, student, facts).train.epochs for one in (config, *extremes))


def modes(config: RunConfig) -> tuple[str, ...]:
    """`max` or `min` for each of `tune.metrics`."""
    tune = config.tune
    assert tune is not None, "`checked` comes first"
    if isinstance(tune.mode, tuple):
        return tune.mode
    return tuple(tune.mode or ("min" if _is_error(config, metric) else "max") for metric in tune.metrics)


def with_values(config: RunConfig, values: Values) -> RunConfig:
    """The config with each of `values` set at its path, checked as a whole. Raises `ConfigError`."""
    tree = config.model_dump(mode="json")
    for path, value in values.items():
        *parents, leaf = keys_of(config, path)
        node: Any = tree
        for key, following in itertools.pairwise([*parents, leaf]):
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = [] if following.isdigit() else {}
            node = _at(node, [key])
            if not isinstance(node, dict | list):
                raise ConfigError(f"{path}: {key} has no keys of its own", "Give the path of a key.")
        if isinstance(node, list):
            raise ConfigError(f"{path}: {leaf} is a whole section", "Give the path of a key in it.")
        node[leaf] = value
    return parse_config(tree)


def keys_of(config: RunConfig, path: str) -> list[str]:
    """The keys of a dotted path. A name of a task, teacher or student is one key, even with dots in it."""
    dotted = sorted(
        (name for name in (*config.tasks, *config.teachers, *config.students) if "." in name), key=len
    )
    one_key = "|".join([*map(re.escape, reversed(dotted)), r"[^.]*"])
    return re.findall(rf"(?:^|(?<=\.))(?:{one_key})(?=\.|$)", path)


def values_of(config: RunConfig, space: Mapping[str, Distribution], facts: Facts) -> dict[str, Any] | None:
    """The config's own values at the paths of `space`; None where one of them is outside its distribution.

    A missing weight is 1, a missing task temperature is the loss's, and what else is missing is derived, as everywhere.
    """
    values: dict[str, Any] = {}
    tree = config.model_dump(mode="json")
    for path, distribution in space.items():
        keys = keys_of(config, path)
        value = _as_chosen(config, path, distribution, _at(tree, keys))
        if value is None:
            value = _inherited(tree, keys)
        if value is None and not _inside(distribution, None):
            value = _unset(config, keys, facts)
        if not _inside(distribution, value):
            return None
        values[path] = value
    return values


def _as_chosen(config: RunConfig, path: str, distribution: Distribution, value: Any) -> Any:
    """The config's value at a path as a choice spells it: a section there may leave out what the config's has."""
    if not isinstance(value, (dict, list)):
        return value
    sections = [one for one in distribution.choice or () if isinstance(one, (dict, list, tuple))]
    return next((one for one in sections if with_values(config, {path: one}) == config), value)


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

    with warnings.catch_warnings():  # choices that are lists could not be kept in a database: there is none
        warnings.filterwarnings("ignore", "Choices for a categorical distribution", UserWarning)
        return dict(OptunaSearch.convert_search_space(domains(tune)))


def points(config: RunConfig, facts: Facts) -> list[dict[str, Any]] | None:
    """The values of all trials of a `grid` or `random` search; None for an algorithm that chooses them one after another.

    With more trials, the list only grows at its end. A random search starts with the config's own values, so that its
    winner is never worse than the config.
    """
    tune = config.tune
    assert tune is not None, "`checked` comes first"
    if tune.algorithm == "grid":
        return list(_grid(tune))
    if tune.algorithm == "tpe":
        return None
    own = values_of(config, tune.space, facts)
    first = [] if own is None else [own]
    return [*first, *itertools.islice(_random(tune), tune.trials - len(first))]


def _grid(tune: TuneConfig) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(one.arguments for one in tune.space.values())):
        yield dict(zip(tune.space, values, strict=True))


def _random(tune: TuneConfig) -> Iterator[dict[str, Any]]:
    """Random points without end. Each has its own seed, so that the number of points does not change them."""
    by_path = domains(tune)
    for number in itertools.count():
        state = np.random.RandomState(random.Random(f"{tune.seed}/{number}").randrange(2**32))
        yield {
            path: nearest(tune.space[path], domain.sample(random_state=state))
            for path, domain in by_path.items()
        }


def nearest(distribution: Distribution, value: Any) -> Any:
    """The value of the distribution nearest to `value`: Ray rounds steps inexactly, and its mutations leave the range."""
    if distribution.choice is not None:
        return value
    low, high = distribution.arguments[:2]
    if distribution.kind in ("randint", "lograndint"):
        return min(max(round(value), low), high - 1)
    if distribution.kind == "quniform":
        step = distribution.arguments[2]
        value = low + round((value - low) / step) * step
    return min(max(value, low), high)


def _unset(config: RunConfig, keys: Sequence[str], facts: Facts) -> Any:
    """The value in force at a path that the config does not set; None where none is, or where tasks differ in it."""
    if keys[-2:-1] in (["task_weights"], ["teacher_weights"]):
        return 1.0
    settings = student_settings(config, student_of(config), facts)
    match keys:
        case [*_, "task_temperatures", task]:
            return settings.loss.tasks[task].temperature
        case [
            *_,
            "loss",
            "hard" | "soft" | "hidden" | "temperature" | "text" | "label_smoothing" | "beta" as key,
        ]:
            values = {getattr(loss, key) for loss in settings.loss.tasks.values()}
            return values.pop() if len(values) == 1 else None
        case [*where, "aggregation", "strategy"]:
            names = where[1:] or config.tasks_of(student_of(config))
            strategies = {task_aggregation(config, task).strategy for task in names}
            return strategies.pop() if len(strategies) == 1 else None
        case ["train", *rest] | ["students", _, "train", *rest]:
            return _at(settings.train.model_dump(mode="json"), rest)
        case ["stages", number, key] | ["students", _, "stages", number, key] if settings.stages:
            return getattr(settings.stages[int(number)], key)
    return None


def _at(tree: Any, keys: Sequence[str]) -> Any:
    """What is at a path; None where nothing is. The sections of a list have the numbers from 0 as keys."""
    for key in keys:
        if isinstance(tree, list):
            tree = dict(zip(map(str, range(len(tree))), tree, strict=True))
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _inherited(tree: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The general value at a path of a student or a task, which counts where the student or task sets none; else None."""
    match keys:
        case ["students", _, "max_length", task]:
            return _at(tree, ["tasks", task, "data", "max_length"])
        case ["students" | "tasks", _, *rest]:
            return _at(tree, rest)
    return None


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
    where, keys = f"tune.space.{path}", keys_of(config, path)
    why = next((why for shape, why in SHARED.items() if _matches(path, shape)), None)
    if why is not None and not any(_matches(path, shape) for shape in SEARCHABLE_IN_TASKS):
        raise ConfigError(f"{where}: {why}", _instead(keys, student))
    if keys[0] == "students" and (len(keys) < 3 or keys[1] != student):
        raise ConfigError(
            f"{where}: the student searched is {student}",
            f"Give a key of students.{student}, or set tune.student.",
        )
    if any(_matches(path, shape) for shape in RESULT_FREE):
        raise ConfigError(f"{where}: it changes no result, there is nothing to search", "Drop the key.")
    if path in ("train.workers", "train.gpus_per_worker"):
        raise ConfigError(f"{where}: all trials get the same resources", "Drop the key.")
    if path == "train":
        raise ConfigError(f"{where}: all trials get the same resources", "Give keys of train one by one.")
    if tune.scheduler == "pbt" and not any(fnmatch.fnmatch(path, shape) for shape in MUTABLE):
        raise ConfigError(
            f"{where}: population-based training changes values in the middle of a training, this one cannot change",
            "Set tune.scheduler to asha, or drop the key.",
        )


def _matches(path: str, shape: str) -> bool:
    """Whether a path matches the pattern `shape`, or is the section of all paths that do."""
    return fnmatch.fnmatch(path, shape) or fnmatch.fnmatch(f"{path}.", shape)


def _check_values(config: RunConfig, path: str, distribution: Distribution, student: str) -> None:
    """Checks that the config accepts the extreme values, and that they change what the student is trained with."""
    effects = []
    for value in _extremes(distribution):
        try:
            changed = with_values(config, {path: value})
        except ConfigError as error:
            raise ConfigError(f"tune.space.{path} = {value!r}: {error.cause}", error.remedy) from None
        _check_transfer(config, changed, path)
        effects.append(_in_force(changed, student))
    several = any(value != _extremes(distribution)[0] for value in _extremes(distribution))
    if several and all(effect == effects[0] for effect in effects):
        why, remedy = _idle(config, path, student)
        raise ConfigError(f"tune.space.{path}: it changes nothing, {why}", remedy)


def _check_transfer(config: RunConfig, changed: RunConfig, path: str) -> None:
    """Raises `ConfigError` where a value takes texts of other tasks that the config's own teachers do not label."""
    for task, own in config.tasks.items():
        theirs = changed.tasks[task].transfer
        if theirs == own.transfer:
            continue
        if own.transfer is None:
            raise ConfigError(f"tune.space.{path}: {task} has no transfer", f"Give tasks.{task}.transfer.")
        most = own.transfer.limit
        if theirs is None or (most is not None and (theirs.limit is None or theirs.limit > most)):
            raise ConfigError(
                f"tune.space.{path}: teachers label the {most:,} texts that the config's own limit takes",
                f"Raise tasks.{task}.transfer.limit to the largest value of the search.",
            )


def _in_force(config: RunConfig, student: str) -> list[Any]:
    """All keys that decide the student, with sections merged and weights normalised, to compare two configs."""
    loss, _ = student_loss(config, student)
    learnt = config.tasks_of(student)
    if loss.task_temperatures.keys() >= set(learnt):
        loss = loss.model_copy(update={"temperature": None})  # no task takes it
    aggregations = [task_aggregation(config, task) for task in learnt]
    train, stages = student_train(config, student), student_stages(config, student)
    parts = [
        (
            stage.loss or loss,
            stage.epochs or train.epochs,
            stage.learning_rate or train.learning_rate,
            stage.head_learning_rate or train.head_learning_rate,
            stage.unfreeze,
        )
        for stage in stages or ()
    ]
    if stages:  # what no stage takes
        train = train.model_copy(
            update=dict.fromkeys(("epochs", "learning_rate", "head_learning_rate")),
        )
        loss = loss.model_copy(update={"hard": None, "soft": None, "hidden": 0, "annealing": "constant"})
    transfers = [config.tasks[task].transfer for task in learnt]
    derived = stages is None
    return [config.seed, student_start(config, student), train, loss, parts, derived, aggregations, transfers]


def _idle(config: RunConfig, path: str, student: str) -> tuple[str, str]:
    """Why a key has no effect, and the remedy."""
    keys, drop = keys_of(config, path), "Drop the key."
    learnt = config.tasks_of(student)
    if "task_weights" in keys and len(learnt) == 1:
        return "the weight of the only task is always 1", drop
    if "teacher_weights" in keys:
        named = [config.teachers[name].task for name in keys if name in config.teachers]
        if named and not set(named) & set(learnt):
            return f"{student} does not learn {named[0]}", drop
        if all(len(config.teachers_of(task)) == 1 for task in named or learnt):
            return "the weight of a task's only teacher is always 1", drop
    given = [config.loss.task_temperatures, config.students[student].loss.get("task_temperatures", {})]
    if keys[-1] == "temperature" and set().union(*given) >= set(learnt):
        return "every task has one of its own", "Search task_temperatures.<task>, or drop the key."
    if student_stages(config, student) and keys[-2:-1] in (["loss"], ["train"]):
        return "every stage has its own", drop
    loss, _ = student_loss(config, student)
    if keys[-1] in ("hard", "soft") and not loss.hidden and 0 in (loss.hard, loss.soft):
        return (
            "the other weight is 0, so that this one is always 1",
            "Give the other a weight, or drop the key.",
        )
    own = f"students.{student}.{path}" if keys[0] in ("loss", "train") else f"tasks.<task>.{path}"
    return f"{own} is set", f"Search {own}, or drop either of them."


def _check_names(config: RunConfig) -> None:
    """Checks that the names of the study and of the winner's runs are not too long."""
    best = config.model_copy(update={"name": f"{config.name}-best"})
    names = [f"{config.name}-study", best.name, *map(best.name_of_seed, config.seeds)]
    if len(longest := max(names, key=len)) > LONGEST_NAME:
        raise ConfigError(
            f"name: {longest} has more than {LONGEST_NAME} characters", "Give the search a shorter name."
        )


def _check_population(config: RunConfig, student: str, tune: TuneConfig) -> None:
    """Checks what population-based training excludes, since it copies weights from trial to trial."""
    if tune.scheduler != "pbt":
        return
    remedy = "or set tune.scheduler to asha."
    if student_train(config, student).early_stopping is not None:
        raise ConfigError(
            f"tune.scheduler: pbt passes on the latest weights of a training, early stopping of {student} keeps its best",
            f"Set train.early_stopping of {student} to null, {remedy}",
        )
    if config.train.workers > 1:
        raise ConfigError(
            f"tune.scheduler: pbt trains each trial with one worker, train.workers is {config.train.workers}",
            f"Set train.workers to 1, {remedy}",
        )
    if tune.trials > tune.concurrency:
        raise ConfigError(
            f"tune.trials: a population of {tune.trials} trains side by side, tune.concurrency is {tune.concurrency}",
            f"Set tune.concurrency to {tune.trials}, where trials share the CPUs, or lower tune.trials.",
        )


def _check_folds(config: RunConfig, tune: TuneConfig) -> None:
    """Checks that no fold validates on what a teacher, or a variant in train, knows of it."""
    if tune.folds is None:
        return
    ready = [name for name, teacher in config.teachers.items() if teacher.fine_tune is None]
    if ready:
        raise ConfigError(
            f"tune.folds: {ready[0]} is a finished teacher, which may know the labels of every fold",
            f"Drop tune.folds, or give teachers.{ready[0]} fine_tune: it is then made without each fold.",
        )
    augmented = [name for name, task in config.tasks.items() if task.augment is not None]
    if augmented:
        raise ConfigError(
            f"tune.folds: {augmented[0]} has augment, so that variants of the texts of a fold would be in train",
            f"Drop tune.folds, or tasks.{augmented[0]}.augment.",
        )


def _instead(keys: Sequence[str], student: str) -> str:
    if keys[-1] == "max_length":
        task = keys[1] if keys[0] == "tasks" else "<task>"
        return (
            f"Search students.{student}.max_length.{task}: the student's own length changes no soft target."
        )
    return "Change it by hand and search again; a search is over what students make of the same soft targets."


def _check_metric(config: RunConfig, metric: str) -> None:
    metrics = [f"macro/{SKILL}", MACRO]
    for task in config.tasks_of(student_of(config)):
        settings = config.tasks[task]
        metrics += [f"{task}/{name}" for name in (SKILL, *(one.name for one in settings.declared.metrics))]
    if metric not in metrics:
        raise ConfigError(f"tune.metric: there is no {metric!r}", f"Known: {', '.join(metrics)}.")


def _is_error(config: RunConfig, metric: str) -> bool:
    task, _, name = metric.rpartition("/")
    if task not in config.tasks:  # macro/score
        return False
    return any(one.name == name and one.better == "lower" for one in config.tasks[task].declared.metrics)
