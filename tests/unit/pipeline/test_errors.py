"""The exception tree: what its docstring draws is what there is, and errors survive the way out of a worker."""

from __future__ import annotations

import pickle
import re

import pytest

from pipeline import errors
from pipeline.errors import ConfigError, DataError, DivergedError, Errors, TutelageError

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


# ---------------------------------------------------------------- several errors


def failing(*errors: TutelageError) -> TutelageError:
    errors[0].others = errors[1:]
    return errors[0]


def test_errors_are_kept_in_order_each_once_and_shown_as_they_come() -> None:
    shown: list[tuple[int, str]] = []
    errors = Errors(lambda number, error: shown.append((number, error.cause)))
    for causes in (("a", "b"), ("b",), ("c",)):
        with errors:
            raise failing(*(ConfigError(cause, "remedy") for cause in causes))
    assert shown == [(1, "a"), (2, "b"), (3, "c")]
    with pytest.raises(ConfigError, match="a"):
        errors.stop()


def test_without_a_place_to_show_them_the_first_error_is_raised() -> None:
    errors = Errors()
    with pytest.raises(DataError), errors:
        raise DataError("cause", "remedy")
    errors.stop()
    assert errors.kept == []


@pytest.mark.parametrize("error", [DivergedError("cause", "remedy"), ValueError(), KeyboardInterrupt()])
def test_only_what_the_user_gave_is_kept(error: BaseException) -> None:
    with pytest.raises(type(error)), Errors(lambda number, error: None):
        raise error


def test_others_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(failing(ConfigError("a", "x"), ConfigError("b", "y"))))  # noqa: S301
    assert [other.cause for other in copy.others] == ["b"]
