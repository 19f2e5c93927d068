"""A trial's gain over the default: paired by example, over seeds, corrected for the looks; who wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged
from pipeline.data.splits import TaskData
from pipeline.tasks.resampled import Sample
from pipeline.tasks.skill import relative_losses
from pipeline.tasks.text_classification import text_classification
from tests.unit.tune.studies import trial_of
from tune.choice import FINALISTS, Gain, default_trial, finalists, gain, sample, winner_of

N = 400


def data_of(name: str, seed: int) -> TaskData:
    gold = np.random.default_rng(seed).integers(0, 2, N)
    examples = Examples(name, np.arange(N, dtype=np.uint64), {"text": [""] * N}, Ragged.single(gold))
    return TaskData(text_classification(name, ("no", "yes"), 16), {"validation": examples})


DATA = {"movies": data_of("movies", 0), "tweets": data_of("tweets", 1)}


def predictions(strength: float, seed: int = 0, shared: float = 1.0) -> dict[str, NDArray[Any]]:
    """Logits that know the labels with `strength`; models share the noise of `shared`."""
    values = {}
    for i, (name, data) in enumerate(DATA.items()):
        gold = np.eye(2)[data.splits["validation"].labels.values]
        same, own = (np.random.default_rng((i, s)).normal(size=(N, 2)) for s in (99, seed))
        values[name] = (strength * gold + shared * same + 0.3 * own).astype(np.float32)
    return values


def sample_of(metric: str, values: dict[str, NDArray[Any]]) -> Sample:
    one = sample(metric, DATA, values)
    assert one is not None
    return one


def accuracy(values: dict[str, NDArray[Any]], task: str) -> float:
    gold: NDArray[Any] = DATA[task].splits["validation"].labels.values
    return float((values[task].argmax(axis=1) == gold).mean())


def test_a_sample_has_the_score_itself_and_its_spread_over_examples() -> None:
    values = predictions(1.0)
    one = sample_of("movies/accuracy", values)
    share = accuracy(values, "movies")
    assert one.score == pytest.approx(share)
    assert one.draws.std() == pytest.approx(math.sqrt(share * (1 - share) / N), rel=0.1)
    macro = sample_of("macro/score", values)
    assert macro.score == pytest.approx((share + accuracy(values, "tweets")) / 2)


def test_a_sample_of_skill_is_the_skill() -> None:
    values = predictions(1.0)
    skills = [
        1 - relative_losses(data.task, values[name], data.splits["validation"]).mean()
        for name, data in DATA.items()
    ]
    assert sample_of("macro/skill", values).score == pytest.approx(np.mean(skills))
    assert sample_of("tweets/skill", values).score == pytest.approx(skills[1])


@pytest.mark.parametrize("metric", ["movies/nll", "movies/macro_f1", "movies/ece"])
def test_other_metrics_have_no_sample(metric: str) -> None:
    assert sample(metric, DATA, predictions(1.0)) is None


def test_what_two_models_share_is_no_noise_of_their_difference() -> None:
    a, b = (sample_of("macro/skill", predictions(1.2, seed)) for seed in (1, 2))
    paired = gain([a], [b], looks=1)
    assert paired.error < 0.5 * math.hypot(a.draws.std(), b.draws.std())
    assert gain([a], [a], looks=1).error == 0


def test_a_real_gain_is_larger_than_its_error_and_a_loss_is_negative() -> None:
    better, worse = (sample_of("macro/skill", predictions(strength, 1)) for strength in (1.6, 1.0))
    assert gain([better], [worse], looks=15).lowest > 0
    assert gain([worse], [better], looks=1).mean == -gain([better], [worse], looks=1).mean
    assert gain([worse], [better], looks=15, sign=-1).lowest > 0  # of an error


def test_seeds_that_disagree_widen_the_error() -> None:
    def scored(score: float) -> Sample:
        return Sample(score, np.full(500, score))

    one = gain([scored(0.8), scored(0.9)], [scored(0.7), scored(0.7)], looks=1)
    assert one.mean == pytest.approx(0.15)
    assert one.error == pytest.approx(0.05)  # standard deviation of (0.1, 0.2) ÷ √2


def test_the_interval_is_corrected_for_the_looks() -> None:
    assert Gain(0.02, 0.01, looks=1).lowest == pytest.approx(0.02 - 1.6449 * 0.01, abs=1e-5)
    assert Gain(0.02, 0.01, looks=15).lowest == pytest.approx(0.02 - 2.7131 * 0.01, abs=1e-5)
    assert Gain(0.02, 0.01, looks=1).by_chance == 0
    assert Gain(0.02, 0.01, looks=15).by_chance == pytest.approx(
        0.01736, abs=1e-4
    )  # E of the largest of 15 normals


def test_the_largest_of_equal_models_is_as_large_as_chance_makes_it() -> None:
    rng = np.random.default_rng(0)
    largest = rng.normal(size=(4000, 15)).max(axis=1).mean()
    assert Gain(0.0, 1.0, looks=15).by_chance == pytest.approx(largest, abs=0.03)


@pytest.mark.parametrize(
    ("gains", "winner"),
    [
        ([(0.01, 0.02), (0.05, 0.01), (0.04, 0.001)], 2),  # the largest of those above chance
        ([(0.01, 0.02), (0.02, 0.01)], 0),  # neither is
        ([(-0.05, 0.001)], 0),
        ([], 0),
    ],
)
def test_the_default_stays_unless_another_is_above_chance(
    gains: Sequence[tuple[float, float]], winner: int
) -> None:
    by_number = {number: Gain(*one, looks=15) for number, one in enumerate(gains, 1)}
    assert winner_of(by_number, default=0) == winner


def test_the_default_is_the_finished_trial_with_the_configs_own_values() -> None:
    own = {"loss.temperature": 7}
    trials = [
        trial_of(0, 0.5, "early-stopped", values=own),
        trial_of(1, 0.5),
        trial_of(2, 0.4, values={"loss.temperature": 7.0}),
    ]
    assert default_trial(trials, own) is trials[2]
    assert default_trial(trials[:2], own) is None
    assert default_trial(trials, None) is None


def test_finalists_are_the_best_that_ran_to_their_end() -> None:
    trials = [trial_of(n, s) for n, s in enumerate([0.5, 0.9, 0.7, 0.8, 0.6])] + [
        trial_of(5, 0.99, "early-stopped")
    ]
    assert [one.number for one in finalists(trials, ["macro/score"], ["max"], trials[1])] == [3, 2, 4]
    assert [one.number for one in finalists(trials, ["macro/score"], ["min"], None)] == [0, 4, 2]
    assert FINALISTS == 3
    assert finalists([trials[0]], ["macro/score"], ["max"], trials[0]) == []
