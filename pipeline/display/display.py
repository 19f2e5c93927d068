"""Output while a run goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.config.redact import redact_text
from pipeline.display.progress import StageProgress

PLAIN_EVERY_S = 30.0
"""Seconds between two lines of progress without a terminal, for all bars together."""


class Display:
    """Lines and bars; thread-safe. A context manager: leaving it ends the bars."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._ids: dict[str, TaskID] = {}
        self._printed: dict[str, str] = {}
        self._printed_at = time.monotonic()
        self._ended: set[str] = set()
        self._stage: StageProgress | None = None
        self._headline = ""
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
        )
        self._table: Callable[[], RenderableType] | None = None
        self._live = Live(get_renderable=self._shown, console=self.console, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def table(self, render: Callable[[], RenderableType] | None) -> None:
        """On a terminal: shows the result of `render` below the bars, several times a second; None removes it."""
        self._table = render

    def _shown(self) -> RenderableType:
        """The table to draw. A thread of rich calls this while it holds its own lock, so it must not wait for ours."""
        render, headline = self._table, self._headline
        head = [Text(headline, style="bold", overflow="ellipsis", no_wrap=True)] if headline else []
        return Group(*head, self._bars, *([] if render is None else [render()]))

    def line(self, text: str) -> None:
        """One line that stays."""
        self.console.print(redact_text(text), markup=False)

    def begin(self, title: str) -> None:
        """Prints a line that stays; afterwards bars with names used before may run again."""
        with self._lock:
            for bar in self._ids.values():
                self._bars.remove_task(bar)
            self._ids.clear()
            self._ended.clear()
            self._printed.clear()
            self._stage, self._headline = None, ""
        self.line(title)

    def stage(self, stage: StageProgress, what: str) -> None:
        """Begins a stage: prints a line that stays; afterwards bars of its items count in its progress."""
        with self._lock:
            self._stage, self._headline = stage, stage.title
            self._printed_at = time.monotonic()
        self.line(f"{stage.title}: {what}")

    def advance(self, what: str, done: int, total: int) -> None:
        """Records the progress of an item of the stage that has no bar."""
        with self._lock:
            self._advance(what, done, total)
            if self._is_line_due():
                self._progress_line(what, f"{done}/{total}")

    def _advance(self, what: str, done: int, total: int) -> None:
        if self._stage is not None:
            now = time.monotonic()
            self._stage.advance(what, done, total, now)
            self._headline = self._stage.headline(now)

    def _is_line_due(self) -> bool:
        return not self.console.is_terminal and time.monotonic() - self._printed_at >= PLAIN_EVERY_S

    def _progress_line(self, what: str, text: str) -> None:
        """Prints a line of progress without a terminal: one item, and the whole stage."""
        if self._printed.get(what) == text:  # it has not moved
            return
        now = time.monotonic()
        self._printed[what], self._printed_at = text, now
        counts = "" if self._stage is None else self._stage.counts(now)
        self.line(f"  {what}: {text}{f' ({counts})' if counts else ''}")

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` units of `what` are done; at the end the bar becomes a line."""
        with self._lock:
            self._advance(what, done, total)
            if total <= 0 or what in self._ended:
                return
            finished = done >= total
            if self.console.is_terminal and what not in self._ids:
                self._ids[what] = self._bars.add_task(what, total=total, note=note)
            if self.console.is_terminal:
                self._bars.update(
                    self._ids[what], completed=done, total=total, note=note, visible=not finished
                )
            text = f"{done}/{total}{f', {note}' if note else ''}"
            if finished:
                self._ended.add(what)
                self.line(f"  {what}: {text}")
            elif self._is_line_due():
                self._progress_line(what, text)

    def end(self, what: str, note: str) -> None:
        """Ends a bar that will not reach its total, for instance by early stopping."""
        with self._lock:
            if what in self._ended:
                return
            self._ended.add(what)
            if self._stage is not None:
                self._stage.end(what)
                self._headline = self._stage.headline(time.monotonic())
            if what in self._ids:
                self._bars.update(self._ids[what], visible=False)
            self.line(f"  {what}: {note}")
