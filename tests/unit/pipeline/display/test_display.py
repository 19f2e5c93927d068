"""Bars where there is no terminal: plain lines, each bar's end once until the display begins anew."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from pipeline.display.display import Display
from pipeline.display.progress import StageProgress


def test_bars_of_the_same_name_run_once_more_after_a_beginning() -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=80)) as display:
        for seed in (0, 1):
            display.begin(f"seed {seed}")
            display.bar("half", 1, 2)
            for _ in range(2):  # the second one is not shown
                display.bar("half", 2, 2, "validation 80.0")
            display.end("tiny", "stopped early")
    end = ["  half: 2/2, validation 80.0", "  tiny: stopped early"]
    assert file.getvalue().splitlines() == ["seed 0", *end, "seed 1", *end]


def test_on_a_terminal_too() -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=80, force_terminal=True, highlight=False)) as display:
        for seed in (0, 1):
            display.begin(f"seed {seed}")
            display.bar("half", 1, 2)
            display.bar("half", 2, 2)
    assert file.getvalue().count("half: 2/2") == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_is_shown_below_the_bars_until_it_is_taken_away(terminal: bool) -> None:
    file = io.StringIO()
    table = Table("trial")
    table.add_row("seven")
    with Display(Console(file=file, width=80, force_terminal=terminal)) as display:
        display.table(lambda: table)
        display.bar("half", 1, 2)
        display._live.refresh()
        shown = file.getvalue()
        assert ("seven" in shown) == terminal
        assert not terminal or shown.index("half") < shown.rindex("seven")
        display.table(None)
        display._live.refresh()
        shown = file.getvalue()
        display.line("the end")
        display._live.refresh()
        assert "the end" in file.getvalue()[len(shown) :]
        assert "seven" not in file.getvalue()[len(shown) :]


# ---------------------------------------------------------------- stages


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.display.display.time", clock)
    return clock


def fine_tuning() -> StageProgress:
    return StageProgress("stage 1 of 5, fine-tune", "teachers", "steps", {"teacher a": 1.0, "teacher b": 1.0})


def test_without_a_terminal_a_line_every_so_often_says_how_far_the_stage_is(clock: Clock) -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=120)) as display:
        display.stage(fine_tuning(), "2 of 3 teachers")
        for second in range(71):
            clock.now = float(second)
            for name in ("teacher a", "teacher b"):
                display.bar(name, 1 + second, 101, "validation 80.0")
        clock.now = 200
        display.bar("teacher a", 71, 101)
        for now in (300.0, 400.0):  # nothing has moved: no line of `a`, one of `b`
            clock.now = now
            display.bar("teacher a", 71, 101)
            display.bar("teacher b", 71, 101)
        display.bar("teacher a", 101, 101)
        display.end("teacher b", "stopped early")
    assert file.getvalue().splitlines() == [
        "stage 1 of 5, fine-tune: 2 of 3 teachers",
        "  teacher a: 31/101, validation 80.0 (0 of 2 teachers, 61 of 202 steps, about 1 min left)",
        "  teacher a: 61/101, validation 80.0 (0 of 2 teachers, 121 of 202 steps, about 40 s left)",
        "  teacher a: 71/101 (0 of 2 teachers, 142 of 202 steps, about 2 min left)",
        "  teacher b: 71/101 (0 of 2 teachers, 142 of 202 steps)",
        "  teacher a: 101/101",
        "  teacher b: stopped early",
    ]


def test_on_a_terminal_the_stage_stands_above_the_bars(clock: Clock) -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=100, force_terminal=True, highlight=False)) as display:
        display.stage(fine_tuning(), "2 of 3 teachers")
        display.bar("teacher a", 1, 101)
        clock.now = 50
        display.bar("teacher a", 51, 101)
        display._live.refresh()
        shown = file.getvalue()
        assert "0 of 2 teachers, 51 of about 202 steps, about 3 min left" in shown
        assert shown.rindex("of about 202 steps") < shown.rindex("teacher a")
        display.end("teacher a", "stopped early")
        display._live.refresh()
        assert "1 of 2 teachers, 51 of about 102 steps" in file.getvalue()
        display.begin("seed 1")
        length = len(file.getvalue())
        display._live.refresh()
        assert "stage" not in file.getvalue()[length:]


def test_what_has_no_bar_counts_in_the_stage(clock: Clock) -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=120)) as display:
        search = StageProgress("stage 4 of 4, search", "trials", "epochs", {"trial 0": 1.0, "trial 1": 1.0})
        display.stage(search, "2 trials")
        display.advance("trial 0", 1, 4)
        clock.now = 40
        display.advance("trial 0", 3, 4)
    assert file.getvalue().splitlines()[1:] == [
        "  trial 0: 3/4 (0 of 2 trials, 3 of about 8 epochs, about 2 min left)"
    ]
