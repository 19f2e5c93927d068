"""Fine-tuning on a real local Ray: what becomes of the other teachers when one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipeline.config.recipe import TeacherRecipe
from pipeline.config.schema import ServingConfig, TaskConfig
from pipeline.data.splits import load_task
from pipeline.errors import ExhaustedError
from pipeline.training.fine_tune import WORK, Request, fine_tune_all
from pipeline.training.log import METRICS
from tests.conftest import TinyModel
from tests.integration.command import wait_until
from tests.integration.conftest import CPUS, csv_section

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


def test_an_error_ends_the_other_fine_tunings_with_a_checkpoint(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    data = load_task("mood", TaskConfig.model_validate(csv_section(tmp_path / "mood", ("bad", "good"), 96)))
    endless = TeacherRecipe(
        epochs=10_000,
        batch_size=6,
        learning_rate=1e-4,
        head_learning_rate=1e-4,
        early_stopping=None,
        checkpoint_steps=1_000_000,
    )
    folder, stop = tmp_path / "teacher", tmp_path / "STOP"
    model, serving = str(tiny_model("bert")), ServingConfig(cpus=1)
    request = Request("critic", model, None, folder, endless, serving, data.task)

    def fail_in_the_first_epoch(request: Request) -> None:
        if (folder / WORK / METRICS).exists() and (folder / WORK / METRICS).stat().st_size:
            raise ExhaustedError("another teacher failed", "See there.")

    with pytest.raises(ExhaustedError, match="another teacher failed"):
        fine_tune_all([request], {"mood": data}, stop, fail_in_the_first_epoch)
    assert stop.exists()
    assert list((folder / WORK).glob("step-*")), "killed without a checkpoint"
    wait_until(
        lambda: ray.available_resources().get("CPU") == CPUS,
        lambda: f"still holds CPUs: {ray.available_resources()}",
        20,
    )
