"""What a process keeps from one training for the next: what was read and encoded, nothing that a training changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Kept:
    """Values by all that they depend on. `drop_unused` bounds them: no more is held than one training needs."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._used: set[Hashable] = set()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not kept. Nobody may change it."""
        if key not in self._values:
            self._values[key] = make()
        self._used.add(key)
        value: T = self._values[key]
        return value

    def drop_unused(self) -> None:
        """Drops the values that nobody asked for since this was last called."""
        self._values = {key: value for key, value in self._values.items() if key in self._used}
        self._used.clear()
