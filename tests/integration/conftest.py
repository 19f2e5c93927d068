"""What the integration tests share: a local Ray for the session, and whole runs on files that outlive one test.

`local_ray`       a Ray of this process's own with four CPUs, for tests that call the Ray shells directly
`ready_teachers`  sections of teachers that need no fine-tuning
`make_run`        factory: folder → a run's YAML file in it: two tasks, four teachers, two students
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import TinyModel, texts_of, write_csv

CPUS = 4


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray, started for the tests that need it in their own process, gone at the end of the session."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # with none given Ray would write one below the person's home, which other Rays then require
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace="tutelage-tests",
    )
    yield
    ray.shutdown()


def csv_section(
    folder: Path, labels: Sequence[str], train: int, validation: int = 24, test: int = 24, seed: int = 0
) -> dict[str, Any]:
    """A task section on csv files written to `folder`, with as many examples of each label."""
    total = train + validation + test
    columns = [texts_of(i, -(-total // len(labels)), seed) for i in range(len(labels))]
    rows = [
        {"text": text, "label": label}
        for texts in zip(*columns, strict=True)
        for text, label in zip(texts, labels, strict=True)
    ]
    files, start = {}, 0
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        files[split] = str(write_csv(folder / f"{split}.csv", rows[start : start + count]))
        start += count
    return {
        "kind": "text-classification",
        "data": {"path": "csv", "data_files": files, "max_length": 32},
    }


@pytest.fixture(scope="session")
def ready_teachers(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Teacher sections for tasks `mood` and `tone`: classifiers already, with their labels in another order.

    Their weights are random, the heads' fifty times larger than usual: their answers differ from text to text.
    """
    folder = tmp_path_factory.mktemp("ready")
    sections = {}
    for task, bare in {
        "mood": tiny_model("distilbert", ("good", "bad")),
        "tone": tiny_model("mpnet", ("plain", "bad", "good")),
    }.items():
        shutil.copytree(bare, folder / task)
        weights = load_file(folder / task / "model.safetensors")
        for name in weights:
            if name in ("classifier.weight", "classifier.out_proj.weight"):
                weights[name] *= 50
        save_file(weights, folder / task / "model.safetensors", metadata={"format": "pt"})
        # a head of random weights is no better than chance, which preflight would refuse
        sections[f"{task}-ready"] = {"task": task, "model": str(folder / task), "preflight": "warn"}
    return sections


class MakeRun(Protocol):
    """Writes run files."""

    def __call__(self, folder: Path, **sections: Any) -> Path:
        """`folder`/run.yaml, on data files in `folder`; `sections` replace whole sections.

        Tasks `mood` (bad, good) and `tone` (bad, good, plain); of each, a teacher `…-tuned` to be fine-tuned
        from a bare encoder and a teacher `…-ready` that is one already, of another architecture and with its
        labels in another order. Students `cut` (a layer of mood-tuned) and `bare` (a bert of one layer), both
        with dropout. Runs go to `folder`/runs.
        """
        ...


@pytest.fixture(scope="session")
def make_run(tiny_model: TinyModel, ready_teachers: dict[str, dict[str, Any]]) -> MakeRun:
    """See `MakeRun`."""

    def make(folder: Path, **sections: Any) -> Path:
        tuned = {
            "epochs": 2,
            "learning_rate": 1e-2,
            "head_learning_rate": 1e-2,
            "batch_size": 10,
            "early_stopping": None,
        }
        bert = str(tiny_model("bert"))
        run: dict[str, Any] = {
            "name": "first",
            "tasks": {
                "mood": csv_section(folder / "mood", ("bad", "good"), 96),
                "tone": csv_section(folder / "tone", ("bad", "good", "plain"), 96, seed=1),
            },
            "teachers": {
                "mood-tuned": {"task": "mood", "model": bert, "fine_tune": tuned, "preflight": "warn"},
                "tone-tuned": {"task": "tone", "model": bert, "fine_tune": tuned, "preflight": "warn"},
                **ready_teachers,
            },
            "aggregation": {"strategy": "confidence"},
            "students": {
                "cut": {"init_from": "mood-tuned", "layers": 1},
                "bare": {"model": str(tiny_model("bert", layers=1, seed=1))},
            },
            "train": {
                "epochs": 5,
                "batch_size": 6,
                "learning_rate": 2e-3,
                "head_learning_rate": 2e-3,
                "early_stopping": None,
                "checkpoint_steps": 7,
                "cpus_per_worker": 1,
            },
            "cluster": {"cpus": 2},
        }
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump({**run, **sections}, sort_keys=False))
        return file

    return make
