"""The teachers' text together is the candidate that is nearest to all candidates."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from pipeline.tasks.consensus import consensus, consensus_texts, nearest_texts
from pipeline.tasks.text_scores import pairwise_chrf, text_chrf
from pipeline.text_arrays import text_array

A = ["turn the light on", "turn on the light", "turn on the lamp"]
B = ["switch the light on", "turn on the light"]


def test_pairs_are_scored_as_sacrebleu_does() -> None:
    texts = [*A, *B, "a", "", "a a a a a"]
    chrf = pairwise_chrf(texts)
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            expected = sacrebleu.sentence_chrf(one, [other]).score / 100
            assert chrf[i, j] == pytest.approx(expected)
            assert text_chrf(one, other) == pytest.approx(expected)


def test_consensus_maximises_the_expected_chrf() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        weight = rng.random()
        shares = np.array([weight / 3] * 3 + [(1 - weight) / 2] * 2)
        expected = pairwise_chrf([*A, *B]) @ shares
        assert consensus([*A, *B], shares) == [*A, *B][int(np.argmax(expected))]


def test_the_text_that_teachers_agree_on_wins() -> None:
    assert consensus_texts([text_array([A]), text_array([B])], (0.5, 0.5)).tolist() == [["turn on the light"]]
    one, other = text_array([["one"], ["x"]]), text_array([["two"], ["y"]])
    assert consensus_texts([one, other], (0.5, 0.5)).tolist() == [["one"], ["x"]], "the first of equals"
    assert consensus_texts([one, other], (0.4, 0.6)).tolist() == [["two"], ["y"]]
    assert consensus_texts([one, other], (0.0, 1.0)).tolist() == [["two"], ["y"]]


def test_empty_and_looping_texts_have_no_vote_where_there_is_another() -> None:
    loop = "un chat un chat un chat un chat un chat"
    assert consensus([loop, "un chat voit un chien"], np.array([0.5, 0.5])) == "un chat voit un chien"
    assert consensus(["", "", "un chat"], np.array([0.4, 0.4, 0.2])) == "un chat"
    assert consensus([loop, loop, ""], np.array([0.3, 0.3, 0.4])) == loop, "there is nothing better"
    assert consensus(["", ""], np.array([0.5, 0.5])) == ""


def test_a_teacher_without_weight_has_no_vote() -> None:
    same = text_array([["two two", "two two", "two two"]])
    assert consensus_texts([text_array([["one"]]), same], (1.0, 0.0)).tolist() == [["one"]]


def test_the_nearest_text_is_that_with_the_highest_chrf_to_the_reference() -> None:
    chosen = nearest_texts(
        [text_array([A, A]), text_array([B, B])], ["turn on the lamps", "switch the light"]
    )
    assert chosen.tolist() == [["turn on the lamp"], ["switch the light on"]]
