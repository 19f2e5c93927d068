"""Which texts of teachers no student learns."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks.text_faults import loops, text_faults

SOURCES = ["turn the light on in the kitchen", "open the door of the garage", "how warm is it outside today"]
SIZES = np.array([len(source) for source in SOURCES], dtype=np.float64)
TARGETS = ["schalte das Licht in der Küche ein", "öffne das Tor der Garage", "wie warm ist es heute draußen"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the the the the the the the the the", True),
        ("ich bin da ich bin da ich bin da ich bin da", True),
        ("wie wie wie", False),
        ("ein Haus und ein Haus und ein Garten mit einem Haus und einem Baum", False),
        ("", False),
        ("Sweden (place), Ann Lee (person), Bo Ek (person), Oslo (place), Cy (person)", False),
        ("Ann (person), Bo (person), Cy (person), Dee (person)", False),
        ("Ann (person), " * 5, True),
        ("! " * 12, True),
        ("यह एक किताब है और वह एक कलम है", False),
        ("le chat oitoitoitoitoitoitoitoitoit", True),
        ("schalte das Licht en" + "en" * 12, True),
        ("aaaaaaaah", False),
        ("0000 0000 0000 0000000000000000", False),
        ("das Tor der Garage ist auf, haaaaaaaaaaaaaaaaaallo, sagte ich", False),
        ("开门开门开门开门开门开门", True),
    ],
)
def test_a_loop_is_mostly_the_same_few_words(text: str, expected: bool) -> None:
    assert loops(text) is expected


def test_each_text_has_at_most_one_fault() -> None:
    texts = [" ", "ja ja ja ja ja ja ja ja ja ja ja ja " * 9, "wie warm ist es heute draußen"]
    faults = text_faults(texts, SIZES, (SIZES, TARGETS))
    assert {name: has.tolist() for name, has in faults.items()} == {
        "empty": [True, False, False],
        "repeating the same few words": [False, True, False],
        "too long": [False, False, False],
        "too short": [False, False, False],
    }


def test_lengths_are_judged_by_what_is_usual() -> None:
    long = (
        "schalte das Licht ein, bitte, und dann auch noch alle anderen Lichter im Haus, im Garten, im Keller, im "
        * 2
    )
    faults = text_faults([long, "ö", TARGETS[2]], SIZES, (SIZES, TARGETS))
    assert faults["too long"].tolist() == [True, False, False]
    assert faults["too short"].tolist() == [False, True, False]
    summaries = text_faults(["kurz"] * 3, 10 * SIZES, (10 * SIZES, ["kurz!"] * 3))
    assert not any(has.any() for has in summaries.values()), "summaries are short as their references are"
