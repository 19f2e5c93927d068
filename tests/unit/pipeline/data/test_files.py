"""Local data files: each mistake is reported by file and line, with a remedy that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import DataConfig
from pipeline.data.files import broken_json, check_files, files_of, missing_remedy
from pipeline.errors import DataError

CSV = "text,label\ngood,x\nbad,y\n"


def refusal(folder: Path, content: str | bytes, name: str = "train.csv", **options: Any) -> DataError:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    data = DataConfig(path="csv", data_files={"train": str(file)}, options=options)
    with pytest.raises(DataError) as caught:
        check_files("tasks.mood.data", data)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


def accepted(folder: Path, content: str, name: str = "train.csv", **options: Any) -> None:
    (folder / name).write_text(content)
    check_files(
        "tasks.mood.data", DataConfig(path="csv", data_files={"train": str(folder / name)}, options=options)
    )


# ---------------------------------------------------------------- rows of csv


@pytest.mark.parametrize(
    ("text", "line", "cause", "remedy"),
    [
        (
            "text,label\na,x\nso, so,y\n",
            3,
            "3 fields, the header has 2",
            "Put a field that holds a comma into quotes",
        ),
        ("text,label\na,x\nb\n", 3, "1 fields, the header has 2", "Complete that row"),
        ("text,label\na,x,\nb,y,\n", 2, "3 fields, the header has 2", "Put a field"),
        ('text,label\n"a,x\nb,y\n', 2, "the row goes on to line 3", 'A quote (") is left open in line 2'),
        ('text,label\na,x\n"b,y\n', 3, "1 fields", 'A quote (") is left open in line 3'),
        ('text,label\n"two\nlines",x\nb\n', 4, "1 fields", "Complete that row"),
        ("text,label,text\na,x,b\n", 1, "the column name 'text' stands twice", "Rename one of the two"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, text: str, line: int, cause: str, remedy: str) -> None:
    error = refusal(tmp_path, text)
    assert error.cause.startswith(f"{tmp_path / 'train.csv'}:{line}: ")
    assert cause in error.cause
    assert error.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ('text,label\n"so, so",x\n"two\nlines",y\n\n', {}),
        ("text;label\nso, so;x\n", {"delimiter": ";"}),
        ('text,label\n"open,x\n', {"quoting": 3}),
        ("a,x\nb,y\n", {"names": ["text", "label"]}),
        ("# a comment\ntext,label\na,x\n", {"skiprows": 1}),
    ],
)
def test_rows_are_checked_as_the_options_have_them(
    tmp_path: Path, text: str, options: dict[str, Any]
) -> None:
    accepted(tmp_path, text, **options)


def test_files_that_end_in_tsv_are_separated_by_tabs(tmp_path: Path) -> None:
    accepted(tmp_path, "text\tlabel\nso, so\tx\n", "train.tsv")
    assert "3 fields" in refusal(tmp_path, "text\tlabel\na\tb\tc\n", "train.tsv").cause


# ---------------------------------------------------------------- characters


@pytest.mark.parametrize(
    ("content", "line", "remedy"),
    [
        (CSV.encode() + "café,x\n".encode("latin-1"), 4, "{encoding: latin-1}"),
        (CSV.encode("utf-16"), 1, "{encoding: utf-16}"),
        (b"PK\x03\x04\xff\xfe", 1, "a zip archive or a spreadsheet"),
    ],
)
def test_what_is_not_utf8_is_named_with_what_it_may_be(
    tmp_path: Path, content: bytes, line: int, remedy: str
) -> None:
    error = refusal(tmp_path, content)
    assert error.cause == f"{tmp_path / 'train.csv'}:{line}: not UTF-8"
    assert remedy in error.remedy


def test_an_encoding_that_does_not_exist(tmp_path: Path) -> None:
    assert refusal(tmp_path, CSV, encoding="latin-99").cause == (
        "tasks.mood.data.options.encoding: there is no 'latin-99'"
    )


# ---------------------------------------------------------------- which files


def test_a_file_that_is_missing_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(DataError) as caught:
        files_of("data", DataConfig(path="csv", data_files={"train": str(tmp_path / "trian.csv")}))
    assert caught.value.cause == f"data.data_files: no file {tmp_path / 'trian.csv'}"
    assert f"Did you mean {tmp_path / 'train.csv'}?" in caught.value.remedy
    assert "make demo" not in caught.value.remedy


def test_only_what_the_examples_need_is_answered_with_make_demo() -> None:
    assert "make demo" in missing_remedy(Path(".cache/assets/movies/train.csv"))
    assert "make demo" in missing_remedy(Path("/somewhere/.cache/assets/minilm-l6"))
    assert "make demo" not in missing_remedy(Path("assets/train.csv"))


def test_patterns_are_filled_in(tmp_path: Path) -> None:
    names = [f"part-{i}.csv" for i in range(3)]
    for name in names:
        (tmp_path / name).write_text(CSV)
    expected = {"train": [str(tmp_path / name) for name in names]}
    assert (
        files_of("data", DataConfig(path="csv", data_files={"train": f"{tmp_path}/part-*.csv"})) == expected
    )
    assert files_of("data", DataConfig(path=str(tmp_path), data_files={"train": "part-*.csv"})) == expected
    with pytest.raises(DataError, match="no file"):
        files_of("data", DataConfig(path=str(tmp_path), data_files={"train": "other-*.csv"}))


@pytest.mark.parametrize(
    ("path", "cause", "remedy"),
    [
        ("tsv", "there is no format 'tsv'", "Write path: csv"),
        ("jsonl", "there is no format 'jsonl'", "Write path: json"),
        ("./data", "no folder ./data", "working directory"),
        ("/no/such/folder", "no folder /no/such/folder", "working directory"),
    ],
)
def test_a_path_that_is_neither_format_nor_folder(path: str, cause: str, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        files_of("data", DataConfig(path=path, data_files={"train": "train.tsv"}))
    assert caught.value.cause == f"data.path: {cause}"
    assert remedy in caught.value.remedy


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}")
    with pytest.raises(DataError) as caught:
        files_of("data", DataConfig(path=str(file)))
    assert caught.value.cause == f"data.path: {file} is a file"
    assert f"path: json and data_files: {{train: {file}}}" in caught.value.remedy


# ---------------------------------------------------------------- json


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1}\n{"a": }\n', "2:7: Expecting value"),
        ('{"a" 1}\n{"a": 2}\n', "1:6: Expecting ':' delimiter"),
        ('[\n {"a": 1},\n {"a" 2}\n]\n', "3:7: Expecting ':' delimiter"),
        ('{\n "a": [1,\n 2\n', "4:1: Expecting ',' delimiter"),
        ('{"a": 1}\n\n[2]\n', "3: [2]: not an object, as the other lines are"),
    ],
)
def test_broken_json_is_named_by_line_and_column(tmp_path: Path, text: str, place: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    assert broken_json(str(file)) == f"{file}:{place}"


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '[{"a": 1}]', '{"a": [1]}', '{"a": 1}\n'])
def test_json_that_is_not_broken(tmp_path: Path, text: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    assert broken_json(str(file)) is None
