"""Cross-validated trials: what their trainings give together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import Examples, Ragged
from pipeline.config.fields import Split
from pipeline.data.splits import TaskData
from pipeline.training.result import read_facts, read_predictions, write_result
from tests.unit.pipeline.small_training import task_of
from tune.folds import Fold, mean_of, mean_scores, pooled, write_pooled


def finished(folder: Path, score: float, values: list[list[float]], seconds: list[float]) -> Path:
    folder.mkdir(parents=True)
    kept = {"macro/score": score, "mood/accuracy": score}
    write_result(folder, {"kept": kept, "epoch_seconds": seconds}, {"mood": np.array(values, np.float32)})
    return folder


def test_a_trials_result_is_that_of_its_folds_in_order(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "a", 0.5, [[1.0, 2.0]], [1.0, 2.0]),
        finished(tmp_path / "b", 0.8, [[3.0, 4.0], [5.0, 6.0]], [3.0]),
    ]
    write_pooled(tmp_path / "trial", folders)
    facts = read_facts(tmp_path / "trial")
    assert facts["kept"] == pytest.approx({"macro/score": 0.65, "mood/accuracy": 0.65})
    assert facts["epoch_seconds"] == [1.0, 2.0, 3.0]
    predictions = read_predictions(tmp_path / "trial")
    assert predictions["mood"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert mean_scores(folders[:1]) == {"macro/score": 0.5, "mood/accuracy": 0.5}


def data_of(validation: list[str], labels: list[int]) -> TaskData:
    def examples(texts: list[str], values: list[int]) -> Examples:
        keys = np.arange(len(texts), dtype=np.uint64)
        return Examples("mood", keys, {"text": texts}, Ragged.single(np.array(values)))

    splits: dict[Split, Examples] = {
        "train": examples(["t"], [0]),
        "validation": examples(validation, labels),
    }
    return TaskData(task_of("mood"), {**splits, "test": examples(["u"], [1])})


def test_pooled_validation_has_every_fold_in_order() -> None:
    folds = [
        Fold({"mood": data_of(texts, labels)}, {}, {}, {}, {})
        for texts, labels in ((["a", "b"], [0, 1]), (["c"], [1]))
    ]
    validation = pooled(folds)["mood"].splits["validation"]
    assert validation.inputs["text"] == ["a", "b", "c"]
    assert validation.labels.values.tolist() == [0, 1, 1]


def test_means_by_name() -> None:
    assert mean_of([{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 4.0}]) == {"a": 1.5, "b": 2.0}
