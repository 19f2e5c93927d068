"""A table for a terminal of any width: columns that do not fit are shown in another table below.

rich makes columns narrower until they fit, which breaks headers within words and cuts numbers. Here headers break
between words only and numbers never break. Each further table repeats the columns that identify a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2
FOLDED = 24  # a name wider than this may be folded to make room
WORD = re.compile(r"[^/ ._]*[/ ._]?")
"""A piece of a header that is never broken: a word, or a part of a path or name with the separator after it."""


@dataclass(frozen=True)
class Field:
    """One column. cells: from top to bottom · words: whether it is text, aligned left, which may be folded · key:
    whether it is repeated at the left of every table · group: neighbours with the same group stay in one table where
    it is wide enough."""

    head: str
    cells: Sequence[str | Text]
    words: bool = False
    key: bool = False
    group: str = ""

    @property
    def natural(self) -> int:
        """Width in terminal columns without folding, with the header broken at every word."""
        cells = (cell if isinstance(cell, str) else cell.plain for cell in self.cells)
        return max(self._head, *map(cell_len, cells), 1)

    @property
    def smallest(self) -> int:
        """Least width in terminal columns."""
        return max(self._head, min(self.natural, FOLDED)) if self.words else self.natural

    @property
    def _head(self) -> int:
        return max(cell_len(word.rstrip()) for word in WORD.findall(self.head))

    def head_lines(self, width: int) -> list[str]:
        """The header on as few lines of `width` terminal columns as its words fit."""
        lines = [""]
        for word in WORD.findall(self.head):
            if lines[-1] and cell_len((lines[-1] + word).rstrip()) > width:
                lines.append("")
            lines[-1] += word
        return [line.rstrip() for line in lines]


@dataclass(frozen=True)
class WideTable:
    """Fields side by side, printed by rich. title: text above · caption: text below; both may have several lines."""

    fields: Sequence[Field]
    title: str = ""
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wrapped = options.update(no_wrap=False, overflow="fold")
        if self.title:
            yield from console.render(Text(self.title, style="italic"), wrapped)
        for number, page in enumerate(pages(self.fields, options.max_width)):
            if number:
                yield Text()
            yield _table(page, options.max_width)
        if self.caption:
            yield from console.render(Text(self.caption, style="dim"), wrapped)


def pages(fields: Sequence[Field], width: int) -> list[list[Field]]:
    """The fields of each table, in order; each table fits `width` and has all key fields.

    A group that would be split begins a new table, unless a whole table is too narrow for it.
    """
    keys = [field for field in fields if field.key]
    others = [field for field in fields if not field.key]
    tables: list[list[Field]] = [[]]

    def fits(more: Sequence[Field], table: Sequence[Field]) -> bool:
        return needed([*keys, *table, *more]) <= width

    for _, members in groupby(others, key=lambda field: field.group):
        group = list(members)
        if fits(group, tables[-1]):
            tables[-1] += group
        elif fits(group, []):
            tables.append(group)
        else:
            for field in group:
                if tables[-1] and not fits([field], tables[-1]):
                    tables.append([])
                tables[-1].append(field)
    return [[*keys, *table] for table in tables if table] or [keys]


def needed(fields: Sequence[Field]) -> int:
    """Least width, in terminal columns, of a table of these fields."""
    return sum(field.smallest for field in fields) + GAP * max(0, len(fields) - 1)


def _table(fields: Sequence[Field], width: int) -> Table:
    """One table; the remaining width goes to folded names."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for field, columns in zip(fields, _widths(fields, width), strict=True):
        head = Text("\n".join(field.head_lines(columns)), overflow="fold")
        table.add_column(head, justify="left" if field.words else "right", vertical="bottom", width=columns)
    for row in zip(*(field.cells for field in fields), strict=True):
        table.add_row(*(_cell(cell, field.words) for cell, field in zip(row, fields, strict=True)))
    return table


def _widths(fields: Sequence[Field], width: int) -> Iterator[int]:
    spare = max(0, width - needed(fields))
    for field in fields:
        extra = min(spare, field.natural - field.smallest)
        spare -= extra
        yield field.smallest + extra


def _cell(cell: str | Text, words: bool) -> Text:
    """The cell as `Text`, so that names are not read as markup."""
    shown = Text(cell) if isinstance(cell, str) else cell.copy()
    shown.overflow, shown.no_wrap = ("fold", False) if words else ("ellipsis", True)
    return shown
