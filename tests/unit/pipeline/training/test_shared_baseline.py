"""Baselines that runs share: what decides one, and that one that is taken over is the one that was trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.batch import Examples, Ragged
from pipeline.config.fields import Split
from pipeline.config.load import parse_config
from pipeline.config.resolved import Job, resolve_config
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.data.transfer import load_tasks
from pipeline.run_folder import RESULT, job_folder
from pipeline.training.jobs import is_finished, read_result, train_jobs
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.plan import Plan, new_plan
from pipeline.training.result import PREDICTIONS
from pipeline.training.shared_baseline import TRAINED_BY, baseline_folder, publish, take
from pipeline.training.step import Workers
from tests.conftest import TinyRun
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.small_training import same_predictions

BARE = Job("bare", "supervised")


@pytest.fixture
def config(tiny_run: TinyRun) -> RunConfig:
    train = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "dropout": 0.1, "precision": "fp32"}
    return parse_config(tiny_run(train=train))


def folder_of(config: RunConfig, data: Mapping[str, TaskData] | None = None, student: str = "bare") -> Path:
    settings = resolve_config(config, facts_of(config)).students[student]
    start = Path(settings.model or config.teachers["mood-bert"].model)
    return baseline_folder(Path("root"), settings, start, data or load_tasks(config), config.seed)


def changed(config: RunConfig, *keys: str, value: Any) -> RunConfig:
    tree = config.model_dump(mode="json")
    node = tree
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return parse_config(tree)


# ---------------------------------------------------------------- what decides a baseline


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("loss", "soft"), 0.1),
        (("loss", "temperature"), 4.0),
        (("aggregation", "strategy"), "confidence"),
        (("teachers", "mood-bert", "fine_tune", "epochs"), 2),
        (("students", "cut", "layers"), 2),
        (("train", "checkpoint_steps"), 7),
        (("train", "max_failures"), 0),
        (("name",), "another"),
    ],
)
def test_what_labels_alone_do_not_read_leaves_a_baseline_as_it_is(
    config: RunConfig, keys: tuple[str, ...], value: Any
) -> None:
    assert folder_of(changed(config, *keys, value=value)) == folder_of(config)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("seed",), 1),
        (("train", "learning_rate"), 2e-3),
        (("train", "epochs"), 4),
        (("train", "dropout"), 0.0),
        (("train", "workers"), 2),
        (("loss", "task_weights"), {"mood": 2.0}),
        (("tasks", "mood", "data", "max_length"), 7),
        (("tasks", "mood", "data", "limit"), {"train": 20}),
        (("tasks", "tone", "data", "limit"), {"validation": 10}),
        (("tasks", "tone", "data", "limit"), {"test": 10}),
        (("students", "bare", "tasks"), ["mood"]),
    ],
)
def test_what_labels_alone_read_makes_another_baseline(
    config: RunConfig, keys: tuple[str, ...], value: Any
) -> None:
    assert folder_of(changed(config, *keys, value=value)) != folder_of(config)


def test_students_with_other_starts_have_other_baselines(config: RunConfig) -> None:
    assert folder_of(config, student="cut") != folder_of(config)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_another_label_makes_another_baseline(config: RunConfig, split: Split) -> None:
    data = load_tasks(config)
    examples = data["mood"].splits[split]
    values = examples.labels.values.copy()
    values[3] = 1 - values[3]
    labels = Ragged(values, examples.labels.counts)
    splits: dict[Split, Examples] = {**data["mood"].splits, split: replace(examples, labels=labels)}
    mended = {**data, "mood": replace(data["mood"], splits=splits)}
    assert folder_of(config, mended) != folder_of(config, data)


# ---------------------------------------------------------------- taken over


def trained(config: RunConfig) -> Plan:
    folders = {name: teacher.model for name, teacher in config.teachers.items()}
    plan = new_plan(config, facts_of(config), load_tasks(config), {}, folders)
    plan = replace(plan, jobs=(BARE,))
    train_jobs(plan, Workers())
    return plan


def test_a_baseline_that_is_taken_over_is_the_one_that_was_trained(config: RunConfig, tmp_path: Path) -> None:
    first = job_folder(trained(config).run_dir, BARE)
    shared, mine = tmp_path / "shared", job_folder(tmp_path / "other", BARE)
    assert take(shared, mine) is None
    assert not mine.exists(), "nothing was there"
    publish(first, shared, "tiny")
    assert take(shared, mine) == "tiny"
    assert is_finished(tmp_path / "other", BARE)
    facts, predictions = read_result(tmp_path / "other", BARE)
    expected, own = read_result(config.run_dir, BARE)
    assert facts == {**expected, TRAINED_BY: "tiny"}
    assert same_predictions(predictions, own)
    assert read_metrics(mine / METRICS) == read_metrics(first / METRICS)
    assert take(shared, mine) is None, "it is finished"


def test_a_baseline_that_has_begun_goes_on(config: RunConfig, tmp_path: Path) -> None:
    publish(job_folder(trained(config).run_dir, BARE), tmp_path / "shared", "tiny")
    mine = job_folder(tmp_path / "other", BARE)
    mine.mkdir(parents=True)
    assert take(tmp_path / "shared", mine) is None
    assert list(mine.iterdir()) == []


def test_the_first_that_publishes_a_baseline_is_named(config: RunConfig, tmp_path: Path) -> None:
    folder, shared = job_folder(trained(config).run_dir, BARE), tmp_path / "shared"
    publish(folder, shared, "tiny")
    publish(folder, shared, "later")
    assert take(shared, tmp_path / "mine") == "tiny"


@pytest.mark.parametrize("file", [RESULT, PREDICTIONS, METRICS])
def test_a_damaged_baseline_is_not_taken_over(
    config: RunConfig, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    publish(job_folder(trained(config).run_dir, BARE), shared, "tiny")
    if file == METRICS:
        (shared / file).unlink()
    else:
        data = np.frombuffer((shared / file).read_bytes(), np.uint8).copy()
        data[len(data) // 2] ^= 1
        (shared / file).write_bytes(data.tobytes())
    with caplog.at_level(logging.WARNING):
        assert take(shared, tmp_path / "mine") is None
    assert "the baseline is trained again" in caplog.text
    assert not (tmp_path / "mine").exists()
    assert not shared.exists()
