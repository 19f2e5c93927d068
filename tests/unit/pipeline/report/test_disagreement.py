"""Where teachers disagree: by teacher, by gold label, by example, for every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pipeline.batch import ABSENT
from pipeline.report.disagreement import disagreement, divergences, jensen_shannon
from tests.unit.pipeline.report.teacher_samples import marks, numbers, spans, topics, words


def test_the_divergence_is_jensens_and_shannons() -> None:
    logits = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    p, q = torch.softmax(logits.double(), dim=-1).numpy()
    assert jensen_shannon(logits).numpy() == pytest.approx(jensenshannon(p, q, axis=-1) ** 2)


def test_the_divergence_is_0_of_equal_teachers_and_ln_k_of_k_that_are_sure_of_different_labels() -> None:
    sure = 100 * torch.eye(3).unsqueeze(1)
    assert jensen_shannon(sure).tolist() == pytest.approx([math.log(3)])
    assert jensen_shannon(sure[:1].expand(3, 1, 3)).tolist() == pytest.approx([0], abs=1e-12)


def test_a_teacher_without_prediction_takes_no_part_and_one_without_a_label_gives_it_0() -> None:
    rows = torch.tensor([[[1.0, 2.0]], [[0.5, 0.0]], [[ABSENT, ABSENT]]])
    assert jensen_shannon(rows).tolist() == pytest.approx(jensen_shannon(rows[:2]).tolist())
    halves = torch.tensor([[[0.0, ABSENT]], [[0.0, 0.0]]])
    expected = (0.75 * math.log(1 / 0.75) + 0.25 * math.log(1 / 0.25)) - 0.5 * math.log(2)
    assert jensen_shannon(halves).tolist() == pytest.approx([expected])


def test_labels_are_listed_by_the_share_of_their_texts_that_is_disputed() -> None:
    where = disagreement(topics([[4, 0, 0], [0, 4, 0], [0, 4, 0], [0, 4, 0]]))
    disputes = [(one.label, one.disputed, one.gold) for one in where.labels]
    assert disputes == [("c", 1, 1), ("a", 1, 2), ("b", 0, 1)]
    assert where.agreement == {"one": {"two": 0.5}, "two": {"one": 0.5}}


def test_examples_are_those_of_which_the_distributions_are_furthest_apart() -> None:
    where = disagreement(topics([[4, 0, 0], [0, 2, 0], [0, 4, 0], [0, 9, 0]]))
    assert [(one.text, one.gold, one.answers) for one in where.examples] == [
        ("text 3", "c", {"one": "c", "two": "b"}),
        ("text 1", "a", {"one": "a", "two": "b"}),
    ]  # the same predictions of the two others are no dispute


def test_a_label_among_several_is_disputed_where_it_is_gold() -> None:
    where = disagreement(marks())
    assert [(one.label, one.disputed, one.gold) for one in where.labels] == [("calm", 1, 2), ("loud", 0, 1)]
    top = where.examples[0]
    assert (top.text, top.gold, top.answers) == ("text 1", "calm, loud", {"one": "calm, loud", "two": "loud"})


def test_numbers_are_apart_by_their_difference() -> None:
    where = disagreement(numbers())
    assert where.labels == ()
    assert [(one.gold, one.answers["two"], one.apart) for one in where.examples] == [
        ("5.00", "9.00", 4.0),
        ("2.00", "2.50", 0.5),
    ]
    assert where.agreement["one"]["two"] == pytest.approx(
        np.corrcoef([1, 2, 3, 5], [1, 2.5, 3, 9])[0, 1], abs=1e-6
    )


def test_of_a_sentence_the_most_disputed_word_is_shown() -> None:
    where = disagreement(words([[4, 0], [4, 0], [4, 0], [1, 0]]))
    (apart, items) = divergences(words([[4, 0], [4, 0], [4, 0], [1, 0]]))
    assert items.tolist() == [0, 1]
    assert apart[0] == 0
    (one,) = where.examples
    assert (one.text, one.gold) == ("says Ada now", "Ada: B-PER")
    assert one.answers == {"one": "Ada: B-PER", "two": "Ada: O"}
    assert [(label.label, label.disputed) for label in where.labels] == [("B-PER", 1), ("O", 0)]


def test_answers_in_a_context_are_shown_as_text() -> None:
    where = disagreement(spans())
    assert where.agreement["one"]["two"] == 0.5
    (one,) = where.examples
    assert "bob is here now" in one.text
    assert (one.gold, one.answers) == ("here", {"one": "here", "two": "bob"})
