"""Bars where there is no terminal: plain lines, each bar's end once until the display begins anew."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from pipeline.display import Display


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
