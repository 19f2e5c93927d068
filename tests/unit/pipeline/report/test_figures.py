"""Figures are there, of the right size, not blank, and leave matplotlib as it was."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from pipeline.report.build import build
from pipeline.report.figures import DPI, WIDTH, draw
from pipeline.report.types import RunFacts, TaskResults
from tests.unit.pipeline.hand_results import some_facts, some_marks, some_numbers, some_run, some_task


def drawn(tasks: dict[str, TaskResults], facts: RunFacts) -> dict[str, bytes]:
    return draw(build(tasks, facts), tasks, facts)


def ink(png: bytes) -> float:
    """Share of pixels that are not white."""
    image = imread(io.BytesIO(png), format="png")
    return float((image[..., :3].min(axis=2) < 0.9).mean())


def test_every_figure_is_drawn() -> None:
    before = dict(matplotlib.rcParams)
    figures = drawn(*some_run())
    assert set(figures) == {
        "retention.png",
        "curves.png",
        "reliability-movies.png",
        "reliability-tweets.png",
        *(f"confusion-{student}@{task}.png" for student in ("half", "tiny") for task in ("movies", "tweets")),
    }
    for name, png in figures.items():
        assert ink(png) > 0.01, f"{name} is blank"
    assert dict(matplotlib.rcParams) == before


def test_figures_have_a_readmes_width() -> None:
    figures = drawn(*some_run())
    for name in ("retention.png", "curves.png", "reliability-movies.png"):
        assert imread(io.BytesIO(figures[name]), format="png").shape[1] == pytest.approx(WIDTH * DPI, abs=1)


def test_same_numbers_same_bytes() -> None:
    assert drawn(*some_run()) == drawn(*some_run())


def test_students_have_their_own_colours() -> None:
    figures = drawn(*some_run())
    middle = {}
    for student in ("half", "tiny"):
        image = imread(io.BytesIO(figures[f"confusion-{student}@movies.png"]), format="png")
        middle[student] = tuple(np.median(image[image[..., :3].min(axis=2) < 0.5][:, :3], axis=0))
    assert middle["half"] != middle["tiny"]


def test_no_curves_no_figure() -> None:
    tasks, facts = some_run()
    assert "curves.png" not in drawn(tasks, replace(facts, curves={}))
    other = {"half": [{"step": 1, "epoch": 1, "metrics": {"loss/total": 0.5}}]}
    assert "curves.png" not in drawn(tasks, replace(facts, curves=other))


def test_curves_by_step_where_epochs_are_missing() -> None:
    tasks, facts = some_run()
    rows = [{"step": 5, "metrics": {"macro/score": 0.5}}, {"step": 10, "metrics": {"macro/score": 0.7}}]
    png = drawn(tasks, replace(facts, curves={"half": rows, "half-supervised": rows, "unknown": rows}))
    assert ink(png["curves.png"]) > 0.01


def test_one_student_without_baseline_on_one_task() -> None:
    task = some_task(students=("solo",), supervised=False)
    figures = drawn({"movies": task}, some_facts(list(task.teachers), ["solo"]))
    assert set(figures) == {
        "retention.png",
        "curves.png",
        "reliability-movies.png",
        "confusion-solo@movies.png",
    }


def test_a_regression_has_a_scatter_and_several_labels_have_neither() -> None:
    tasks = {"stars": some_numbers(), "moods": some_marks()}
    figures = drawn(tasks, some_facts([name for each in tasks.values() for name in each.teachers]))
    assert set(figures) == {
        "retention.png",
        "curves.png",
        "scatter-half@stars.png",
        "scatter-tiny@stars.png",
    }
    assert all(ink(png) > 0.005 for png in figures.values())


def test_awkward_labels_names_and_many_classes() -> None:
    prices = some_task(labels=("$5 to $10", "$10_{", "日本語", "x" * 80), n=60, students=("s" * 64,))
    banking = some_task(labels=tuple(f"intent_{i}" for i in range(77)), students=("s" * 64,), name="t" * 40)
    facts = some_facts([*prices.teachers, *banking.teachers], ["s" * 64])
    for name, png in drawn({"prices": prices, "t" * 40: banking}, facts).items():
        assert ink(png) > 0.005, name


def test_worthless_ensemble_and_better_students() -> None:
    task = some_task()
    gold = task.test.labels.values
    for ensemble in (-9 * np.eye(2)[gold], np.zeros((400, 2))):  # all wrong; no better than chance
        weak = replace(task, ensemble=ensemble)
        assert ink(drawn({"movies": weak}, some_facts(list(task.teachers)))["retention.png"]) > 0.01
