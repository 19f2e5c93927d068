"""Which words of a text may be altered, the text with some altered, and that no kind cuts what a label is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.batch import UNLABELLED, Ragged
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from pipeline.tasks.variants import Changes, Side, Variant, altered, in_case_of, moved, side_of, word_of


def free(side: Side) -> list[str]:
    return [word_of(side, i) for i in np.flatnonzero(side.free)]


def droppable(side: Side) -> list[str]:
    return [word_of(side, i) for i in np.flatnonzero(side.droppable)]


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A good film, really.", ["A", "good", "film", "really"]),
        ("I don't like the U.S. e-mail", ["I", "like", "the"]),
        ("see a/b, x_y, me@home and 3D in 1999", ["see", "and", "in"]),
        ("(yes) \"no\" 'quoted' end...", ["yes", "no", "quoted", "end"]),
        ("naïve café", ["naïve", "café"]),
        ("好看，真的", ["好", "看", "真", "的"]),
        ("", []),
    ],
)
def test_words_of_letters_that_nothing_joins_are_free(text: str, words: list[str]) -> None:
    side = side_of(text)
    assert free(side) == droppable(side) == words


def test_what_is_kept_is_not_free() -> None:
    assert free(side_of("one two three", [(4, 7)])) == ["one", "three"]
    assert free(side_of("one two three", [(2, 5)])) == ["three"]
    assert free(side_of("one two three", [(3, 4)])) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("a b c", {}, "a b c"),
        ("a b c", {1: "new"}, "a new c"),
        ("a b c", {1: None}, "a c"),
        ("a b c", {0: None}, "b c"),
        ("a b c", {0: None, 1: None}, "c"),
        ("a b c", {1: None, 2: None}, "a"),
        ("a b c", {0: "x", 2: None}, "x b"),
        ("Go, now.", {2: None}, "Go,."),
        ("a  b", {1: None}, "a "),
        ("(b) c", {1: None}, "() c"),
        ("好看的", {1: None}, "好的"),
    ],
)
def test_words_are_replaced_and_left_out(text: str, changes: Changes, expected: str) -> None:
    assert altered(side_of(text), changes) == expected


def test_positions_follow_what_changes_before_them() -> None:
    side = side_of("one two three four")
    changes: Changes = {0: None, 1: "longer", 3: None}
    assert altered(side, changes) == "longer three"
    assert moved(side, changes, side.text.index("three")) == altered(side, changes).index("three")


@pytest.mark.parametrize(
    ("word", "new", "expected"),
    [
        ("good", "fine", "fine"),
        ("Good", "fine", "Fine"),
        ("GOOD", "fine", "FINE"),
        ("A", "the", "The"),
        ("good", "Fine", "Fine"),
    ],
)
def test_a_replacement_is_written_as_its_word(word: str, new: str, expected: str) -> None:
    assert in_case_of(word, new) == expected


# ---------------------------------------------------------------- kinds


def read(task: Task, columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Sequence[Any]], Ragged]:
    return task.reading.read({role: Column(values) for role, values in columns.items()}, "train")


def altered_of(
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    changes: Sequence[Changes],
    keep_labels: bool,
    row: int = 0,
) -> tuple[dict[str, Sequence[Any]], Ragged]:
    inputs, labels = read(task, columns)
    sides = task.reading.sides(inputs, labels, row)
    return task.reading.altered(
        inputs, labels, [Variant(row, sides, tuple(changes))], keep_labels=keep_labels
    )


PAIR = ("text", "text_pair")
LABELS = ("x", "y")


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (text_classification("t", LABELS, 64, fields=PAIR), "y"),
        (multi_label("t", LABELS, 64, fields=PAIR), ["y", "x"]),
        (regression("t", 64, fields=PAIR), 2.5),
    ],
    ids=["single", "multi", "number"],
)
def test_both_sides_of_a_pair_change_and_labels_stay_on_request(task: Task, label: Any) -> None:
    columns = {"text": ["zero", "one two"], "text_pair": ["zero", "three four"], "label": [None, label]}
    for keep in (False, True):
        inputs, labels = altered_of(task, columns, [{0: None}, {1: "five"}], keep, row=1)
        assert inputs == {"text": ["two"], "text_pair": ["three five"]}
        assert task.reading.labelled(labels).tolist() == [keep]
        if keep:
            whole = read(task, columns)[1]
            np.testing.assert_array_equal(labels.values, whole.take(np.array([1])).values)
    _, labels = altered_of(task, columns, [{0: "x"}, {}], True)
    assert not task.reading.labelled(labels).any()


ENTITIES = token_classification("t", ("O", "B-PER", "I-PER"), 64)
TAGGED = {"words": [["Did", "Ann", "Lee", "call", "the", "Bo", "team", "."]]}
TAGS = ["O", "B-PER", "I-PER", "O", "O", "B-PER", "O", "O"]


def test_words_of_entities_are_never_altered() -> None:
    inputs, labels = read(ENTITIES, {**TAGGED, "labels": [TAGS]})
    (side,) = ENTITIES.reading.sides(inputs, labels, 0)
    assert side.text == "Did Ann Lee call the Bo team ."
    assert free(side) == ["Did", "call", "the", "team"]
    assert droppable(side) == ["call", "team"]  # what stands before an entity may divide two of them


def test_nothing_of_a_sentence_without_labels_is_altered_where_labels_are_entities() -> None:
    given: list[dict[str, list[Any]]] = [{**TAGGED}, {**TAGGED, "labels": [None]}]
    for columns in given:
        (side,) = ENTITIES.reading.sides(*read(ENTITIES, columns), 0)
        assert free(side) == []
    no_background = token_classification("t", ("B-PER", "I-PER"), 64)
    (side,) = no_background.reading.sides(*read(no_background, TAGGED), 0)
    assert free(side) == []


def test_every_word_is_free_where_labels_are_no_entities() -> None:
    task = token_classification("t", ("N", "V"), 64, "accuracy")
    (side,) = task.reading.sides(*read(task, {"words": [["dogs", "run", "don't", "."]]}), 0)
    assert free(side) == droppable(side) == ["dogs", "run"]


def test_labels_of_words_follow_the_words() -> None:
    changes: list[Changes] = [{0: "Has", 3: None, 6: None}]
    for keep in (False, True):
        inputs, labels = altered_of(ENTITIES, {**TAGGED, "labels": [TAGS]}, changes, keep)
        assert inputs == {"words": [["Has", "Ann", "Lee", "the", "Bo", "."]]}
        assert labels.values.tolist() == ([0, 1, 2, 0, 1, 0] if keep else [UNLABELLED] * 6)
        assert labels.counts.tolist() == [6]


ANSWERS = question_answering("t", 64)
CONTEXT = "Bo saw Ann. Later Ann Lee met Bo in Oslo."


def asked(answers: Any) -> dict[str, Sequence[Any]]:
    return {"question": ["Who met Bo?"], "context": [CONTEXT], "answers": [answers]}


def test_no_word_of_an_answer_is_altered_wherever_it_stands() -> None:
    golds = {"text": ["Ann", "Lee met"], "answer_start": [18, 22]}
    question, context = ANSWERS.reading.sides(*read(ANSWERS, asked(golds)), 0)
    assert free(question) == ["Who", "met", "Bo"]
    assert free(context) == ["Bo", "saw", "Later", "Bo", "in", "Oslo"]


def test_without_an_answer_all_words_are_free_and_without_label_none_of_the_context() -> None:
    _, context = ANSWERS.reading.sides(*read(ANSWERS, asked([])), 0)
    assert len(free(context)) == 10
    question, context = ANSWERS.reading.sides(*read(ANSWERS, asked(None)), 0)
    assert (len(free(question)), free(context)) == (3, [])


def test_whitespace_of_an_answer_is_not_left_out_with_the_word_behind_it() -> None:
    _, context = ANSWERS.reading.sides(*read(ANSWERS, asked({"text": ["Ann Lee "], "answer_start": [18]})), 0)
    assert "met" not in droppable(context)


@pytest.mark.parametrize("place", [7, 18])
def test_an_answer_stands_where_it_moved_to(place: int) -> None:
    golds = {"text": ["Ann", "Bo"], "answer_start": [place, 0]}
    inputs, labels = read(ANSWERS, asked(golds))
    sides = ANSWERS.reading.sides(inputs, labels, 0)
    words = {word_of(sides[1], i): i for i in range(len(sides[1].words))}
    changes = ({0: "What"}, {words["saw"]: None, words["Later"]: "Afterwards", words["Oslo"]: None})
    variant = Variant(0, sides, changes)
    new, kept = ANSWERS.reading.altered(inputs, labels, [variant], keep_labels=True)
    assert new["question"] == ["What met Bo?"]
    assert new["context"] == ["Bo Ann. Afterwards Ann Lee met Bo in."]
    assert new["answers"] == [["Ann", "Bo"]]
    start = new["context"][0].index("Ann") if place == 7 else new["context"][0].rindex("Ann")
    expected = read(
        ANSWERS,
        {**new, "answers": [{"text": ["Ann"], "answer_start": [start]}]},
    )[1]
    np.testing.assert_array_equal(kept.values, expected.values)
    new, none = ANSWERS.reading.altered(inputs, labels, [variant], keep_labels=False)
    assert (new["answers"], none.values.tolist()) == ([[]], [[UNLABELLED, UNLABELLED]])


@pytest.mark.parametrize(("answers", "cells"), [([], [0, 0]), (None, [UNLABELLED, UNLABELLED])])
def test_a_variant_without_answer_keeps_that(answers: Any, cells: list[int]) -> None:
    _, labels = altered_of(ANSWERS, asked(answers), [{0: "What"}, {}], True)
    assert labels.values.tolist() == [cells]
