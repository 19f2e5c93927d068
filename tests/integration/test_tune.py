"""`tutelage tune` as a person runs it: real Ray Tune, concurrent trials, some ended early, one store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import tutelage
from tests.integration.conftest import MakeRun

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SPACE = {
    "loss.temperature": {"uniform": [1, 8]},
    "loss.soft": {"choice": [0.0, 0.5, 1.0]},
    "loss.task_weights.mood": {"loguniform": [0.3, 3]},
    "aggregation.teacher_weights.tone-ready": {"uniform": [0, 1]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
}
SEARCH = {"student": "bare", "trials": 5, "concurrency": 2, "space": SPACE}


def study_of(folder: Path) -> dict[str, Any]:
    """What the study's study.json says."""
    found: dict[str, Any] = json.loads((folder / "runs/first-study/study.json").read_text())
    return found


def test_a_search_from_config_to_winner(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path, tune=SEARCH, aggregation={"strategy": "mean"}, baselines=[])
    command = tutelage("--debug", "tune", "run.yaml", cwd=tmp_path, timeout_s=400)
    assert command.process.returncode == 0, command.output
    print(command.output)
    study = study_of(tmp_path)
    assert len(study["trials"]) == 5
