"""What a run logs of its own accord. Its stages: tests/integration/test_command.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from pipeline.run import Run, _log_kept
from pipeline.training.jobs import job_folder, jobs_of
from pipeline.training.result import write_result
from tests.unit.pipeline.tracked import Noted, config


def test_every_student_and_baseline_has_the_scores_of_the_weights_it_keeps(tmp_path: Path) -> None:
    settings, tracker = config(tmp_path, "first"), Noted()
    for number, job in enumerate(jobs_of(settings)):
        folder = job_folder(settings.run_dir, job)
        kept = {"macro/score": 0.8 - number / 4, "movies/accuracy": 0.8 - number / 4}
        write_result(folder, {"kept": kept}, {"movies": torch.zeros(1, 2)})
    _log_kept(cast(Run, SimpleNamespace(config=settings, tracker=tracker)))
    assert tracker.logged == {
        "half-distilled": {"best/macro/score": 0.8, "best/movies/accuracy": 0.8},
        "half-supervised": {"best/macro/score": 0.55, "best/movies/accuracy": 0.55},
    }
