"""What a user sees of a run and a study in MLflow's own pages: a real server, a headless Chromium.

The store is filled through the tracker, under the names that a run and a study use. Not covered: how the pages look. See
for yourself after an update of MLflow, by two PNG files in the folder named:

    SCREENSHOTS=/tmp .venv/bin/python -m pytest tests/integration/test_ui.py
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, FloatRect, Locator, Page, Route, expect, sync_playwright

from pipeline.config.load import parse_config
from pipeline.config.resolved import jobs_of, student_settings
from pipeline.config.schema import RunConfig
from pipeline.report.build import build
from pipeline.report.page import markdown
from pipeline.report.schema import Report
from pipeline.run_folder import job_folder
from pipeline.tracking import record
from pipeline.tracking.calls import DataSet
from pipeline.tracking.tracker import Status, Tracker, open_tracker
from pipeline.tracking.uri import pages, server_page, ui_command
from pipeline.tracking.views import views_of_run
from pipeline.training.log import METRICS
from tests.integration.browser import CHROMIUM, needs_browser
from tests.integration.command import wait_until
from tests.integration.serving import serving
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.hand_results import STUDENTS, some_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
    needs_browser,
]

ASSISTANT = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
PATIENCE_MS = 90_000  # of a page on a busy machine; what is there sooner is seen sooner
OUTCOMES: Mapping[str, Status] = {
    "finished": "FINISHED",
    "early-stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
EPOCHS = {"finished": 4, "early-stopped": 2, "failed": 1, "interrupted": 3}
TRIALS = ("finished", "early-stopped", "finished", "failed", "early-stopped", "interrupted")
SEARCHED = ("loss.soft", "loss.temperature", "train.learning_rate")
TASKS = ("movies", "tweets")


# ---------------------------------------------------------------- the store


def config(folder: Path, name: str) -> RunConfig:
    """A run of two tasks in the experiment that it shares with its study."""
    files = {"train": "train.csv"}
    space = {path: {"uniform": [0.0001, 8]} for path in SEARCHED}
    return parse_config(
        {
            "name": name,
            "runs_dir": str(folder / "runs"),
            "tasks": {
                task: {"kind": "text-classification", "data": {"path": "csv", "data_files": files}}
                for task in TASKS
            },
            "teachers": {
                f"{task}-{size}": {"task": task, "model": "minilm"}
                for task in TASKS
                for size in ("base", "large")
            },
            "students": {name: {"model": "bert-tiny"} for name in STUDENTS},
            "baselines": ["supervised"],
            "tracking": {"experiment": "reviews"},
            "tune": {"student": "tiny", "metric": "macro/score", "space": space, "trials": len(TRIALS)},
        }
    )


def write_curve(file: Path, epochs: int, top: float, terms: tuple[str, ...], seed: int) -> Path:
    """A metrics.jsonl as the training loop writes it: losses every 10 steps, scores every 60."""
    noise = random.Random(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        for step in range(10, 60 * epochs + 1, 10):
            left = math.exp(-step / 80)
            values = {"loss/total": 0.4 + left * noise.uniform(0.5, 0.7)}
            values |= {f"loss/{term}/{task}": 0.4 + left for term in terms for task in TASKS}
            values |= {"train/learning_rate": 3e-4, "train/skipped_steps": 0}
            lines: list[dict[str, float]] = [values]
            if step % 60 == 0:
                movies, tweets = top - left / 3, top - 0.07 - left / 3
                scores = {
                    "movies/accuracy": movies,
                    "tweets/accuracy": tweets,
                    "movies/nll": left,
                    "tweets/nll": left,
                }
                lines.append({**scores, "macro/score": (movies + tweets) / 2, "time/epoch_s": 11.0})
            for metrics in lines:
                stream.write(json.dumps({"step": step, "time": 1.8e9 + step, "metrics": metrics}) + "\n")
    return file


def record_run(settings: RunConfig) -> tuple[Mapping[str, str], Report]:
    """What `tutelage train` records of two students and their baselines; run ids by key, and the report."""
    tracker = open_tracker(settings, settings.run_dir)
    data = [
        DataSet(
            task,
            f"{number:016x}",
            {"train": 2000, "validation": 400, "test": 400},
            "local",
            {"uri": f"{task}.csv"},
        )
        for number, task in enumerate(TASKS)
    ]
    record.run_began(tracker, settings, "parent", data=data)
    for seed, job in enumerate(jobs_of(settings)):
        terms = ("hard", "soft") if job.mode == "distilled" else ("hard",)
        metrics = job_folder(settings.run_dir, job) / METRICS
        write_curve(metrics, 4, 0.78 - seed / 100, terms, seed)
        own = student_settings(settings, job.student, facts_of(settings))
        record.job_began(tracker, settings, job, own, metrics, data)
    tasks, facts = some_run(students=STUDENTS)
    report = build(tasks, facts)
    wait_until(lambda: tracker.experiment_id is not None, lambda: "MLflow does not answer", 240)
    record.test_scores(tracker, report)
    record.described(tracker, settings, report)
    for job in jobs_of(settings):
        tracker.finish(job.name, "FINISHED")
    links = record.links(tracker, settings, views_of_run(settings, None))
    for file, text in {"report.md": markdown(report, links=links), "config.yaml": "name: quickstart"}.items():
        (settings.run_dir / file).write_text(text)
        tracker.artifacts("", settings.run_dir / file)
    tracker.finish("", "FINISHED")
    return closed(tracker), report


def searched(trial: int) -> dict[str, float]:
    """What a trial was given."""
    draw = random.Random(trial)
    soft, temperature = round(draw.uniform(0, 1), 3), round(draw.uniform(1, 8), 2)
    return dict(zip(SEARCHED, (soft, temperature, round(draw.uniform(1e-4, 1e-3), 5)), strict=True))


def score_of(trial: int) -> float:
    """Its validation score."""
    return 0.745 - 0.02 * abs(math.log(searched(trial)["loss.temperature"] / 3))


def record_study(settings: RunConfig) -> Mapping[str, str]:
    """What `tutelage tune` records; run ids by key."""
    tracker = open_tracker(settings, settings.run_dir)
    record.run_began(tracker, settings, "study")
    tags = {"tasks": ",".join(TASKS), "student": "tiny", "study": settings.name}
    for number, outcome in enumerate(TRIALS):
        key, top = f"trial-{number:03d}", score_of(number)
        file = write_curve(
            settings.run_dir / key / METRICS, EPOCHS[outcome], top + 0.035, ("hard", "soft"), number
        )
        record.training_began(tracker, settings, key, key, "trial", tags, searched(number), file)
        scores = {"macro/score": top, "movies/accuracy": top + 0.035, "tweets/accuracy": top - 0.035}
        tracker.metrics(key, record.best_metrics(settings, scores))
        tracker.tags(key, {"outcome": outcome})
        tracker.finish(key, OUTCOMES[outcome])
    record.described_study(tracker, settings, ["6 trials of **tiny**."])
    tracker.finish("", "FINISHED")
    return closed(tracker)


def closed(tracker: Tracker) -> Mapping[str, str]:
    """Run ids by key, once all is in the store."""
    outcome = tracker.close(timeout_s=240)
    assert (outcome.points_lost, outcome.operations_lost) == (0, 0)
    return outcome.run_ids


@dataclass
class Shown:
    """A store being served. url: of the server · pages: the addresses that `tutelage ui` prints, by title · run, study:
    run ids by key · report: the run's."""

    url: str
    pages: Mapping[str, str]
    run: Mapping[str, str]
    study: Mapping[str, str]
    report: Report


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("ui")
    settings = config(folder, "quickstart")
    run, report = record_run(settings)
    study = record_study(config(folder, "quickstart-study"))
    command = ui_command(settings, port=5800)
    url = server_page(settings, int(command[-1]))
    assert url is not None, "the store is a sqlite file"
    with serving(command, url, folder / "server.log"):
        yield Shown(url, pages(settings, url), run, study, report)


# ---------------------------------------------------------------- the browser


@dataclass
class Visit:
    """A browser, and what its pages asked for outside this machine, which nothing there got."""

    chromium: Browser
    refused: list[str] = field(default_factory=list)

    def refuse(self, route: Route) -> None:
        self.refused.append(route.request.url)
        route.abort()


@pytest.fixture(scope="module")
def visit() -> Iterator[Visit]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[nowhere])
        yield Visit(chromium)
        chromium.close()


@pytest.fixture
def page(visit: Visit, shown: Shown) -> Iterator[Page]:
    """A new user's empty page."""
    context = visit.chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    context.route(re.compile(rf"^(?!{re.escape(shown.url)}/)(http|ws)"), visit.refuse)
    # else MLflow's assistant opens by itself the first time, over a third of every page
    context.add_init_script(f"localStorage.setItem('{ASSISTANT}', 'true')")
    yield context.new_page()
    context.close()


def visited(page: Page, shown: Shown, title: str) -> Page:
    """The page at one of the addresses that `tutelage ui` prints, once its runs are there."""
    (address,) = [address for name, address in shown.pages.items() if name.startswith(title)]
    page.goto(address)
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    expect(page.locator("[role=row][row-id]").first).to_be_visible()
    return page


ALL, STUDENTS_PAGE, COMPARED = (
    "All runs of reviews",
    "Students of quickstart, by",
    "Students of quickstart, compared",
)
TRIALS_PAGE, VALUES = "Trials of quickstart-study, best", "Trials of quickstart-study, score"


def listed(page: Page) -> list[str]:
    """Run ids of the rows, from above."""
    rows = page.locator("[role=row][row-id]").evaluate_all(
        "rows => rows.map(row => [Number(row.getAttribute('row-index')), row.getAttribute('row-id')])"
    )
    return list(dict.fromkeys(run_id for _, run_id in sorted(rows)))


def headings(page: Page) -> list[str]:
    """Titles of the table's columns that are seen, from the left."""
    cells = page.locator(".ag-header-cell[col-id]").evaluate_all(
        "cells => cells.map(cell => [cell.getBoundingClientRect().left, cell.getBoundingClientRect().right, cell.innerText])"
    )
    return [text.strip() for left, right, text in sorted(cells) if text.strip() and right <= 1440]


def link(page: Page, name: str) -> Locator:
    return page.get_by_role("link", name=name, exact=True)


def unfold(page: Page, name: str) -> None:
    """Show a run's children in the list of runs."""
    page.get_by_role("gridcell").filter(has=link(page, name)).get_by_role("button").first.click()


def cell(page: Page, run_id: str, column: str) -> Locator:
    """A run's cell in the table, e.g. of the column ``tags.`outcome` ``."""
    return page.locator(f'[role=row][row-id="{run_id}"] [col-id="{column}"]')


def sections(page: Page) -> dict[str, int]:
    """Headings of the groups of charts, with the charts in each."""
    expect(page.get_by_text("Add section")).to_be_visible()
    pairs = re.findall(r"^(.+)\n\((\d+)\)\nAdd chart$", page.locator("body").inner_text(), re.MULTILINE)
    return {name: int(count) for name, count in pairs}


def keep(page: Page, name: str, height: int) -> None:
    """A screenshot of the page's upper part in the folder that SCREENSHOTS names, if it names one."""
    if folder := os.environ.get("SCREENSHOTS"):
        clip: FloatRect = {"x": 0, "y": 0, "width": 1440, "height": height}
        page.screenshot(path=Path(folder) / name, animations="disabled", clip=clip)


# ---------------------------------------------------------------- what a user must see


def test_the_experiments_page_says_what_its_runs_are(page: Page, shown: Shown) -> None:
    visited(page, shown, ALL)
    expect(link(page, "quickstart")).to_be_visible()
    expect(link(page, "quickstart-study")).to_be_visible()
    expect(link(page, "tiny-distilled")).to_have_count(0)  # below its run
    expect(page.get_by_text("Runs of Tutelage.").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"^movies \(0+\)")).first).to_be_visible()  # its data
    page.get_by_role("button", name="Views").click()
    for title in shown.pages:
        if title != ALL:
            expect(page.get_by_text(title, exact=True).first).to_be_visible()


def test_students_and_baselines_are_listed_by_test_score(page: Page, shown: Shown) -> None:
    visited(page, shown, STUDENTS_PAGE)
    scores = {f"{name}-distilled": row.score for name, row in shown.report.macro.students.items()}
    scores |= {
        f"{name}-supervised": row.supervised or 0.0 for name, row in shown.report.macro.students.items()
    }
    ranked = sorted(scores, key=lambda name: -scores[name])
    expect(page.get_by_text("4 matching runs")).to_be_visible()
    assert listed(page) == [shown.run[name] for name in ranked]
    columns = ["test/macro", "test/movies", "test/tweets", "retention/macro"]
    seen = headings(page)
    assert seen[seen.index("test/macro") :][: len(columns)] == columns
    for name in ranked:
        digits = re.compile(f"^{re.escape(str(scores[name])[:6])}")
        expect(cell(page, shown.run[name], "metrics.`test/macro`")).to_have_text(digits)
    keep(page, "mlflow-experiment.png", height=480)


def test_students_are_compared_by_task_with_their_teachers(page: Page, shown: Shown) -> None:
    visited(page, shown, COMPARED)
    scores = ["test/macro", *(f"test/{task}" for task in TASKS)]
    expect(page.locator(".parcoords .axis-title, .parcoords text.label")).to_have_text(scores)
    expect(page.get_by_text(re.compile("^Test score by task|^Test accuracy by task")).first).to_be_visible()
    for name in ("ensemble", "tiny-distilled", "half-supervised", "movies-large", "tweets-base"):
        expect(link(page, name)).to_be_visible()
    for name in scores:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    assert set(listed(page)) == {run_id for key, run_id in shown.run.items() if key}
    keep(page, "mlflow-compare.png", height=900)


def test_trials_are_listed_by_score_with_what_was_searched(page: Page, shown: Shown) -> None:
    visited(page, shown, TRIALS_PAGE)
    ranked = sorted(range(len(TRIALS)), key=lambda number: -score_of(number))
    expect(page.get_by_text(f"{len(TRIALS)} matching runs")).to_be_visible()
    assert listed(page) == [shown.study[f"trial-{number:03d}"] for number in ranked]
    for number, outcome in enumerate(TRIALS):
        run_id = shown.study[f"trial-{number:03d}"]
        expect(cell(page, run_id, "tags.`outcome`")).to_have_text(outcome)
        for name, value in searched(number).items():
            expect(cell(page, run_id, f"params.`{name}`")).to_have_text(str(value))


def test_trials_compare_by_what_was_searched(page: Page, shown: Shown) -> None:
    visited(page, shown, VALUES)
    axes = ["loss.soft", "loss.t...rature", "train....g_rate", "best/movies", "best/tweets", "best/macro"]
    expect(page.locator(".parcoords .axis-title, .parcoords text.label")).to_have_text(axes)
    expect(page.get_by_text("Score by value", exact=True)).to_be_visible()


def test_a_runs_description_has_its_verdict_its_students_and_its_views(page: Page, shown: Shown) -> None:
    page.goto(f"{shown.url}/#/experiments/1/runs/{shown.run['']}")
    expect(page.get_by_text("of the ensemble").first).to_be_visible()
    page.get_by_text("Show more").first.click()
    expect(page.get_by_role("cell", name="tiny, supervised")).to_be_visible()
    with page.context.expect_page() as opened:  # MLflow opens links of a description in a page of their own
        page.get_by_role("link", name="Students of quickstart, by test score").click(modifiers=["Control"])
    expect(opened.value.get_by_text("4 matching runs")).to_be_visible()


@pytest.mark.parametrize(
    ("trial", "status"), [("trial-000", "Finished"), ("trial-003", "Failed"), ("trial-005", "Killed")]
)
def test_a_trials_page_says_what_it_was_given_and_how_it_went(
    page: Page, shown: Shown, trial: str, status: Literal["Finished", "Failed", "Killed"]
) -> None:
    visited(page, shown, ALL)
    unfold(page, "quickstart-study")
    link(page, trial).click()
    expect(page.get_by_role("heading", name=trial)).to_be_visible()
    expect(page.get_by_text(status, exact=True)).to_be_visible()
    expect(link(page, "quickstart-study")).to_be_visible()  # its parent
    for name in (*SEARCHED, "validation/macro", "best/movies"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text(f"outcome: {TRIALS[int(trial[-1])]}")).to_be_visible()


def test_a_students_page_has_a_section_for_each_question(page: Page, shown: Shown) -> None:
    visited(page, shown, ALL)
    unfold(page, "quickstart")
    link(page, "tiny-distilled").click()
    expect(page.get_by_text("retention/macro", exact=True)).to_be_visible()
    expect(page.get_by_text("test/movies", exact=True)).to_be_visible()
    page.get_by_role("tab", name="Model metrics").click()
    expect(page.get_by_text("loss/hard", exact=True)).to_be_visible()
    wanted = {
        "loss/hard": 2,
        "loss/soft": 2,
        "test": 3,
        "validation": 3,
        "validation/nll": 2,
        "retention": 3,
        "cost": 4,
    }
    seen = sections(page)
    assert {name: seen.get(name) for name in wanted} == wanted


def test_a_run_shows_its_report_and_config(page: Page, shown: Shown) -> None:
    visited(page, shown, ALL)
    link(page, "quickstart").click()
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text("config.yaml", exact=True).first).to_be_visible()
    page.get_by_text("report.md", exact=True).first.click()
    expect(page.get_by_text("of the ensemble").first).to_be_visible()


def test_nothing_outside_this_machine_was_asked_for(visit: Visit, page: Page, shown: Shown) -> None:
    """By any page above: telemetry is off."""
    visited(page, shown, ALL)
    assert visit.refused == []
