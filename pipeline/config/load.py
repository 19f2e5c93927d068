"""A YAML file and overrides → a checked `RunConfig`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
from pipeline.config.fields import LONGEST_NAME, Strict
from pipeline.config.kinds import Kind, writes
from pipeline.config.resolved import (
    student_loss,
    student_stages,
    student_train,
    task_aggregation,
    transfer_sources,
)
from pipeline.config.schema import RunConfig, strategies
from pipeline.errors import ConfigError, Errors, one_of


def load_config(path: str | Path, overrides: Sequence[str] = (), errors: Errors | None = None) -> RunConfig:
    """Read a YAML file, lay `key.path=value` overrides over it, validate the whole.

    Raises `ConfigError` with the path of the wrong key and, for an unknown key, the nearest name; `errors` gets the
    other errors as well.
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
        raise ConfigError(f"{file}: {_cause(error)}", _remedy(error)) from None
    return parse_config(data, errors)


def _cause(error: Exception) -> str:
    """An error of YAML or OmegaConf on one line, with the key where it is known."""
    if isinstance(error, OmegaConfBaseException):
        line, key = str(error).partition("\n")[0], error.full_key
        return f"{key}: {line}" if key and key not in line else line
    return " ".join(str(error).split()) or "not a mapping of keys to values"


def _remedy(error: Exception) -> str:
    """The remedy for an error of YAML or OmegaConf."""
    match error:
        case MissingMandatoryValue():
            return "Give the key a value: ??? stands for one that must be given."
        case InterpolationResolutionError() if "nvironment variable" in str(error):
            return "Set the variable, or give a value for where it is not set: ${oc.env:NAME,value}."
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


def parse_config(data: Any, errors: Errors | None = None) -> RunConfig:
    """Validate a config given as plain dicts and lists. Raises `ConfigError`; `errors` gets the others as well."""
    errors = errors or Errors()
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, RunConfig, ()) from None
    for where, name, names in _references(config):
        with errors:
            _known(where, name, names)
    for task in config.tasks:
        with errors:
            _check_task(task, config)
    for student in config.students:
        _check_student(student, config, errors)
    with errors:
        _check_seeds(config)
    with errors:
        _check_rounds(config)
    errors.stop()
    _check_co_train(config, errors)
    for task in config.tasks:  # which reads what the other tasks are
        with errors:
            _check_transfer(task, config)
    errors.stop()
    return config


def _dotlist(overrides: Sequence[str]) -> Any:
    for override in overrides:
        if not re.match(r"[^=\s]+=", override):
            raise ConfigError(
                f"override {override!r} is not key.path=value", "Write for instance train.epochs=1."
            )
        try:
            OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(
                f"override {override!r}: {_cause(error)}",
                "Write YAML after the =, with a blank after each colon and quotes for the shell: 'train={epochs: 3}'.",
            ) from None
    return OmegaConf.from_dotlist(list(overrides))


GROUP_KEYS = {
    "workers",
    "strategy",
    "cpus_per_worker",
    "gpus_per_worker",
    "resources_per_worker",
    "max_failures",
}


def _references(config: RunConfig) -> Iterator[tuple[str, str, Iterable[str]]]:
    """(path, name, known names) for each reference by name to another part of the config."""
    for name, teacher in config.teachers.items():
        yield f"teachers.{name}.task", teacher.task, config.tasks
    for name in config.aggregation.teacher_weights:
        yield f"aggregation.teacher_weights.{name}", name, config.teachers
    for task, own in config.tasks.items():
        for name in own.aggregation.get("teacher_weights", {}):
            ours = config.teachers_of(task) if name in config.teachers else config.teachers
            yield f"tasks.{task}.aggregation.teacher_weights.{name}", name, ours
        if own.transfer is not None and own.transfer.tasks != "all":
            for name in own.transfer.tasks:
                yield f"tasks.{task}.transfer", name, config.tasks
    for key in ("task_weights", "task_temperatures"):
        for task in getattr(config.loss, key):
            yield f"loss.{key}.{task}", task, config.tasks
    for task in (config.co_train.tasks or ()) if config.co_train is not None else ():
        yield "co_train.tasks", task, config.tasks
    for name, student in config.students.items():
        if student.init_from is not None:
            yield f"students.{name}.init_from", student.init_from, config.teachers
        for task in student.tasks or ():
            yield f"students.{name}.tasks", task, config.tasks
        learnt = config.tasks_of(name)
        for key in ("task_weights", "task_temperatures"):
            for task in student.loss.get(key, {}):
                yield f"students.{name}.loss.{key}.{task}", task, learnt
        for task in student.max_length:
            yield f"students.{name}.max_length.{task}", task, learnt


def _check_task(task: str, config: RunConfig) -> None:
    """Raises `ConfigError` where a task has no teacher, or its aggregation is not valid for its kind."""
    if not config.teachers_of(task):
        raise ConfigError(
            f"tasks.{task}: no teacher", f"Add a teacher with `task: {task}`, or drop the task."
        )
    _check_kind(task, config)


def _check_student(name: str, config: RunConfig, errors: Errors) -> None:
    """Adds an error where a student's own keys are not valid, or belong to the worker group."""
    own = config.students[name].train
    with errors:
        student_train(config, name)
    with errors:
        student_loss(config, name)
    with errors:
        student_stages(config, name)
    with errors:
        _check_sharding(name, config)
    for key in sorted(GROUP_KEYS & own.keys()):
        with errors:
            raise ConfigError(
                f"students.{name}.train.{key}: one worker group trains all students", f"Set train.{key}."
            )


def _check_sharding(student: str, config: RunConfig) -> None:
    """Raises `ConfigError` for FSDP with one worker, and with parameters that are frozen for a while."""
    if config.train.strategy == "ddp":
        return
    if config.train.workers == 1:
        raise ConfigError(
            "train.strategy: fsdp shares a student among workers, there is one", "Raise train.workers."
        )
    if student_train(config, student).lora is not None:
        raise ConfigError(
            f"students.{student}: its train has lora, which train.strategy: fsdp cannot do",
            "Drop one of the two.",
        )
    for number, stage in enumerate(student_stages(config, student) or ()):
        if stage.unfreeze is not None:
            raise ConfigError(
                f"students.{student}: stage {number} has unfreeze, which train.strategy: fsdp cannot do",
                "Drop one of the two.",
            )


def _check_seeds(config: RunConfig) -> None:
    """Raises `ConfigError` for a repeated seed, for `seed` beside `seeds`, and for run names that are too long."""
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


def _check_rounds(config: RunConfig) -> None:
    """Raises `ConfigError` for rounds beside a search, rounds that would change nothing or write more than is learnt, and long run names."""
    rounds = config.rounds
    if rounds is None:
        return
    if config.tune is not None:
        raise ConfigError(
            "tune and rounds are both given: each trial of a search is one training",
            "Search without rounds (rounds=null), then add rounds to best.yaml.",
        )
    writing = {name: task for name, task in config.tasks.items() if writes(task.kind)}
    if not rounds.share and not (bool(writing) if rounds.warm_start is None else rounds.warm_start):
        raise ConfigError(
            "rounds.share: 0 would train the same student again in each round",
            "Raise it, or let students go on with their weights: rounds.warm_start=true.",
        )
    for name, task in writing.items():
        if (most := rounds.sampling.max_new_tokens or 0) > task.data.target_length:
            raise ConfigError(
                f"rounds.sampling.max_new_tokens: {most}, a text of {name} is cut to {task.data.target_length} tokens",
                f"Lower it, or raise tasks.{name}.data.target_length.",
            )
    last = config.model_copy(update={"name": config.name_of_round(rounds.count)})
    longest = max([last.name, *map(last.name_of_seed, config.seeds)], key=len)
    if rounds.after is None and len(longest) > LONGEST_NAME:
        raise ConfigError(
            f"name: {longest} has more than {LONGEST_NAME} characters", "Give the rounds a shorter name."
        )


def _check_co_train(config: RunConfig, errors: Errors) -> None:
    """Adds an error for each thing that needs stored targets of teachers that are trained on, or a second place where they are trained."""
    if config.co_train is None:
        return
    stored = "the targets of teachers that are trained on are not stored"
    given = {
        "train.workers": (config.train.workers > 1, "teachers are trained beside one worker"),
        "runs_dir": (config.runs_url is not None, "teachers save their state into the student's checkpoints"),
        "baselines": ("best_teacher" in config.baselines, f"best_teacher needs stored targets; {stored}"),
        "tune": (config.tune is not None, f"trials share stored targets; {stored}"),
        "rounds": (config.rounds is not None, f"a round goes on from stored targets; {stored}"),
    }
    for key, (refused, why) in given.items():
        with errors:
            if refused:
                raise ConfigError(f"co_train and {key}: {why}", f"Drop co_train, or change {key}.")
    learners = dict.fromkeys(
        name for task in config.co_trained_tasks for name in config.students if task in config.tasks_of(name)
    )
    for task in config.co_trained_tasks:
        kind, learnt = config.tasks[task].kind, any(task in config.tasks_of(name) for name in learners)
        with errors:
            if config.tasks[task].declared.writes:
                raise ConfigError(
                    f"co_train: a {kind} teacher writes its texts once, before the training (task {task})",
                    _other_tasks(config, task),
                )
            if not learnt:
                raise ConfigError(f"co_train: no student learns {task}", _other_tasks(config, task))
    with errors:
        if len(learners) > 1:
            raise ConfigError(
                f"co_train: teachers are trained on beside one student, not {len(learners)}: {', '.join(learners)}",
                "Give each student a run of its own, or name its tasks (students.<student>.tasks).",
            )
        for name in learners:
            _check_learner(name, config)


def _other_tasks(config: RunConfig, without: str) -> str:
    """The remedy that leaves a task out of `co_train`."""
    left = [task for task in config.co_trained_tasks if task != without]
    return f"Set co_train.tasks to [{', '.join(left)}]." if left else "Drop co_train."


def _check_learner(name: str, config: RunConfig) -> None:
    """Raises `ConfigError` unless the student learns from its teachers' predictions, and from nothing of theirs that is stored."""
    (loss, _), train, own = student_loss(config, name), student_train(config, name), config.co_train
    terms = [stage.loss or loss for stage in student_stages(config, name) or ()] or [loss]
    if any(one.hidden for one in terms):
        raise ConfigError(
            f"co_train: {name} has a hidden loss, whose targets are stored", "Set the weight of hidden to 0."
        )
    if not any(one.soft != 0 for one in terms):  # None is derived, and above 0
        raise ConfigError(
            f"co_train: {name} has no soft loss, so that it asks no teacher",
            "Give loss.soft a weight above 0.",
        )
    if train.task_focus is not None:
        raise ConfigError(
            f"co_train: task_focus of {name} needs the teachers' stored predictions on validation",
            "Drop train.task_focus.",
        )
    if own is not None and own.learning_rate is None and (own.optimizer or train.optimizer) == "sgd":
        raise ConfigError(
            "co_train.learning_rate is missing: only that of adamw can be derived",
            "Give the teachers a rate.",
        )


def _check_kind(task: str, config: RunConfig) -> None:
    """Raises `ConfigError` for settings that the task's kind or data does not allow."""
    own = config.tasks[task]
    try:
        kind = own.declared
    except ConfigError as error:
        raise ConfigError(f"tasks.{task}.{error.cause}", error.remedy) from None
    if not kind.writes:
        _check_writes_nothing(task, config)
    _check_audio(task, config, kind)
    strategy, labelled = task_aggregation(config, task).strategy, own.without_labels is None
    others = f"Set tasks.{task}.aggregation.strategy to {one_of(strategies(kind, labelled=labelled))}."
    if strategy not in strategies(kind, labelled=True):
        made = "texts" if strategy == "consensus" else "probabilities"
        what = kind.problem if kind.continuous else kind.name
        cause = f"tasks.{task}: strategy {strategy} is made for {made}, a {what} has none"
        raise ConfigError(cause, others)
    if strategy not in strategies(kind, labelled=labelled):
        cause = f"tasks.{task}: strategy {strategy} needs labels, {own.without_labels} has none"
        raise ConfigError(cause, others)


def _check_writes_nothing(task: str, config: RunConfig) -> None:
    """Raises `ConfigError` for the keys of kinds that write texts at a task, or a teacher, of another kind."""
    own, keys = config.tasks[task], ("prefix", "generation", "token_targets")
    given = _given(f"tasks.{task}", own, keys) | _given(f"tasks.{task}.data", own.data, ("target_length",))
    for name in config.teachers_of(task):
        given |= _given(f"teachers.{name}", config.teachers[name], ("prefix", "generation"))
    if given:
        raise ConfigError(f"{min(given)}: a {own.kind} writes no texts", "Drop the key.")


def _check_audio(task: str, config: RunConfig, kind: Kind) -> None:
    """Raises `ConfigError` for keys of texts at a task of recordings, and for a language at a task of texts."""
    own, teachers = config.tasks[task], config.teachers_of(task)
    if kind.audio:
        given = _given(f"tasks.{task}", own, ("prefix", "augment"))
        given |= _given(f"tasks.{task}.data", own.data, ("max_length",))
        for name in teachers:
            given |= _given(f"teachers.{name}", config.teachers[name], ("prefix", "max_length"))
        for name, student in config.students.items():
            given |= {f"students.{name}.max_length.{task}"} if task in student.max_length else set()
        if given:
            cause = (
                f"{min(given)}: a {kind.name} reads recordings, in windows as long as its models have them"
            )
            raise ConfigError(cause, "Drop the key.")
        return
    languages = {f"tasks.{task}": own.generation.language}
    languages |= {f"teachers.{name}": config.teachers[name].generation.get("language") for name in teachers}
    for where, language in languages.items():
        if language is not None:
            raise ConfigError(
                f"{where}.generation.language: a {kind.name} hears no language", "Drop the key."
            )


def _given(where: str, section: Strict, keys: Iterable[str]) -> set[str]:
    """The paths of the keys that differ from their defaults."""
    defaults = {key: type(section).model_fields[key].get_default(call_default_factory=True) for key in keys}
    return {f"{where}.{key}" for key, default in defaults.items() if getattr(section, key) != default}


def _check_transfer(task: str, config: RunConfig) -> None:
    """Raises `ConfigError` where a task is to take its own texts, or single texts in place of pairs."""
    transfer, where = config.tasks[task].transfer, f"tasks.{task}.transfer"
    if transfer is None or transfer.tasks == "all":
        return
    if task in transfer.tasks:
        raise ConfigError(f"{where}: {task} has its own texts already", f"Leave {task} out of the list.")
    _, unfit = transfer_sources(config, task)
    if unfit and any(config.tasks[one].declared.audio for one in (task, *unfit)):
        raise ConfigError(
            f"{where}: {task} and {', '.join(unfit)} are recordings and texts", "Leave out what does not fit."
        )
    if unfit:
        raise ConfigError(
            f"{where}: {task} takes pairs of texts, {', '.join(unfit)} {'have' if len(unfit) > 1 else 'has'} single ones",
            f"Leave {'them' if len(unfit) > 1 else 'it'} out, or write `transfer: all` for all tasks that fit.",
        )


def _known(path: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
        raise ConfigError(f"{path}: there is no {name!r}", hint)
