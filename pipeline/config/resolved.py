"""The resolved config: the settings of each student and the aggregation of each task, as frozen objects.

A student's or task's own keys replace those of the run's sections, weights are normalised, and the keys that nobody
gives are derived from the facts of data and models (`pipeline.config.recipe`). Other code takes these objects; only
code that records or compares configs reads the config itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Literal

from pipeline.config.explain import overlay
from pipeline.config.kinds import writes
from pipeline.config.recipe import (
    Facts,
    Patience,
    Reasons,
    StudentRecipe,
    TaskLoss,
    TeacherRecipe,
    co_train_recipe,
    hidden_epochs,
    long_enough_for_hidden,
    patience_of,
    stage_epochs,
    stage_loss,
    student_recipe,
    task_loss,
    teacher_recipe,
)
from pipeline.config.schema import (
    AggregationConfig,
    LossConfig,
    RunConfig,
    StackLayersConfig,
    StageConfig,
    StageLossConfig,
    Strategy,
    TrainConfig,
    default_strategy,
)
from pipeline.errors import ConfigError

Mode = Literal["distilled", "supervised", "best_teacher"]
ALL_ZERO = "Give at least one of them a weight above 0."


@dataclass(frozen=True)
class Job:
    """One training of one student."""

    student: str
    mode: Mode

    @property
    def name(self) -> str:
        """The name of the training's folder and MLflow run."""
        return f"{self.student}-{self.mode}"


@dataclass(frozen=True)
class StudentStart:
    """What is known of a student before data and models are read.

    init_from, model: the teacher whose layers it starts from, or a hub id or folder; the other one is None · lengths:
    most tokens per sequence, by task: of the tasks that it learns.
    """

    name: str
    init_from: str | None
    model: str | None
    revision: str | None
    layers: int | tuple[int, ...] | StackLayersConfig | None
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class StudentLoss:
    """A student's loss. tasks: by task; the mean of their weights is 1."""

    tasks: Mapping[str, TaskLoss]
    annealing: Literal["constant", "linear"]


@dataclass(frozen=True)
class StudentStage:
    """One part of a student's training. loss: what it minimises · epochs, learning_rate, head_learning_rate, unfreeze: see
    `StageConfig` · reasons: why each derived value is what it is, by key."""

    loss: StudentLoss
    epochs: int
    learning_rate: float
    head_learning_rate: float
    unfreeze: Literal["gradual"] | None = None
    reasons: Reasons = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class StudentSettings(StudentStart):
    """The settings of one student, without any value left to derive.

    train: with the epochs of all stages · stages: empty where the training is in one part · stages_reason: why they are
    what they are, None where the config gives them · reasons, loss_reasons: why each derived value is what it is, by key, and by task and key · notes: the values that
    were normalised, one line each.
    """

    train: StudentRecipe
    loss: StudentLoss
    stages: tuple[StudentStage, ...] = ()
    stages_reason: str | None = field(default=None, compare=False)
    reasons: Reasons = field(default_factory=dict, compare=False)
    loss_reasons: Mapping[str, Reasons] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def hidden(self) -> bool:
        """Whether it learns from hidden targets."""
        return any(task.hidden for loss in self._losses for task in loss.tasks.values())

    @property
    def soft(self) -> frozenset[str]:
        """The tasks of which it has a soft loss, or learns its own texts by its teachers' distributions."""
        return frozenset(
            name for loss in self._losses for name, task in loss.tasks.items() if task.soft or task.on_policy
        )

    @property
    def _losses(self) -> list[StudentLoss]:
        return [stage.loss for stage in self.stages] or [self.loss]


@dataclass(frozen=True)
class TaskAggregation:
    """The aggregation of a task's teachers into one target. weights: by teacher, in the config's order, sum 1 · notes:
    the values that were normalised · max_word_error: above which a teacher's transcript is not learnt, None for no limit."""

    strategy: Strategy
    weights: Mapping[str, float]
    notes: tuple[str, ...] = field(default=(), compare=False)
    max_word_error: float | None = None


@dataclass(frozen=True)
class FineTuning:
    """How a teacher is made. reasons: why each derived value is what it is, by key."""

    recipe: TeacherRecipe
    reasons: Reasons = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class CoTraining:
    """How teachers are trained on beside their student.

    student: its name · recipes: by teacher, with the student's epochs · temperatures: of the mutual loss, by teacher · every, max_age, mutual: see
    `CoTrainConfig` · reasons: why each derived value is what it is, by teacher and key.
    """

    student: str
    recipes: Mapping[str, StudentRecipe]
    temperatures: Mapping[str, float]
    every: int
    max_age: int
    mutual: float
    reasons: Mapping[str, Reasons] = field(default_factory=dict, compare=False)


HIDDEN_BYTES = 2
"""Of one dimension of a hidden target: they are stored in half precision."""


@dataclass(frozen=True)
class Resolved:
    """Every student's settings and every fine-tuning by name, every task's aggregation by task, and how teachers are trained on, if
    any are."""

    students: Mapping[str, StudentSettings]
    fine_tunings: Mapping[str, FineTuning]
    aggregations: Mapping[str, TaskAggregation]
    co_training: CoTraining | None = None

    @property
    def hidden(self) -> frozenset[str]:
        """The tasks of which a student learns from hidden targets."""
        return frozenset(
            task for student in self.students.values() if student.hidden for task in student.lengths
        )

    @property
    def soft(self) -> frozenset[str]:
        """The tasks of which a student has a soft loss."""
        return frozenset(task for student in self.students.values() for task in student.soft)

    def derived(self) -> dict[str, float]:
        """The values that the config does not give, by dotted path."""
        values: dict[str, float] = {}
        for name, teacher in self.fine_tunings.items():
            values |= _derived(f"teachers.{name}.fine_tune", teacher.recipe, teacher.reasons)
        for name, student in self.students.items():
            values |= _derived(f"students.{name}.train", student.train, student.reasons)
            for task, reasons in student.loss_reasons.items():
                values |= _derived(f"students.{name}.loss.{task}", student.loss.tasks[task], reasons)
            for number, stage in enumerate(student.stages):
                values |= _derived(f"students.{name}.stages.{number}", stage, stage.reasons)
        if (together := self.co_training) is not None:
            for name, reasons in together.reasons.items():
                values |= _derived(f"co_train.{name}", together.recipes[name], reasons)
        return values


def _derived(path: str, values: object, reasons: Reasons) -> dict[str, float]:
    return {f"{path}.{key}": attrgetter(key)(values) for key in reasons}


def resolve_config(config: RunConfig, facts: Facts) -> Resolved:
    """The whole config resolved. Raises `ConfigError` where an overlay is not valid or weights are all 0."""
    students = {name: student_settings(config, name, facts) for name in config.students}
    return Resolved(
        students,
        {
            name: FineTuning(*teacher_recipe(teacher.fine_tune, name, teacher.task, facts))
            for name, teacher in config.teachers.items()
            if teacher.fine_tune is not None
        },
        {task: task_aggregation(config, task) for task in config.tasks},
        co_training(config, students, facts),
    )


def co_training(
    config: RunConfig, students: Mapping[str, StudentSettings], facts: Facts
) -> CoTraining | None:
    """How the config's teachers are trained on; None where none is. students: their settings."""
    own = config.co_train
    if own is None:
        return None
    task = config.co_trained_tasks[0]
    student = next(one for name, one in students.items() if task in config.tasks_of(name))
    recipes, reasons = {}, dict[str, Reasons]()
    for name in config.co_trained:
        recipes[name], reasons[name] = co_train_recipe(own, student.train, name, facts)
    temperatures = {name: student.loss.tasks[config.teachers[name].task].temperature for name in recipes}
    return CoTraining(student.name, recipes, temperatures, own.every, own.max_age, own.mutual, reasons)


def student_settings(config: RunConfig, name: str, facts: Facts) -> StudentSettings:
    """One student's settings. Raises `ConfigError`.

    facts: of the config's data, or of data with more texts of other tasks than the config takes.
    """
    limits, learnt = transfer_limits(config), config.tasks_of(name)
    tasks = {task: own.within(limits.get(task)) for task, own in facts.tasks.items() if task in learnt}
    facts = replace(facts, tasks=tasks)
    train, reasons = student_recipe(student_train(config, name), name, facts)
    given, notes = student_loss(config, name)
    losses = {task: task_loss(given, task, facts, given.task_weights[task]) for task in learnt}
    loss = StudentLoss(
        {task: replace(loss, on_policy=on_policy_share(config, task)) for task, (loss, _) in losses.items()},
        given.annealing,
    )
    if (own := student_stages(config, name)) is not None:
        stages, why = _resolved_stages(own, train, loss), None
    else:
        stages, why = _derived_stages(config, name, train, loss, facts)
        if why is not None and not stages:
            notes += (f"{name} has no stage on hidden states: {why}",)
    if stages:
        train, reasons = _in_stages(train, reasons, stages)
    return StudentSettings(
        **vars(student_start(config, name)),
        train=train,
        loss=loss,
        stages=stages,
        stages_reason=why,
        reasons=reasons,
        loss_reasons={task: why for task, (_, why) in losses.items()},
        notes=notes,
    )


def on_policy_share(config: RunConfig, task: str) -> float:
    """The share of a task's examples that learn the student's own text of the round before; 0 where there is none."""
    rounds = config.rounds
    later = rounds is not None and rounds.after is not None
    return rounds.share if rounds is not None and later and writes(config.tasks[task].kind) else 0.0


def student_stages(config: RunConfig, name: str) -> tuple[StageConfig, ...] | None:
    """A student's stages as given, its own or the run's; None where they are derived.

    Raises `ConfigError` where the last one trains no head.
    """
    own = config.students[name].stages
    stages, where = (config.stages, "stages") if own is None else (own, f"students.{name}.stages")
    if stages and not stages[-1].trains_heads:
        raise ConfigError(
            f"{where}: the last one has neither hard nor soft loss, so that the heads of {name} learn nothing",
            "Add a stage with `loss: {hard: 1}` or `{soft: 1}`, or one without `loss`.",
        )
    return stages


def _derived_stages(
    config: RunConfig, name: str, train: StudentRecipe, loss: StudentLoss, facts: Facts
) -> tuple[tuple[StudentStage, ...], str | None]:
    """Two stages, hidden targets or teachers' texts first, and why; no stage where that cannot be, or nothing is known of it."""
    learnt = config.tasks_of(name)
    if (references := _references_last(train, loss, facts)) is not None:
        return references
    if set(config.co_trained_tasks) & set(learnt):
        return (), None
    if any(task.hidden for task in loss.tasks.values()) or not all(
        task in facts.tasks and facts.tasks[task].words and not facts.tasks[task].writes for task in learnt
    ):
        return (), None
    examples = [facts.tasks[task].examples for task in learnt]
    if not long_enough_for_hidden(train.epochs, examples, train.batch_size):
        return (), None
    teachers = {teacher: facts.teachers[teacher] for task in learnt for teacher in config.teachers_of(task)}
    size = sum(
        HIDDEN_BYTES * model.width * facts.tasks[config.teachers[teacher].task].words
        for teacher, model in teachers.items()
    )
    epochs, why = hidden_epochs(train.epochs, size, [facts.students[name], *teachers.values()])
    if not epochs:
        return (), why
    hidden = StudentLoss(
        {task: replace(own, hard=0.0, soft=0.0, hidden=1.0) for task, own in loss.tasks.items()}, "constant"
    )
    rates = train.learning_rate, train.head_learning_rate
    first = StudentStage(hidden, epochs, *rates, reasons={"epochs": why})
    return (first, StudentStage(loss, train.epochs - epochs, *rates, reasons={"epochs": "the others"})), why


def _references_last(
    train: StudentRecipe, loss: StudentLoss, facts: Facts
) -> tuple[tuple[StudentStage, ...], str] | None:
    """Two stages where sources without reference would teach their teachers' mistakes to the end: the last one has references alone."""
    mixed = {
        task
        for task, own in facts.tasks.items()
        if own.writes and loss.tasks[task].text and 0 < own.labelled < own.examples
    }
    last = train.epochs // 2
    if not mixed or not last:
        return None
    alone = {task: replace(own, text=0.0) if task in mixed else own for task, own in loss.tasks.items()}
    rates, why = (train.learning_rate, train.head_learning_rate), "half, then as many on references alone"
    first = StudentStage(loss, train.epochs - last, *rates, reasons={"epochs": why})
    second = StudentStage(replace(loss, tasks=alone), last, *rates, reasons={"epochs": "the others"})
    return (first, second), "references last"


def _resolved_stages(
    given: Sequence[StageConfig], train: StudentRecipe, loss: StudentLoss
) -> tuple[StudentStage, ...]:
    lengths = stage_epochs([stage.epochs for stage in given], train.epochs)
    return tuple(
        StudentStage(
            loss if (own := stage.loss) is None else _stage_loss(own, loss),
            epochs,
            stage.learning_rate or train.learning_rate,
            stage.head_learning_rate or train.head_learning_rate,
            stage.unfreeze,
            {} if why is None else {"epochs": why},
        )
        for stage, (epochs, why) in zip(given, lengths, strict=True)
    )


def _stage_loss(given: StageLossConfig, loss: StudentLoss) -> StudentLoss:
    return StudentLoss({task: stage_loss(given, own) for task, own in loss.tasks.items()}, "constant")


def _in_stages(
    train: StudentRecipe, reasons: Reasons, stages: Sequence[StudentStage]
) -> tuple[StudentRecipe, Reasons]:
    """`train` with the epochs of all stages, and the patience that suits the last one where it is derived."""
    total, changes = sum(stage.epochs for stage in stages), dict[str, object]()
    if total != train.epochs:
        changes["epochs"], reasons = total, {**reasons, "epochs": "of all stages"}
    if "early_stopping.patience" in reasons:
        patience, why = patience_of(stages[-1].epochs)
        changes["early_stopping"] = Patience(patience=patience)
        reasons = {**reasons, "early_stopping.patience": f"{why}, of the last stage"}
    return train.model_copy(update=changes), reasons


def student_start(config: RunConfig, name: str) -> StudentStart:
    """What one student starts from."""
    student = config.students[name]
    lengths = {
        task: student.max_length.get(task, config.tasks[task].data.max_length)
        for task in config.tasks_of(name)
    }
    return StudentStart(name, student.init_from, student.model, student.revision, student.layers, lengths)


def student_train(config: RunConfig, name: str) -> TrainConfig:
    """A student's `train` as given: its own keys over the run's. Raises `ConfigError`."""
    return overlay(config.train, config.students[name].train, ("students", name, "train"))


def _check_text_keys(config: RunConfig, name: str, given: LossConfig) -> None:
    """Raises `ConfigError` for a key of texts where the student, or with the run's own `loss` the run, has no task of texts."""
    own = config.students[name].loss
    for key, default in (("text", None), ("label_smoothing", 0)):
        tasks = config.tasks_of(name) if key in own else config.tasks
        if getattr(given, key) != default and not any(writes(config.tasks[task].kind) for task in tasks):
            raise ConfigError(
                f"loss.{key}: no task of {name if key in own else 'the run'} writes texts", "Drop the key."
            )


def _check_beta(config: RunConfig, name: str, given: LossConfig) -> None:
    """Raises `ConfigError` where a `beta` above 0 meets tasks of numbers alone, or stored draws."""
    tasks = {task: config.tasks[task] for task in config.tasks_of(name)}
    if not given.beta:
        return
    if "beta" in config.students[name].loss and all(own.declared.continuous for own in tasks.values()):
        raise ConfigError(
            f"loss.beta: the tasks of {name} are of numbers, not of distributions", "Drop the key."
        )
    drawn = [
        task for task, own in tasks.items() if own.declared.writes and own.token_targets.form == "sampled"
    ]
    if drawn and (given.soft or config.rounds is not None):
        raise ConfigError(
            f"loss.beta: tasks.{drawn[0]}.token_targets.form sampled has no probability of what was not drawn",
            "Set form to top, or beta to 0.",
        )


def student_loss(config: RunConfig, name: str) -> tuple[LossConfig, tuple[str, ...]]:
    """A student's `loss` as given, its own keys over the run's, and notes on what was normalised.

    Every task that it learns has a weight; their mean is 1. hard, soft and hidden sum to 1 where all are given. Every task has a temperature
    where `temperature` is given. Raises `ConfigError`.
    """
    given: LossConfig = overlay(config.loss, config.students[name].loss, ("students", name, "loss"))
    learnt = config.tasks_of(name)
    _check_text_keys(config, name, given)
    _check_beta(config, name, given)
    weights, notes = {task: given.task_weights.get(task, 1.0) for task in learnt}, tuple[str, ...]()
    whole = sum(weights.values())
    if not whole:
        raise ConfigError(f"loss.task_weights: every task has weight 0 (student {name})", ALL_ZERO)
    changes: dict[str, object] = {
        "task_weights": {task: weight * len(weights) / whole for task, weight in weights.items()}
    }
    if given.temperature is not None:
        changes["task_temperatures"] = {
            task: given.task_temperatures.get(task, given.temperature) for task in learnt
        }
    if given.hard is not None and given.soft is not None:
        if not given.hard + given.soft:
            raise ConfigError(f"loss: hard and soft are both 0 (student {name})", ALL_ZERO)
        total = given.hard + given.soft + given.hidden
        terms = {"hard": given.hard / total, "soft": given.soft / total}
        if given.hidden:
            terms["hidden"] = given.hidden / total
        changes |= terms
        if abs(total - 1) > 1e-9:
            notes += (f"loss weights of {name} normalised to sum to 1: {_shown(terms)}",)
    loss = given.model_copy(update=changes)
    if given.task_weights:
        notes += (f"task weights of {name} normalised to a mean of 1: {_shown(loss.task_weights)}",)
    return loss, notes


def task_aggregation(config: RunConfig, task: str) -> TaskAggregation:
    """One task's aggregation. Raises `ConfigError`."""
    own: AggregationConfig = overlay(
        config.aggregation, config.tasks[task].aggregation, ("tasks", task, "aggregation")
    )
    given = {name: own.teacher_weights.get(name, 1.0) for name in config.teachers_of(task)}
    total, notes = sum(given.values()), tuple[str, ...]()
    if not total:
        raise ConfigError(f"aggregation.teacher_weights: every teacher of {task} has weight 0", ALL_ZERO)
    weights = {name: weight / total for name, weight in given.items()}
    if given.keys() & own.teacher_weights.keys() and abs(total - 1) > 1e-9:
        notes = (f"teacher weights of {task} normalised to sum to 1: {_shown(weights)}",)
    kind = config.tasks[task].declared
    limit = own.max_word_error if kind.audio else None
    return TaskAggregation(own.strategy or default_strategy(kind), weights, notes, limit)


def transfer_limits(config: RunConfig) -> dict[str, int | None]:
    """How many texts of other tasks each task takes at most, by task; None: no limit, or none taken."""
    return {task: own.transfer.limit if own.transfer else None for task, own in config.tasks.items()}


def transfer_sources(config: RunConfig, task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks whose texts a task takes, and those that are named for it, or by `all`, and do not fit; both sorted.

    A task of pairs takes pairs. A task of single texts takes any: a pair is cut into the sentences of its sides. Recordings and texts
    do not fit each other.
    """
    transfer = config.tasks[task].transfer
    if transfer is None:
        return (), ()
    sides = {name: own.declared.sides(own.data.columns) for name, own in config.tasks.items()}
    audio = {name: own.declared.audio for name, own in config.tasks.items()}
    named = sorted(sides.keys() - {task} if transfer.tasks == "all" else set(transfer.tasks))
    fitting = tuple(name for name in named if sides[name] >= sides[task] and audio[name] == audio[task])
    return fitting, tuple(name for name in named if name not in fitting)


def _shown(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def jobs_of(config: RunConfig) -> list[Job]:
    """Every student distilled, then every student's baselines; of the best teachers alone only where there are others."""
    several = {task for task in config.tasks if len(config.teachers_of(task)) > 1}
    return [Job(student, "distilled") for student in config.students] + [
        Job(student, mode)
        for mode in config.baselines
        for student in config.students
        if mode != "best_teacher" or several & set(config.tasks_of(student))
    ]


# ---------------------------------------------------------------- paths


def absolute_model(model: str) -> str:
    """The absolute path of a folder; a hub id unchanged."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config for processes that have a working directory of their own, as Ray's workers have."""
    students = {
        name: student.model_copy(update={"model": student.model and absolute_model(student.model)})
        for name, student in config.students.items()
    }
    return config.model_copy(
        update={
            "runs_dir": config.runs_url or str(Path(config.runs_dir).absolute()),
            "students": students,
            "store": config.store.model_copy(update={"path": config.store_path}),
        }
    )
