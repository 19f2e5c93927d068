"""A group of seeds: which runs it makes, in what order, and what stops it. A stand-in plays the single run."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import group, run
from pipeline.config.load import load_config, parse_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.config.view import to_yaml
from pipeline.display.display import Display
from pipeline.errors import ConfigError, DivergedError, InterruptedRunError, LockedError
from pipeline.report.build import build
from pipeline.report.json_file import read, to_json
from pipeline.report.schema import GroupReport, Report
from pipeline.run_folder import locked
from tests.conftest import TinyRun
from tests.unit.pipeline.hand_results import hand_task, seeds_of, some_facts


@dataclass
class Calls:
    """What the group did: every single run's config, and Ray's starts."""

    runs: list[RunConfig] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    registered: list[str | None] = field(default_factory=list)
    trained: list[Mapping[Job, Path]] = field(default_factory=list)
    starts: int = 0
    fails_at: int | None = None
    interrupts_at: int | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def distil(
        config: RunConfig,
        display: Display,
        group: str | None,
        register: str | None,
        trained: Mapping[Job, Path],
    ) -> Report:
        calls.runs.append(config)
        calls.trained.append(trained)
        calls.groups.append(group)
        calls.registered.append(register)
        if config.seed == calls.fails_at:
            raise DivergedError("NaN", "Lower the learning rate.")
        facts = seeds_of(some_facts(["large"], ["half"]), config.seed + 1, group or "")[config.seed]
        report = build({"movies": hand_task(80 + config.seed, 70, 90, 100)}, facts)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "report.json").write_text(to_json(report))
        if config.seed == calls.interrupts_at:
            signal.raise_signal(signal.SIGINT)  # between two runs, none of which listens
        return report

    @contextmanager
    def connected(_: RunConfig) -> Iterator[None]:
        calls.starts += 1
        yield

    monkeypatch.setattr(run, "distil", distil)
    monkeypatch.setattr(group, "connected", connected)
    return calls


@pytest.fixture
def several(tiny_run: TinyRun, tmp_path: Path) -> dict[str, Any]:
    return {**tiny_run(), "name": "several", "runs_dir": str(tmp_path / "runs"), "seeds": [2, 0, 5]}


def test_configs_of_the_seeds_are_plain_ones(several: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(several)
    configs = group.seed_configs(config)
    assert list(configs) == [2, 0, 5]
    assert [one.name for one in configs.values()] == ["several-seed2", "several-seed0", "several-seed5"]
    for seed, one in configs.items():
        assert (one.seed, one.seeds, one.experiment) == (seed, (), "several")
        back = {"name": "several", "seed": 0, "seeds": (2, 0, 5), "tracking": config.tracking}
        assert one.model_copy(update=back) == config
        (tmp_path / "one.yaml").write_text(to_yaml(one))
        assert load_config(tmp_path / "one.yaml") == one  # so that it resumes by itself, too
    assert group.seed_configs(configs[2]) == {}


def test_an_experiment_of_the_groups_own_is_kept(several: dict[str, Any]) -> None:
    config = parse_config({**several, "tracking": {"experiment": "ours", "uri": "http://here:5000"}})
    one = group.seed_configs(config)[0]
    assert (one.experiment, one.tracking_uri) == ("ours", "http://here:5000")


def test_a_run_a_seed_one_ray_and_the_page(
    several: dict[str, Any], calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(several)
    of_seed_0 = {Job("half", "distilled"): Path("a-trial")}
    report = group.distil_seeds(config, Display(), register="ours", trained={0: of_seed_0})
    assert [run.seed for run in calls.runs] == [2, 0, 5]
    assert calls.groups == ["several"] * 3
    assert calls.registered == ["ours", None, None]  # one version, not one a seed
    assert calls.trained == [{}, of_seed_0, {}]
    assert calls.starts == 1
    folder = config.run_dir
    assert {file.name for file in folder.iterdir()} - {".lock"} == {"config.yaml", "group.json", "group.md"}
    assert read(folder / "group.json", GroupReport) == report
    assert report.tasks["movies"].students["half"].score.by_seed == (0.82, 0.8, 0.85)
    assert "± 2.5" in (folder / "group.md").read_text()
    assert load_config(folder / "config.yaml") == config
    printed = capsys.readouterr().out
    assert "seed 0 (2 of 3)" in printed
    assert "over 3 no test can give p below 0.25, take 8" in " ".join(printed.split())


def test_what_is_done_needs_no_ray(several: dict[str, Any], calls: Calls) -> None:
    config = parse_config(several)
    first = group.distil_seeds(config, Display())
    again = group.distil_seeds(config, Display())
    assert first == again
    assert calls.starts == 1
    assert len(calls.runs) == 6  # each looks by itself whether its data are the same


def test_a_failure_ends_the_group_and_the_same_command_goes_on(several: dict[str, Any], calls: Calls) -> None:
    config = parse_config(several)
    calls.fails_at = 0
    with pytest.raises(DivergedError):
        group.distil_seeds(config, Display())
    assert [run.seed for run in calls.runs] == [2, 0]
    assert not (config.run_dir / "group.json").exists()
    calls.fails_at = None
    assert group.distil_seeds(config, Display()).seeds == (2, 0, 5)
    assert calls.starts == 2


def test_a_signal_between_two_seeds_is_heard(several: dict[str, Any], calls: Calls) -> None:
    config = parse_config(several)
    calls.interrupts_at = 2
    with pytest.raises(InterruptedRunError) as caught:
        group.distil_seeds(config, Display())
    assert caught.value.exit_code == 130
    assert [run.seed for run in calls.runs] == [2]
    assert not (config.run_dir / "STOP").exists()


def test_a_group_may_grow(several: dict[str, Any], calls: Calls) -> None:
    group.distil_seeds(parse_config(several), Display())
    report = group.distil_seeds(parse_config({**several, "seeds": [2, 0, 5, 7]}), Display())
    assert report.seeds == (2, 0, 5, 7)
    assert calls.starts == 2


def test_another_config_is_refused(several: dict[str, Any], calls: Calls) -> None:
    group.distil_seeds(parse_config(several), Display())
    with pytest.raises(ConfigError, match=r"loss.temperature: 2.0 → 4.0"):
        group.distil_seeds(parse_config({**several, "loss": {"temperature": 4.0}}), Display())
    assert len(calls.runs) == 3


def test_the_folder_of_a_single_run_is_refused(several: dict[str, Any], calls: Calls) -> None:
    config = parse_config(several)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config.model_copy(update={"seeds": ()})))
    with pytest.raises(ConfigError, match="seeds"):
        group.distil_seeds(config, Display())
    assert calls.runs == []


def test_two_launches_of_one_group(several: dict[str, Any], calls: Calls) -> None:
    config = parse_config(several)
    with locked(config.run_dir), pytest.raises(LockedError):
        group.distil_seeds(config, Display())
    assert calls.runs == []
