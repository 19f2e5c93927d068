"""examples/asset_splits.py: comparing, de-duplicating, splitting, ordering and writing rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from datasets import load_dataset

from examples.asset_splits import (
    Row,
    draw,
    fingerprint,
    split_groups,
    split_texts,
    unique_texts,
    write_csv,
    write_json_lines,
)

AIRLINES = ("@united", "@JetBlue", "@SouthwestAir", "@USAirways")
COMPLAINTS = (
    "delayed {n} minutes again",
    "lost bag number {n}",
    "thanks for seat {n}C",
    "row {n} was freezing",
)
ROWS = [
    Row(
        f"{airline} {complaint.format(n=n)} {airline[1:]}",
        "positive" if "thanks" in complaint else "negative",
    )
    for n in range(60)
    for airline in AIRLINES
    for complaint in COMPLAINTS
]


def keys(rows: list[Row]) -> set[str]:
    return {fingerprint(row.text) for row in rows}


@pytest.mark.parametrize(
    "text",
    [
        "RT @verge: Google's self-driving car: spotted! http://t.co/ab12",
        "google s SELF DRIVING car, spotted https://t.co/zz9",
        "Google's self_driving car spotted.",
    ],
)
def test_fingerprint_ignores_what_says_nothing(text: str) -> None:
    assert fingerprint(text) == "google s self driving car spotted"


def test_fingerprint_keeps_what_says_something() -> None:
    assert fingerprint("No surprises.") != fingerprint("Surprises.")
    assert fingerprint("clichéd") != fingerprint("cliched")


def test_unique_texts_are_the_first_copies_without_conflicts() -> None:
    rows = [
        Row("A pretentious mess...", "negative"),
        Row("Thanks @united", "positive"),
        Row("a pretentious mess", "negative"),
        Row("@JetBlue thanks!", "neutral"),
        Row("Touché!", "positive"),
        Row("@united http://t.co/x", "neutral"),  # no word left
    ]
    assert unique_texts(rows) == [rows[0], rows[4]]


def test_split_is_exact_complete_and_straddles_nothing() -> None:
    rows = unique_texts(ROWS)
    splits = split_texts(rows, validation=50, test=100)
    assert list(splits) == ["train", "validation", "test"]
    assert [len(part) for part in splits.values()] == [len(rows) - 150, 50, 100]
    assert sorted(row for part in splits.values() for row in part) == sorted(rows)
    assert sum(len(keys(part)) for part in splits.values()) == len(rows)


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = unique_texts(ROWS)
    mixed = random.Random(0).sample(rows, len(rows))
    assert split_texts(mixed, validation=50, test=100) == split_texts(rows, validation=50, test=100)


def test_split_is_the_same_for_everybody() -> None:
    drawn = split_texts(unique_texts(ROWS), validation=50, test=100)["test"]
    assert [row.text for row in drawn[:3]] == [
        "@united lost bag number 15 united",
        "@SouthwestAir delayed 32 minutes again SouthwestAir",
        "@SouthwestAir row 57 was freezing SouthwestAir",
    ]


def test_texts_with_one_opening_stay_together() -> None:
    headline = "Reporter who broke #DeflateGate says fans have threatened"
    alike = [
        Row(f"{headline} {end}", "neutral") for end in ("him", "him badly", "the man", "hi", "their hero")
    ]
    for size in range(0, 200, 20):
        splits = split_texts([*alike, *unique_texts(ROWS)], validation=50, test=size)
        assert sorted(len(set(part) & set(alike)) for part in splits.values()) == [0, 0, 5]
        assert len(splits["test"]) == size


def test_split_refuses_what_it_cannot_fill() -> None:
    with pytest.raises(ValueError, match="cannot split 3 rows into 2 test and 2 validation"):
        split_texts(
            [Row(word, "neutral") for word in ("claritin", "coachella", "apple")], validation=2, test=2
        )


# ---- groups drawn one by one ----


def test_draw_takes_about_its_shares() -> None:
    drawn = [draw(f"passage {n}", validation=0.15, test=0.2) for n in range(4000)]
    for name, share in (("train", 0.65), ("validation", 0.15), ("test", 0.2)):
        assert drawn.count(name) / 4000 == pytest.approx(share, abs=0.03)


def test_draw_is_the_same_for_everybody_and_whatever_else_there_is() -> None:
    drawn = [draw(word, validation=0.3, test=0.3) for word in ("run", "home", "castle")]
    assert drawn == ["train", "validation", "test"]


def test_split_groups_does_not_depend_on_the_order_of_rows() -> None:
    def split(rows: list[Row]) -> dict[str, list[Row]]:
        return split_groups(
            rows,
            key=lambda row: row.text,
            split=lambda row: draw(row.text.split()[0], validation=0.3, test=0.3),
        )

    assert split(random.Random(0).sample(ROWS, len(ROWS))) == split(ROWS)
    assert sum(len(part) for part in split(ROWS).values()) == len(ROWS)


# ---- files ----


class Spans(NamedTuple):
    words: list[str]
    starts: list[int]


def test_what_is_written_loads_as_it_was(tmp_path: Path) -> None:
    spans = {
        name: [Spans(["香港", "a\u2028b"], []), Spans([], [3])] for name in ("train", "validation", "test")
    }
    texts = {name: [Row('say "no",\ntwice', "x")] for name in spans}
    assert write_json_lines(spans, tmp_path) == "2 train / 2 validation / 2 test"
    assert write_csv(texts, tmp_path) == "1 train / 1 validation / 1 test"
    for kind, rows, suffix in (("json", spans, "jsonl"), ("csv", texts, "csv")):
        files = {name: str(tmp_path / f"{name}.{suffix}") for name in rows}
        loaded = load_dataset(kind, data_files=files, cache_dir=str(tmp_path / "cache"))
        assert {name: list(loaded[name]) for name in files} == {
            name: [row._asdict() for row in part] for name, part in rows.items()
        }
    assert json.loads((tmp_path / "train.jsonl").read_bytes().split(b"\n")[1]) == {"words": [], "starts": [3]}
