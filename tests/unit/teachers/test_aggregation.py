"""Each strategy by hand, and what all of them must keep."""

from __future__ import annotations

import math
from typing import get_args

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softmax

from pipeline.batch import ABSENT, UNLABELLED
from pipeline.config.kinds import REGRESSION, SEQUENCE_TO_SEQUENCE, TEXT_CLASSIFICATION
from pipeline.config.schema import AggregationConfig, Strategy, default_strategy, needs_labels, strategies
from teachers.aggregation import (
    aggregate,
    best_shares,
    confidence_shares,
    ensemble,
    entropy_shares,
    mean_shares,
)

STRATEGIES = strategies(TEXT_CLASSIFICATION, labelled=True)
UNLABELLED_STRATEGIES: tuple[Strategy, ...] = ("mean", "log_mean", "entropy")
LABELLED_STRATEGIES: tuple[Strategy, ...] = ("confidence", "best")
PROPERTY = settings(deadline=None, max_examples=30)  # for each strategy; no deadline: the machine may be busy
TEMPERATURES = st.floats(0.5, 16)

# Two teachers, two examples, two labels, by their probabilities at temperature 1.
SURE = [[0.9, 0.1], [0.8, 0.2]]
UNSURE = [[0.6, 0.4], [0.3, 0.7]]
LOGITS = torch.tensor([SURE, UNSURE]).log()
LABELS = torch.tensor([0, 1])


@st.composite
def teachers(draw: st.DrawFn, fewest: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K, N, C), weights (K,) with some at 0, labels (N,)."""
    k, n, c = draw(st.integers(fewest, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    logits = draw(hnp.arrays(np.float32, (k, n, c), elements=st.floats(-10, 10, width=32)))
    raw = draw(hnp.arrays(np.float64, k, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    assume(raw.sum() > 0)
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(logits), torch.from_numpy(raw / raw.sum()), torch.from_numpy(labels)


def target(strategy: Strategy, v: list[float], temperature: float = 1.0) -> Tensor:
    """The hand-made teachers, aggregated."""
    return aggregate(
        LOGITS, strategy=strategy, weights=torch.tensor(v), temperature=temperature, labels=LABELS
    )


def entropy_of(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


# ---------------------------------------------------------------- by hand


def test_strategies_are_the_configs() -> None:
    assert get_args(AggregationConfig.model_fields["strategy"].annotation) == (Strategy, type(None))
    assert get_args(Strategy) == (*STRATEGIES, default_strategy(SEQUENCE_TO_SEQUENCE))


def test_mean() -> None:
    assert torch.allclose(target("mean", [0.5, 0.5]), torch.tensor([[0.75, 0.25], [0.55, 0.45]]))
    assert torch.allclose(target("mean", [0.75, 0.25]), torch.tensor([[0.825, 0.175], [0.675, 0.325]]))


def test_mean_takes_the_probabilities_at_the_temperature() -> None:
    """At T = 2 odds of 9 become 3, of 4 become 2: of the labels of the first example, 3/4 and √1.5 to 1."""
    expected = (3 / 4 + 1.5**0.5 / (1 + 1.5**0.5)) / 2
    assert float(target("mean", [0.5, 0.5], temperature=2.0)[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_log_mean() -> None:
    """Odds multiply: 9 · 1.5 and 4 · 3/7, under equal weights their square roots."""
    odds = torch.tensor([(9 * 1.5) ** 0.5, (4 * 3 / 7) ** 0.5])
    assert torch.allclose(target("log_mean", [0.5, 0.5])[:, 0], odds / (1 + odds))
    odds = torch.tensor([9**0.75 * 1.5**0.25, 4**0.75 * (3 / 7) ** 0.25])
    assert torch.allclose(target("log_mean", [0.75, 0.25])[:, 0], odds / (1 + odds))


def test_confidence() -> None:
    """CE = −log p(label), so softmax_k CE ∝ 1/p(label): with two teachers w_k = p_k / Σ p(label)."""
    w = 0.9 / (0.9 + 0.6)
    first = w * 0.9 + (1 - w) * 0.6
    w = 0.2 / (0.2 + 0.7)
    second = w * 0.8 + (1 - w) * 0.3
    assert torch.allclose(target("confidence", [0.5, 0.5])[:, 0], torch.tensor([first, second]))
    w = 0.75 * 0.9 / (0.75 * 0.9 + 0.25 * 0.6)
    assert float(target("confidence", [0.75, 0.25])[0, 0]) == pytest.approx(w * 0.9 + (1 - w) * 0.6)


def test_confidence_does_not_depend_on_the_temperature() -> None:
    w = 0.9 / (0.9 + 0.6)
    expected = w * 3 / 4 + (1 - w) * 1.5**0.5 / (1 + 1.5**0.5)
    assert float(target("confidence", [0.5, 0.5], temperature=2.0)[0, 0]) == pytest.approx(expected)


def test_confidence_is_ca_mkds_formula() -> None:
    """Worked from the definition (2201.00007) with K = 3: w_k = (1 − exp CE_k / Σ_j exp CE_j) / (K − 1)."""
    p = (0.5, 0.25, 0.125)  # on the label, so CE = log 2, log 4, log 8, and exp CE = 2, 4, 8, sum 14
    by_hand = [(1 - 2 / 14) / 2, (1 - 4 / 14) / 2, (1 - 8 / 14) / 2]  # 6/14, 5/14, 3/14
    losses = torch.tensor([[-math.log(share)] for share in p])
    shares = confidence_shares(losses, torch.full((3,), 1 / 3))
    assert torch.allclose(shares[:, 0], torch.tensor(by_hand))
    assert torch.allclose(shares[:, 0], torch.tensor([6 / 14, 5 / 14, 3 / 14]))
    weighted = confidence_shares(losses, torch.tensor([0.5, 0.3, 0.2]))
    assert torch.allclose(weighted[:, 0], torch.tensor([3.0, 1.5, 0.6]) / 5.1)


def test_confidence_gives_a_hopeless_teacher_nothing() -> None:
    shares = confidence_shares(torch.tensor([[0.0], [500.0]]), torch.tensor([0.01, 0.99]))
    assert torch.equal(shares, torch.tensor([[1.0], [0.0]]))


def test_entropy() -> None:
    """With two teachers 1 − H_k/ΣH is the other's share of the entropy."""
    sure, unsure = entropy_of(0.9), entropy_of(0.6)
    w = unsure / (sure + unsure)
    assert float(target("entropy", [0.5, 0.5])[0, 0]) == pytest.approx(w * 0.9 + (1 - w) * 0.6)
    w = 0.75 * unsure / (0.75 * unsure + 0.25 * sure)
    assert float(target("entropy", [0.75, 0.25])[0, 0]) == pytest.approx(w * 0.9 + (1 - w) * 0.6)


def test_entropy_of_three() -> None:
    """H = 0, log 2, log 2: the sure teacher's share is 1 − 0, the others' 1 − 1/2; over their sum of 2."""
    logits = torch.tensor([[[1000.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    shares = entropy_shares(logits, torch.full((3,), 1 / 3))
    assert torch.allclose(shares[:, 0], torch.tensor([0.5, 0.25, 0.25]))


def test_entropy_without_any_entropy_leaves_the_configs_weights() -> None:
    shares = entropy_shares(torch.tensor([[[1000.0, 0.0]], [[0.0, 1000.0]]]), torch.tensor([0.75, 0.25]))
    assert torch.equal(shares[:, 0], torch.tensor([0.75, 0.25]))


def test_best() -> None:
    """The first example's label suits the first teacher, the second's the second, whatever their weights."""
    assert torch.allclose(target("best", [0.1, 0.9]), torch.tensor([[0.9, 0.1], [0.3, 0.7]]))


def test_best_of_equals_is_the_first() -> None:
    losses = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    assert torch.equal(best_shares(losses), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))


# ---------------------------------------------------------------- what all keep


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(), temperature=TEMPERATURES)
def test_targets_are_probabilities(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    logits, weights, labels = case
    probabilities = aggregate(
        logits, strategy=strategy, weights=weights, temperature=temperature, labels=labels
    )
    assert probabilities.shape == logits.shape[1:]
    assert probabilities.dtype == torch.float32
    assert (probabilities >= 0).all()
    assert torch.allclose(probabilities.sum(-1), torch.ones(len(labels)), atol=1e-5)


@PROPERTY
@given(teachers(fewest=2))
def test_shares_sum_to_one(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, weights, labels = case
    assume(bool((weights > 0).all()))
    losses = torch.stack([cross_entropy(teacher, labels, reduction="none") for teacher in logits])
    for shares in (
        mean_shares(logits, weights.float()),
        confidence_shares(losses, weights.float()),
        entropy_shares(logits, weights.float()),
        best_shares(losses),
    ):
        assert (shares >= 0).all()
        assert torch.allclose(shares.sum(0), torch.ones(len(labels)), atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(), temperature=TEMPERATURES, data=st.data())
def test_one_teacher_is_itself_bit_for_bit(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float, data: st.DataObject
) -> None:
    """Alone, or among others of weight 0."""
    logits, _, labels = case
    only = data.draw(st.integers(0, len(logits) - 1))
    itself = softmax(logits[only] / temperature, dim=-1)
    for given_logits, weights in (
        (logits[only : only + 1], torch.ones(1)),
        (logits, one_hot(torch.tensor(only), len(logits))),
    ):
        alone = aggregate(
            given_logits, strategy=strategy, weights=weights, temperature=temperature, labels=labels
        )
        assert torch.equal(alone, itself)


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(fewest=2), temperature=TEMPERATURES, data=st.data())
def test_order_of_teachers_does_not_matter(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float, data: st.DataObject
) -> None:
    logits, weights, labels = case
    if strategy == "best":  # which of two equals comes first does depend on the order
        losses = torch.stack([cross_entropy(teacher, labels, reduction="none") for teacher in logits])
        assume(bool((losses.sort(0).values.diff(dim=0) > 1e-4).all()))
    order = data.draw(st.permutations(range(len(logits))))
    one = aggregate(logits, strategy=strategy, weights=weights, temperature=temperature, labels=labels)
    other = aggregate(
        logits[order], strategy=strategy, weights=weights[order], temperature=temperature, labels=labels
    )
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(fewest=2), temperature=TEMPERATURES)
def test_teachers_of_weight_zero_take_no_part(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    logits, weights, labels = case
    kept = weights > 0
    one = aggregate(logits, strategy=strategy, weights=weights, temperature=temperature, labels=labels)
    other = aggregate(
        logits[kept], strategy=strategy, weights=weights[kept], temperature=temperature, labels=labels
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float16_is_computed_in_float32(strategy: Strategy) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 5, (3, 8, 4)).astype(np.float16))
    labels, weights = torch.arange(8) % 4, torch.full((3,), 1 / 3)
    half, full = (
        aggregate(z, strategy=strategy, weights=weights, temperature=2.0, labels=labels)
        for z in (logits, logits.float())
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


# ---------------------------------------------------------------- labels


def test_needs_labels() -> None:
    assert tuple(strategy for strategy in STRATEGIES if needs_labels(strategy)) == LABELLED_STRATEGIES


@pytest.mark.parametrize("strategy", LABELLED_STRATEGIES)
@pytest.mark.parametrize("labels", [None, torch.tensor([0, UNLABELLED])], ids=["none", "one missing"])
@pytest.mark.parametrize("k", [1, 2])
def test_labelled_strategies_refuse_missing_labels(strategy: Strategy, labels: Tensor | None, k: int) -> None:
    with pytest.raises(ValueError, match=strategy):
        aggregate(
            LOGITS[:k], strategy=strategy, weights=torch.full((k,), 1 / k), temperature=1.0, labels=labels
        )


@pytest.mark.parametrize("strategy", UNLABELLED_STRATEGIES)
def test_other_strategies_do_not_look_at_labels(strategy: Strategy) -> None:
    weights = torch.tensor([0.75, 0.25])
    without = aggregate(LOGITS, strategy=strategy, weights=weights, temperature=2.0, labels=None)
    assert torch.equal(without, target(strategy, [0.75, 0.25], temperature=2.0))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ensemble_answers_without_labels(strategy: Strategy) -> None:
    blind: Strategy = "mean" if needs_labels(strategy) else strategy
    answers = ensemble(LOGITS, strategy=strategy, weights=torch.tensor([0.75, 0.25]))
    assert torch.equal(answers, target(blind, [0.75, 0.25]))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "weights", [[1.0], [0.5, 0.25, 0.25], [0.7, 0.7], [1.5, -0.5], [0.0, 0.0], [math.nan, 1.0]]
)
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        target("mean", weights)


# ---------------------------------------------------------------- teachers who have no word on something


def parts(data: st.DataObject, case: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A case whose weights are all above 0."""
    logits, _, labels = case
    raw = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(logits), max_size=len(logits)))
    )
    return logits, raw / raw.sum(), labels


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(fewest=2), temperature=TEMPERATURES, data=st.data())
def test_a_teacher_without_a_prediction_is_not_among_a_rows_teachers(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float, data: st.DataObject
) -> None:
    logits, weights, labels = parts(data, case)
    absent = data.draw(hnp.arrays(np.bool_, logits.shape[:2]))
    absent[data.draw(st.integers(0, len(logits) - 1))] = False  # one teacher predicts
    given_logits = logits.masked_fill(torch.from_numpy(absent).unsqueeze(-1), ABSENT)
    aggregated = aggregate(
        given_logits, strategy=strategy, weights=weights, temperature=temperature, labels=labels
    )
    for row in range(len(labels)):
        predicting = torch.from_numpy(~absent[:, row])
        among = weights[predicting] / weights[predicting].sum()
        expected = aggregate(
            logits[predicting, row : row + 1],
            strategy=strategy,
            weights=among,
            temperature=temperature,
            labels=labels[row : row + 1],
        )
        assert torch.allclose(aggregated[row : row + 1], expected, atol=1e-5)
        if int(predicting.sum()) == 1 and strategy != "log_mean":  # which renormalises once more
            assert torch.equal(aggregated[row : row + 1], expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@PROPERTY
@given(case=teachers(fewest=2), temperature=TEMPERATURES, data=st.data())
def test_a_label_that_nobody_knows_gets_nothing_and_takes_nothing(
    strategy: Strategy, case: tuple[Tensor, Tensor, Tensor], temperature: float, data: st.DataObject
) -> None:
    logits, weights, labels = parts(data, case)
    wider = torch.cat((logits, torch.full((*logits.shape[:2], 1), ABSENT)), dim=-1)
    narrow, wide = (
        aggregate(z, strategy=strategy, weights=weights, temperature=temperature, labels=labels)
        for z in (logits, wider)
    )
    assert torch.equal(wide[:, -1], torch.zeros(len(labels)))
    assert torch.allclose(wide[:, :-1], narrow, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_on_which_nobody_speaks_is_finite_and_leaves_the_others_alone(strategy: Strategy) -> None:
    weights = torch.tensor([0.75, 0.25])
    logits = torch.cat((LOGITS, torch.full((2, 1, 2), ABSENT)), dim=1)
    labels = torch.tensor([0, 1, 0])
    aggregated = aggregate(logits, strategy=strategy, weights=weights, temperature=2.0, labels=labels)
    assert torch.isfinite(aggregated).all()
    assert torch.allclose(aggregated[:2], target(strategy, [0.75, 0.25], 2.0), atol=1e-6)


def test_a_teacher_that_lacks_a_label_takes_no_mass_from_it_in_log_mean() -> None:
    """p = (1/2, 1/2, –) and (1/4, 1/4, 1/2): the third label is voted on by the second teacher alone."""
    logits = torch.tensor([[[0.5, 0.5, 1.0]], [[0.25, 0.25, 0.5]]]).log()
    logits[0, 0, 2] = ABSENT
    aggregated = aggregate(
        logits, strategy="log_mean", weights=torch.full((2,), 0.5), temperature=1.0, labels=None
    )
    votes = torch.tensor([[(1 / 2 * 1 / 4) ** 0.5, (1 / 2 * 1 / 4) ** 0.5, 1 / 2]])
    assert torch.allclose(aggregated, votes / votes.sum())
    mixed = aggregate(logits, strategy="mean", weights=torch.full((2,), 0.5), temperature=1.0, labels=None)
    assert torch.allclose(mixed, torch.tensor([[3 / 8, 3 / 8, 1 / 4]]))  # in a mixture it says: not this


def test_who_lacks_the_label_is_not_the_best_and_has_no_confidence() -> None:
    logits = torch.tensor([[[9.0, ABSENT]], [[1.0, -1.0]]])
    for strategy in LABELLED_STRATEGIES:
        aggregated = aggregate(
            logits,
            strategy=strategy,
            weights=torch.full((2,), 0.5),
            temperature=1.0,
            labels=torch.tensor([1]),
        )
        assert torch.allclose(aggregated, softmax(logits[1], dim=-1))


def test_confidence_among_those_who_speak_is_theirs() -> None:
    """CA-MKD's by hand, an absent fourth teacher beside the three of above."""
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]])
    logits = torch.cat((p.log()[:, None], torch.full((1, 1, 2), ABSENT)))
    aggregated = aggregate(
        logits,
        strategy="confidence",
        weights=torch.full((4,), 0.25),
        temperature=1.0,
        labels=torch.tensor([0]),
    )
    assert torch.allclose(aggregated[0, 0], (torch.tensor([6.0, 5.0, 3.0]) / 14 * p[:, 0]).sum())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_absent_survives_half_precision(strategy: Strategy) -> None:
    logits = torch.cat((LOGITS, torch.full((1, 2, 2), ABSENT)))
    half, full = (
        aggregate(z, strategy=strategy, weights=torch.full((3,), 1 / 3), temperature=4.0, labels=LABELS)
        for z in (logits.half(), logits.half().float())
    )
    assert torch.equal(half, full)
    assert torch.isfinite(half).all()


# ---------------------------------------------------------------- numbers

NUMBERS = torch.tensor([[[1.0], [4.0]], [[3.0], [0.0]], [[2.0], [1.0]]])
GOLD = torch.tensor([1.0, 1.0])


def number(strategy: Strategy, weights: list[float], labels: Tensor | None = GOLD) -> list[float]:
    return aggregate(
        NUMBERS[: len(weights)],
        strategy=strategy,
        weights=torch.tensor(weights),
        temperature=2.0,
        labels=labels,
        continuous=True,
    )[:, 0].tolist()


def test_numbers_are_averaged() -> None:
    assert number("mean", [0.5, 0.25, 0.25], None) == [1.75, 2.25]
    assert number("mean", [0.5, 0.25, 0.25], torch.tensor([1.0, math.nan])) == [1.75, 2.25]


def test_the_best_number_is_the_nearest_to_the_label() -> None:
    assert number("best", [0.8, 0.1, 0.1]) == [1.0, 1.0]
    assert number("best", [0.9, 0.1]) == [1.0, 0.0]


def test_confident_numbers_weigh_by_their_squared_errors() -> None:
    losses = torch.square(NUMBERS.squeeze(-1) - GOLD)
    shares = confidence_shares(losses, torch.tensor([0.5, 0.3, 0.2]))
    expected = (shares * NUMBERS.squeeze(-1)).sum(0)
    assert number("confidence", [0.5, 0.3, 0.2]) == pytest.approx(expected.tolist())
    two = confidence_shares(losses[:2], torch.tensor([0.5, 0.5]))
    assert two[0, 0] > 0.9  # right, beside one that is off by two


@pytest.mark.parametrize("strategy", ["mean", "confidence", "best"])
def test_one_number_is_itself_bit_for_bit(strategy: Strategy) -> None:
    logits = torch.randn(1, 5, 1, generator=torch.Generator().manual_seed(0))
    for z, weights in ((logits, torch.ones(1)), (torch.cat((logits, 2 * logits)), torch.tensor([1.0, 0.0]))):
        aggregated = aggregate(
            z, strategy=strategy, weights=weights, temperature=3.0, labels=torch.zeros(5), continuous=True
        )
        assert torch.equal(aggregated, logits[0])


@pytest.mark.parametrize("strategy", ["log_mean", "entropy"])
def test_strategies_made_for_probabilities_refuse_numbers(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match="not made for numbers"):
        number(strategy, [0.5, 0.5])


@pytest.mark.parametrize("strategy", LABELLED_STRATEGIES)
@pytest.mark.parametrize("labels", [None, torch.tensor([0.0, math.nan])], ids=["none", "one missing"])
def test_labelled_strategies_refuse_missing_numbers(strategy: Strategy, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="needs the label"):
        number(strategy, [0.5, 0.5], labels)


def test_an_ensemble_of_numbers_needs_no_labels() -> None:
    for strategy in strategies(REGRESSION, labelled=True):
        aggregated = ensemble(
            NUMBERS, strategy=strategy, weights=torch.tensor([0.5, 0.25, 0.25]), continuous=True
        )
        assert aggregated[:, 0].tolist() == [1.75, 2.25]
