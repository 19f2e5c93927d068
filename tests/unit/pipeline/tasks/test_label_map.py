"""A teacher's labels → the task's: by name, by a declared mapping, or refused with both spaces."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softmax

from pipeline.batch import ABSENT
from pipeline.errors import TeacherError
from pipeline.tasks.label_map import Groups, label_groups, marginalise

OURS = ("bad", "good", "plain")
PROPERTY = settings(deadline=None, max_examples=40)


def groups_of(
    theirs: tuple[str, ...], declared: Mapping[str, str | None] | None = None, ours: tuple[str, ...] = OURS
) -> Groups:
    return label_groups(dict(enumerate(theirs)), ours, declared, "mood", "teachers.t")


def refusal(theirs: tuple[str, ...], declared: Mapping[str, str | None] | None = None) -> TeacherError:
    with pytest.raises(TeacherError) as caught:
        groups_of(theirs, declared)
    assert caught.value.exit_code == 2
    assert "teachers.t.labels" in caught.value.remedy
    return caught.value


# ---------------------------------------------------------------- which columns


@pytest.mark.parametrize("order", list(itertools.permutations(OURS)))
def test_equal_spaces_match_by_name_in_any_order(order: tuple[str, ...]) -> None:
    assert groups_of(order) == tuple((order.index(label),) for label in OURS)


def test_columns_are_the_models_own_numbers() -> None:
    assert label_groups({2: "bad", 0: "plain", 1: "good"}, OURS, None, "mood", "t") == ((2,), (1,), (0,))


def test_case_is_set_aside_where_names_do_not_match_as_they_stand() -> None:
    assert groups_of(("GOOD", "Bad", "PLAIN")) == ((1,), (0,), (2,))
    assert groups_of(("us", "US"), ours=("US", "us")) == ((1,), (0,))
    with pytest.raises(TeacherError, match="are not those of task"):
        groups_of(("us", "Us"), ours=("US", "us"))


@pytest.mark.parametrize(
    "theirs",
    [
        ("bad", "good"),
        ("bad", "good", "plain", "mixed"),
        ("bad", "good", "neutral"),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        (),
    ],
)
def test_spaces_that_differ_are_refused_and_both_are_listed(theirs: tuple[str, ...]) -> None:
    assert refusal(theirs).cause == (
        f"teachers.t: its labels {list(theirs)} are not those of task mood: {list(OURS)}"
    )


@pytest.mark.parametrize("declared", [None, {"good": "good"}])
def test_a_label_that_stands_twice_is_refused(declared: dict[str, str | None] | None) -> None:
    error = refusal(("bad", "good", "good"), declared)
    assert error.cause == "teachers.t: a label stands twice in ['bad', 'good', 'good']"


def test_a_mapping_by_name() -> None:
    theirs = ("POS", "NEG", "NEU")
    assert groups_of(theirs, {"POS": "good", "NEG": "bad", "NEU": "plain"}) == ((1,), (0,), (2,))


def test_labels_of_the_tasks_own_name_need_no_entry() -> None:
    assert groups_of(("plain", "good", "awful"), {"awful": "bad"}) == ((2,), (1,), (0,))


def test_a_mapping_ignores_case_where_that_leaves_one_name() -> None:
    theirs = ("NEGATIVE", "Positive", "Plain")
    assert groups_of(theirs, {"negative": "BAD", "POSITIVE": "Good"}) == ((0,), (1,), (2,))


def test_a_mapping_matches_as_written_before_it_ignores_case() -> None:
    theirs = ("us", "US", "plain")
    assert groups_of(theirs, {"us": "bad", "US": "good"}) == ((0,), (1,), (2,))
    assert groups_of(("x", "y"), {"x": "us", "y": "US"}, ours=("US", "us")) == ((1,), (0,))


@pytest.mark.parametrize(
    ("theirs", "declared", "what"),
    [
        (("us", "US", "plain"), {"Us": "bad"}, "labels names 'Us', which neither has"),
        (("plain", "PLAIN", "x"), {"x": "bad"}, "'PLAIN' is not declared"),
        (("x", "y", "plain"), {"x": "bad", "X": "good"}, "labels names 'x' twice"),
    ],
)
def test_case_that_leaves_several_names_is_refused(
    theirs: tuple[str, ...], declared: dict[str, str | None], what: str
) -> None:
    with pytest.raises(TeacherError, match=what):
        groups_of(theirs, declared)


def test_several_may_mean_one_and_some_none() -> None:
    theirs = ("awful", "fine", "poor", "spam", "plain")
    declared = {"awful": "bad", "poor": "bad", "fine": "good", "spam": None}
    assert groups_of(theirs, declared) == ((0, 2), (1,), (4,))


def test_a_label_may_be_unknown_to_a_teacher() -> None:
    assert groups_of(("bad", "good"), {}) == ((0,), (1,), ())
    assert groups_of(("bad", "good", "plain"), {"plain": None}) == ((0,), (1,), ())
    assert groups_of(("bad", "good", "plain"), {"plain": "good"}) == ((0,), (1, 2), ())


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ({"awful": "bad"}, "'meh' is not declared"),
        ({"awful": "bad", "meh": "neutral"}, "labels names 'neutral', which neither has"),
        ({"awful": "bad", "meh": "plain", "nope": "good"}, "labels names 'nope', which neither has"),
        ({"awful": None, "meh": None, "good": None}, "none of them is mapped"),
    ],
)
def test_what_is_not_declared_is_refused(declared: dict[str, str | None], what: str) -> None:
    error = refusal(("awful", "meh", "good"), declared)
    assert re.match(
        r"teachers\.t: its labels \['awful', 'meh', 'good'\] are not those of task mood: "
        r"\['bad', 'good', 'plain'\]; ",
        error.cause,
    )
    assert error.cause.endswith(what)


# ---------------------------------------------------------------- their logits as ours


@PROPERTY
@given(
    hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-20, 20, width=32)),
    st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_probabilities_of_a_group_add_up(logits: np.ndarray, means: list[int]) -> None:
    """Column c of five means label ``means[c]`` of three, or none (3)."""
    groups = tuple(tuple(c for c in range(5) if means[c] == label) for label in range(3))
    theirs = torch.from_numpy(logits).double()
    found = softmax(marginalise(theirs, groups), dim=-1)
    kept = [c for c in range(5) if means[c] < 3]
    if not kept:
        return
    among = torch.zeros_like(theirs)
    among[..., kept] = softmax(theirs[..., kept], dim=-1)  # what it says of those that mean something
    expected = torch.stack([among[..., list(group)].sum(-1) for group in groups], dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_group_of_one_is_its_column_bit_for_bit() -> None:
    logits = torch.randn(4, 3)
    assert torch.equal(marginalise(logits, ((2,), (0,), (1,))), logits[:, [2, 0, 1]])
    some = marginalise(logits, ((2,), (), (0, 1)))
    assert torch.equal(some[:, 0], logits[:, 2])
    assert torch.equal(some[:, 1], torch.full((4,), ABSENT))


def test_independent_labels_take_the_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0], [0.5, -1.0, 2.0]])
    assert marginalise(logits, ((0, 1), (2,), ()), independent=True).tolist() == [
        [3.0, -2.0, ABSENT],
        [0.5, 2.0, ABSENT],
    ]


def test_absent_fits_into_half_precision() -> None:
    found = marginalise(torch.randn(4, 2).half(), ((0, 1), ()))
    assert found.dtype == torch.float16
    assert torch.isfinite(found).all()
