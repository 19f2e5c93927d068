"""Rounds: which runs they make, who takes part, when they end, what is refused. A stand-in plays the single run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import group, rounds, run
from pipeline.config.load import load_config, parse_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.config.view import to_yaml
from pipeline.display.display import Display
from pipeline.errors import ConfigError, DivergedError
from pipeline.report.build import build
from pipeline.report.json_file import read, to_json
from pipeline.report.rounds import RoundsReport
from pipeline.report.schema import Report
from pipeline.run_folder import job_folder
from pipeline.training.result import write_result
from tests.conftest import TinyRun
from tests.unit.pipeline.hand_results import hand_task, some_facts

STUDENTS = ("half", "tiny")


@dataclass
class Calls:
    """What was made: every single run's config, and Ray's starts. validation: by student, of each round."""

    validation: dict[str, Sequence[float]]
    runs: list[RunConfig] = field(default_factory=list)
    starts: int = 0
    fails_at: str | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls({"half": (0.5, 0.6, 0.6, 0.9), "tiny": (0.4, 0.3)})

    def distil(config: RunConfig, display: Display, group: str | None = None, *_: Any) -> Report:
        calls.runs.append(config)
        if config.name == calls.fails_at:
            raise DivergedError("NaN", "Lower the learning rate.")
        number = int(config.name.partition("-round")[2][0])
        names = list(config.students)
        facts = replace(some_facts(["large"], names), name=config.name, seed=config.seed, group=group)
        task = hand_task(70 + number, 70, 90, 100)
        report = build({"movies": replace(task, students=dict.fromkeys(names, task.students["half"]))}, facts)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "report.json").write_text(to_json(report))
        for name in names:
            score = calls.validation[name][number] + config.seed / 100
            kept = {"macro/score": score, "movies/accuracy": score}
            folder = job_folder(config.run_dir, Job(name, "distilled"))
            write_result(folder, {"kept": kept}, {"movies": np.zeros((1, 2), np.float32)})
        return report

    @contextmanager
    def connected(_: RunConfig) -> Iterator[None]:
        calls.starts += 1
        yield

    monkeypatch.setattr(run, "distil", distil)
    monkeypatch.setattr(rounds, "connected", connected)
    monkeypatch.setattr(group, "connected", connected)
    return calls


@pytest.fixture
def some(tiny_run: TinyRun, tmp_path: Path) -> dict[str, Any]:
    config = tiny_run()
    students = dict(zip(STUDENTS, config["students"].values(), strict=True))
    more = {"name": "some", "runs_dir": str(tmp_path / "runs"), "students": students}
    return {**config, **more, "rounds": {"count": 3}}


def test_configs_of_rounds_are_plain_ones(some: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config({**some, "baselines": ["supervised", "best_teacher"]})
    first, third = (rounds.round_config(config, number, ["tiny"]) for number in (0, 3))
    assert (first.name, first.rounds, list(first.students)) == ("some-round0", None, list(STUDENTS))
    assert first.baselines == ("supervised", "best_teacher")
    assert third.rounds is not None
    assert (third.name, third.rounds.after, list(third.students)) == ("some-round3", "some-round2", ["tiny"])
    assert third.baselines == ("supervised",)
    for one in (first, third):
        assert one.experiment == "some"
        assert not one.in_rounds
        (tmp_path / "one.yaml").write_text(to_yaml(one))
        assert load_config(tmp_path / "one.yaml") == one  # so that it resumes by itself, too


def test_a_seed_of_a_round_goes_on_from_its_own_seed(some: dict[str, Any]) -> None:
    config = rounds.round_config(parse_config({**some, "seeds": [3, 5]}), 2, STUDENTS)
    for seed, one in group.seed_configs(config).items():
        assert one.rounds is not None
        assert (one.name, one.rounds.after) == (f"some-round2-seed{seed}", f"some-round1-seed{seed}")


def test_a_student_takes_part_while_its_score_rises(some: dict[str, Any], calls: Calls) -> None:
    config = parse_config(some)
    report = rounds.distil_rounds(config, Display())
    assert [(one.name, list(one.students)) for one in calls.runs] == [
        ("some-round0", ["half", "tiny"]),
        ("some-round1", ["half", "tiny"]),
        ("some-round2", ["half"]),
    ]
    assert {name: own.kept for name, own in report.students.items()} == {"half": 1, "tiny": 0}
    assert calls.starts == 1
    assert read(config.run_dir / "rounds.json", RoundsReport) == report
    assert {file.name for file in config.run_dir.iterdir()} == {
        ".lock", "config.yaml", "rounds.json", "rounds.md"
    }  # fmt: skip
    assert load_config(config.run_dir / "config.yaml") == config


def test_no_more_rounds_than_count(some: dict[str, Any], calls: Calls) -> None:
    calls.validation = {"half": (0.1, 0.2, 0.3, 0.4), "tiny": (0.1, 0.2, 0.3, 0.4)}
    report = rounds.distil_rounds(parse_config({**some, "rounds": {"count": 2}}), Display())
    assert [own.kept for own in report.students.values()] == [2, 2]
    more = rounds.distil_rounds(parse_config(some), Display())
    assert [own.kept for own in more.students.values()] == [3, 3], "more rounds may be added"


def test_with_seeds_a_round_is_a_group_and_the_mean_decides(some: dict[str, Any], calls: Calls) -> None:
    calls.validation = {"half": (0.5, 0.4), "tiny": (0.4, 0.3)}
    config = parse_config({**some, "seeds": [0, 1]})
    report = rounds.distil_rounds(config, Display())
    names = [f"some-round{number}-seed{seed}" for number in (0, 1) for seed in (0, 1)]
    assert [one.name for one in calls.runs] == names
    (first, second) = report.students["half"].rounds
    assert first.macro.validation.by_seed == pytest.approx((0.5, 0.51))
    assert second.runs == ("some-round1-seed0", "some-round1-seed1")
    assert second.macro.gain.p == 0.5
    assert (config.run_dir.parent / "some-round1" / "group.md").exists()


def test_what_is_done_needs_no_ray_and_a_failure_goes_on(some: dict[str, Any], calls: Calls) -> None:
    config, calls.fails_at = parse_config(some), "some-round1"
    with pytest.raises(DivergedError):
        rounds.distil_rounds(config, Display())
    assert not (config.run_dir / "rounds.json").exists()
    calls.fails_at = None
    first = rounds.distil_rounds(config, Display())
    assert calls.starts == 2
    assert rounds.distil_rounds(config, Display()) == first
    assert calls.starts == 2


def test_another_config_is_refused(some: dict[str, Any], calls: Calls) -> None:
    rounds.distil_rounds(parse_config(some), Display())
    made = len(calls.runs)
    with pytest.raises(ConfigError, match=r"rounds.share: 0.5 → 0.7") as caught:
        rounds.distil_rounds(parse_config({**some, "rounds": {"share": 0.7}}), Display())
    assert "-round…" in caught.value.remedy
    assert len(calls.runs) == made
