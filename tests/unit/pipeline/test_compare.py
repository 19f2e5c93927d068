"""Students side by side, read from the report.json of several runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.compare import load, table, to_csv, to_markdown
from pipeline.errors import DataError
from pipeline.report import build
from tests.unit.pipeline.results import hand_task, some_facts, some_run


def save(folder: Path, report: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished runs, one unfinished, and the folder that teachers share."""
    save(tmp_path / "first", build({"movies": hand_task(80, 70, 90, 100)}, some_facts(["large"], ["half"])))
    save(
        tmp_path / "second", build({"movies": hand_task(85, None, 90, 100)}, some_facts(["large"], ["half"]))
    )
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "_teachers").mkdir()
    return tmp_path


def test_every_finished_run_best_first(runs: Path) -> None:
    rows = load(runs_dir=runs)
    assert [(row.run, row.student, row.score) for row in rows] == [
        ("second", "half", 0.85),
        ("first", "half", 0.8),
    ]
    second, first = rows
    assert (second.supervised, second.delta, second.gap_recovered) == (None, None, None)
    assert first.delta == pytest.approx(0.1)
    assert first.retention == pytest.approx(8 / 9)
    assert first.gap_recovered == pytest.approx(0.5)
    assert first.tasks == {"movies/accuracy": 0.8}
    assert (first.parameters, first.latency_ms) == (4_000_000, 1.25)


def test_folder_or_file_and_a_line_a_student(runs: Path) -> None:
    save(runs / "third", build(*some_run()))
    rows = load([runs / "third", runs / "first" / "report.json", runs / "third" / "report.json"])
    assert sorted((row.run, row.student) for row in rows) == [
        ("first", "half"),
        ("third", "half"),
        ("third", "tiny"),
    ]
    scores = [row.score for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_a_run_is_called_by_its_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "first")
    assert load([Path()])[0].run == "first"
    assert load([Path("report.json")])[0].run == "first"


def test_a_report_without_sizes(runs: Path) -> None:
    report = build({"movies": hand_task(80, 70, 90, 100)}, some_facts(["large"], []))
    rows = load([save(runs / "bare", report)])
    assert (rows[0].parameters, rows[0].latency_ms) == (None, None)
    assert to_markdown(rows).splitlines()[2].endswith("| 80.0 | – | – |")


# ---------------------------------------------------------------- shown


def shown(runs: Path, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table(load(runs_dir=runs)))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_table_on_a_terminal(runs: Path) -> None:
    text = shown(runs, 80)
    lines = [line.split() for line in text.splitlines()]
    assert ["second", "half", "85.0", "–", "–", "94.4%", "–", "85.0", "4.0M", "1.25"] in lines
    assert ["first", "half", "80.0", "70.0", "+10.0", "88.9%", "50.0%", "80.0", "4.0M", "1.25"] in lines
    assert "compare task by task" not in text


def test_a_number_is_never_cut_unseen(runs: Path) -> None:
    for width in range(20, 80, 7):
        words = {word for line in shown(runs, width).splitlines()[3:] for word in line.split()}
        cut = {word for word in words if word.endswith("…")}
        known = {"85.0", "80.0", "70.0", "–", "94.4%", "88.9%", "50.0%", "+10.0", "4.0M", "1.25", "half"}
        whole = {word for word in words - cut if any(letter.isdigit() for letter in word)}
        assert whole <= known, width


def test_different_tasks_are_warned_of(runs: Path) -> None:
    save(runs / "third", build(*some_run()))
    assert "compare task by task, not by macro" in shown(runs, 140)
    assert "compare task by task" in to_markdown(load(runs_dir=runs))


def test_markup_in_names_is_text(runs: Path) -> None:
    (runs / "first").rename(runs / "[red]first")
    assert "[red]first" in shown(runs, 120)


def test_markdown(runs: Path) -> None:
    assert to_markdown(load(runs_dir=runs)).splitlines() == [
        "| run | student | macro | supervised | Δ points | retention | gap recovered | movies/accuracy | parameters "
        "| ms an example |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| second | half | 85.0 | – | – | 94.4% | – | 85.0 | 4.0M | 1.25 |",
        "| first | half | 80.0 | 70.0 | +10.0 | 88.9% | 50.0% | 80.0 | 4.0M | 1.25 |",
    ]


def test_csv_keeps_every_digit(runs: Path) -> None:
    rows = load(runs_dir=runs)
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["run"] for line in read] == ["second", "first"]
    assert float(read[1]["macro/retention"]) == rows[1].retention
    assert (read[0]["macro/supervised"], read[1]["macro/supervised"]) == ("", "0.7")
    assert read[1]["movies/accuracy"] == "0.8"
    assert read[1]["parameters"] == "4000000"


# ---------------------------------------------------------------- what cannot be read


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run under") as caught:
        load(runs_dir=tmp_path / "runs")
    assert "tutelage train" in caught.value.remedy


@pytest.mark.parametrize("name", ["unfinished", "missing", "missing/report.json"])
def test_a_missing_report(runs: Path, name: str) -> None:
    with pytest.raises(DataError, match="there is no report"):
        load([runs / name])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"macro": {"students": {"half": {"score": null}}}}',
        b'{"macro": {"students": ["half"]}}',
        b'{"macro": {"students": {"half": {"score": 1, "supervised": 1, "retention": 1, "gap_recovered": 1}}},'
        b' "tasks": {}, "size": [], "latency_ms": {}}',
    ],
)
def test_a_corrupt_report_is_named(runs: Path, content: bytes) -> None:
    file = runs / "first" / "report.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is not a report") as caught:
        load(runs_dir=runs)
    assert str(file) in caught.value.cause
    assert "\n" not in caught.value.cause


def test_an_unreadable_report(runs: Path) -> None:
    (runs / "unfinished" / "report.json").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        load(runs_dir=runs)
