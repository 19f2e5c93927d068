"""The exception tree: what its docstring draws is what there is, and errors survive the way out of a worker."""

from __future__ import annotations

import pickle
import re

import pytest

from pipeline import errors
from pipeline.errors import TutelageError

LEAVES = TutelageError.__subclasses__()


def test_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"[├└]── (\w+) +(\d+) ", errors.__doc__)
    assert drawn == [(error.__name__, str(error.exit_code)) for error in LEAVES]


@pytest.mark.parametrize("error_class", LEAVES)
def test_errors_survive_pickling(error_class: type[TutelageError]) -> None:
    error = error_class("what is wrong", "what to do")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is error_class
    assert (copy.cause, copy.remedy, copy.exit_code) == (error.cause, error.remedy, error.exit_code)


def test_text_is_cause_and_remedy() -> None:
    assert str(TutelageError("cause", "remedy")) == "cause\nremedy"
