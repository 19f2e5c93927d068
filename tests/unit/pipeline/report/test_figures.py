"""Figures are there, of the right size, not blank, and leave matplotlib as it was."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from pipeline.report.build import build
from pipeline.report.figures import (
    DPI,
    INK,
    LARGEST,
    PAIRS,
    WIDTH,
    Confusions,
    _confusion,
    _curves,
    _reliability,
    _retention,
    draw,
)
from pipeline.report.types import RunFacts, TaskResults
from tests.unit.pipeline.hand_results import (
    answers,
    hand_task,
    some_entities,
    some_facts,
    some_marks,
    some_numbers,
    some_run,
    some_task,
)


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


def test_a_task_that_no_student_learns_has_no_figures() -> None:
    tasks, facts = some_run()
    report = build(tasks, facts)
    drawn = draw(report, {**tasks, "tweets": replace(tasks["tweets"], students={}, supervised={})}, facts)
    assert not [name for name in drawn if "tweets" in name]
    assert "reliability-movies.png" in drawn


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


# ---------------------------------------------------------------- standard errors, the ensemble


def test_retention_has_each_models_standard_error_and_the_ensembles_band() -> None:
    tasks = {"movies": hand_task(80, 60, 90, 100)}
    report = build(tasks, some_facts(["large"], ["half"]))
    (axes,) = _retention(report, {"half": "#0072b2"}).axes
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    ends = [np.array(bar.lines[2][0].get_segments())[0, :, 0] for bar in bars]
    errors = report.tasks["movies"].standard_errors
    for (low, high), share, error in zip(
        ends, (0.8, 0.6), (errors.students["half"], errors.supervised["half"]), strict=True
    ):
        assert (low + high) / 2 == pytest.approx(share / 0.9)
        assert (high - low) / 2 == pytest.approx(error / 0.9)
    (band,) = axes.collections[-1].get_paths()
    assert np.ptp(np.asarray(band.vertices)[:, 0]) == pytest.approx(2 * errors.ensemble / 0.9)


def test_curves_show_the_ensembles_validation_score_where_it_is_known() -> None:
    tasks, facts = some_run()
    facts = replace(facts, ensemble_validation={"macro/score": 0.9, "movies/accuracy": 0.95})
    for known, heights in ((facts, [90.0, 95.0]), (replace(facts, ensemble_validation={}), [])):
        figure = _curves(tasks, known, {"half": "#0072b2", "tiny": "#d55e00"})
        assert figure is not None
        lines = [line for axes in figure.axes for line in axes.lines if line.get_color() == INK]
        assert [np.unique(line.get_ydata()).tolist() for line in lines] == [
            [pytest.approx(height)] for height in heights
        ]
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("ensemble" in names) == bool(heights)


def test_reliability_has_the_standard_error_of_each_bin() -> None:
    gold = np.zeros(20, dtype=np.int64)
    task = some_task(students=("half",), supervised=False, n=20)
    values = answers(np.where(np.arange(20) < 15, 0, 1))  # 75% right, all with one confidence
    task = replace(
        task,
        test=replace(task.test, labels=replace(task.test.labels, values=gold)),
        students={"half": values},
    )
    report = build({"movies": task}, some_facts(list(task.teachers), ["half"]))
    (axes,) = _reliability("movies", task, report, {"half": "#0072b2"}).axes
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    low, high = np.array(bars[-1].lines[2][0].get_segments())[0, :, 1]
    assert (high - low) / 2 == pytest.approx(np.sqrt(0.75 * 0.25 / 20))


# ---------------------------------------------------------------- confusion


def texts_of(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    title = [] if figure.get_suptitle() is None else [figure.get_suptitle()]
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    return [*title, *(text.get_text() for text in (*axes.texts, *ticks)), axes.get_title(loc="right")]


def test_pairs_by_count_then_share() -> None:
    counts = np.array([[6, 2, 0], [2, 2, 0], [0, 1, 9]])
    confusions = Confusions(("a", "b", "c"), counts, counts.sum(axis=1))
    assert confusions.pairs() == [(1, 0), (0, 1), (2, 1)]  # 2 of 4 before 2 of 8
    assert confusions.shares[1, 0] == 0.5


@pytest.mark.parametrize("count", [LARGEST, LARGEST + 1])
def test_beyond_25_labels_the_most_confused_pairs_are_shown(count: int) -> None:
    labels = tuple(f"intent_{i}" for i in range(count))
    gold = np.repeat(np.arange(count), 4)
    predicted = gold.copy()
    predicted[:3] = 7  # three of the four examples of intent_0
    predicted[4:6] = 0  # two of intent_1's
    task = some_task(labels=labels, n=len(gold), students=("half",))
    task = replace(
        task,
        test=replace(task.test, labels=replace(task.test.labels, values=gold)),
        students={"half": answers(predicted, count)},
    )
    figure = _confusion("banking", task, "half", "#0072b2")
    (axes,) = figure.axes
    texts = texts_of(figure)
    assert bool(axes.images) == (count <= LARGEST)
    assert ("intent_0 → intent_7" in texts) == (count > LARGEST)
    if count > LARGEST:
        assert [bar.get_width() for bar in axes.patches] == [3, 2]  # type: ignore[attr-defined]
        assert " 3 of 4 (75%)" in texts
        assert " 2 of 4 (50%)" in texts
        assert any("5 of 5 confusions" in text for text in texts)
    else:
        assert all(label in texts for label in labels)  # every label has its tick


def test_no_more_pairs_than_can_be_read_and_none_where_nothing_is_confused() -> None:
    many = some_task(labels=tuple(map(str, range(77))), n=2000, skill=2, students=("half",))
    (axes,) = _confusion("banking", many, "half", "#0072b2").axes
    assert len(axes.patches) == PAIRS
    right = replace(many, students={"half": answers(many.test.labels.values, 77)})
    assert "no two labels are confused" in texts_of(_confusion("banking", right, "half", "#0072b2"))


def test_entities_are_shown_without_o() -> None:
    gold = [0, 1, 2, 0, 0, 3, 3, 3]
    predicted = [0, 1, 2, 1, 0, 0, 1, 3]  # an O becomes B-PER; of three B-LOC one is O, one B-PER
    results = some_entities(gold, predicted, ["PER", "LOC"])
    confusions = Confusions.of(results, results.students["half"])
    assert confusions.labels == ("B-PER", "I-PER", "B-LOC", "I-LOC")
    assert confusions.counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert confusions.shares[2].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0])  # of all three
    texts = texts_of(_confusion("names", results, "half", "#0072b2"))
    assert texts[0] == "half on names\nentities only, without O"
    assert "O" not in texts
    assert "as O" in texts
    assert {"33%\n1", "33%"} <= set(texts)


def test_many_entity_types_are_shown_as_pairs_without_o() -> None:
    types = [f"T{i}" for i in range(18)]
    results = some_entities([0, 1, 3, 5], [1, 0, 5, 5], types)
    texts = texts_of(_confusion("names", results, "half", "#0072b2"))
    assert "B-T1 → B-T2" in texts
    assert not any("O →" in text or "→ O" in text for text in texts)
