"""rounds.json and rounds.md out of made-up reports of several rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipeline.config.load import parse_config
from pipeline.report.build import build as build_report
from pipeline.report.json_file import to_json
from pipeline.report.rounds import (
    Made,
    RoundsReport,
    best_round,
    build,
    markdown,
    round_notes,
    still_rising,
    verdict,
)
from tests.conftest import TinyRun
from tests.unit.pipeline.hand_results import hand_task, some_facts


def made(number: int, validation: Sequence[float], test: Sequence[int]) -> Made:
    """A round of one student of one task of 1,000 test examples, of which it has so many right; one of each a seed."""
    facts = some_facts(["large"], ["half"])
    timings = {"train": 60.0, **({"write": 20.0, "score": 5.0} if number else {})}
    reports = [
        build_report(
            {"movies": hand_task(right, 700, 900, 1000)},
            replace(facts, name=f"r-round{number}-seed{seed}", seed=seed, timings_s=timings),
        )
        for seed, right in enumerate(test)
    ]
    return Made(reports, {"half": [{"macro/score": one, "movies/accuracy": one} for one in validation]})


def test_validation_decides_and_test_does_not() -> None:
    report = build("r", [made(0, [0.7], [800]), made(1, [0.75], [780]), made(2, [0.74], [900])])
    own = report.students["half"]
    assert own.kept == 1
    assert own.rounds[1].macro.gain.mean == pytest.approx(-0.02)
    assert own.rounds[1].tasks["movies"].test.mean == pytest.approx(0.78)
    assert own.rounds[2].seconds == {"train": 60.0, "write": 20.0, "score": 5.0}
    assert RoundsReport.model_validate_json(to_json(report)) == report


def test_a_draw_is_no_rise() -> None:
    assert best_round([0.5, 0.7, 0.7]) == 1
    first, same, higher = made(0, [0.7], [800]), made(1, [0.7], [900]), made(1, [0.701], [700])
    assert still_rising([first]) == ["half"]
    assert still_rising([first, same]) == []
    assert still_rising([first, higher]) == ["half"]
    assert still_rising([first, higher, made(2, [0.7005], [999])]) == [], "above the best, not the first"


def test_seeds_are_paired() -> None:
    rounds = [made(0, [0.7] * 3, [800, 810, 820]), made(1, [0.8, 0.7, 0.9], [810, 830, 850])]
    report = build("r", rounds)
    gain = report.students["half"].rounds[1].macro.gain
    assert gain.by_seed == pytest.approx([0.01, 0.02, 0.03])
    assert gain.p == 0.25
    assert report.students["half"].rounds[1].standard_error is None
    (text,) = verdict(report)
    assert "**half** keeps round 1" in text
    assert "+2.0 ± 1.0" in text
    assert "too few seeds to tell that from chance" in text


def test_the_page_says_where_rounds_gave_nothing() -> None:
    report = build("r", [made(0, [0.7], [800]), made(1, [0.6], [700])])
    page = markdown(report)
    assert "**half** keeps round 0: 1 round after it did not raise its validation score (70.0)." in page
    assert (
        "| **0 ([r-round0-seed0](../r-round0-seed0/report.md))**, kept | 70.0 | 80.0 | – | – | – | – | 60 |"
        in page
    )
    assert "Kept: [r-round0-seed0/students/half](../r-round0-seed0/students/half)." in page
    assert "| 60.0 | 70.0 | −10.0 | – | 20 | 5 | 60 |" in page


def test_notes_say_what_a_config_comes_to(tiny_run: TinyRun) -> None:
    run = {**tiny_run(), "rounds": {"count": 2}}
    (line,) = round_notes(parse_config(run))
    assert line == "rounds: runs tiny-round0 to tiny-round2, fewer where validation no longer rises"
    (line,) = round_notes(parse_config({**run, "seeds": [0, 1]}))
    assert line.startswith("rounds: groups tiny-round0")
    (line,) = round_notes(parse_config({**run, "rounds": {"after": "tiny-round0"}}))
    assert "a round after tiny-round0" in line
    assert round_notes(parse_config(tiny_run())) == []


def test_one_seed_has_the_error_of_the_examples() -> None:
    (text,) = verdict(build("r", [made(0, [0.7], [800]), made(1, [0.8], [830])]))
    assert "on test 83.0 against 80.0 after round 0 (+3.0; one seed, standard error of a score 1.2)." in text


def test_clear_gains_and_harm_are_named() -> None:
    before = made(0, [0.7] * 6, [800] * 6)
    helped = verdict(build("r", [before, made(1, [0.8] * 6, [810, 811, 812, 813, 814, 815])]))
    harmed = verdict(build("r", [before, made(1, [0.8] * 6, [790, 789, 788, 787, 786, 785])]))
    assert helped[0].endswith("the rounds helped.")
    assert harmed[0].endswith("the rounds did harm.")
