"""Plain text between kinds: where a sentence ends, how words become a text, and that no text takes long."""

from __future__ import annotations

import time

import pytest

from pipeline.tasks.plain_text import has_words, joined, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four… five", ["One.", "Two!", "Three?", "Four… five"]),
        ('He said: "Go!" She (sadly.) left.', ['He said: "Go!"', "She (sadly.) left."]),
        ("Costs 3.50 a piece, e.g. here. Yes", ["Costs 3.50 a piece, e.g. here.", "Yes"]),
        ("The U.S. Army and J. R. Smith won. It did.", ["The U.S. Army and J. R. Smith won.", "It did."]),
        ("Was it I? Or you?! Both", ["Was it I?", "Or you?!", "Both"]),
        ("北京是首都。他说：“好！”走了？是", ["北京是首都。", "他说：“好！”", "走了？", "是"]),
        ("a line\ngoes on\n \nanother", ["a line\ngoes on", "another"]),
        ("  Padded.   Twice.  ", ["Padded.", "Twice."]),
        ("Good . ) ... !", ["Good ."]),  # what has no letter and no digit is no sentence
        ("no end", ["no end"]),
        ("", []),
        (" \n\n . ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["EU", "rejects", "German", "call", "."], "EU rejects German call ."),
        (["北", "京", "大", "学", "。"], "北京大学。"),
        (["用", "iPhone", "15", "的", "人"], "用iPhone 15的人"),
        (["スタ", "バ", "「", "東京", "」"], "スタバ「東京」"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["한국", "사람"], "한국 사람"),
        ([], ""),
    ],
)
def test_words_are_joined_as_their_script_is_written(words: list[str], expected: str) -> None:
    assert joined(words) == expected


def test_a_letter_or_a_digit_makes_words() -> None:
    assert [text for text in ("a", "7", "é", "字", "", " ", "…!", "😀", "_") if has_words(text)] == [
        *("a", "7", "é", "字")
    ]


@pytest.mark.parametrize("part", [".", "! ", "a. ", "!)", ". )", "\n", "\n ", "。", " ", "A.", "”", "a"])
def test_any_text_takes_linear_time(part: str) -> None:
    start = time.monotonic()
    sentences(part * 300_000)
    assert time.monotonic() - start < 20  # less than a second where nothing else runs; quadratic: hours
