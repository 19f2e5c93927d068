"""What is certain stops a teacher, what is likely warns, and weak teachers that are intact pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.batch import ABSENT
from pipeline.curve import Curve
from pipeline.errors import TeacherError
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from teachers.checks import (
    REPLICAS,
    Findings,
    Predictions,
    judge,
    permuted_flag,
    refuse,
    relative_difference,
    rounding_of,
    with_agreement,
)
from tests.unit.teachers.preflight_samples import (
    ENTITIES,
    GOLD,
    INTENTS,
    MOODS,
    intents,
    logits_for,
    renamed,
    tags,
    texts,
    weak_tags,
)

FINE = Findings(teacher="t", task="mood", metric="accuracy", examples=9, score=0.9, majority=0.5)
HEADS = np.array(
    [0.02, 0.03, 0.06, 0.04, 0.1, 0.02, 0.03, 0.08]
)  # F1 of a tagger under random heads, as measured


def moods(values: NDArray[np.floating], difference: float = 0.0) -> Findings:
    return judge("t", MOODS, texts(GOLD), Predictions(values, replica_difference=difference))


def problems(values: NDArray[np.floating], difference: float = 0.0) -> str:
    return "; ".join(moods(values, difference).problems)


def test_a_good_teacher_has_no_problems() -> None:
    findings = judge("t", MOODS, texts(GOLD), Predictions(logits_for(GOLD), truncated=6))

    assert (findings.problems, findings.warnings) == ([], [])
    assert findings.score == 1.0
    assert findings.majority == np.bincount(GOLD).max() / 120
    assert findings.chance == pytest.approx(1 / 3, abs=0.03)
    assert findings.truncated == 6 / 120
    assert findings.entropy is not None
    assert 0 < findings.entropy < 0.6
    assert 0 <= findings.self_loss < 1e-4


# ---------------------------------------------------------------- weights and stored targets


def test_replicas_that_differ_are_a_problem() -> None:
    assert "two replicas' logits differ by up to 0.5" in problems(logits_for(GOLD), difference=0.5)


def test_logits_that_half_precision_changes_are_a_problem() -> None:
    def of(rounding: float) -> list[str]:
        return judge("t", MOODS, texts(GOLD), Predictions(logits_for(GOLD), rounding=rounding)).problems

    assert of(0.002) == []
    (problem,) = of(0.2)
    assert "by 0.2 of their standard deviation" in problem
    assert "set teachers.t.serving.dtype to fp32" in problem


def test_rounding_is_the_mean_difference_in_standard_deviations() -> None:
    exact = np.array([[0.0, 2.0], [ABSENT, 4.0]])
    values = np.array([[0.1, 2.1], [ABSENT, 4.1]])
    assert rounding_of(values, exact) == pytest.approx(0.1 / np.std([0.0, 2.0, 4.0]))
    assert rounding_of(exact, exact) == 0
    assert rounding_of(exact[1:, :1], exact[1:, :1]) == 0, "nothing is present"


@pytest.mark.parametrize(("noise", "stops"), [(1e-3, False), (1.0, True)])
def test_float_noise_between_replicas_is_no_random_head(noise: float, stops: bool) -> None:
    first, rng = logits_for(GOLD), np.random.default_rng(5)
    second = first + noise * first.std() * rng.uniform(-1, 1, first.shape)
    difference = relative_difference(first, second.astype(np.float32))

    assert difference == pytest.approx(noise, rel=0.1)
    assert (difference > REPLICAS) == stops
    assert bool(problems(first, difference)) == stops


def test_the_difference_of_replicas_is_relative_to_what_is_present() -> None:
    logits = np.array([[1.0, -60000.0], [-1.0, -60000.0]])

    assert relative_difference(logits, logits) == 0
    assert relative_difference(logits, logits + np.array([[0.0, 0.0], [0.2, 0.0]])) == pytest.approx(
        0.2, rel=0.1
    )
    assert relative_difference(np.ones((2, 1)), np.ones((2, 1))) == 0


def test_nan_is_a_problem() -> None:
    values = logits_for(GOLD)
    values[3, 1] = np.nan

    assert problems(values) == 'it predicts NaN or Inf on example "the mood is 3"'


def test_targets_that_float16_cannot_hold_are_a_problem() -> None:
    assert "its soft targets, as they are stored, are" in problems(logits_for(GOLD) + 40_000)


# ---------------------------------------------------------------- permuted names


def test_permuted_labels_are_named() -> None:
    swapped = np.array([1, 0, 2])[GOLD]

    assert problems(logits_for(swapped)) == (
        "its labels look permuted: it predicts 'good' for 'bad', 'bad' for 'good'"
    )


def test_ten_of_77_permuted_intents_are_named() -> None:
    gold, predicted = intents(0, 400, 0.9)
    permutation, ten = np.arange(77), np.arange(5, 55, 5)
    permutation[ten] = np.roll(ten, 1)
    findings = judge("t", INTENTS, texts(gold, INTENTS), Predictions(logits_for(permutation[predicted], 77)))

    (flag,) = [*findings.problems, *findings.warnings]
    assert "permuted: it predicts" in flag
    named = [name for name in INTENTS.reading.labels if f"for {name!r}" in flag]
    assert len(named) >= 8
    assert set(named) <= {INTENTS.reading.labels[i] for i in ten}


@pytest.mark.parametrize(
    "types",
    [{"PER": "LOC", "LOC": "PER"}, {"PER": "LOC", "LOC": "ORG", "ORG": "MISC", "MISC": "PER"}],
    ids=["two swapped", "all rotated"],
)
@pytest.mark.parametrize("recall", [0.4, 0.9])
def test_permuted_entity_types_stop(types: dict[str, str], recall: float) -> None:
    sample, gold = tags(0, 300)
    predicted = renamed(ENTITIES.reading.labels, types)[weak_tags(gold, 1, recall)]
    findings = judge("t", ENTITIES, sample, Predictions(logits_for(predicted, 9), random_head_scores=HEADS))

    (problem,) = findings.problems
    assert "its labels look permuted" in problem
    assert all(f"{new!r} for {old!r}" in problem for new, old in types.items() if len(types) == 2)


def test_a_label_that_changed_place_with_outside_stops() -> None:
    sample, gold = tags(0, 300)
    place = np.arange(9)
    place[[0, 7]] = 7, 0
    findings = judge("t", ENTITIES, sample, Predictions(logits_for(place[gold], 9), random_head_scores=HEADS))

    assert findings.problems == ["its labels look permuted: it predicts 'B-PER' for 'O', 'O' for 'B-PER'"]


def counts_of(gold: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (gold, predicted), 1)
    return counts


@pytest.mark.parametrize("accuracy", [0.1, 0.25, 0.4, 0.6])
@pytest.mark.parametrize("n", [30, 400])
def test_weak_classifiers_are_hardly_ever_called_permuted(n: int, accuracy: float) -> None:
    flags = [
        permuted_flag(INTENTS.reading.labels, counts_of(*intents(seed, n, accuracy), 77))
        for seed in range(100)
    ]

    assert not any(flag.certain for flag in flags if flag)
    assert sum(flag is not None for flag in flags) <= 1


def test_a_teacher_that_predicts_few_classes_is_not_called_permuted() -> None:
    for seed in range(100):
        gold, _ = intents(seed, 400, 1.0)
        assert permuted_flag(INTENTS.reading.labels, counts_of(gold, gold // 6 * 6, 77)) is None


def test_coin_flips_between_two_classes_are_not_permuted() -> None:
    rng = np.random.default_rng(0)
    flags = []
    for _ in range(200):
        gold = rng.integers(0, 4, 200)
        flags.append(permuted_flag(("a", "b", "c", "d"), counts_of(gold, gold ^ rng.integers(0, 2, 200), 4)))

    assert not any(flag.certain for flag in flags if flag)
    assert sum(flag is not None for flag in flags) <= 4


def test_many_permuted_names_are_counted() -> None:
    turned = np.roll(np.eye(20, dtype=np.int64) * 9, 1, axis=1)
    flag = permuted_flag([str(i) for i in range(20)], turned)

    assert flag is not None
    assert flag.certain
    assert flag.text.endswith("'12' for '11' and 8 more")


# ---------------------------------------------------------------- constant and random predictions


def test_a_constant_prediction_is_named_with_both_scores() -> None:
    majority = np.bincount(GOLD).max() / 120
    most = np.full(120, np.bincount(GOLD).argmax())

    assert problems(logits_for(most)) == (
        f"accuracy {100 * majority:.1f} on 120 validation examples is not above the {100 * majority:.1f} of a"
        " constant prediction"
    )


def test_uniform_predictions_are_a_problem_even_when_right() -> None:
    assert problems(logits_for(GOLD, skill=0.01, noise=0.0)) == "its predictions do not depend on the text"


def test_random_predictions_stop_where_a_constant_scores_less() -> None:
    task = text_classification("mood", ("bad", "good"), 16, metric="macro_f1")
    stopped = 0
    for seed in range(20):
        gold, predicted = np.random.default_rng(seed).integers(0, 2, (2, 400))
        findings = judge("t", task, texts(gold, task), Predictions(logits_for(predicted, 2)))
        assert findings.chance is not None
        assert findings.chance > findings.majority
        stopped += bool(findings.problems)
        assert findings.problems or findings.warnings or findings.score > findings.chance + 0.04

    assert stopped >= 5


@pytest.mark.parametrize(("n", "accuracy"), [(30, 0.4), (400, 0.4), (400, 0.2)])
def test_weak_classifiers_pass(n: int, accuracy: float) -> None:
    for seed in range(20):
        gold, predicted = intents(seed, n, accuracy)
        findings = judge("t", INTENTS, texts(gold, INTENTS), Predictions(logits_for(predicted, 77)))
        assert findings.problems == []


@pytest.mark.parametrize("n", [30, 300])
def test_weak_taggers_pass(n: int) -> None:
    for seed in range(10):
        sample, gold = tags(seed, n)
        values = logits_for(weak_tags(gold, seed, 0.25), 9)
        findings = judge("t", ENTITIES, sample, Predictions(values, random_head_scores=HEADS))
        assert findings.score < 0.45
        assert findings.problems == []


def test_a_tagger_no_better_than_random_heads_stops() -> None:
    sample, gold = tags(0, 300)
    values = logits_for(weak_tags(gold, 0, 0.0), 9)
    findings = judge("t", ENTITIES, sample, Predictions(values, random_head_scores=HEADS))

    assert "the same model under random heads" in findings.problems[0]


def test_few_examples_only_warn_of_random_heads() -> None:
    sample, gold = tags(0, 60)
    values = logits_for(weak_tags(gold, 0, 0.25), 9)
    score = judge("t", ENTITIES, sample, Predictions(values)).score
    heads = np.array([0.9, 1.0]) * score
    findings = judge("t", ENTITIES, sample, Predictions(values, random_head_scores=heads))

    assert findings.problems == []
    assert "is not clearly above the" in findings.warnings[0]


def test_too_few_examples_to_tell_from_a_constant_warn() -> None:
    gold = np.repeat([0, 1], [16, 14])
    predicted = np.where(np.arange(30) % 3 == 0, 1 - gold, gold)
    task = text_classification("mood", ("bad", "good"), 16)
    findings = judge("t", task, texts(gold, task), Predictions(logits_for(predicted, 2)))

    assert findings.problems == []
    assert "is not clearly above the" in findings.warnings[0]


@pytest.mark.parametrize(
    ("skill", "problem"), [(1.0, ""), (0.0, "not depend on the text"), (-1.0, "their sign looks flipped")]
)
def test_numbers(skill: float, problem: str) -> None:
    task = regression("strength", 16, center=1.0, scale=2.0)
    gold = np.random.default_rng(0).normal(1, 2, 80)
    values = (1 + skill * (gold - 1))[:, None].astype(np.float32)
    findings = judge("t", task, texts(gold, task), Predictions(values))

    assert problem in "; ".join(findings.problems)
    assert bool(findings.problems) == bool(problem)
    assert findings.entropy is None
    assert findings.ece is None


def test_weak_numbers_pass() -> None:
    task, rng = regression("strength", 16, center=0.0, scale=1.0), np.random.default_rng(0)
    for _ in range(20):
        gold, noise = rng.normal(size=(2, 400))
        values = (0.3 * gold + noise)[:, None].astype(np.float32)
        assert judge("t", task, texts(gold, task), Predictions(values)).problems == []


def test_several_labels_a_text() -> None:
    task = multi_label("topics", ("a", "b"), 16)
    gold = np.random.default_rng(0).integers(0, 2, (60, 2))
    right = (6.0 * gold - 3).astype(np.float32)

    assert judge("t", task, texts(gold, task), Predictions(right)).problems == []
    assert judge("t", task, texts(gold, task), Predictions(-right)).problems != []


# ---------------------------------------------------------------- all teachers of a run


def test_refuse_names_teacher_reason_and_the_key_that_overrides() -> None:
    weak = replace(FINE, teacher="weak", problems=["too weak"])
    odd = replace(FINE, teacher="odd", problems=["odd"])
    with pytest.raises(TeacherError) as caught:
        refuse([FINE, weak, odd], lambda name: False)

    assert caught.value.cause == "preflight: teachers.weak: too weak (and 1 more: odd)"
    assert "teachers.weak.preflight=warn" in caught.value.remedy


def test_warned_teachers_go_on() -> None:
    weak = replace(FINE, teacher="weak", problems=["too weak"], warnings=["few examples"])
    doubtful = replace(FINE, teacher="doubtful", warnings=["may be permuted"])

    assert refuse([FINE, weak, doubtful], lambda name: name == "weak") == [
        "preflight: teachers.weak: too weak; few examples",
        "preflight: teachers.doubtful: may be permuted",
    ]


def test_agreement_is_with_the_same_tasks_teachers_only() -> None:
    values = {"a": logits_for(GOLD), "b": logits_for(np.array([1, 0, 2])[GOLD]), "c": logits_for(GOLD)}
    findings = [
        replace(FINE, teacher="a"),
        replace(FINE, teacher="b"),
        replace(FINE, teacher="c", task="tone"),
    ]
    tasks, samples = {"mood": MOODS, "tone": MOODS}, {"mood": texts(GOLD), "tone": texts(GOLD)}
    a, b, c = with_agreement(findings, values, tasks, samples)

    assert a.agreement == {"b": float((GOLD == 2).mean())}
    assert b.agreement == {"a": float((GOLD == 2).mean())}
    assert c.agreement == {}


# ---------------------------------------------------------------- loss and learning curve


def test_a_teacher_that_is_far_too_sure_is_a_warning() -> None:
    wrong = np.where(np.arange(120) < 40, (GOLD + 1) % 3, GOLD)  # 67% right, and sure of everything
    findings = moods(logits_for(wrong, skill=30.0))
    assert findings.problems == []
    (warning,) = findings.warnings
    assert "its loss on the labels is 10." in warning
    assert "not below the 1.099 of equal probabilities for all labels: it is far too sure of wrong" in warning
    assert moods(logits_for(wrong, skill=1.5)).warnings == []


def test_a_loss_not_below_that_of_the_labels_frequencies_is_a_warning() -> None:
    gold = np.where(np.arange(200) % 10 < 9, 0, 1)
    predicted = np.where(np.arange(200) % 40 == 39, 0, gold)  # better than the constant answer
    findings = judge("t", MOODS, texts(gold), Predictions(logits_for(predicted, skill=0.7, noise=0.01)))
    assert findings.problems == []
    (warning,) = findings.warnings
    assert "nats, not below the 0.325 of their frequencies: it is hardly trained" in warning


def test_a_number_has_no_loss_to_compare() -> None:
    task = regression("stars", 16, center=0.0, scale=1.0)
    numbers = np.linspace(-1, 1, 120)
    findings = judge("t", task, texts(numbers, task), Predictions(numbers[:, None].astype(np.float32)))
    assert findings.warnings == []


def test_labels_that_a_teacher_lacks_have_no_loss() -> None:
    values = logits_for(GOLD)
    values[:, 2] = ABSENT
    assert not any("its loss" in text for text in moods(values).warnings)


def test_a_fine_tuning_that_ended_too_early_is_a_warning() -> None:
    rising, flat = Curve((0.4, 0.6, 0.9), epochs=3), Curve((0.88, 0.9, 0.9), epochs=3)
    predicted = np.where(np.arange(120) < 12, (GOLD + 1) % 3, GOLD)
    good = Predictions(logits_for(predicted))
    (warning,) = judge("t", MOODS, texts(GOLD), good, rising).warnings
    assert warning.startswith(
        "its validation score was still rising when its fine-tuning ended (40.0, 60.0, 90.0; standard error 2."
    )
    assert warning.endswith("try fine_tune.epochs 6")
    assert judge("t", MOODS, texts(GOLD), good, flat).warnings == []
    assert judge("t", MOODS, texts(GOLD), good).warnings == []
