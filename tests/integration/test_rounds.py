"""Rounds by the command: a student that writes and goes on, one of labels that begins anew, again, killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.training.log import METRICS, read_metrics
from tests.integration.command import TUTELAGE, Command, started, tutelage, wait_until
from tests.integration.conftest import csv_section
from tests.integration.test_sequences import write_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
FIRST_S, SECOND_S = 400, 700
"""The longest that a launch may take."""
SHORT = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "head_learning_rate": 5e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ready_teachers: dict[str, dict[str, Any]]) -> Path:
    """A finished run of rounds, killed in its round 1 and begun again: a student of texts, and one of labels."""
    folder = tmp_path_factory.mktemp("rounds")
    config = yaml.safe_load(write_run(folder).read_text())
    config["tasks"]["mood"] = csv_section(folder / "mood", ("bad", "good"), 24)
    del config["teachers"]["beams"]
    config["teachers"]["greedy"] |= {"fine_tune": None, "preflight": "warn"}
    config["teachers"]["mood-ready"] = ready_teachers["mood-ready"]
    config["students"] = {
        "writer": {**config["students"]["small"], "tasks": ["translate"]},
        "judge": {"init_from": "mood-ready", "layers": 1, "tasks": ["mood"]},
    }
    config |= {"baselines": ["supervised"], "loss": {"text": 0.5}, "stages": []}
    config["train"] = {**config["train"], **SHORT, "checkpoint_steps": 2}
    config["rounds"] = {"count": 1, "share": 0.5, "sampling": {"max_new_tokens": 12}}
    config["cluster"] = {"cpus": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    metrics = folder / "runs" / "words-round1" / "checkpoints" / "writer-distilled" / METRICS
    with started(TUTELAGE, "train", "run.yaml", cwd=folder) as first:
        wait_until(
            lambda: bool(read_metrics(metrics)) or first.ended(), lambda: first.output, timeout_s=FIRST_S
        )
        first.send(signal.SIGKILL)
        first.wait(10)
    command = run(folder)
    assert command.process.returncode == 0, command.output
    (folder / "second.log").write_text(command.output)
    return folder


def run(folder: Path, *overrides: str) -> Command:
    return tutelage("train", "run.yaml", *overrides, cwd=folder, timeout_s=SECOND_S)


def content(folder: Path, name: str, file: str = "report.json") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "runs" / name / file).read_text())
    return report


def test_each_round_is_a_run_and_texts_are_scored_by_the_teachers(folder: Path) -> None:
    rounds = content(folder, "words", "rounds.json")
    first, second = content(folder, "words-round0"), content(folder, "words-round1")
    assert set(rounds["students"]) == {"writer", "judge"}
    for own in rounds["students"].values():
        scores = [one["macro"]["validation"]["mean"] for one in own["rounds"]]
        assert own["kept"] == scores.index(max(scores))
        assert len(scores) == 2, "round 1 is tried in any case"
    assert first["tasks"]["translate"]["ensemble"] == second["tasks"]["translate"]["ensemble"]
    assert set(second["teacher_forwards"].values()) == {0}, (
        "what they predicted and wrote in round 0 is stored"
    )
    assert {"write", "score"} <= second["timings_s"].keys()
    assert not {"write", "score"} & first["timings_s"].keys()
    curve = read_metrics(folder / "runs/words-round1/checkpoints/writer-distilled" / METRICS)
    assert any(line["metrics"].get("loss/on_policy/translate", 0) > 0 for line in curve)
    same = [one["tasks"]["translate"]["students"]["writer"]["supervised"] for one in (first, second)]
    assert same[0] == same[1], "the baseline of round 0 is taken over"
    page = (folder / "runs" / "words" / "rounds.md").read_text()
    assert "[words-round1](../words-round1/report.md)" in page


def test_the_command_again_trains_nothing_and_runs_no_teacher(folder: Path) -> None:
    before = content(folder, "words", "rounds.json")
    stored = sorted(path.name for path in (folder / "runs" / "_store").rglob("*.arrow"))
    command = run(folder)
    assert command.process.returncode == 0, command.output
    assert "computed" not in command.output
    assert command.output.count("nothing left to train") >= 2
    assert sorted(path.name for path in (folder / "runs" / "_store").rglob("*.arrow")) == stored
    after = content(folder, "words", "rounds.json")
    for name, own in before["students"].items():
        again = after["students"][name]
        assert [one["macro"] for one in again["rounds"]] == [one["macro"] for one in own["rounds"]]


def test_a_killed_round_goes_on_and_writes_no_text_again(folder: Path) -> None:
    output = (folder / "second.log").read_text()
    assert "of the round before: 72 from the store, 0 computed" in output, "round 1 was killed in training"
    round_0 = output.split("round 1 (")[0]
    assert "nothing left to train" in round_0


def test_another_share_is_refused(folder: Path) -> None:
    command = run(folder, "rounds.share=0.25")
    assert command.process.returncode == 2
    assert "rounds.share: 0.5 → 0.25" in command.output
