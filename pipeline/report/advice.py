"""What a finished run should change, from what it measured: each piece of advice with its number and the config key.

Pure functions of an `Evidence`, one for each piece of advice; `pipeline.report.evidence` reads the evidence from a run.
Silence is preferred to noise: a difference counts only where it exceeds its standard error by the factor given below.
Scores are shares; the sentences show points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.curve import Curve
from pipeline.data.quality import LARGE_ERROR, MUCH_TRUNCATED
from pipeline.report.ensembles import TaskTeachers, best_weights
from pipeline.report.page import CLEAR_ERRORS
from pipeline.report.schema import Advice, Report
from pipeline.report.types import TaskResults
from pipeline.shown import points
from pipeline.tasks.label_counts import label_counts, label_hits
from pipeline.tasks.scores import bootstrap
from pipeline.tasks.task import Task

REWEIGHTED = 1.5
"""Paired standard errors by which other weights must gain on validation. They cost nothing to try, so less is needed than
for a claim (`CLEAR_ERRORS`), but they are the best of many, so one alone would often be chance."""
SEEN_OFTEN = 5
"""Test examples of a class from which it means something that none is right."""
MANY_LABELS, DOMINANT = 20, 0.6
"""Labels of a task, or share of its most frequent one, from which a high temperature slows learning: it spends the loss
on telling apart labels that are all wrong."""
LOW_TEMPERATURE = 1.0
MUCH_SOFT = 0.5
"""Soft weight above which a lower one is the first thing to try where teachers do not help."""
SHOWN_LABELS, SHOWN_EPOCHS = 3, 4


@dataclass(frozen=True)
class Truncation:
    """How much of a task's texts is truncated. share: of what `Kind.truncates` names · length: max_length · most: tokens
    that the model has positions for, None without a limit."""

    share: float
    length: int
    most: int | None


@dataclass(frozen=True)
class TaskEvidence:
    """What is known of one task.

    results: every model's predictions on test · teachers: their stored predictions on some validation examples ·
    train_counts: (C,) labels in train, empty without a label space · truncated: by the config key of the max_length ·
    validation_key: the config key that makes validation larger.
    """

    results: TaskResults
    teachers: TaskTeachers
    train_counts: NDArray[np.int64]
    truncated: Mapping[str, Truncation] = field(default_factory=dict)
    validation_key: str = ""

    @property
    def task(self) -> Task:
        """The task."""
        return self.teachers.task


@dataclass(frozen=True)
class Evidence:
    """What the advice is computed from.

    students, baselines: their validation curves by student · teachers: the curves of those that were fine-tuned.
    """

    report: Report
    tasks: Mapping[str, TaskEvidence]
    students: Mapping[str, Curve] = field(default_factory=dict)
    baselines: Mapping[str, Curve] = field(default_factory=dict)
    teachers: Mapping[str, Curve] = field(default_factory=dict)


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """All advice, what matters most first: lengths of training, then teachers, then losses, then data."""
    functions = (
        undertrained_students,
        undertrained_teachers,
        weak_ensembles,
        weak_teachers,
        limiting_teachers,
        harmful_teachers,
        small_validations,
        truncated_texts,
        missed_classes,
    )
    return tuple(one for function in functions for one in function(evidence))


# ---------------------------------------------------------------- lengths of training


def undertrained_students(evidence: Evidence) -> Iterator[Advice]:
    """Students, or their supervised baselines, whose validation score was still rising at the last epoch."""
    for name, curve in evidence.students.items():
        error = _validation_error(evidence.report, name)
        baseline = evidence.baselines.get(name, Curve())
        staged = _staged(evidence, name)
        key = f"students.{name}.stages" if staged else f"students.{name}.train.epochs"
        if curve.rising(error):
            yield Advice(
                code="student-undertrained",
                text=f"{name} was still improving when it ended ({_last(curve, error)}).",
                key=key,
                value=None if staged else 2 * evidence.report.recipes[name].epochs,
            )
        elif baseline.rising(error):
            yield Advice(
                code="baseline-undertrained",
                text=f"The supervised baseline of {name} was still improving when it ended ({_last(baseline, error)}): "
                f"the gain over it may be too high.",
                key=key,
                value=None if staged else 2 * curve.epochs,
            )


def _staged(evidence: Evidence, student: str) -> bool:
    """Whether the config gives the student's training stages, each with a length and a loss of its own."""
    recipe = evidence.report.recipes.get(student)
    return recipe is not None and bool(recipe.stages) and "stages" not in recipe.derived


def undertrained_teachers(evidence: Evidence) -> Iterator[Advice]:
    """Teachers whose validation score was still rising at the last epoch of their fine-tuning."""
    for task in evidence.tasks.values():
        for name in task.teachers.predictions:
            curve = evidence.teachers.get(name, Curve())
            if not curve.rise():
                continue
            error = _error(task, name)
            if curve.rising(error):
                yield Advice(
                    code="teacher-undertrained",
                    text=f"Teacher {name} was still improving when its fine-tuning ended ({_last(curve, error)}).",
                    key=f"teachers.{name}.fine_tune.epochs",
                    value=2 * curve.epochs,
                )


def _last(curve: Curve, error: float) -> str:
    """`validation by epoch: … 45.2, 51.0; standard error 1.6`."""
    shown = curve.scores[-SHOWN_EPOCHS:]
    more = "… " if len(shown) < len(curve.scores) else ""
    return f"validation by epoch: {more}{', '.join(map(points, shown))}; standard error {points(error)}"


def _validation_error(report: Report, student: str) -> float:
    """Standard error of a student's mean validation score: that of its test score, by the number of examples."""
    errors = [
        task.standard_errors.students[student]
        * math.sqrt(task.examples["test"] / task.examples["validation"])
        for task in report.tasks_of(student).values()
    ]
    return math.hypot(*errors) / len(errors)


# ---------------------------------------------------------------- teachers and their ensemble


def weak_ensembles(evidence: Evidence) -> Iterator[Advice]:
    """Ensembles below their best teacher, and the weights that mend it, from the stored soft targets on validation."""
    for name, task in evidence.tasks.items():
        if len(task.teachers.predictions) < 2:
            continue
        scores = {
            teacher: task.teachers.score(values) for teacher, values in task.teachers.predictions.items()
        }
        best = max(scores, key=lambda teacher: scores[teacher])
        together = task.teachers.combine(task.teachers.weights)
        behind, error = _difference(task, task.teachers.predictions[best], together)
        if behind <= REWEIGHTED * error:
            continue
        weights, values = best_weights(task.teachers)
        gain, gain_error = _difference(task, values, together)
        if gain <= REWEIGHTED * gain_error:
            continue
        before, after = task.teachers.score(together), task.teachers.score(values)
        yield Advice(
            code="ensemble-below-teacher",
            text=f"The ensemble of {name} is {points(behind)} points below its teacher {best} on validation. With "
            f"weights {_listed(weights)} it scores {points(after)} instead of {points(before)} there (standard error of "
            f"the difference {points(gain_error)}; the soft targets are stored, no teacher runs again).",
            key=f"tasks.{name}.aggregation.teacher_weights",
            value=weights,
        )


def weak_teachers(evidence: Evidence) -> Iterator[Advice]:
    """Teachers, of several, that a student beats on test and without which the ensemble is no worse on validation."""
    for name, task in evidence.tasks.items():
        results, scores = task.results, evidence.report.tasks[name]
        if not results.students:
            continue
        best = max(results.students, key=lambda student: scores.students[student].score)
        for teacher, values in results.teachers.items():
            ahead, error = _difference(task, results.students[best], values, on_test=True)
            others = task.teachers.without(teacher)
            if ahead <= CLEAR_ERRORS * error or others is None or not task.teachers.weights[teacher]:
                continue  # without others the teacher is the ensemble: see `limiting_teachers`
            together = task.teachers.combine(task.teachers.weights)
            before, after = task.teachers.score(together), task.teachers.score(task.teachers.combine(others))
            if after < before or len(task.teachers.lacking(others)):
                continue
            key, value = _better_teacher(evidence, name, teacher)
            yield Advice(
                code="teacher-below-student",
                text=f"Teacher {teacher} scores {points(scores.teachers[teacher])} on {name}, {points(ahead)} points below "
                f"the student {best} (standard error of the difference {points(error)}), and does not help its ensemble: "
                f"{points(before)} with it, {points(after)} without it on validation.",
                key=key,
                value=value,
            )


def _better_teacher(evidence: Evidence, task: str, teacher: str) -> tuple[str, int | float]:
    """The key that improves a weak teacher: a longer fine-tuning, or no weight for one that is ready."""
    if (curve := evidence.teachers.get(teacher)) is not None and curve.scores:
        return f"teachers.{teacher}.fine_tune.epochs", 2 * curve.epochs
    return f"tasks.{task}.aggregation.teacher_weights.{teacher}", 0.0


def limiting_teachers(evidence: Evidence) -> Iterator[Advice]:
    """Ensembles that a student beats on test: they limit it."""
    for name, task in evidence.tasks.items():
        results, scores = task.results, evidence.report.tasks[name]
        if not results.students:
            continue
        best = max(results.students, key=lambda student: scores.students[student].score)
        ahead, error = _difference(task, results.students[best], results.ensemble, on_test=True)
        if ahead <= CLEAR_ERRORS * error:
            continue
        what = "its teachers together" if len(results.teachers) > 1 else "its teacher"
        key, value = _less_soft(evidence, best, name)
        yield Advice(
            code="student-above-ensemble",
            text=f"{best} scores {points(scores.students[best].score)} on {name}, {points(ahead)} points above {what} "
            f"({points(scores.ensemble)}; standard error of the difference {points(error)}): better teachers (larger, or "
            "fine-tuned for longer) or less weight on the soft loss would help it.",
            key=key,
            value=value,
        )


def _less_soft(evidence: Evidence, student: str, task: str) -> tuple[str, float | None]:
    """The key of a student's soft weight, and half of its value; with stages their key."""
    if _staged(evidence, student):
        return f"students.{student}.stages", None
    return f"students.{student}.loss.soft", round(evidence.report.recipes[student].loss[task].soft / 2, 2)


# ---------------------------------------------------------------- losses


def harmful_teachers(evidence: Evidence) -> Iterator[Advice]:
    """Students that are clearly below their supervised baseline on a task, and what to try first."""
    for task, scores in evidence.report.tasks.items():
        for student, row in scores.students.items():
            if row.supervised is None or row.delta_error is None:
                continue
            behind = row.supervised - row.score
            if behind <= CLEAR_ERRORS * row.delta_error:
                continue
            reason, key, value = _first_try(evidence, task, student)
            yield Advice(
                code="student-below-baseline",
                text=f"{student} scores {points(row.score)} on {task}, {points(behind)} points below its supervised "
                f"baseline (standard error of the difference {points(row.delta_error)}): {reason}.",
                key=key,
                value=value,
            )


def _first_try(evidence: Evidence, task: str, student: str) -> tuple[str, str, float | int | None]:
    """Why the teachers may have done harm, the key to change first and its value."""
    scores, where = evidence.report.tasks[task], f"students.{student}"
    recipe = evidence.report.recipes[student]
    loss = recipe.loss[task]
    supervised = scores.students[student].supervised
    if supervised is not None and scores.ensemble <= supervised:
        reason = f"its ensemble, with {points(scores.ensemble)}, is not better than labels alone"
        return reason, *_less_soft(evidence, student, task)
    if _staged(evidence, student):
        return "its last stage may be too short, or its learning rate too low", f"{where}.stages", None
    curve = evidence.students.get(student, Curve())
    if curve.rising(_validation_error(evidence.report, student)):
        reason = "it learns more slowly and was still improving when it ended"
        return reason, f"{where}.train.learning_rate", 2 * recipe.learning_rate
    majority = _majority(evidence.tasks[task])
    if loss.temperature > LOW_TEMPERATURE and (len(scores.labels) >= MANY_LABELS or majority >= DOMINANT):
        labels = f"{len(scores.labels)} labels, the most frequent one {points(majority)}% of all"
        reason = f"with {labels}, temperature {loss.temperature:g} is too high"
        return reason, f"{where}.loss.task_temperatures.{task}", LOW_TEMPERATURE
    if loss.soft > MUCH_SOFT:
        reason = f"the soft loss has {points(loss.soft)}% of the weight"
        return reason, *_less_soft(evidence, student, task)
    reason = f"learning rate {recipe.learning_rate:g} may be too low; a search (`tutelage tune`) finds a better one"
    return reason, f"{where}.train.learning_rate", 2 * recipe.learning_rate


def _majority(task: TaskEvidence) -> float:
    """Share of the most frequent label in train; 0 without a label space."""
    return float(task.train_counts.max() / task.train_counts.sum()) if task.train_counts.sum() else 0.0


# ---------------------------------------------------------------- data


def small_validations(evidence: Evidence) -> Iterator[Advice]:
    """Validation splits whose standard error is large, and larger than a difference that they choose by."""
    for name, task in evidence.tasks.items():
        error = max(_error(task, teacher) for teacher in task.teachers.predictions)
        choice = _closest_choice(evidence, task)
        if error < LARGE_ERROR or choice is None or choice[1] >= error:
            continue
        what, difference = choice
        size = task.results.examples["validation"]
        needed = math.ceil(size * (error / LARGE_ERROR) ** 2)
        yield Advice(
            code="validation-too-small",
            text=f"Validation of {name} has {size:,} examples: a score there has a standard error of "
            f"{points(error)} points, and {what} differ by {points(difference)}. With {needed:,} examples it would be "
            f"{points(LARGE_ERROR)}.",
            key=task.validation_key,
            value=needed if task.validation_key.endswith("limit.validation") else None,
        )


def _closest_choice(evidence: Evidence, task: TaskEvidence) -> tuple[str, float] | None:
    """What this validation split chooses between, and the smallest difference it chooses by; None for no choice."""
    choices = []
    if len(task.teachers.predictions) > 1:
        first, second, *_ = sorted(
            (task.teachers.score(values) for values in task.teachers.predictions.values()), reverse=True
        )
        choices.append(("the two best teachers", first - second))
    for name, recipe in evidence.report.recipes.items():
        scores = sorted(evidence.students.get(name, Curve()).scores, reverse=True)
        if recipe.patience is not None and len(scores) > 1:  # else the last epoch is kept
            choices.append((f"the two best epochs of {name}", scores[0] - scores[1]))
    return min(choices, key=lambda choice: choice[1], default=None)


def truncated_texts(evidence: Evidence) -> Iterator[Advice]:
    """Models that cut more than `MUCH_TRUNCATED` of a task's texts."""
    for name, task in evidence.tasks.items():
        for key, one in task.truncated.items():
            longer = 2 * one.length if one.most is None else min(2 * one.length, one.most)
            if one.share <= MUCH_TRUNCATED or longer <= one.length:  # the model takes no more
                continue
            yield Advice(
                code="truncated",
                text=f"{points(one.share)}% of the {task.task.kind.truncates} of {name} are truncated at {one.length} tokens.",
                key=key,
                value=longer,
            )


def missed_classes(evidence: Evidence) -> Iterator[Advice]:
    """Labels that no teacher, ensemble or student gets right on test, though they occur there."""
    for name, task in evidence.tasks.items():
        results, labels = task.results, task.task.reading.labels
        if not labels:
            continue
        models = [*results.teachers.values(), results.ensemble, *results.students.values()]
        hits = np.sum([label_hits(task.task, values, results.test) for values in models], axis=0)
        gold = label_counts(task.task, results.test.labels)
        missed = np.flatnonzero((hits == 0) & (gold >= SEEN_OFTEN))
        if not len(missed):
            continue
        shown = [
            f"{labels[i]!r} ({gold[i]} in test, {task.train_counts[i]} in train)"
            for i in missed[:SHOWN_LABELS]
        ]
        more = f" and {len(missed) - SHOWN_LABELS} more" if len(missed) > SHOWN_LABELS else ""
        yield Advice(
            code="class-missed",
            text=f"No teacher and no student gets any example of {name} right whose label is {', '.join(shown)}{more}: "
            "label more of them, or merge the label with another.",
            key=f"tasks.{name}.data",
            value=None,
        )


# ---------------------------------------------------------------- scores and their errors


def _error(task: TaskEvidence, teacher: str) -> float:
    """Standard error of a teacher's score on the whole of validation, of which the evidence may have a part."""
    scoring, share = task.task.scoring, len(task.teachers.validation) / task.results.examples["validation"]
    statistics = scoring.statistics(task.teachers.predictions[teacher], task.teachers.validation)
    return float(bootstrap([statistics], scoring.score_of)[0].std()) * math.sqrt(share)


def _difference(
    task: TaskEvidence, a: NDArray[np.floating], b: NDArray[np.floating], on_test: bool = False
) -> tuple[float, float]:
    """The score of `a` minus that of `b`, (M, C) each, and its standard error, paired by example."""
    scoring, examples = task.task.scoring, task.results.test if on_test else task.teachers.validation
    statistics = [scoring.statistics(values, examples) for values in (a, b)]
    first, second = (float(scoring.score_of(one.sum(0))) for one in statistics)
    if first <= second:
        return first - second, 0.0
    resampled = bootstrap(statistics, scoring.score_of)
    return first - second, float((resampled[0] - resampled[1]).std())


def _listed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
