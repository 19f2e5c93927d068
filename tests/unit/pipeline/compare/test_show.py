"""A comparison as tables, Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.compare.rows import Row, load
from pipeline.compare.show import cautions, tables, teacher_cells, to_csv, to_html, to_markdown
from pipeline.report.build import build
from tests.unit.pipeline.hand_results import (
    hand_task,
    save_group,
    save_run,
    save_study,
    seeds_of,
    some_facts,
    some_run,
    some_study,
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    facts = some_facts(["large"], ["half"])
    save_run(tmp_path / "first", build({"movies": hand_task(80, 70, 90, 100)}, facts))
    save_run(tmp_path / "second", build({"movies": hand_task(85, None, 90, 100)}, facts))
    return tmp_path


@pytest.fixture
def several(runs: Path) -> list[Row]:
    """Three seeds of one group."""
    facts = seeds_of(some_facts(["large"], ["half"]), 3)
    reports = [build({"movies": hand_task(80 + one.seed, 70, 90, 100)}, one) for one in facts]
    return load([save_group(runs / "several", reports)])


def shown(rows: list[Row], width: int) -> str:
    file = io.StringIO()
    console = Console(width=width, file=file)
    for part in tables(rows):
        console.print(part)
    return file.getvalue()


# ---------------------------------------------------------------- tables


def test_tables_on_a_terminal(runs: Path) -> None:
    text = shown(load(runs_dir=runs), 100)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["Students,", "scored", "on", "test"]
    assert ["second", "half", "85.0", "–", "–", "94.4%", "–", "85.0", "4.0M", "1.25"] in lines
    assert ["first", "half", "80.0", "70.0", "+10.0", "88.9%", "50.0%", "80.0", "4.0M", "1.25"] in lines
    assert ["movies/accuracy", "large", "90.0", "20.0M", "5.00", "all"] in lines
    assert ["movies/accuracy", "ensemble", "90.0", "–", "–", "all"] in lines
    assert "compare task by task" not in text


def test_narrower_the_costs_stand_in_a_second_table(runs: Path) -> None:
    lines = [line.split() for line in shown(load(runs_dir=runs), 80).splitlines()]
    assert ["second", "half", "85.0", "–", "–", "94.4%", "–", "85.0"] in lines
    assert ["second", "half", "4.0M", "1.25"] in lines


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_the_seeds_spread_is_shown_at_every_width(several: list[Row], width: int) -> None:
    text = shown(several, width)
    assert text.count("81.0 ± 1.0") == 2  # macro, and its one task
    assert "+11.0 ± 1.0" in text
    assert "…" not in text
    heads = {word for line in text.splitlines() for word in line.split()}
    assert {"supervised", "retention", "recovered", "accuracy", "parameters", "example"} <= heads


def test_a_number_is_never_cut_unseen(runs: Path) -> None:
    for width in range(20, 80, 7):
        words = {word for line in shown(load(runs_dir=runs), width).splitlines() for word in line.split()}
        cut = {word for word in words if word.endswith("…")}
        known = {"85.0", "80.0", "70.0", "–", "94.4%", "88.9%", "50.0%", "+10.0", "4.0M", "1.25", "half"}
        known |= {"90.0", "20.0M", "5.00"}
        whole = {word for word in words - cut if any(letter.isdigit() for letter in word)}
        assert whole <= known, width


def test_markup_in_names_is_text(runs: Path) -> None:
    (runs / "first").rename(runs / "[red]first")
    assert "[red]first" in shown(load(runs_dir=runs), 120)


def test_runs_and_trials_fit_a_terminal_of_100_columns(runs: Path) -> None:
    """Each has its own table: they have hardly a column in common."""
    study = some_study()
    paths = ("loss.temperature", "loss.task_weights.movies", "students.half.train.learning_rate")
    for trial in study["trials"]:
        trial["values"] = dict.fromkeys(paths, 0.1234)
    study["trials"][2]["status"] = "interrupted"
    rows = load([runs / "first", runs / "second", save_study(runs / "search", study)])
    text = shown(rows, 100)
    lines = [line.split() for line in text.splitlines()]
    assert ["first", "half", "80.0", "70.0", "+10.0", "88.9%", "50.0%", "80.0", "4.0M", "1.25"] in lines
    assert ["Trials", "of", "search,", "student", "half,", "scored", "on", "validation"] in lines
    assert ["2", "yes", "82.0", "84.0", "interrupted", "3", *["0.1234"] * 3] in lines
    assert ["1", "–", "81.0", "82.0", "early-stopped", "2", *["0.1234"] * 3] in lines
    assert "…" not in text


def test_trials_of_several_searches_say_whose_they_are(runs: Path) -> None:
    rows = load([save_study(runs / name, some_study(name)) for name in ("one", "other")])
    assert len(tables(rows)) == 1
    assert ["one", "half", "2", "yes"] in [line.split()[:4] for line in shown(rows, 120).splitlines()]


def test_markdown_has_runs_and_trials_apart(runs: Path) -> None:
    text = to_markdown(load([runs / "first", save_study(runs / "search", some_study())]))
    lines = text.splitlines()
    heads = [
        (lines[at - 2], line.split(" | ")[:3]) for at, line in enumerate(lines) if line.startswith("| run")
    ]
    assert heads == [
        ("**Students, scored on test**", ["| run", "student", "macro"]),
        ("**Trials of search, student half, scored on validation**", ["| run", "student", "trial"]),
    ]


def test_csv_says_of_every_row_which_split_it_is_scored_on(runs: Path) -> None:
    rows = load([runs / "first", save_study(runs / "search", some_study())])
    splits = [line["split"] for line in csv.DictReader(io.StringIO(to_csv(rows)))]
    assert splits == ["test", *["validation"] * 4]
    assert [line["split"] for line in csv.DictReader(io.StringIO(to_csv(rows[:1])))] == ["test"]


def test_html_has_runs_and_trials_apart(runs: Path) -> None:
    text = to_html(load([runs / "first", save_study(runs / "search", some_study())]))
    runs_part, trials_part = text.split("<h2>Trials of search, student half, scored on validation</h2>")
    assert "<h2>Students, scored on test</h2>" in runs_part
    assert "first" not in trials_part.split("<h2>Teachers")[0]
    assert "search" not in runs_part
    assert runs_part.count('aria-label="student: 80.0"') == 1
    assert trials_part.count('aria-label="student: ') == 3  # the fourth failed


def test_trials_have_no_teachers_to_show(runs: Path) -> None:
    assert len(tables(load([save_study(runs / "search", some_study())]))) == 1


# ---------------------------------------------------------------- teachers, cautions


def test_a_teacher_that_runs_share_stands_once(runs: Path) -> None:
    facts = some_facts(["large"], ["half"])
    save_run(runs / "third", build({"movies": hand_task(80, 70, 95, 100)}, facts))
    cells = teacher_cells(load(runs_dir=runs))
    assert cells == [
        ["movies/accuracy", "large", "90.0", "20.0M", "5.00", "second, first"],
        ["movies/accuracy", "ensemble", "90.0", "–", "–", "second, first"],
        ["movies/accuracy", "large", "95.0", "20.0M", "5.00", "third"],
        ["movies/accuracy", "ensemble", "95.0", "–", "–", "third"],
    ]


def test_teachers_by_task_each_with_its_ensemble(runs: Path) -> None:
    rows = load([save_run(runs / "third", build(*some_run()))])
    assert [cells[:2] for cells in teacher_cells(rows)] == [
        *(["movies/accuracy", name] for name in ("movies-large", "movies-base", "ensemble")),
        *(["tweets/macro_f1", name] for name in ("tweets-large", "tweets-base", "ensemble")),
    ]


def test_cautions(runs: Path, several: list[Row]) -> None:
    single = load([runs / "first", runs / "second"])
    assert cautions(single) == []
    other = load([save_run(runs / "third", build(*some_run()))])
    (caution,) = cautions([*single, *other])
    assert "compare task by task, not by macro" in caution
    trials = load([save_study(runs / "search", some_study())])
    assert cautions(trials) == []  # one that failed has no tasks
    (caution,) = cautions([*single, *trials])
    assert "Trials are scored on validation, runs on test" in caution
    assert "With 3 seeds p cannot fall below 0.25; p < 0.05 needs 6" in cautions([*single, *several])[-1]
    busy = [replace(single[0], busy=True), single[1]]
    assert cautions(busy) == [
        f"Latencies of {busy[0].run} were measured on a busy machine: they may be far too high."
    ]
    assert "cannot fall" not in " ".join(cautions([replace(several[0], seeds=8)]))


# ---------------------------------------------------------------- Markdown, CSV


def test_markdown(runs: Path) -> None:
    assert to_markdown(load(runs_dir=runs)).splitlines() == [
        "**Students, scored on test**",
        "",
        "| run | student | macro | supervised | Δ points | retention | gap recovered | movies/accuracy | parameters "
        "| ms an example |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| second | half | 85.0 | – | – | 94.4% | – | 85.0 | 4.0M | 1.25 |",
        "| first | half | 80.0 | 70.0 | +10.0 | 88.9% | 50.0% | 80.0 | 4.0M | 1.25 |",
        "",
        "**Teachers, scored on test**",
        "",
        "| task | teacher | score | parameters | ms an example | in |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| movies/accuracy | large | 90.0 | 20.0M | 5.00 | all |",
        "| movies/accuracy | ensemble | 90.0 | – | – | all |",
    ]


def test_markdown_of_seeds(several: list[Row]) -> None:
    text = to_markdown(several)
    row = "| several | half | 3 | 81.0 ± 1.0 | 70.0 | +11.0 ± 1.0 | 0.25 | 90.0% | 55.0% | 81.0 ± 1.0 | 4.0M | 1.25 |"
    assert row in text
    assert "With 3 seeds" in text


def test_a_bar_in_a_name_does_not_break_the_table(runs: Path) -> None:
    (runs / "first").rename(runs / "a|b")
    tables = re.findall(r"(?:^\|.*\|\n)+", to_markdown(load(runs_dir=runs)), flags=re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_html_links_and_emphasis_in_names_are_text_in_markdown(runs: Path) -> None:
    (runs / "first").rename(runs / "<img src=x onerror=alert(1)>&amp;")
    (runs / "second").rename(runs / "![x](http:a) *b* `c`")
    study = some_study("<s>")
    study["trials"][0]["values"] = {"<b>": "</table>"}
    text = to_markdown([*load(runs_dir=runs), *load([save_study(runs / "search", study)])])
    assert not re.search(r"<[a-z/!]", text)
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;" in text
    assert r"!\[x\](http:a) \*b\* \`c\`" in text
    assert "&lt;/table&gt;" in text


def test_csv_keeps_every_digit(runs: Path) -> None:
    rows = load(runs_dir=runs)
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["run"] for line in read] == ["second", "first"]
    assert rows[1].macro is not None
    assert float(read[1]["macro/retention"]) == rows[1].macro.retention
    assert (read[0]["macro/supervised"], read[1]["macro/supervised"]) == ("", "0.7")
    assert (read[1]["movies/accuracy"], read[1]["movies/accuracy/ensemble"]) == ("0.8", "0.9")
    assert read[1]["parameters"] == "4000000"


def test_csv_of_seeds(several: list[Row]) -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv(several)))
    assert (line["seeds"], line["macro/p"], line["movies/accuracy/p"]) == ("3", "0.25", "0.25")
    assert float(line["macro/sd"]) == pytest.approx(0.01)


# ---------------------------------------------------------------- HTML

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that every element is closed where it should be; gathers text, attributes and the tags' names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def test_html_has_students_teachers_and_bars(runs: Path, several: list[Row]) -> None:
    text = to_html([*load([runs / "first", runs / "second"]), *several])
    page = Page(text)
    assert page.open == []
    assert text.endswith("</html>\n")
    for word in ("88.9%", "4.0M", "81.0 ± 1.0", "0.25", "large", "20.0M", "5.00", "movies/accuracy", "1.25"):
        assert word in page.text, word
    assert "With 3 seeds p cannot fall below" in text
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == [
        *("student: 85.0", "ensemble: 90.0"),
        *("student: 80.0", "supervised: 70.0", "ensemble: 90.0"),
        *("student: 81.0 ± 1.0", "supervised: 70.0", "ensemble: 90.0"),
    ]
    styles = [value for name, value in page.attributes if name == "style"]
    (whisker,) = [value for value in styles if value and "left" in value]
    assert whisker == "left: 80.0%; width: 2.0%"  # 81.0 ± 1.0; the baselines of all seeds are the same
    assert "whiskers" in text
    widths = [value for value in styles if value != whisker]
    assert len(widths) == len(labels)  # of one task, so there are no bars of the mean over tasks
    assert widths[labels.index("student: 85.0")] == "width: 85.0%"


def test_several_tasks_have_bars_of_their_mean(runs: Path) -> None:
    page = Page(to_html(load([save_run(runs / "third", build(*some_run()))])))
    assert "All tasks" in page.text
    assert sum(name == "aria-label" for name, _ in page.attributes) == 3 * 2 * 3


def test_html_stands_on_its_own(runs: Path, several: list[Row]) -> None:
    text = to_html([*load(runs_dir=runs), *several])
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_names_are_escaped(runs: Path) -> None:
    study = some_study('<img src=x onerror="alert(1)">')
    study["trials"][0]["values"] = {"<b>": "</table>&"}
    study["trials"][0]["scores"]["<i>/accuracy"] = study["ensemble"]["<i>/accuracy"] = 0.5
    facts = some_facts(["large"], ["half"])
    task = hand_task(80, 70, 90, 100)
    report = build({"movies": replace(task, teachers={"<script>": task.teachers["large"]})}, facts)
    rows = load([save_run(runs / "<u>", report), save_study(runs / "search", study)])
    page = Page(to_html(rows))
    assert page.open == []
    assert not {"script", "img", "b", "i", "u"} & set(page.tags) - {"b"}
    for name in ('<img src=x onerror="alert(1)">', "<b>", "</table>&", "<i>/accuracy", "<script>", "<u>"):
        assert any(name in text for text in page.text), name


@pytest.mark.parametrize(("score", "width"), [(-0.2, "0.0%"), (0.12345, "12.35%"), (1.2, "100.0%")])
def test_bars_stay_within_their_track(runs: Path, score: float, width: str) -> None:
    study = some_study()
    study["trials"] = [{**study["trials"][0], "scores": {"stars/pearson": score}}]
    study["metrics"] = ["stars/pearson"]
    text = to_html(load([save_study(runs / "search", study)]))
    assert f"width: {width}" in text
