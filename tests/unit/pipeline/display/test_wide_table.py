"""Tables of any width: no header breaks within a word, no number is cut, nothing is left out."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.display.wide_table import FOLDED, Field, WideTable, needed, pages


def number(head: str, cell: str, group: str = "") -> Field:
    return Field(head, [cell], group=group)


def heads(tables: list[list[Field]]) -> list[list[str]]:
    return [[field.head for field in table] for table in tables]


def printed(table: WideTable, width: int) -> str:
    file = io.StringIO()
    Console(width=width, file=file, soft_wrap=True).print(table)
    return file.getvalue()


RUN = Field("run", ["quick"], words=True, key=True)


def test_what_fits_is_one_table() -> None:
    fields = [RUN, number("a", "12.3"), number("b", "45.6")]
    assert needed(fields) == 5 + 2 + 4 + 2 + 4
    assert heads(pages(fields, 17)) == [["run", "a", "b"]]
    assert heads(pages(fields, 16)) == [["run", "a"], ["run", "b"]]


def test_a_group_stays_together_where_it_can() -> None:
    fields = [RUN, number("a", "1.0"), number("b", "1.0", "two"), number("c", "1.0", "two")]
    assert heads(pages(fields, 15)) == [["run", "a"], ["run", "b", "c"]]
    assert heads(pages(fields, 14)) == [["run", "a"], ["run", "b"], ["run", "c"]]


def test_only_keys_and_nothing_at_all() -> None:
    assert heads(pages([RUN], 80)) == [["run"]]
    assert heads(pages([], 80)) == [[]]
    assert heads(pages([RUN, number("a", "1" * 90)], 80)) == [["run", "a"]]  # it would fit nowhere


def test_headers_break_between_words_only_and_on_as_few_lines_as_they_fit() -> None:
    assert Field("ms an example", ["1.25"]).head_lines(7) == ["ms an", "example"]
    assert Field("students.half.train.learning_rate", ["0.1"]).head_lines(9) == [
        *("students.", "half.", "train.", "learning_", "rate")
    ]
    assert Field("movies/macro_f1", ["80.0"]).head_lines(20) == ["movies/macro_f1"]
    assert Field("Δ points", ["+1.0"]).smallest == len("points")


def test_a_name_is_folded_only_where_there_is_no_room() -> None:
    name = "n" * 40
    fields = [Field("run", [name], words=True, key=True), number("score", "80.0")]
    assert fields[0].smallest == FOLDED
    assert name in printed(WideTable(fields), 60)
    assert name not in printed(WideTable(fields), 40)
    assert printed(WideTable(fields), 40).count("n") == 40 + 1  # none is lost; one is of `run`


def test_names_are_no_markup_and_styles_stay() -> None:
    fields = [Field("run", [Text("[red]x", style="green")], words=True), number("score", "1")]
    assert "[red]x" in printed(WideTable(fields, "[b]title", "[i]caption"), 80)
    assert "[b]title" in printed(WideTable(fields, "[b]title", "[i]caption"), 80)


WORDS = st.text("abcdefghijklm", min_size=1, max_size=20)
HEADS = st.lists(WORDS, min_size=1, max_size=4).flatmap(
    lambda words: st.sampled_from(" ./_").map(lambda divider: divider.join(words))
)
FIELDS = st.lists(
    st.tuples(
        HEADS, st.from_regex(r"[0-9]{1,4}\.[0-9] ± [0-9]\.[0-9]", fullmatch=True), st.sampled_from("xyz")
    ),
    min_size=1,
    max_size=14,
)


@given(fields=FIELDS, width=st.integers(80, 200))
def test_on_80_columns_and_more_no_word_of_a_header_breaks_and_every_number_is_whole(
    fields: list[tuple[str, str, str]], width: int
) -> None:
    table = WideTable([RUN, *(number(*field) for field in fields)])
    text = printed(table, width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    shown = re.findall(r"\S+ ± \S+", text)
    assert sorted(shown) == sorted(cell for _, cell, _ in fields)
    whole = {word for line in lines for word in re.split(r"[ ./_]+", line)}
    assert {word for head, _, _ in fields for word in re.split(r"[ ./_]", head)} <= whole


@pytest.mark.parametrize("width", [20, 40])
def test_narrower_than_any_column_a_number_is_cut_visibly(width: int) -> None:
    text = printed(WideTable([RUN, number("score", "1" * 50)]), width)
    assert "1" * 50 in text or "…" in text
