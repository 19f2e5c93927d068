"""The rows of an ablation: each has one ingredient more than the row before it."""

from __future__ import annotations

from typing import Any

from benchmarks.ablation import FIRST, rows_of


def config() -> dict[str, Any]:
    return {
        "name": "run",
        "tasks": {
            "a": {"data": {"path": "csv", "unlabelled": {"path": "csv"}}, "transfer": "all"},
            "b": {"data": {"path": "csv"}},
        },
        "students": {"tiny": {"model": "m", "train": {"epochs": 9}}, "half": {"init_from": "t"}},
        "train": {"task_focus": "gap", "batch_size": 16},
    }


def test_each_row_adds_one_ingredient() -> None:
    rows = rows_of(config(), "tiny")
    assert list(rows) == [
        FIRST,
        "+ unlabelled texts",
        "+ texts of other tasks",
        "+ the config's epochs",
        "+ hidden states",
        "+ worst task first",
    ]
    has = [
        (
            "unlabelled" in row["tasks"]["a"]["data"],
            "transfer" in row["tasks"]["a"],
            "epochs" in row["students"]["tiny"]["train"],
            row.get("stages") != [],
            "task_focus" in row["train"],
        )
        for row in rows.values()
    ]
    assert has == [
        (False, False, False, False, False),
        (True, False, False, False, False),
        (True, True, False, False, False),
        (True, True, True, False, False),
        (True, True, True, True, False),
        (True, True, True, True, True),
    ]


def test_only_the_first_row_has_a_baseline_and_all_have_one_student() -> None:
    rows = rows_of(config(), "tiny")
    assert ["baselines" in row for row in rows.values()] == [False] + 5 * [True]
    assert {tuple(row["students"]) for row in rows.values()} == {("tiny",)}
    assert rows["+ worst task first"] == config() | {
        "students": {"tiny": config()["students"]["tiny"]},
        "baselines": [],
    }


def test_the_config_given_is_not_changed() -> None:
    given = config()
    rows_of(given, "tiny")
    assert given == config()
