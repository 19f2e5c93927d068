"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 15.0


class Display:
    """Lines and bars; thread-safe. A context manager: leaving it ends the bars."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._ids: dict[str, TaskID] = {}
        self._printed: dict[str, tuple[float, int]] = {}
        self._ended: set[str] = set()
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
        """Keeps what `render` gives below the bars, drawn anew several times a second; None: no more. On a terminal."""
        self._table = render

    def _shown(self) -> RenderableType:
        render = self._table
        return self._bars if render is None else Group(self._bars, render())

    def line(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False)

    def begin(self, title: str) -> None:
        """A line that stays, after which bars of the same names may run once more."""
        with self._lock:
            for bar in self._ids.values():
                self._bars.remove_task(bar)
            self._ids.clear()
            self._printed.clear()
            self._ended.clear()
        self.line(title)

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        """Where `what` stands; at its end the bar becomes a line."""
        with self._lock:
            if total <= 0 or what in self._ended:
                return
            finished = done >= total
            if self.console.is_terminal and what not in self._ids:
                self._ids[what] = self._bars.add_task(what, total=total, note=note)
            if self.console.is_terminal:
                self._bars.update(
                    self._ids[what], completed=done, total=total, note=note, visible=not finished
                )
            now = time.monotonic()
            at, before = self._printed.setdefault(what, (now, done))
            due = now - at >= PLAIN_EVERY_S and done > before
            if finished:
                self._ended.add(what)
            if finished or (due and not self.console.is_terminal):
                self._printed[what] = now, done
                self.line(f"  {what}: {done}/{total}{f', {note}' if note else ''}")

    def end(self, what: str, note: str) -> None:
        """Ends a bar that will not reach its total, for instance by early stopping."""
        with self._lock:
            if what in self._ended:
                return
            self._ended.add(what)
            if what in self._ids:
                self._bars.update(self._ids[what], visible=False)
            self.line(f"  {what}: {note}")
