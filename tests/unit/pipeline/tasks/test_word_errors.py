"""Word and character error rates."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest

from pipeline.tasks.word_errors import (
    WORD_LIKENESS,
    cer_of,
    compared,
    error_counts,
    normalised,
    wer_of,
    word_error,
)

TEXTS = ["the hat sat on a mat", "no one", "", "one two three four five"]
GOLD = ["the cat sat on the mat", "no one", "two words", "one three four"]


def test_rates_of_sums_are_jiwers_of_the_whole_corpus() -> None:
    sums = error_counts(TEXTS, GOLD).sum(axis=0)
    assert float(wer_of(sums)) == pytest.approx(jiwer.wer(GOLD, TEXTS))
    assert float(cer_of(sums)) == pytest.approx(jiwer.cer(GOLD, TEXTS))
    assert float(wer_of(sums)) == pytest.approx((2 + 0 + 2 + 2) / (6 + 2 + 2 + 3))


def test_case_and_punctuation_are_no_errors() -> None:
    assert normalised("Hello,  World!") == "hello world"
    assert word_error("HELLO world", "Hello, World!") == 0
    assert word_error("Größe", "größe.") == 0, "letters keep their marks"


@pytest.mark.parametrize(
    ("text", "gold", "errors", "words"),
    [("", "", 0, 0), ("a b", "", 2, 0), ("", "a b", 2, 2), ("...", "a", 1, 1), ("a", "!", 1, 0)],
)
def test_empty_texts_are_counted(text: str, gold: str, errors: int, words: int) -> None:
    assert error_counts([text], [gold])[0, :2].tolist() == [errors, words]


def test_likeness_is_one_minus_the_error() -> None:
    pairwise = WORD_LIKENESS.pairwise(GOLD)
    assert np.diag(pairwise).tolist() == [1, 1, 1, 1]
    assert pairwise[0, 1] == pytest.approx(1 - word_error(GOLD[0], GOLD[1]))
    assert WORD_LIKENESS.of("a b c d", "a") == -2, "an error rate may be above 1"


def test_errors_are_shown_beside_the_reference() -> None:
    assert compared("the hat sat", "The cat sat down.") == [
        ("equal", "the"),
        ("substitute", "hat"),
        ("equal", "sat"),
        ("delete", "down"),
    ]
    assert compared("so the cat", "the cat") == [("insert", "so"), ("equal", "the cat")]
    assert compared("", "") == []
