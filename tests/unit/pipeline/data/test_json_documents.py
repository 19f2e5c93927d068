"""JSON that is one object: columns, rows under a key, SQuAD's nested form; and what is left to `datasets`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.json_documents import read_document
from pipeline.errors import DataError

SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Cats",
            "paragraphs": [
                {
                    "context": "The cat sat.",
                    "qas": [
                        {"id": 1, "question": "Who sat?", "answers": [{"text": "cat", "answer_start": 4}]},
                        {
                            "id": 2,
                            "question": "Who ran?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "cat", "answer_start": 4}],
                        },
                        {"id": 3, "question": "Who slept?"},
                    ],
                }
            ],
        }
    ],
}
ROWS = [{"text": "a", "label": "x"}, {"text": "b"}]
COLUMNS = {"text": ["a", "b"], "label": ["x", None]}


def read(folder: Path, content: Any, name: str = "train.json", **options: Any) -> dict[str, list[Any]] | None:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_document("data", str(file), options)


@pytest.mark.parametrize("options", [{}, {"field": "data"}])
@pytest.mark.parametrize("indent", [None, 2])
def test_squad(tmp_path: Path, options: dict[str, Any], indent: int | None) -> None:
    table = read(tmp_path, json.dumps(SQUAD, indent=indent), **options)
    assert table == {
        "id": ["1", "2", "3"],
        "title": ["Cats"] * 3,
        "question": ["Who sat?", "Who ran?", "Who slept?"],
        "context": ["The cat sat."] * 3,
        "answers": [{"text": ["cat"], "answer_start": [4]}, {"text": [], "answer_start": []}, None],
    }


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (("paragraphs", 0, "context"), "data[0].paragraphs[0] has no 'context'"),
        (("paragraphs", 0, "qas"), "data[0].paragraphs[0] has no 'qas'"),
        (("paragraphs", 0, "qas", 1, "question"), "data[0].paragraphs[0].qas[1] has no 'question'"),
        (
            ("paragraphs", 0, "qas", 0, "answers", 0, "answer_start"),
            "data[0].paragraphs[0].qas[0].answers[0] has no 'answer_start'",
        ),
    ],
)
def test_what_squad_lacks_is_named_by_its_place(tmp_path: Path, path: tuple[Any, ...], what: str) -> None:
    broken = copy.deepcopy(SQUAD)
    node: Any = broken["data"][0]
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    with pytest.raises(DataError) as caught:
        read(tmp_path, broken)
    assert caught.value.cause == f"{tmp_path / 'train.json'}: {what}"


@pytest.mark.parametrize("content", [COLUMNS, {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": None}}])
def test_columns(tmp_path: Path, content: Any) -> None:
    assert read(tmp_path, content) == COLUMNS
    assert read(tmp_path, {"version": 1, "rows": content}, field="rows") == COLUMNS


def test_rows_under_a_key(tmp_path: Path) -> None:
    content = {"version": 1, "rows": ROWS}
    assert read(tmp_path, content, field="rows") == COLUMNS
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert caught.value.remedy == "Set data.options: {field: rows}."
    with pytest.raises(DataError, match="Did you mean 'rows'"):
        read(tmp_path, content, field="row")
    with pytest.raises(DataError, match=r"rows\[1\] is 5, not an object"):
        read(tmp_path, {"rows": [{}, 5]}, field="rows")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', "train.json"),
        ('{"text": "a"}\n', "train.json"),
        ('[{"text": "a"}]', "train.json"),
        ('{"words": ["a"], "labels": ["O"]}\n', "train.jsonl"),
        ('{"text": \n', "train.json"),
    ],
)
def test_what_is_left_to_datasets(tmp_path: Path, content: str, name: str) -> None:
    assert read(tmp_path, content, name) is None
