"""The text that each example learns in an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.batch import TargetTokens, offsets_of
from pipeline.training.texts import DrawnTexts


def tokens(*counts: int, first: int = 0) -> TargetTokens:
    """Texts of so many tokens; the ids are `first`, `first` + 1, …"""
    ids = np.arange(first, first + sum(counts), dtype=np.int32)
    each = np.array(counts)
    return TargetTokens(ids, offsets_of(each)[:-1], each)


def test_texts_are_drawn_by_their_weights() -> None:
    size = 4000
    drawn = DrawnTexts.of([tokens(*[1] * size), tokens(*[2] * size)], [0.7, 0.3])
    counts = np.stack([drawn.draw(0, epoch).tokens.counts for epoch in range(3)])
    assert (counts == 2).mean() == pytest.approx(0.3, abs=0.02)
    assert not (counts[0] == counts[1]).all(), "drawn anew each epoch"
    again = DrawnTexts.of([tokens(*[1] * size), tokens(*[2] * size)], [0.7, 0.3]).draw(0, 1)
    assert (again.tokens.counts == counts[1]).all(), "a function of seed and epoch"
    assert not (drawn.draw(1, 1).tokens.counts == counts[1]).all()


def test_ids_are_those_of_the_drawn_text() -> None:
    drawn = DrawnTexts.of([tokens(2, 0, 1), tokens(1, 3, 1, first=100)], [0.0, 1.0])
    ids = drawn.draw(0, 0).tokens.take(np.array([2, 0, 1]))
    assert ids.values.tolist() == [104, 100, 101, 102, 103]
    assert ids.counts.tolist() == [1, 1, 3]
    assert drawn.lengths.tolist() == [1, 3, 1]


def test_an_example_learns_the_text_that_it_has() -> None:
    drawn = DrawnTexts.of(
        [tokens(2, 0, 3), tokens(0, 4, 5, first=50)], [1.0, 0.0], np.arange(6, dtype=np.uint64)
    )
    for epoch in range(5):
        draw = drawn.draw(0, epoch)
        assert draw.tokens.counts.tolist() == [2, 4, 3]
        assert draw.keys is not None
        assert draw.keys.tolist() == [0, 4, 2], "keys go with their texts"


def test_an_example_without_any_text_is_refused() -> None:
    with pytest.raises(ValueError, match="1 examples have no text"):
        DrawnTexts.of([tokens(1, 0), tokens(1, 0)], [0.5, 0.5])


def test_another_share_keeps_the_ratio_of_the_teachers_and_what_has_no_reference() -> None:
    made = DrawnTexts.of(
        [tokens(1, 1, 0), tokens(2, 0, 2, first=50), tokens(3, 0, 3, first=99)], [0.4, 0.45, 0.15]
    )
    for share in (0.0, 0.4, 1.0):
        chances = made.at(share).chances
        np.testing.assert_allclose(chances[:, 0], [1 - share, 0.75 * share, 0.25 * share])
        np.testing.assert_allclose(chances[:, 1], [1, 0, 0])  # no teacher has written for it
        np.testing.assert_allclose(chances[:, 2], [0, 0.75, 0.25])  # no reference
    np.testing.assert_allclose(made.at(0.6).chances, made.chances)
    assert made.referenced.tolist() == [True, True, False]


def test_an_own_text_keeps_its_share_and_is_known_as_such() -> None:
    made = DrawnTexts.of(
        [tokens(1, 1, 0, 0), tokens(2, 0, 2, 0, first=50), tokens(3, 3, 3, 3, first=99)],
        [0.4, 0.2, 0.4],
        own=True,
    )
    half = made.at(0.5).chances
    np.testing.assert_allclose(half[:, 0], [0.3, 0.3, 0.4])
    np.testing.assert_allclose(half[:, 1], made.chances[:, 1])
    np.testing.assert_allclose(half[:, 2], made.chances[:, 2])  # no reference: its teachers' text, or its own
    np.testing.assert_allclose(half[:, 3], [0, 0, 1])
    alone = made.at(0.0).chances
    np.testing.assert_allclose(alone[:, 0], [1, 0, 0])  # references alone
    np.testing.assert_allclose(alone[:, 3], [0, 0, 1])
    for epoch in range(8):
        draw = made.draw(0, epoch)
        assert draw.own is not None
        assert (draw.own == (draw.tokens.counts == 3)).all()
    assert DrawnTexts.of([tokens(1)], [1.0]).draw(0, 0).own is None
