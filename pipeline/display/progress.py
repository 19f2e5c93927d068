"""The progress of a stage of a run, and an estimate of its remaining time from the measured throughput.

A stage has items, which run in parallel or one after another: teachers to fine-tune, teachers that label, trainings of
students. Each item has a number of units (optimiser steps, examples), which is known once the item has begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WINDOW_S = 180.0  # throughput is measured over this time: items differ in speed, so older progress misleads
LEAST_S = 5.0  # of progress before an estimate is shown


@dataclass(frozen=True)
class Sample:
    """Work done in this launch up to one point in time. at: seconds of a monotonic clock · work: units."""

    at: float
    work: float


def total_work(totals: Mapping[str, int], expected: Mapping[str, float]) -> float | None:
    """Units of all items of a stage; None where not even one is known.

    totals: units of the items that have begun · expected: relative length of every item. The length of an item that
    has not begun is its `expected` length, scaled by the items that have begun.
    """
    scale = sum(expected[name] for name in totals)
    if not scale:
        return None
    ahead = sum(weight for name, weight in expected.items() if name not in totals)
    known = sum(totals.values())
    return known + ahead * known / scale


def seconds_left(samples: Sequence[Sample], now: float, work_left: float) -> float | None:
    """`work_left` ÷ the throughput since the first of `samples` in the window; None without progress to measure.

    The last sample before the window counts too, so that slow progress is measured over a longer time.
    """
    recent = [sample for sample in samples if now - sample.at <= WINDOW_S]
    older = [sample for sample in samples if now - sample.at > WINDOW_S]
    used = [*older[-1:], *recent] if len(recent) < 2 else recent
    if len(used) < 2 or now - used[0].at < LEAST_S:
        return None
    throughput = (used[-1].work - used[0].work) / (now - used[0].at)
    return work_left / throughput if throughput > 0 else None


def about(seconds: float) -> str:
    """7.4 → `about 10 s`, 470.0 → `about 8 min`, 7900.0 → `about 2 h 10 min`, 200000.0 → `about 56 h`."""
    if seconds < 55:
        return f"about {max(10, round(seconds / 10) * 10)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    return f"about {hours} h {rest} min" if rest and hours < 10 else f"about {round(minutes / 60)} h"


@dataclass
class StageProgress:
    """A stage under way. Not thread-safe.

    title: what it is, as `stage 1 of 5, fine-tune` · noun: what its items are, plural · unit: what an item is counted
    in, plural · expected: by item, how long it should be beside the others, in any unit.
    """

    title: str
    noun: str = ""
    unit: str = ""
    expected: Mapping[str, float] = field(default_factory=dict)
    _done: dict[str, int] = field(default_factory=dict)
    _first: dict[str, int] = field(default_factory=dict)
    _earlier: dict[str, int] = field(default_factory=dict)
    _totals: dict[str, int] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _samples: list[Sample] = field(default_factory=list)

    def advance(self, item: str, done: int, total: int, now: float) -> None:
        """Records that `done` of an item's `total` units are done; ignores names that are not items of the stage.

        An item that begins anew with another total, as a baseline with its next schedule, has done what it did before as well. With the same total it
        goes back, as a training that lost its worker does to its checkpoint.
        """
        if item not in self.expected or item in self._ended:
            return
        earlier, known = self._earlier.get(item, 0), item in self._done
        if known and done + earlier < self._done[item] and total + earlier != self._totals[item]:
            earlier = self._earlier[item] = self._done[item]
        done, total = done + earlier, total + earlier
        self._first.setdefault(item, done)  # a resumed training does not begin at 0
        self._done[item], self._totals[item] = done, total
        if done >= total:
            self._ended.add(item)
        work = sum(self._done.values()) - sum(self._first.values())
        if any(self._done.values()) and (not self._samples or self._samples[-1].work < work):
            older = [sample for sample in self._samples if now - sample.at > WINDOW_S]
            self._samples = [*older[-1:], *self._samples[len(older) :], Sample(now, work)]

    def end(self, item: str) -> None:
        """Records that an item has ended; it may have had fewer units than its total."""
        if item in self.expected:
            self._totals[item] = self._done.setdefault(item, 0)
            self._first.setdefault(item, 0)
            self._ended.add(item)

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds until the stage ends; None without an estimate."""
        total = total_work(self._totals, self.expected)
        if total is None:
            return None
        return seconds_left(self._samples, now, total - sum(self._done.values()))

    def counts(self, now: float) -> str:
        """`3 of 9 teachers, 1,200 of 3,600 steps, about 8 min left`, as far as known; empty without items."""
        if not self.expected:
            return ""
        parts = [f"{len(self._ended)} of {len(self.expected)} {self.noun}"]
        total = total_work(self._totals, self.expected)
        if total:
            roughly = "" if len(self._totals) == len(self.expected) else "about "
            parts.append(f"{sum(self._done.values()):,} of {roughly}{round(total):,} {self.unit}")
        left = self.seconds_left(now)
        if left is not None and len(self._ended) < len(self.expected):
            parts.append(f"{about(left)} left")
        return ", ".join(parts)

    def headline(self, now: float) -> str:
        """The stage in one line."""
        counts = self.counts(now)
        return f"{self.title}: {counts}" if counts else self.title
