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
import shutil
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
from pipeline.training.loop import METRICS
from tests.integration.command import wait_until
from tests.integration.serving import serving
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.hand_results import STUDENTS, some_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
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
            "tune": {"student": "tiny", "space": space, "trials": len(TRIALS)},
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
    """A new user, on the page whose address `tutelage ui` prints, who then does what README says."""
    context = visit.chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    context.route(re.compile(rf"^(?!{re.escape(shown.url)}/)(http|ws)"), visit.refuse)
    # else MLflow's assistant opens by itself the first time, over a third of every page
    context.add_init_script(f"localStorage.setItem('{ASSISTANT}', 'true')")
    page = context.new_page()
    page.goto(shown.runs)
    expect(link(page, "quickstart")).to_be_visible()
    page.get_by_text("Model training", exact=True).click()
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    expect(link(page, "quickstart")).to_be_visible()
    yield page
    context.close()


def link(page: Page, name: str) -> Locator:
    return page.get_by_role("link", name=name, exact=True)


def unfold(page: Page, name: str) -> None:
    """Show a run's children in the list of runs."""
    page.get_by_role("gridcell").filter(has=link(page, name)).get_by_role("button").first.click()


def cell(page: Page, run_id: str, column: str) -> Locator:
    """A run's cell in the table, e.g. of the column ``tags.`outcome` ``."""
    return page.locator(f'[role=row][row-id="{run_id}"] [col-id="{column}"]')


def add_columns(page: Page, *names: str, without: tuple[str, ...] = ()) -> None:
    """Add metrics, params or tags to the table of runs."""
    page.get_by_role("button", name="Columns").click()
    tree = page.get_by_test_id("column-selector-tree")
    for name in (*without, *names):
        page.get_by_placeholder("Search columns").fill(name)
        tree.locator("[class$=tree-title]").filter(has_text=re.compile(f"^{re.escape(name)}$")).click()
    page.keyboard.press("Escape")
    expect(tree).to_be_hidden()


def sections(page: Page) -> dict[str, int]:
    """Headings of the groups of charts, with the charts in each."""
    expect(page.get_by_text("Add section")).to_be_visible()
    found = re.findall(r"^(.+)\n\((\d+)\)\nAdd chart$", page.locator("body").inner_text(), re.MULTILINE)
    return {name: int(count) for name, count in found}


def keep(page: Page, name: str, height: int) -> None:
    """A screenshot of the page's upper part in the folder that SCREENSHOTS names, if it names one."""
    if folder := os.environ.get("SCREENSHOTS"):
        clip: FloatRect = {"x": 0, "y": 0, "width": 1440, "height": height}
        page.screenshot(path=Path(folder) / name, animations="disabled", clip=clip)


# ---------------------------------------------------------------- what a user must see


def test_the_list_has_studies_with_their_trials_and_how_they_ended(page: Page, shown: Shown) -> None:
    expect(link(page, "quickstart-study")).to_be_visible()
    expect(link(page, "trial-000")).to_have_count(0)  # below its study
    unfold(page, "quickstart-study")
    add_columns(page, "outcome", BEST, *SEARCHED, without=("Dataset", "Source", "Models"))
    for number, outcome in enumerate(TRIALS):
        run_id = shown.study[f"trial-{number:03d}"]
        expect(cell(page, run_id, "attributes.`Run Name`")).to_contain_text(f"trial-{number:03d}")
        expect(cell(page, run_id, "tags.`outcome`")).to_have_text(outcome)
        expect(cell(page, run_id, f"metrics.`{BEST}`")).to_have_text(re.compile(r"0\.\d+"))
    keep(page, "mlflow-experiment.png", height=560)
    expect(link(page, "tiny-distilled")).to_have_count(0)
    unfold(page, "quickstart")
    expect(link(page, "tiny-distilled")).to_be_visible()
    expect(link(page, "tiny-supervised")).to_be_visible()


def test_charts_are_grouped_by_what_they_measure(page: Page, shown: Shown) -> None:
    unfold(page, "quickstart-study")
    expect(link(page, "trial-000")).to_be_visible()
    page.locator("label").filter(has=page.locator("input[value=CHART]")).click()
    wanted = {"loss": 1, "loss/hard": 2, "loss/soft": 2, "macro": 1, "movies": 1, "tweets": 1}
    for name in wanted:
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    found = sections(page)
    assert {name: found.get(name) for name in wanted} == wanted
    page.get_by_placeholder("Search metric charts").fill("macro/score")
    for trial in shown.trials():
        expect(page.get_by_text(f"{trial} (macro/score)").first).to_be_attached()


def test_trials_compare_by_what_was_searched(page: Page, shown: Shown) -> None:
    unfold(page, "quickstart-study")
    for trial, run_id in shown.trials().items():
        expect(link(page, trial)).to_be_visible()
        page.locator(f'[role=row][row-id="{run_id}"] input.ag-checkbox-input').click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text(f"Comparing {len(TRIALS)} Runs from 1 Experiment")).to_be_visible()

    axes = page.locator(".parcoords .axis-title")
    # The params are MLflow's choice: nothing else differs. The metric is the one that it got first, here the best score.
    expect(axes).to_have_text([*SEARCHED, BEST])
    page.get_by_role("combobox").nth(1).click(force=True)
    for name in ("loss/total", BEST):  # one in, the other out
        page.get_by_title(name, exact=True).last.click()
    page.keyboard.press("Escape")
    expect(axes).to_have_text([*SEARCHED, "loss/total"])

    given = [searched(number) for number in range(len(TRIALS))]
    rows = {name: [str(values[name]) for values in given] for name in SEARCHED} | {"outcome": TRIALS}
    for name, cells in rows.items():
        expect(page.get_by_role("row", name=" ".join((name, *cells)), exact=True)).to_be_attached()
    for trial in shown.trials():
        expect(page.get_by_role("table").get_by_text(trial, exact=True)).to_be_visible()
    for metric in ("movies/accuracy", "tweets/accuracy", "macro/score", "loss/hard/movies"):
        expect(link(page, metric)).to_be_attached()
    keep(page, "mlflow-compare.png", height=900)


@pytest.mark.parametrize(
    ("trial", "status"), [("trial-000", "Finished"), ("trial-003", "Failed"), ("trial-005", "Killed")]
)
def test_a_trials_page_says_what_it_was_given_and_how_it_went(
    page: Page, shown: Shown, trial: str, status: Literal["Finished", "Failed", "Killed"]
) -> None:
    unfold(page, "quickstart-study")
    link(page, trial).click()
    expect(page.get_by_role("heading", name=trial)).to_be_visible()
    expect(page.get_by_text(status, exact=True)).to_be_visible()
    expect(link(page, "quickstart-study")).to_be_visible()  # its parent
    for name in (*SEARCHED, "macro/score", "movies/accuracy"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text(f"outcome: {TRIALS[int(trial[-1])]}")).to_be_visible()


def test_a_students_page_has_its_metrics_by_group(page: Page) -> None:
    unfold(page, "quickstart")
    link(page, "tiny-distilled").click()
    expect(page.get_by_text("retention/macro", exact=True)).to_be_visible()
    expect(page.get_by_text("test/movies/accuracy", exact=True)).to_be_visible()
    page.get_by_role("tab", name="Model metrics").click()
    expect(page.get_by_text("loss/hard", exact=True)).to_be_visible()
    found = sections(page)
    assert (
        found | {"loss/hard": 2, "loss/soft": 2, "test/macro": 1, "test/movies": 2, "retention": 3} == found
    )


def test_a_run_shows_its_report_and_config(page: Page) -> None:
    link(page, "quickstart").click()
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text("config.yaml", exact=True).first).to_be_visible()
    page.get_by_text("report.md", exact=True).first.click()
    expect(page.get_by_text("tiny keeps 95%")).to_be_visible()


def test_nothing_outside_this_machine_was_asked_for(visit: Visit, page: Page) -> None:
    """By any page above: telemetry is off."""
    assert visit.refused == []
