"""Examples are taken from disk exactly while all that decides them is unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import disk_cache
from pipeline.check import check_local_files
from pipeline.config.schema import RunConfig, TaskConfig
from pipeline.data import splits
from pipeline.data.identity import facts_of, is_read
from pipeline.data.splits import TaskData, load_task, read_task
from pipeline.errors import DataError, Errors
from tests.conftest import write_csv


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is kept, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_cache.cached, "__kwdefaults__", {"worth": 0.0})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were read, one entry a reading."""
    names: list[str] = []

    def read(name: str, config: TaskConfig) -> TaskData:
        names.append(name)
        return read_task(name, config)

    monkeypatch.setattr(splits, "read_task", read)
    return names


def rows(start: int, count: int) -> list[Mapping[str, object]]:
    return [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(start, start + count)]


def config_of(folder: Path, **changes: Any) -> TaskConfig:
    """A task of three csv files, written where they are missing, and of some texts without labels."""
    files = {}
    for place, split in enumerate(("train", "validation", "test")):
        file = folder / f"{split}.csv"
        if not file.exists():
            write_csv(file, rows(100 * place, 20))
        files[split] = str(file)
    more = folder / "more.csv"
    if not more.exists():
        write_csv(more, rows(300, 10))
    data = {
        "path": "csv",
        "data_files": files,
        "unlabelled": {"path": "csv", "data_files": str(more)},
        **changes.pop("data", {}),
    }
    return TaskConfig.model_validate({"kind": "text-classification", "data": data, **changes})


def test_unchanged_files_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    config = config_of(tmp_path)
    assert not is_read("mood", config)
    first, again = load_task("mood", config), load_task("mood", config)
    assert reads == ["mood"]
    assert is_read("mood", config)
    assert first.task == again.task
    assert first.notes == again.notes
    assert first.fingerprint() == again.fingerprint()
    for split, examples in first.splits.items():
        assert examples.inputs["text"] == again.splits[split].inputs["text"]


@pytest.mark.parametrize("name", ["train", "test", "more"])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str], name: str) -> None:
    config, file = config_of(tmp_path), tmp_path / f"{name}.csv"
    before = load_task("mood", config).fingerprint()
    file.write_text(file.read_text().replace("text ", "best "))
    assert not is_read("mood", config)
    assert load_task("mood", config).fingerprint() != before
    assert reads == ["mood", "mood"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"limit": {"train": 5}}},
        {"data": {"max_length": 16}},
        {"data": {"holdout": 0.2}},
        {"metric": "macro_f1"},
        {"data": {"labels": ["y", "x"]}},
    ],
)
def test_another_config_is_read_again(tmp_path: Path, reads: list[str], changes: dict[str, Any]) -> None:
    load_task("mood", config_of(tmp_path))
    load_task("mood", config_of(tmp_path, **changes))
    assert reads == ["mood", "mood"]


def test_what_examples_do_not_depend_on_may_change(tmp_path: Path, reads: list[str]) -> None:
    load_task("mood", config_of(tmp_path))
    load_task("mood", config_of(tmp_path, aggregation={"strategy": "mean"}, transfer="all"))
    assert reads == ["mood"]


def test_a_new_file_in_a_folder_is_seen(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    table = datasets.Dataset.from_list([dict(row) for row in rows(0, 40)])
    table.save_to_disk(str(saved))
    config = TaskConfig.model_validate({"kind": "text-classification", "data": {"path": str(saved)}})
    before = facts_of("mood", config)
    assert before is not None
    (saved / "more.txt").write_text("new")
    assert facts_of("mood", config) != before


@pytest.mark.parametrize(
    "data",
    [
        {"path": "stanfordnlp/imdb"},
        {"path": "csv", "data_files": {"train": "https://example.org/train.csv"}},
        {"path": "imdb", "data_files": {"train": "train.csv"}},
    ],
)
def test_data_from_elsewhere_are_read_each_time(data: dict[str, Any]) -> None:
    config = TaskConfig.model_validate({"kind": "text-classification", "data": data})
    assert facts_of("mood", config) is None
    assert not is_read("mood", config)


def test_a_bad_file_is_refused_each_time(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with (tmp_path / "train.csv").open("a") as stream:
        stream.write("one,two,three\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"train\.csv:22: 3 fields"):
            load_task("mood", config)
    assert not is_read("mood", config)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    load_task("mood", config)
    (tmp_path / "more.csv").unlink()
    with pytest.raises(DataError, match=r"no file .*more\.csv"):
        load_task("mood", config)
    run = RunConfig.model_construct(tasks={"mood": config}, teachers={}, students={}, runs_dir="runs")
    shown: list[Exception] = []
    errors = Errors(lambda number, error: shown.append(error))
    check_local_files(run, errors)
    assert len(shown) == 1


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "multi-label": (
        {"kind": "text-classification", "problem": "multi_label"},
        {"text": "text {}", "label": ["a", "b"]},
    ),
    "regression": (
        {"kind": "text-classification", "problem": "regression"},
        {"text": "text {}", "score": 1.5},
    ),
    "words": ({"kind": "token-classification"}, {"words": ["Ada", "{}"], "labels": ["B-PER", "O"]}),
    "question": (
        {"kind": "question-answering"},
        {
            "question": "who {}",
            "context": "Ada was first",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        },
    ),
    "writing": (
        {"kind": "sequence-to-sequence", "prefix": "translate: "},
        {"source": "one {}", "target": "un {}"},
    ),
}


def numbered(value: Any, number: int) -> Any:
    """A row of `KINDS` with its number in place of {}."""
    if isinstance(value, str):
        return value.replace("{}", str(number))
    if isinstance(value, list):
        return [numbered(one, number) for one in value]
    if isinstance(value, dict):
        return {key: numbered(one, number) for key, one in value.items()}
    return value + number if isinstance(value, float) else value


@pytest.mark.parametrize("name", KINDS)
def test_examples_of_every_kind_are_kept(name: str, tmp_path: Path, reads: list[str]) -> None:
    section, row = KINDS[name]
    lines = [json.dumps(numbered(row, number)) for number in range(60)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(lines))
    data: dict[str, Any] = {"path": "json", "data_files": {"train": str(file)}}
    if "score" in row:
        data["columns"] = {"label": "score"}
    config = TaskConfig.model_validate({**section, "data": data})
    first, again = load_task(name, config), load_task(name, config)
    assert reads == [name]
    assert first.task == again.task
    assert first.fingerprint() == again.fingerprint()
    assert first.facts() == again.facts()
