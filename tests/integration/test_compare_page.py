"""`compare --to html` as a browser shows it: nothing falls off the right edge of a page of 1,280 pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from pipeline.compare.rows import load
from pipeline.compare.show import to_html
from pipeline.report.build import build
from pipeline.report.schema import Report, Size
from tests.integration.browser import CHROMIUM, needs_browser
from tests.unit.pipeline.hand_results import hand_task, save_run, save_study, some_facts, some_study

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), needs_browser]

TASKS = ("movies", "tweets", "topics", "questions", "entities", "passages")
LONG = "showcase-with-a-name-of-many-words-and-more"
RIGHTS = """() => [...document.querySelectorAll("body *")]
    .filter(one => one.getBoundingClientRect().width)
    .map(one => one.getBoundingClientRect().right)"""
PLACES = "() => [...document.querySelectorAll('h1, figure, h2')].map(one => one.tagName)"


def report_of(gain: int, parameters: int) -> Report:
    """Six tasks; a student `gain` points above its baseline."""
    tasks = {
        name: replace(
            hand_task(66 + gain + place, 66 + place, 80 + place, 100),
            teachers={f"{name}-minilm-l6-h384-uncased": hand_task(66, 66, 80 + place, 100).ensemble},
        )
        for place, name in enumerate(TASKS)
    }
    report = build(tasks, some_facts([name for task in tasks.values() for name in task.teachers], ["half"]))
    size = report.size.model_copy(
        update={"students": {"half": Size(parameters=parameters, bytes=4 * parameters)}}
    )
    return report.model_copy(update={"size": size})


def test_all_columns_of_six_tasks_are_seen(tmp_path: Path) -> None:
    folders = [
        save_run(tmp_path / name, report_of(gain, parameters))
        for name, gain, parameters in (("small", 1, 4_000_000), (LONG, 6, 14_000_000))
    ]
    study = some_study()
    study["trials"][0]["values"] = {
        f"aggregation.teacher_weights.{name}-minilm-l6-h384": 0.5 for name in TASKS
    }
    file = tmp_path / "page.html"
    file.write_text(to_html(load([*folders, save_study(tmp_path / "search", study)])))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert max(page.evaluate(RIGHTS)) <= 1280
        assert page.evaluate(PLACES)[:3] == [
            "H1",
            "FIGURE",
            "FIGURE",
        ]  # gains and the front, before any table
        heads = [text.replace("\u200b", "") for text in page.locator("th").all_inner_texts()]
        assert {f"{task}/accuracy" for task in TASKS} <= set(heads)
        first = page.locator("main > p:not(.soft)").first.inner_text()
        assert first.startswith(f"half of {LONG}: the highest score")
        assert "95% interval" in first
        assert page.locator("svg polyline.line").count() == 1  # latencies are the same, sizes are not
        chromium.close()
