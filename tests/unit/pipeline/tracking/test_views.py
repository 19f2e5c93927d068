"""Views of an experiment. That MLflow's page restores them: tests/integration/test_ui.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.tracking.views import View, page, views_of_run, views_of_study


def config(tasks: tuple[str, ...], **tune: Any) -> RunConfig:
    kinds = {"entities": "token-classification"}
    return parse_config(
        {
            "name": "first",
            "tasks": {
                task: {"kind": kinds.get(task, "text-classification"), "data": {"path": "csv"}}
                for task in tasks
            },
            "teachers": {f"{task}-big": {"task": task, "model": "big"} for task in tasks},
            "students": {"half": {"init_from": f"{tasks[0]}-big", "layers": 3}},
            "tune": {"space": {"loss.soft": {"uniform": [0, 1]}}, **tune},
        }
    )


def metrics_drawn(view: View, section: str) -> list[str]:
    """What a section of charts shows."""
    cards = [card for card in view.state["compareRunCharts"] if card["metricSectionId"] == section]
    return [name for card in cards for name in (card.get("selectedMetrics") or [card.get("metricKey")])]


def test_students_are_listed_by_test_score() -> None:
    listed, compared = views_of_run(config(("movies", "tweets")), None)
    assert (listed.key, listed.charts) == ("students-first", False)
    assert listed.state["searchFilter"] == "tags.run = 'first' AND tags.mode IS NOT NULL"
    assert (listed.state["orderByKey"], listed.state["orderByAsc"]) == ("metrics.`test/macro`", False)
    columns = listed.state["selectedColumns"]
    assert columns[:3] == ["metrics.`test/macro`", "metrics.`test/movies`", "metrics.`test/tweets`"]
    assert "params.`seed`" not in columns
    assert (compared.key, compared.charts) == ("compared-first", True)
    scores = ["test/macro", "test/movies", "test/tweets"]
    assert metrics_drawn(compared, "Test accuracy by task") == [
        *scores,
        *scores,
    ]  # one line a model, then bars


def test_a_group_is_one_view_of_all_its_seeds() -> None:
    listed, _ = views_of_run(config(("movies", "tweets")), "several")
    assert listed.key == "students-several"
    assert listed.state["searchFilter"].startswith("tags.group = 'several'")
    assert listed.state["selectedColumns"][0] == "params.`seed`"


def test_one_task_has_no_mean_and_no_parallel_coordinates() -> None:
    listed, compared = views_of_run(config(("movies",)), None)
    assert listed.state["selectedColumns"][0] == "metrics.`test/movies`"
    assert metrics_drawn(compared, "Test accuracy by task") == ["test/movies"]


def test_tasks_with_their_own_metrics_are_named_with_them() -> None:
    _, compared = views_of_run(config(("movies", "entities")), None)
    names = [section["name"] for section in compared.state["compareRunSections"]]
    assert names[0] == "Test score by task (movies: accuracy, entities: f1)"


@pytest.mark.parametrize(
    ("tune", "first", "ascending"),
    [
        ({}, "best/skill/macro", False),
        ({"metric": "movies/accuracy"}, "best/movies", False),
        ({"metric": "tweets/nll"}, "best/nll/tweets", True),
        ({"metric": "macro/score", "mode": "min"}, "best/macro", True),
    ],
)
def test_trials_are_sorted_by_what_is_searched_for(tune: dict[str, Any], first: str, ascending: bool) -> None:
    listed, drawn = views_of_study(config(("movies", "tweets"), **tune))
    assert (listed.key, drawn.key, listed.charts, drawn.charts) == (
        "trials-first",
        "values-first",
        False,
        True,
    )
    assert (listed.state["orderByKey"], listed.state["orderByAsc"]) == (f"metrics.`{first}`", ascending)
    columns = listed.state["selectedColumns"]
    assert columns[:2] == ["tags.`outcome`", f"metrics.`{first}`"]
    assert columns[-1] == "params.`loss.soft`"
    assert len(columns) == len(set(columns))


def test_a_view_is_kept_as_mlflow_keeps_its_own() -> None:
    view, _ = views_of_run(config(("movies",)), None)
    kept = json.loads(view.tag(7))
    assert (kept["name"], kept["createdAt"]) == (view.title, 7)
    assert json.loads(kept["state"]) == view.state


def test_six_tasks_fit_into_a_tag() -> None:
    tasks = tuple(f"a-task-with-a-long-name-{number}" for number in range(6))
    space = {f"tasks.{task}.loss.weight": {"uniform": [0, 1]} for task in tasks}
    settings = config(tasks, space=space)
    for view in (*views_of_run(settings, None), *views_of_study(settings)):
        assert len(view.tag(10**13)) < 20_000, view.key  # MLflow's limit of an experiment's tag


def test_an_address_opens_the_pages_of_model_training() -> None:
    address = urlsplit("http://here/" + page("7", "students-first", charts=True)).fragment
    path, _, query = address.partition("?")
    assert path == "/experiments/7/runs"
    assert parse_qs(query) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        "viewStateShareKey": ["students-first"],
    }
    assert Path(page("7")).name == "runs?workflowType=machine_learning"
