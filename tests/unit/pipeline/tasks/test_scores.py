"""The metrics against hand-computed cases, scikit-learn and torchmetrics."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_calibration_error

from pipeline.batch import UNLABELLED
from pipeline.errors import DataError
from pipeline.tasks.scores import (
    RESAMPLES,
    agreement,
    bootstrap,
    class_score,
    class_statistics,
    confusion,
    constant_class_score,
    reliability,
    scores,
    softmax,
)

GOLD = np.array([0, 1, 1, 0])
HAND = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.8, 0.2]])  # right, right, wrong, right


def random_case(
    n: int = 500, classes: int = 5, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 1.5
    logits[np.arange(n), gold] += 1
    return softmax(logits), gold


# ---------------------------------------------------------------- by hand


def test_hand_case() -> None:
    found = scores(HAND, GOLD)
    assert found["accuracy"] == 0.75
    # class 0: 2 right, 1 too many, 0 missed: F1 4/5; class 1: 1 right, 0 too many, 1 missed: F1 2/3
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2, abs=1e-7)
    assert found["nll"] == pytest.approx(-math.log(0.9 * 0.7 * 0.4 * 0.8) / 4)
    # each confidence in a bin of its own: |1 − 0.9|, |1 − 0.7|, |0 − 0.6|, |1 − 0.8|
    assert found["ece"] == pytest.approx((0.1 + 0.3 + 0.6 + 0.2) / 4)


def test_ece_averages_within_a_bin() -> None:
    probabilities = np.array([[0.94, 0.06], [0.96, 0.04], [0.98, 0.02], [1.0, 0.0]])  # all in (14/15, 1]
    assert scores(probabilities, np.array([0, 0, 0, 1]))["ece"] == pytest.approx(0.97 - 0.75)


def test_bins_are_closed_above_and_one_is_in_the_last() -> None:
    edge = 8 / 15
    bins = reliability(np.array([[edge, 1 - edge], [1.0, 0.0]]), np.array([0, 1]))
    assert bins.count.tolist() == [0] * 7 + [1] + [0] * 6 + [1]
    assert (bins.accuracy[7], bins.accuracy[14]) == (1, 0)
    assert np.isnan(bins.confidence[0])


def test_perfect_and_always_wrong() -> None:
    gold = np.array([0, 1, 2])
    right = scores(np.eye(3), gold)
    assert right == {"accuracy": 1, "macro_f1": 1, "nll": 0, "ece": 0}
    wrong = scores(np.eye(3)[[1, 2, 0]], gold)
    assert (wrong["accuracy"], wrong["macro_f1"], wrong["ece"]) == (0, 0, 1)
    assert wrong["nll"] == pytest.approx(708.4, abs=0.1)  # finite, so that JSON and means can hold it


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ([0, 1, 0, 1], [0, 1, 0, 1], 1.0),  # class 2 neither occurs nor is predicted: left out
        ([0, 1, 0, 2], [0, 1, 0, 1], (1 + 2 / 3 + 0) / 3),  # predicted where it never occurs: 0
        ([0, 1, 0, 1], [0, 1, 0, 2], (1 + 2 / 3 + 0) / 3),  # occurs and is never predicted: 0
    ],
)
def test_macro_f1_of_absent_classes(predicted: list[int], gold: list[int], expected: float) -> None:
    assert scores(np.eye(3)[predicted], np.array(gold))["macro_f1"] == pytest.approx(expected, abs=1e-6)


def test_confusion_has_gold_in_rows() -> None:
    assert confusion(HAND, GOLD).tolist() == [[2, 0], [1, 1]]


def test_agreement_is_the_share_of_equal_answers() -> None:
    assert agreement(HAND, HAND * 7) == 1
    assert agreement(HAND, HAND[:, ::-1]) == 0
    assert agreement(HAND, np.tile([1.0, 0.0], (4, 1))) == 0.75


def test_softmax_of_half_precision_and_of_large_logits() -> None:
    logits = np.array([[60000, 0], [1, 1]], dtype=np.float16)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert probabilities.tolist() == [[1, 0], [0.5, 0.5]]


# ---------------------------------------------------------------- against others


@pytest.mark.parametrize("classes", [2, 5, 77])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_agrees_with_scikit_learn(classes: int, dtype: type) -> None:
    exact, gold = random_case(classes=classes)
    probabilities: NDArray[np.floating] = exact.astype(dtype)
    predicted = probabilities.argmax(axis=1)
    found = scores(probabilities, gold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f1 = sklearn.metrics.f1_score(gold, predicted, average="macro", zero_division=0.0)
        nll = sklearn.metrics.log_loss(gold, exact, labels=range(classes))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-6)
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    labels = range(classes)
    expected = sklearn.metrics.confusion_matrix(gold, predicted, labels=labels)
    assert (confusion(probabilities, gold) == expected).all()


@pytest.mark.parametrize("seed", range(3))
def test_ece_agrees_with_torchmetrics_away_from_certainty(seed: int) -> None:
    probabilities, gold = random_case(seed=seed)
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(gold), 5, n_bins=15
    ).item()
    assert scores(probabilities, gold)["ece"] == pytest.approx(theirs, abs=1e-6)


def test_ece_has_no_bin_of_its_own_for_certainty() -> None:
    """Why ece is ours: torchmetrics sets confidences of 1.0 apart, which is not the published definition."""
    probabilities, gold = np.array([[1.0, 0.0], [0.97, 0.03]]), np.array([1, 0])
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(gold), 2, n_bins=15
    ).item()
    assert theirs == pytest.approx((1 + 0.03) / 2)
    assert scores(probabilities, gold)["ece"] == pytest.approx(0.985 - 0.5)


def test_reliability_adds_up_to_accuracy_and_count() -> None:
    probabilities, gold = random_case()
    bins = reliability(probabilities, gold)
    assert bins.count.sum() == len(gold)
    right = np.nansum(bins.accuracy * bins.count)
    assert right == pytest.approx((probabilities.argmax(axis=1) == gold).sum())


# ---------------------------------------------------------------- what is refused


def test_read_only_arrays_are_taken_as_they_are() -> None:
    probabilities, gold = HAND.copy(), GOLD.copy()
    probabilities.flags.writeable = gold.flags.writeable = False
    assert scores(probabilities, gold)["accuracy"] == 0.75


def test_a_missing_label_is_the_users_to_mend() -> None:
    with pytest.raises(DataError, match="2 of 4 examples to score have no label") as caught:
        scores(HAND, np.array([0, UNLABELLED, UNLABELLED, 1]))
    assert "data.splits" in caught.value.remedy


@pytest.mark.parametrize(
    ("probabilities", "gold", "message"),
    [
        (HAND, GOLD[:3], "do not fit"),
        (HAND[0], GOLD[:1], "do not fit"),
        (HAND[:0], GOLD[:0], "empty"),
        (HAND * np.nan, GOLD, "NaN"),
        (HAND, GOLD + 1, "outside the 2 classes"),
        (HAND * 3, GOLD, "not probabilities"),
        (HAND - 0.5, GOLD, "not probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(
    probabilities: NDArray[np.float64], gold: NDArray[np.int64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scores(probabilities, gold)
    with pytest.raises(ValueError, match=message):
        reliability(probabilities, gold)


def test_agreement_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        agreement(HAND, HAND[:3])


# ---------------------------------------------------------------- sums over examples, and the bootstrap


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_sums_make_the_scores(metric: str, classes: int) -> None:
    probabilities, gold = random_case(n=90, classes=classes)
    sums = class_statistics(probabilities.argmax(1), gold, classes).sum(0)
    assert float(class_score(metric, sums)) == pytest.approx(scores(probabilities, gold)[metric], abs=1e-6)


def test_the_most_frequent_label_is_the_constant_answer() -> None:
    gold = np.array([1, 1, 1, 0, 2])
    assert constant_class_score("accuracy", gold, 4) == 0.6
    # class 1: precision 3/5, recall 1, F1 3/4; classes 0 and 2: 0; class 3 has none
    assert constant_class_score("macro_f1", gold, 4) == pytest.approx(0.75 / 3)


def accuracy_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(sums[..., 0] / sums[..., 1])


def hits(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.stack((right, np.ones_like(right)), axis=1).astype(np.float64)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("n", [50, 1000])
def test_the_bootstraps_standard_error_is_the_binomials(share: float, n: int) -> None:
    right = np.arange(n) < round(share * n)
    (draws,) = bootstrap([hits(right)], accuracy_of)
    p = right.mean()
    assert draws.shape == (RESAMPLES,)
    assert draws.mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n / RESAMPLES))
    assert draws.std() == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.15)  # to 3%, five of them


def test_models_on_the_same_draws_differ_by_less_than_on_their_own() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.8
    second = np.where(rng.random(400) < 0.9, first, ~first)  # they answer alike on nine of ten
    a, b = bootstrap([hits(first), hits(second)], accuracy_of)
    assert (a - b).std() < 0.7 * math.hypot(a.std(), b.std())
    n, differ = 400, first.astype(float) - second
    assert (a - b).std() == pytest.approx(differ.std() / math.sqrt(n), rel=0.15)


def test_the_draws_are_a_function_of_the_number_of_examples() -> None:
    right = np.arange(60) % 3 == 0
    once, twice = (bootstrap([hits(right)], accuracy_of)[0] for _ in range(2))
    assert np.array_equal(once, twice)
    together = bootstrap([hits(~right), hits(right)], accuracy_of)[1]
    assert np.array_equal(together, once)


def test_equal_answers_differ_by_nothing() -> None:
    right = np.arange(60) % 3 == 0
    a, b = bootstrap([hits(right), hits(right)], accuracy_of)
    assert (a - b).std() == 0
