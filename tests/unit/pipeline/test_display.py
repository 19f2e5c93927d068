"""Bars where there is no terminal: plain lines, each bar's end once until the display begins anew."""

from __future__ import annotations

import io

from rich.console import Console

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
