"""Every error that Tutelage raises on purpose.

::

    TutelageError                 one line of cause, one of remedy, an exit code
    ├── ConfigError          2    the config is wrong: unknown key, bad value, bad combination
    ├── DataError            2    the data are wrong: missing column, empty split, not UTF-8
    ├── TeacherError         2    a teacher cannot serve the task: not found, labels that do not match
    ├── LockedError          2    another launch is using the run folder
    ├── DivergedError        3    training produced NaN/Inf too many times in a row
    ├── BadTargetsError      3    a teacher produced NaN/Inf soft targets, or fails on an example
    ├── CorruptError         4    a checkpoint or store shard does not match its checksum
    ├── ExhaustedError       4    retries or a time-out ran out
    ├── StoppedError        75    asked to stop (SIGTERM); the same command resumes
    └── InterruptedRunError 130   SIGINT; the same command resumes

All of them survive pickling, so that an error raised in a Ray worker
reaches the terminal whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TutelageError(Exception):
    """Base of all: `cause` says what is wrong, `remedy` how to correct it (one line each).

    others: errors that the same check raised together with this one.
    """

    exit_code = 1
    others: tuple[TutelageError, ...] = ()

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)  # both in args: pickling rebuilds the error from them
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}"


class ConfigError(TutelageError):
    """The config is wrong."""

    exit_code = 2


class DataError(TutelageError):
    """The data are wrong."""

    exit_code = 2


class TeacherError(TutelageError):
    """A teacher cannot serve its task."""

    exit_code = 2


class LockedError(TutelageError):
    """Another launch is using the run folder."""

    exit_code = 2


class DivergedError(TutelageError):
    """Training produced NaN/Inf too many times in a row."""

    exit_code = 3


class BadTargetsError(TutelageError):
    """A teacher produced NaN/Inf soft targets, or fails on an example."""

    exit_code = 3


class CorruptError(TutelageError):
    """A file on disk does not match its checksum."""

    exit_code = 4


class ExhaustedError(TutelageError):
    """Retries or a time-out ran out."""

    exit_code = 4


class StoppedError(TutelageError):
    """Asked to stop (SIGTERM); resumable."""

    exit_code = 75


class InterruptedRunError(TutelageError):
    """SIGINT; resumable."""

    exit_code = 130


def one_of(names: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``: the names as a remedy offers them; at least one."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


class Errors:
    """Collects the errors of independent checks, so that all of them can be shown at once.

    Each check is in a ``with errors:`` block. With `show`, an error is collected and shown, and the program continues
    after the block. Without `show`, the first error is raised as usual.
    """

    def __init__(self, show: Callable[[int, TutelageError], None] | None = None) -> None:
        self.kept: list[TutelageError] = []
        self._show = show

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """With `show`, collects an error of exit code 2 (wrong input) and its `others`, each once; True suppresses it."""
        if self._show is None or not isinstance(error, TutelageError) or error.exit_code != 2:
            return False
        for one in (error, *error.others):
            if all(one.args != other.args for other in self.kept):
                self.kept.append(one)
                self._show(len(self.kept), one)
        return True

    def stop(self) -> None:
        """Raises the first collected error, if there is one: to be called before code that needs all checks to pass."""
        if self.kept:
            raise self.kept[0]
