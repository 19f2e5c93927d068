"""Stage times of one launch and of several, on a clock of the test's own; the first step of a launch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import stages
from pipeline.errors import CorruptError
from pipeline.stages import EVERY_S, Stages, first_step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        stages, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now)
    )
    return clock


def test_every_second_belongs_to_one_stage(clock: SimpleNamespace) -> None:
    times = Stages()
    clock.now += 2
    times.begin("train")
    clock.now += 3.456
    times.begin("evaluate")
    clock.now += 1
    assert times.seconds() == {"start": 2, "train": 3.46, "evaluate": 1}
    clock.now += 1
    assert times.seconds()["evaluate"] == 2
    assert times.launches == 1


def test_launches_add_up(clock: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    first = Stages()
    clock.now += 1
    first.keep(file)
    first.begin("train")
    clock.now += 20
    first.end()  # stopped
    clock.now += 1000  # nobody runs it
    second = Stages()
    second.keep(file)
    clock.now += 2
    second.begin("train")
    clock.now += 5
    second.begin("evaluate")
    assert second.seconds() == {"start": 3, "train": 25, "evaluate": 0}
    assert second.launches == 2


def test_a_launch_that_is_killed_counts(clock: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    killed = Stages()
    killed.keep(file)
    killed.begin("train")
    for _ in range(35):
        clock.now += 1
        killed.tick()
    after = Stages()
    after.keep(file)
    assert 35 - EVERY_S - 1 <= after.seconds()["train"] <= 35


@pytest.mark.parametrize("content", ["", "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "timings.json"
    file.write_text(content)
    with pytest.raises(CorruptError, match=r"timings\.json") as caught:
        Stages().keep(file)
    assert "nothing else" in caught.value.remedy


def line(step: int, time: float) -> dict[str, Any]:
    return {"step": step, "time": time, "metrics": {}}


@pytest.mark.parametrize(
    ("trainings", "seconds"),
    [
        ([[line(1, 112.0), line(5, 113.0)], [line(1, 130.0)]], 12.0),
        (
            [[line(1, 50.0), line(5, 51.0), line(10, 120.0)]],
            None,
        ),  # begun by an earlier launch, resumed by this one
        ([[line(1, 50.0)], [line(1, 115.5)]], 15.5),  # the first of this launch's own
        ([[line(1, 50.0), line(10, 108.0)], [line(1, 130.0)]], None),
        ([[line(1, 50.0)]], None),
        ([], None),
    ],
)
def test_the_first_step_is_one_of_this_launch(
    trainings: list[list[dict[str, Any]]], seconds: float | None
) -> None:
    assert first_step(100.0, trainings) == seconds
