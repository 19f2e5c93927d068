"""Each piece of advice is given with its numbers where something is wrong, and not where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.curve import Curve
from pipeline.report.advice import (
    Evidence,
    TaskEvidence,
    Truncation,
    advise,
    harmful_teachers,
    limiting_teachers,
    missed_classes,
    small_validations,
    truncated_texts,
    undertrained_students,
    undertrained_teachers,
    weak_ensembles,
    weak_teachers,
)
from pipeline.report.build import build
from pipeline.report.ensembles import TaskTeachers
from pipeline.report.schema import Advice, LossRecord, StudentRecord
from pipeline.report.types import TaskResults
from pipeline.tasks.label_counts import label_counts
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.text_classification import text_classification
from tests.unit.pipeline.hand_results import answers, examples_of, some_facts

N = 400
RISING = Curve((0.5, 0.6, 0.7), (1.0, 0.9, 0.8), epochs=3)
FLAT = Curve((0.8, 0.85, 0.85), (1.0, 0.9, 0.8), epochs=3)


def right(share: float, n: int = N, start: float = 0.0, classes: int = 2) -> NDArray[np.float32]:
    """(n, classes) answers to `gold_of(n, classes)`, of which a share is right: those from `start` on, in circles."""
    gold, place = gold_of(n, classes), np.roll(np.arange(n), round(start * n))
    return answers(np.where(place < round(share * n), gold, (gold + 1) % classes), classes)


def gold_of(n: int = N, classes: int = 2) -> NDArray[np.int64]:
    return np.arange(n) % classes


def task_of(
    teachers: Mapping[str, NDArray[np.floating]],
    student: NDArray[np.floating],
    supervised: NDArray[np.floating] | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    classes: int = 2,
    n: int = N,
    **changes: Any,
) -> TaskEvidence:
    """A task whose teachers predict the same on validation and test: both have the same n examples."""
    task = text_classification("movies", tuple(f"label-{i}" for i in range(classes)), 64)
    examples = examples_of("movies", gold_of(n, classes))
    weights = weights or dict.fromkeys(teachers, 1 / len(teachers))
    together = TaskTeachers(task, examples, teachers, weights)
    results = TaskResults(
        task=task,
        test=examples,
        examples={"train": 5 * n, "validation": n, "test": n},
        teachers=dict(teachers),
        ensemble=together.combine(weights),
        students={"half": student},
        supervised={} if supervised is None else {"half": supervised},
        aggregation="mean",
    )
    evidence = TaskEvidence(
        results=results,
        teachers=together,
        train_counts=label_counts(task, examples.labels),
        validation_key="tasks.movies.data.holdout",
    )
    return replace(evidence, **changes)


def recipe_of(soft: float = 0.7, temperature: float = 2.0, patience: int | None = None) -> StudentRecord:
    """How the student of these tests was trained."""
    loss = LossRecord(hard=1 - soft, soft=soft, temperature=temperature, derived={})
    return StudentRecord(
        epochs=3,
        batch_size=32,
        learning_rate=1e-4,
        head_learning_rate=1e-4,
        patience=patience,
        derived={},
        loss={"movies": loss},
    )


RECIPE = recipe_of()


def evidence_of(task: TaskEvidence, recipe: StudentRecord = RECIPE, **changes: Any) -> Evidence:
    facts = replace(some_facts(list(task.teachers.predictions), ["half"]), recipes={"half": recipe})
    evidence = Evidence(
        report=build({"movies": task.results}, facts),
        tasks={"movies": task},
        students={"half": FLAT},
        baselines={"half": FLAT},
    )
    return replace(evidence, **changes)


def good_task() -> TaskEvidence:
    """Three teachers that err on different examples, so that each helps; a student between baseline and ensemble."""
    gold, part = gold_of(), np.arange(N) % 5
    teachers = {str(i): answers(np.where(part == i, 1 - gold, gold)) for i in range(3)}
    return task_of(teachers, right(0.88), right(0.8))


def only(advice: Sequence[Advice]) -> Advice:
    (one,) = advice
    return one


def test_a_good_run_has_no_advice() -> None:
    teachers = {"0": FLAT, "1": FLAT}
    evidence = evidence_of(good_task(), recipe_of(patience=3), teachers=teachers)
    assert advise(evidence) == ()


# ---------------------------------------------------------------- lengths of training


def test_a_student_that_still_improves_needs_more_epochs() -> None:
    advice = only(list(undertrained_students(evidence_of(good_task(), students={"half": RISING}))))
    assert (advice.code, advice.key, advice.value) == (
        "student-undertrained",
        "students.half.train.epochs",
        6,
    )
    assert "half was still improving when it ended (validation by epoch: 50.0, 60.0, 70.0" in advice.text


def test_so_does_its_baseline_which_makes_the_gain_doubtful() -> None:
    advice = only(list(undertrained_students(evidence_of(good_task(), baselines={"half": RISING}))))
    assert (advice.code, advice.key, advice.value) == (
        "baseline-undertrained",
        "students.half.train.epochs",
        6,
    )
    assert "the gain over it may be too high" in advice.text


def test_a_rise_within_the_noise_of_validation_is_no_advice() -> None:
    small = Curve((0.5, 0.6, 0.61), epochs=3)  # one point; the standard error is 1.6
    evidence = evidence_of(good_task(), students={"half": small}, teachers={"0": small})
    assert not list(undertrained_students(evidence))
    assert not list(undertrained_teachers(evidence))


def test_noise_is_that_of_validation_not_of_test() -> None:
    three = Curve((0.5, 0.6, 0.63), epochs=3)
    assert list(undertrained_students(evidence_of(good_task(), students={"half": three})))
    task = good_task()
    fewer = replace(task, results=replace(task.results, examples={**task.results.examples, "validation": 25}))
    assert not list(undertrained_students(evidence_of(fewer, students={"half": three})))


def test_a_teacher_that_still_improved_needs_more_epochs() -> None:
    advice = only(list(undertrained_teachers(evidence_of(good_task(), teachers={"0": RISING, "1": FLAT}))))
    assert (advice.code, advice.key, advice.value) == (
        "teacher-undertrained",
        "teachers.0.fine_tune.epochs",
        6,
    )
    assert "Teacher 0 was still improving" in advice.text


# ---------------------------------------------------------------- teachers and their ensemble


def outvoted() -> TaskEvidence:
    """One good teacher, and two bad ones that are sure of the same errors."""
    bad = right(0.6) * 3
    return task_of({"good": right(0.9), "bad": bad, "worse": bad}, right(0.6), right(0.5))


def test_an_ensemble_below_its_best_teacher_gets_other_weights() -> None:
    task = outvoted()
    advice = only(list(weak_ensembles(evidence_of(task))))
    assert (advice.code, advice.key) == ("ensemble-below-teacher", "tasks.movies.aggregation.teacher_weights")
    assert isinstance(advice.value, Mapping)
    assert sum(advice.value.values()) == pytest.approx(1, abs=0.02)
    accuracy = (task.teachers.combine(advice.value).argmax(1) == gold_of()).mean()
    assert accuracy == 0.9
    assert "is 30.0 points below its teacher good on validation" in advice.text
    assert "it scores 90.0 instead of 60.0 there" in advice.text


def test_an_ensemble_at_least_as_good_as_its_teachers_is_left_alone() -> None:
    assert not list(weak_ensembles(evidence_of(good_task())))
    assert not list(weak_ensembles(evidence_of(task_of({"one": right(0.9)}, right(0.8)))))


def test_a_gain_within_its_standard_error_is_not_worth_other_weights() -> None:
    good = right(0.9)
    bad = good.copy() * 2
    bad[0] = -bad[0]  # one example of 400 more is wrong
    task = task_of({"good": good, "bad": bad}, right(0.8))
    assert not list(weak_ensembles(evidence_of(task)))


def test_weights_leave_no_label_without_a_teacher() -> None:
    from pipeline.batch import ABSENT

    gold = gold_of(classes=3)
    narrow = answers(gold, 3)
    narrow[:, 2] = ABSENT
    wide = answers(np.where(gold == 2, 2, (gold + 1) % 2), 3) * 4
    task = task_of({"narrow": narrow, "wide": wide}, right(0.6, classes=3), classes=3)
    for advice in weak_ensembles(evidence_of(task)):
        assert isinstance(advice.value, Mapping)
        assert advice.value["wide"] > 0


def test_a_teacher_below_a_student_is_named() -> None:
    teachers = {"large": right(0.95), "base": right(0.7) * 2}
    task = task_of(teachers, right(0.9))
    ready = only(list(weak_teachers(evidence_of(task))))
    assert ready.code == "teacher-below-student"
    assert (ready.key, ready.value) == ("tasks.movies.aggregation.teacher_weights.base", 0)
    assert "Teacher base scores 70.0 on movies, 20.0 points below the student half" in ready.text
    assert "70.0 with it, 95.0 without it on validation" in ready.text
    made = only(list(weak_teachers(evidence_of(task, teachers={"base": FLAT}))))
    assert (made.key, made.value) == ("teachers.base.fine_tune.epochs", 6)


def test_a_teacher_below_a_student_may_still_help_the_ensemble() -> None:
    evidence = evidence_of(good_task())  # each teacher is right on 80%, together they always are
    assert evidence.report.tasks["movies"].students["half"].score > 0.85
    assert not list(weak_teachers(evidence))


def test_a_student_above_its_ensemble_is_limited_by_it() -> None:
    advice = only(list(limiting_teachers(evidence_of(task_of({"base": right(0.7)}, right(0.8))))))
    assert (advice.code, advice.key, advice.value) == (
        "student-above-ensemble",
        "students.half.loss.soft",
        0.35,
    )
    assert "half scores 80.0 on movies, 10.0 points above its teacher (70.0" in advice.text
    assert not list(limiting_teachers(evidence_of(good_task())))
    within_noise = task_of({"base": right(0.7)}, right(0.7, start=0.02))
    assert not list(limiting_teachers(evidence_of(within_noise)))


# ---------------------------------------------------------------- losses


def test_a_student_below_its_baseline_gets_what_to_try_first() -> None:
    task = task_of({"large": right(0.95)}, right(0.7), right(0.8))
    evidence = evidence_of(task)
    soft = only(list(harmful_teachers(evidence)))
    assert soft.code == "student-below-baseline"
    assert "half scores 70.0 on movies, 10.0 points below its supervised baseline" in soft.text
    assert "the soft loss has 70.0% of the weight" in soft.text
    assert (soft.key, soft.value) == ("students.half.loss.soft", 0.35)

    rate = only(list(harmful_teachers(evidence_of(task, recipe_of(soft=0.3)))))
    assert (rate.key, rate.value) == ("students.half.train.learning_rate", 2e-4)

    slow = only(list(harmful_teachers(evidence_of(task, students={"half": RISING}))))
    assert "was still improving when it ended" in slow.text
    assert (slow.key, slow.value) == ("students.half.train.learning_rate", 2e-4)


def test_with_many_labels_or_a_dominant_one_it_is_the_temperature() -> None:
    many = task_of(
        {"large": right(0.95, classes=20)}, right(0.7, classes=20), right(0.8, classes=20), classes=20
    )
    advice = only(list(harmful_teachers(evidence_of(many))))
    assert (advice.key, advice.value) == ("students.half.loss.task_temperatures.movies", 1.0)
    assert "with 20 labels, the most frequent one 5.0% of all, temperature 2 is too high" in advice.text

    task = task_of({"large": right(0.95)}, right(0.7), right(0.8), train_counts=np.array([90, 10]))
    assert only(list(harmful_teachers(evidence_of(task)))).value == 1.0
    assert (
        only(list(harmful_teachers(evidence_of(task, recipe_of(temperature=1.0))))).key
        == "students.half.loss.soft"
    )


def test_teachers_no_better_than_labels_alone() -> None:
    task = task_of({"large": right(0.75)}, right(0.7), right(0.8))
    advice = only(list(harmful_teachers(evidence_of(task))))
    assert "its ensemble, with 75.0, is not better than labels alone" in advice.text


def test_a_baseline_within_noise_is_no_advice() -> None:
    assert not list(harmful_teachers(evidence_of(task_of({"large": right(0.95)}, right(0.8), right(0.805)))))
    assert not list(harmful_teachers(evidence_of(task_of({"large": right(0.95)}, right(0.8)))))


# ---------------------------------------------------------------- data


def few(n: int = 60) -> TaskEvidence:
    """A validation split of n examples on which the two teachers differ by one."""
    return task_of({"large": right(0.8, n), "base": right(0.8 - 1 / n, n)}, right(0.7, n), n=n)


def test_a_validation_split_too_small_to_choose_by() -> None:
    advice = only(list(small_validations(evidence_of(few()))))
    assert (advice.code, advice.key, advice.value) == (
        "validation-too-small",
        "tasks.movies.data.holdout",
        None,
    )
    assert "Validation of movies has 60 examples: a score there has a standard error of 5." in advice.text
    assert "the two best teachers differ by 1.7" in advice.text

    limited = replace(few(), validation_key="tasks.movies.data.limit.validation")
    value = only(list(small_validations(evidence_of(limited)))).value
    assert isinstance(value, int)
    assert 150 < value < 210  # √(0.8 · 0.2 ÷ n) is 0.03 at 178


def test_early_stopping_chooses_by_it_too() -> None:
    one = task_of({"large": right(0.8, 60)}, right(0.7, 60), n=60)
    close = Curve((0.7, 0.72, 0.715), epochs=3)
    assert not list(small_validations(evidence_of(one, students={"half": close})))  # nothing is chosen
    evidence = evidence_of(one, recipe_of(patience=3), students={"half": close})
    assert "the two best epochs of half differ by 0.5" in only(list(small_validations(evidence))).text


def test_a_large_validation_split_or_a_clear_choice_is_enough() -> None:
    assert not list(small_validations(evidence_of(few(400))))
    clear = task_of({"large": right(0.8, 60), "base": right(0.6, 60)}, right(0.7, 60), n=60)
    assert not list(small_validations(evidence_of(clear)))


def test_much_truncation_asks_for_more_tokens() -> None:
    shares = {
        "tasks.movies.data.max_length": Truncation(0.12, 128, 512),
        "students.half.max_length.movies": Truncation(0.04, 64, 512),
        "teachers.0.max_length": Truncation(0.5, 512, 512),
    }
    advice = only(list(truncated_texts(evidence_of(replace(good_task(), truncated=shares)))))
    assert (advice.code, advice.key, advice.value) == ("truncated", "tasks.movies.data.max_length", 256)
    assert "12.0% of the texts of movies are truncated at 128 tokens" in advice.text


def test_a_class_that_nobody_gets_right() -> None:
    gold = gold_of(90, 3)
    never = answers(np.where(gold == 2, 0, gold), 3)
    task = task_of({"large": never}, never, classes=3, n=90, train_counts=np.array([50, 40, 7]))
    advice = only(list(missed_classes(evidence_of(task))))
    assert (advice.code, advice.key) == ("class-missed", "tasks.movies.data")
    assert "whose label is 'label-2' (30 in test, 7 in train)" in advice.text

    student = answers(np.where((gold == 2) & (np.arange(90) > 5), 0, gold), 3)
    assert not list(missed_classes(evidence_of(task_of({"large": never}, student, classes=3, n=90))))
    rare = np.where(np.arange(90) < 4, 2, np.arange(90) % 2)  # four test examples show nothing
    results = replace(task.results, test=examples_of("movies", rare))
    assert not list(
        missed_classes(Evidence(evidence_of(task).report, {"movies": replace(task, results=results)}))
    )


def test_a_label_among_several_that_nobody_gives() -> None:
    gold = np.stack([np.arange(40) % 2, np.ones(40, dtype=np.int64)], axis=1)
    never = np.stack([4.0 * gold[:, 0] - 2, np.full(40, -2.0)], axis=1).astype(np.float32)
    task = multi_label("movies", ("calm", "loud"), 64)
    results = TaskResults(
        task=task,
        test=examples_of("movies", gold),
        examples={"train": 40, "validation": 40, "test": 40},
        teachers={"large": never},
        ensemble=never,
        students={"half": never},
        supervised={},
        aggregation="mean",
    )
    evidence = TaskEvidence(
        results,
        TaskTeachers(task, results.test, {"large": never}, {"large": 1.0}),
        label_counts(task, results.test.labels),
    )
    report = build({"movies": results}, some_facts(["large"], ["half"]))
    advice = only(list(missed_classes(Evidence(report, {"movies": evidence}))))
    assert "'loud' (40 in test, 40 in train)" in advice.text
    assert "calm" not in advice.text
