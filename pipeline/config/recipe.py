"""The values of the keys that a config leaves out: derived from the data and the models, before anything is trained.

All functions are pure. A value that the config gives is taken as it is. A derived value comes with the reason for it,
one line that `tutelage check` prints. The rates and temperatures follow small measurements on R52, CoNLL-2003, movies,
tweets and strength; the lengths are not measured at full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.config.co_train import CoTrainConfig
from pipeline.config.fields import Count, Epochs, Positive
from pipeline.config.schema import (
    EarlyStoppingConfig,
    FineTuneConfig,
    LossConfig,
    OptimizationConfig,
    StageLossConfig,
    TrainConfig,
)

# ---------------------------------------------------------------- constants


@dataclass(frozen=True)
class Length:
    """How long a model is trained: `steps` × √tasks optimiser steps, in whole epochs from `fewest` to `most`.

    The tasks of a student share an encoder: each adds steps, but fewer than a student of its own would need.
    """

    steps: int
    fewest: int
    most: int


STUDENT = Length(steps=1500, fewest=4, most=60)
TEACHER = Length(steps=300, fewest=3, most=30)
TEACHER_OF_MANY = Length(steps=600, fewest=3, most=30)
"""Of a task with more than `FEW_LABELS` labels: MiniLM on 2,000 texts of R52 has 90.6 on test after 315 steps, where a student
a fifth of its size has 90.9 after 1,512, and 93.7 after 630."""
RATE, RATE_WIDTH = 5e-5, 768
"""Learning rate of a model of width 768; a model of half the width has twice the rate."""
LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-3
T5_RATE_FACTOR = 13.0
"""Of the models of T5's family, whose attention is not scaled and whose rates are an order higher: FLAN-T5-small on 2,000 sentences
has chrF 61.9 after three epochs with 5e-4, 64.1 with 1e-3, and a student cut from it 41.6 and 46.3 after its first."""
LORA_RATE_FACTOR = 10.0
"""Rates of adapters ÷ rates of whole models (Schulman, "LoRA Without Regret", 2025: ten, whatever the rank)."""
TEXT_SHARE = 0.5
"""Share of the examples of a task that writes which learn their teachers' text."""
HEAD_FACTOR, HIGHEST_HEAD_RATE = 30, 2e-2
CO_TRAIN_SHARE = 0.1
"""Learning rate of a teacher that is trained on ÷ that of its fine-tuning: it is a teacher already, and its student follows it."""
LEAST_PATIENCE, PATIENCE_SHARE = 3, 2
"""Epochs of patience: one of `PATIENCE_SHARE` epochs, at least `LEAST_PATIENCE`."""
MOST_HIDDEN_BYTES = 8e9
"""Of hidden targets that nobody asked for: more are neither labelled nor read fast on a usual machine."""
FEW_LABELS, DOMINANT = 10, 0.6
"""A task is easy to soften with at most so many labels, none of which has this share of the examples."""


# ---------------------------------------------------------------- facts


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task before training.

    labels: size of the label space; None where a prediction is a number or a place in a text · continuous: whether it
    is a number · examples: training examples, with and without labels · labelled: those with labels · majority: share
    of the most frequent label among all labelled texts, words or decisions; None without a label space · taken: how
    many of the examples are texts of other tasks · words: about how many its train and validation texts have; 0 where
    nobody counted · writes: whether a prediction is a text.
    """

    labels: int | None
    continuous: bool
    examples: int
    labelled: int
    majority: float | None
    taken: int = 0
    words: int = 0
    writes: bool = False

    def within(self, limit: int | None) -> TaskFacts:
        """With no more than `limit` texts of other tasks."""
        beyond = 0 if limit is None else max(0, self.taken - limit)
        return replace(self, examples=self.examples - beyond, taken=self.taken - beyond)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before training.

    width: of its hidden layers · by_word: whether its hidden vectors can be read word by word · rate_factor: its learning
    rate ÷ that of an encoder such as BERT of the same width.
    """

    width: int
    by_word: bool = True
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Facts:
    """The facts of a run, by the names in its config. Facts of which nothing is derived may be missing."""

    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    students: Mapping[str, ModelFacts] = field(default_factory=dict)
    teachers: Mapping[str, ModelFacts] = field(default_factory=dict)


# ---------------------------------------------------------------- recipes


class Patience(EarlyStoppingConfig):
    """Early stopping with its patience."""

    patience: Count


class Recipe(OptimizationConfig):
    """How one model is trained, without any value left to derive; the training loop takes this."""

    epochs: Epochs
    learning_rate: Positive
    head_learning_rate: Positive
    early_stopping: Patience | None


class StudentRecipe(Recipe, TrainConfig):
    """How a student is trained, without any value left to derive."""


class TeacherRecipe(Recipe, FineTuneConfig):
    """How a teacher is fine-tuned, without any value left to derive."""


@dataclass(frozen=True)
class TaskLoss:
    """The loss of one task. hard, soft, hidden: their weights, whose sum is 1 · weight: of the task among the student's
    tasks · text: share of the examples that learn their teachers' text in place of the reference · label_smoothing: of the hard loss of texts · beta: of
    the soft loss of distributions · on_policy: share of the examples that learn the student's own text of the round before."""

    hard: float
    soft: float
    temperature: float
    weight: float = 1.0
    hidden: float = 0.0
    text: float = 0.0
    label_smoothing: float = 0.0
    beta: float = 0.0
    on_policy: float = 0.0


Reasons = Mapping[str, str]
"""Why a derived value is what it is, by key; given values are missing."""


def student_recipe(given: TrainConfig, name: str, facts: Facts) -> tuple[StudentRecipe, Reasons]:
    """A student's `train`, complete, and the reasons for what is derived."""
    examples = [task.examples for task in facts.tasks.values()]
    heads = not facts.tasks or not all(task.writes for task in facts.tasks.values())
    values, reasons = _derived(given, name, facts.students, examples, STUDENT, heads=heads)
    return StudentRecipe.model_validate({**dict(given), **values}), reasons


def teacher_recipe(
    given: FineTuneConfig, name: str, task: str, facts: Facts
) -> tuple[TeacherRecipe, Reasons]:
    """A teacher's `fine_tune`, complete, and the reasons for what is derived. A teacher learns from labels alone."""
    own = facts.tasks.get(task)
    examples = [] if own is None else [own.labelled]
    many = own is not None and own.labels is not None and own.labels > FEW_LABELS
    length, heads = TEACHER_OF_MANY if many else TEACHER, own is None or not own.writes
    values, reasons = _derived(given, name, facts.teachers, examples, length, heads=heads)
    return TeacherRecipe.model_validate({**dict(given), **values}), reasons


def co_train_recipe(
    given: CoTrainConfig, student: StudentRecipe, name: str, facts: Facts
) -> tuple[StudentRecipe, Reasons]:
    """How a teacher is trained on beside its student, and the reasons for what is derived. student: how that is trained."""
    rate, reasons = given.learning_rate, dict[str, str]()
    if rate is None:
        own, why = learning_rate_of(facts.teachers[name])
        rate, reasons["learning_rate"] = (
            _rounded(CO_TRAIN_SHARE * own),
            f"{CO_TRAIN_SHARE:g} × the rate of {why}",
        )
    changes = {
        "optimizer": given.optimizer or student.optimizer,
        "learning_rate": rate,
        "head_learning_rate": rate,
        "dropout": None,
        "early_stopping": None,
        "lora": None,
    }
    return student.model_copy(update=changes), reasons


def task_loss(given: LossConfig, task: str, facts: Facts, weight: float = 1.0) -> tuple[TaskLoss, Reasons]:
    """One task's loss and the reasons for what is derived; its terms are normalised to sum to 1."""
    reasons: dict[str, str] = {}
    temperature = given.task_temperatures.get(task, given.temperature)
    if temperature is None:
        temperature, reasons["temperature"] = temperature_of(facts.tasks[task])
    hard, soft = given.hard, given.soft
    if hard is None or soft is None:
        (derived_hard, derived_soft), reason = weights_of(facts.tasks[task])
        if hard is None:
            hard, reasons["hard"] = derived_hard, reason
        if soft is None:
            soft, reasons["soft"] = derived_soft, reason
    text, writes = given.text, facts.tasks[task].writes if task in facts.tasks else False
    if writes and text is None:
        text, reasons["text"] = TEXT_SHARE, "half references, half teachers' texts"
    total = hard + soft + given.hidden
    loss = TaskLoss(
        hard / total,
        soft / total,
        temperature,
        weight,
        given.hidden / total,
        (text or 0.0) if writes else 0.0,
        given.label_smoothing if writes else 0.0,
        0.0 if task in facts.tasks and facts.tasks[task].continuous else given.beta,
    )
    return loss, reasons


def stage_loss(given: StageLossConfig, own: TaskLoss) -> TaskLoss:
    """One task's loss in a stage. own: the student's."""
    total = given.hard + given.soft + given.hidden
    return TaskLoss(
        given.hard / total,
        given.soft / total,
        own.temperature if given.temperature is None else given.temperature,
        own.weight,
        given.hidden / total,
        own.text if given.text is None or not own.text else given.text,
        own.label_smoothing,
        own.beta,
        own.on_policy,
    )


def stage_epochs(given: Sequence[int | None], total: int) -> list[tuple[int, str | None]]:
    """Epochs of each stage, and why where they are derived. given: None where a stage names none · total: of `train`."""
    open_ = sum(epochs is None for epochs in given)
    left = total - sum(epochs or 0 for epochs in given)
    whole = max(left, open_)
    shared = iter([(whole + i) // open_ for i in range(open_)])
    of = f"{left} epochs that no stage names" if left >= open_ else "train.epochs has none left, at least 1"
    return [
        (next(shared), f"a share of the {of}" if left >= open_ else of) if epochs is None else (epochs, None)
        for epochs in given
    ]


def _derived(
    given: OptimizationConfig,
    name: str,
    models: Mapping[str, ModelFacts],
    examples: Sequence[int],
    length: Length,
    heads: bool,
) -> tuple[dict[str, object], Reasons]:
    """The four keys that may be derived, all with values, and the reasons. examples: of each task · heads: whether any task has
    a head that starts from nothing."""
    reasons: dict[str, str] = {}
    epochs, rate, head_rate, stopping = (
        given.epochs,
        given.learning_rate,
        given.head_learning_rate,
        given.early_stopping,
    )
    if epochs is None:
        epochs, reasons["epochs"] = epochs_of(
            steps_of_pass(examples, given.batch_size), len(examples), length
        )
    if rate is None:
        rate, reasons["learning_rate"] = learning_rate_of(models[name], adapters=given.lora is not None)
    if head_rate is None:
        whole = rate / LORA_RATE_FACTOR if given.lora is not None else rate
        head_rate, why = head_rate_of(whole) if heads else (rate, "a model that writes has no new head")
        reasons["head_learning_rate"] = why
    if stopping is not None:
        patience = stopping.patience
        if patience is None:
            patience, reasons["early_stopping.patience"] = patience_of(epochs)
        stopping = Patience(patience=patience)
    values: dict[str, object] = {
        "epochs": epochs,
        "learning_rate": rate,
        "head_learning_rate": head_rate,
        "early_stopping": stopping,
    }
    return values, reasons


# ---------------------------------------------------------------- formulas


def steps_of_pass(examples: Sequence[int], batch_size: int) -> int:
    """Optimiser steps of one pass over tasks with so many examples each (`pipeline.training.schedule`)."""
    return sum(math.ceil(count / batch_size) for count in examples)


def epochs_of(steps: int, tasks: int, length: Length) -> tuple[int, str]:
    """Epochs, and why. steps: of one pass over all tasks."""
    total = round(length.steps * math.sqrt(tasks))
    wanted = math.ceil(total / steps)
    epochs = min(max(wanted, length.fewest), length.most)
    bound = (
        {length.fewest: ", no fewer", length.most: ", no more"}.get(epochs, "") if epochs != wanted else ""
    )
    roots = f" ({length.steps:,} × √{tasks})" if tasks > 1 else ""
    return epochs, f"{total:,} steps{roots} at {steps:,} a pass{bound}"


def learning_rate_of(model: ModelFacts, *, adapters: bool = False) -> tuple[float, str]:
    """Peak learning rate of the encoder, or of its adapters, two digits, and why."""
    rate = model.rate_factor * RATE * RATE_WIDTH / model.width
    why = f"width {model.width}" + (f" × {model.rate_factor:g}" if model.rate_factor != 1 else "")
    if adapters:
        rate, why = rate * LORA_RATE_FACTOR, f"{why} × {LORA_RATE_FACTOR:g} for adapters"
    return _rounded(min(max(rate, LOWEST_RATE), HIGHEST_RATE)), why


def head_rate_of(rate: float) -> tuple[float, str]:
    """Peak learning rate of the heads, and why. rate: the encoder's; the heads' is never lower."""
    if HEAD_FACTOR * rate <= HIGHEST_HEAD_RATE:
        return _rounded(HEAD_FACTOR * rate), f"{HEAD_FACTOR} × learning_rate"
    return max(rate, HIGHEST_HEAD_RATE), f"{HEAD_FACTOR} × learning_rate, no more than {HIGHEST_HEAD_RATE:g}"


def patience_of(epochs: int) -> tuple[int, str]:
    """Epochs of patience, and why."""
    return max(
        LEAST_PATIENCE, epochs // PATIENCE_SHARE
    ), f"epochs ÷ {PATIENCE_SHARE}, at least {LEAST_PATIENCE}"


def long_enough_for_hidden(epochs: int, examples: Sequence[int], batch_size: int) -> bool:
    """Whether a training has at least the steps of a student's derived length: only such were measured to gain from a
    stage on hidden targets. examples: of each task."""
    return epochs * steps_of_pass(examples, batch_size) >= round(STUDENT.steps * math.sqrt(len(examples)))


def hidden_epochs(epochs: int, hidden_bytes: float, models: Sequence[ModelFacts]) -> tuple[int, str]:
    """Epochs of a first stage on hidden targets, out of a training's `epochs`, and why; 0 for no such stage.

    hidden_bytes: of the teachers' hidden targets · models: the student and all teachers.
    """
    if not all(model.by_word for model in models):
        return 0, "the hidden states of a model cannot be read word by word"
    if hidden_bytes > MOST_HIDDEN_BYTES:
        return (
            0,
            f"hidden targets would take {hidden_bytes / 1e9:,.0f} GB, more than {MOST_HIDDEN_BYTES / 1e9:.0f}",
        )
    return epochs // 2, f"half of the epochs, on hidden targets of about {hidden_bytes / 1e6:,.0f} MB"


def temperature_of(task: TaskFacts) -> tuple[float, str]:
    """Temperature of the soft loss, and why."""
    soft, reason = _can_soften(task)
    return (2.0 if soft else 1.0), reason


def weights_of(task: TaskFacts) -> tuple[tuple[float, float], str]:
    """Weights of the hard and the soft loss, and why."""
    soft, reason = _can_soften(task)
    if task.writes:
        return (1.0, 0.0), reason
    return ((0.3, 0.7) if soft else (0.5, 0.5)), reason


def _can_soften(task: TaskFacts) -> tuple[bool, str]:
    """Whether a high temperature and a high soft weight help: the teachers' probabilities of few, even labels are
    informative where those of many, or of a dominant one, differ by little from label smoothing."""
    if task.writes:
        return False, "a text"
    if task.continuous:
        return True, "a number"
    if task.labels is None or task.majority is None:
        return False, "a place in a text"
    return (
        task.labels <= FEW_LABELS and task.majority < DOMINANT,
        f"{task.labels} labels, the most frequent {100 * task.majority:.0f} %",
    )


def _rounded(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")
