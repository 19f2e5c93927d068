"""Loading, splitting and ordering examples: no leak between splits, nothing dropped in silence, order from the seed."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import UNLABELLED, Examples, Ragged, content_keys
from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS, Split
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import TaskData, Variants, _hold_out, _separate, limited, load_task
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.text_classification import text_classification
from tests.conftest import CsvTask, write_csv

PROPERTY = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy
Row = tuple[str, object]


def rows_of(start: int, count: int, labels: Sequence[object] = ("x", "y")) -> list[Row]:
    return [(f"text {i}", labels[i % len(labels)]) for i in range(start, start + count)]


WHOLE: dict[str, list[Row]] = {"train": rows_of(0, 30), "validation": rows_of(30, 8), "test": rows_of(38, 8)}


def csv_files(
    folder: Path, splits: Mapping[str, Sequence[Row]], columns: tuple[str, str] = ("text", "label")
) -> dict[str, str]:
    return {
        split: str(write_csv(folder / f"{split}.csv", [dict(zip(columns, row, strict=True)) for row in rows]))
        for split, rows in splits.items()
    }


def load(path: object, **data: Any) -> TaskData:
    section = {"path": str(path), **data}
    task = TaskConfig.model_validate_json(
        json.dumps({"kind": "text-classification", "data": section}), strict=True
    )
    return load_task("mood", task)


def load_rows(folder: Path, splits: Mapping[str, Sequence[Row]], **data: Any) -> TaskData:
    return load("csv", data_files=csv_files(folder, splits), **data)


def refusal(path: object, **data: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, **data)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


def contents(data: TaskData, split: Split) -> list[tuple[str, str]]:
    """(text, label) of a split, in its order."""
    examples = data.splits[split]
    names = [data.task.reading.labels[i] for i in examples.labels.values]
    return list(zip(examples.inputs["text"], names, strict=True))


# ---------------------------------------------------------------- formats


def test_csv(tmp_path: Path) -> None:
    data = load_rows(tmp_path, WHOLE)
    assert data.task.reading.labels == ("x", "y")
    assert data.notes == ()
    for split in SPLITS:
        assert contents(data, split) == WHOLE[split]
    keys = content_keys("text-classification", {"text": [text for text, _ in WHOLE["test"]]})
    np.testing.assert_array_equal(data.splits["test"].keys, keys)
    assert [len(examples) for examples in data.all_examples()] == [30, 8, 8]
    assert data.distinct() == 46


def test_json_and_parquet_and_a_saved_folder_give_the_same(tmp_path: Path) -> None:
    from_csv = load_rows(tmp_path, WHOLE)
    tables = {
        s: {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        for s, rows in WHOLE.items()
    }
    json_files, parquet_files = {}, {}
    for split, table in tables.items():
        file = tmp_path / f"{split}.jsonl"
        lines = [json.dumps({"text": text, "label": label}) for text, label in WHOLE[split]]
        file.write_text("\n".join(lines))
        json_files[split] = str(file)
        parquet_files[split] = str(tmp_path / f"{split}.parquet")
        pq.write_table(pa.table(table), parquet_files[split])
    saved = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(table) for split, table in tables.items()}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    for data in (
        load("json", data_files=json_files),
        load("parquet", data_files=parquet_files),
        load(tmp_path / "saved"),
    ):
        assert data.task == from_csv.task
        for split in SPLITS:
            assert contents(data, split) == WHOLE[split]
            np.testing.assert_array_equal(data.splits[split].keys, from_csv.splits[split].keys)


def test_a_column_that_nobody_reads_is_not_decoded(tmp_path: Path) -> None:
    """Decoding audio needs a package that is not installed, and a picture takes longer than its text."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Value("string"), "clip": datasets.Audio()}
    )
    saved = {}
    for split, rows in WHOLE.items():
        clips: list[Any] = [{"path": None, "bytes": b"no audio"} for _ in rows]
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows], "clip": clips}
        table = pa.table(columns, schema=features.arrow_schema)
        saved[split] = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    with pytest.raises((ImportError, RuntimeError)):
        saved["train"][:]
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    data = load(tmp_path / "saved")
    for split in SPLITS:
        assert contents(data, split) == WHOLE[split]


def test_a_field_of_a_struct_is_a_column_with_a_dot(tmp_path: Path) -> None:
    """As the hub's translations are."""
    files = {}
    for split in SPLITS:
        rows = [{"translation": {"en": f"{split} {i}", "fr": f"fr {i}"}, "id": i} for i in range(4)]
        file = tmp_path / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(file)
    section: dict[str, Any] = {"path": "json", "data_files": files}

    def pairs(**columns: str) -> TaskData:
        data = DataConfig.model_validate({**section, "columns": columns})
        return load_task("fr", TaskConfig(kind="sequence-to-sequence", data=data))

    data = pairs(source="translation.en", target="translation.fr")
    assert list(data.splits["test"].inputs["source"]) == [f"test {i}" for i in range(4)]
    assert list(data.splits["test"].inputs["target"]) == [f"fr {i}" for i in range(4)]
    with pytest.raises(DataError) as caught:
        pairs(source="translation.english", target="translation.fr")
    assert "it has translation.en, translation.fr, id" in caught.value.cause
    with pytest.raises(DataError, match="not text") as caught:
        pairs(source="translation", target="translation.fr")
    assert "COLUMN.en or COLUMN.fr" in caught.value.remedy


def test_several_files_and_compressed_files(tmp_path: Path) -> None:
    files = csv_files(
        tmp_path,
        {"a": rows_of(0, 3), "b": rows_of(3, 3), "test": rows_of(6, 4), "validation": rows_of(10, 2)},
    )
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(Path(files["b"]).read_bytes()))
    data = load(
        "csv",
        data_files={
            "train": [files["a"], str(packed)],
            "test": files["test"],
            "validation": files["validation"],
        },
    )
    assert contents(data, "train") == rows_of(0, 6)


def test_a_folder_of_files(tmp_path: Path) -> None:
    csv_files(tmp_path, WHOLE)
    for data in (load(tmp_path), load(tmp_path, data_files={split: f"{split}.csv" for split in SPLITS})):
        assert [len(examples) for examples in data.all_examples()] == [30, 8, 8]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    files = csv_files(tmp_path, WHOLE)
    train = Path(files["train"])
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes())
    assert contents(load("csv", data_files=files), "train") == WHOLE["train"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    load_rows(tmp_path, WHOLE)
    assert contents(load_rows(tmp_path, {**WHOLE, "test": rows_of(50, 9)}), "test") == rows_of(50, 9)


def test_words_that_pandas_takes_for_nothing_are_texts(tmp_path: Path) -> None:
    texts = ["NA", "null", "None", "nan", "N/A", "", "007", "1.50", "True"]
    odd: list[Row] = [(text, "xy"[i % 2]) for i, text in enumerate(texts)]
    assert contents(load_rows(tmp_path, {**WHOLE, "test": odd}), "test") == odd


def test_words_that_pandas_takes_for_nothing_are_labels(tmp_path: Path) -> None:
    data = load_rows(tmp_path, {split: rows_of(100 * i, 6, ("NA", "null")) for i, split in enumerate(SPLITS)})
    assert data.task.reading.labels == ("NA", "null")


def test_texts_keep_every_character(tmp_path: Path) -> None:
    odd: list[Row] = [
        ('say "hi", twice', "x"),
        ("two\nlines", "y"),
        ("naïve café 😀", "x"),
        ("  spaces ", "y"),
    ]
    assert contents(load_rows(tmp_path, {**WHOLE, "test": odd}), "test") == odd


# ---------------------------------------------------------------- what is refused


def test_wrong_column_lists_the_columns_and_the_nearest(tmp_path: Path) -> None:
    error = refusal("csv", data_files=csv_files(tmp_path, WHOLE, ("txt", "label")))
    assert error.cause == "tasks.mood: split train has no column 'text'; it has txt, label"
    assert error.remedy == "Did you mean 'txt'? Set data.columns.text to the column that holds the text."


def test_wrong_column_in_one_split_names_the_split(tmp_path: Path) -> None:
    files = csv_files(tmp_path, WHOLE)
    write_csv(Path(files["validation"]), [{"text": "a", "lable": "x", "more": 1}])
    error = refusal("csv", data_files=files)
    assert error.cause == "tasks.mood: split validation has no column 'label'; it has text, lable, more"
    assert error.remedy.startswith("Did you mean 'lable'?")


def test_columns_are_mapped(tmp_path: Path) -> None:
    files = csv_files(tmp_path, WHOLE, ("sentence", "class"))
    data = load("csv", data_files=files, columns={"text": "sentence", "label": "class"})
    assert contents(data, "train") == WHOLE["train"]
    error = refusal("csv", data_files=files, columns={"txt": "sentence"})
    assert error.cause == "tasks.mood.data.columns: text-classification has no 'txt'"


def test_columns_that_nobody_reads_may_differ(tmp_path: Path) -> None:
    files = csv_files(tmp_path, WHOLE)
    rows = [{"id": i, "text": text, "label": label} for i, (text, label) in enumerate(WHOLE["train"])]
    write_csv(Path(files["train"]), rows)
    assert contents(load("csv", data_files=files), "train") == WHOLE["train"]


@pytest.mark.parametrize("path", ["csv", "json"])
def test_not_utf8_is_refused_with_file_and_line(tmp_path: Path, path: str) -> None:
    files = csv_files(tmp_path, WHOLE)
    train = Path(files["train"])
    train.write_bytes(train.read_bytes() + b'"caf\xe9",x\n')
    assert refusal(path, data_files=files).cause == f"{train}:32: not UTF-8"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("text,label\n", "has no rows"), ("text,label\n\n \n", "has no rows")],
)
def test_an_empty_file_is_refused(tmp_path: Path, split: str, text: str, said: str) -> None:
    files = csv_files(tmp_path, WHOLE)
    Path(files[split]).write_text(text)
    assert refusal("csv", data_files=files).cause == f"tasks.mood.data: {files[split]} {said}"


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_table_is_refused(tmp_path: Path, split: str) -> None:
    # `datasets` itself cannot read them: it fails on an index out of range
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    tables = {
        name: pa.Table.from_pylist([{"text": t, "label": v} for t, v in rows if name != split], schema)
        for name, rows in WHOLE.items()
    }
    files = {name: str(tmp_path / f"{name}.parquet") for name in tables}
    for name, table in tables.items():
        pq.write_table(table, files[name])
    assert refusal("parquet", data_files=files).cause == f"tasks.mood.data: {files[split]} has no rows"
    saved = tmp_path / "saved"
    datasets.DatasetDict({name: datasets.Dataset(table) for name, table in tables.items()}).save_to_disk(
        str(saved)
    )
    assert refusal(saved).cause == f"tasks.mood.data: {saved / split} is empty"


@pytest.mark.parametrize("path", ["parquet", "csv", "json"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, path: str) -> None:
    file = tmp_path / "train.data"
    file.write_text("this is\nno table\nat 'all\n")
    assert refusal(path, data_files={"train": str(file)}).cause.startswith("tasks.mood")


def test_a_split_emptied_by_the_others_is_refused(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {**WHOLE, "validation": WHOLE["test"]})
    assert refusal("csv", data_files=files).cause == (
        "tasks.mood: split validation has no examples left: 8 examples of validation dropped: they stand in a later split as well"
    )


def test_too_few_examples_to_hold_out_are_refused(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {"train": rows_of(0, 2)})
    assert (
        "split validation has no examples left: no validation split: 0"
        in refusal("csv", data_files=files).cause
    )


@pytest.mark.parametrize("path", ["csv", "json", "parquet", "text"])
def test_files_must_be_named(path: str) -> None:
    # else `datasets` reads whatever lies below the working directory
    assert refusal(path).cause == f"tasks.mood.data: {path} without data_files"


def test_no_such_file(tmp_path: Path) -> None:
    error = refusal("csv", data_files={"train": str(tmp_path / "absent.csv")})
    assert error.cause == f"tasks.mood.data.data_files: no file {tmp_path / 'absent.csv'}"


@pytest.mark.parametrize("path", ["somebody/something", "no-such-folder"])
def test_no_such_data_set(path: str) -> None:
    error = refusal(path)
    assert error.cause.startswith(f"tasks.mood.data: cannot load {path}: ")
    assert len(error.cause) < 400


@pytest.mark.parametrize(
    ("path", "text"), [("csv", 'text,label\na,b,c,d\n"x\n'), ("json", "{nope\n"), ("json", '{"a": 1}\n[2]\n')]
)
def test_a_file_that_does_not_parse(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], path: str, text: str
) -> None:
    file = tmp_path / "train.data"
    file.write_text(text)
    assert f"{file}:" in refusal(path, data_files={"train": str(file)}).cause
    assert capfd.readouterr().err == ""  # the command line prints two lines of its own and no more


@pytest.mark.parametrize(("texts", "row"), [(["a", None], 1), ([5, 6], 0), ([["a"], ["b"]], 0)])
def test_what_is_no_text_is_refused_with_its_row(tmp_path: Path, texts: list[object], row: int) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(
        "".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in zip(texts, "xy", strict=True))
    )
    error = refusal("json", data_files={"train": str(file)})
    assert error.cause == f"tasks.mood: row {row} of train: text is {texts[row]!r}, not text"


# ---------------------------------------------------------------- labels


def test_a_label_outside_the_space_is_refused_with_its_row(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {**WHOLE, "test": [*WHOLE["test"], ("new", "z")]})
    error = refusal("csv", data_files=files)
    assert error.cause == "tasks.mood: row 8 of test: label 'z' is not one of ['x', 'y']"
    assert "data.labels" in error.remedy


def json_files(folder: Path, splits: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """As `csv_files`, with labels of any JSON type."""
    files = {}
    for split, rows in splits.items():
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows))
        files[split] = str(file)
    return files


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_empty_label_is_refused(tmp_path: Path, split: str) -> None:
    files = json_files(tmp_path, {**WHOLE, split: [*WHOLE[split], ("more", "")]})
    assert f"row 8 of {split}: label ''" in refusal("json", data_files=files).cause


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_has_no_label_is_not_scored(tmp_path: Path, split: Split) -> None:
    data = load("json", data_files=json_files(tmp_path, {**WHOLE, split: [*WHOLE[split], ("more", None)]}))
    assert contents(data, split) == WHOLE[split]
    assert data.notes == (f"mood: 1 of 9 examples of {split} dropped: they have no label",)


def test_a_test_split_without_labels_is_not_used(tmp_path: Path) -> None:
    """As the hub has them of public leaderboards."""
    hidden: list[Row] = [(text, None) for text, _ in WHOLE["test"]]
    many = {**WHOLE, "train": rows_of(100, 200), "test": hidden}
    data = load("json", data_files=json_files(tmp_path, many), labels=["x", "y"])
    assert data.notes[0] == "mood: split test is not used: none of its 8 examples has a label"
    assert data.notes[1].startswith("mood: no test split: ")
    texts = {text for split in SPLITS for text in data.splits[split].inputs["text"]}
    assert not texts & {text for text, _ in WHOLE["test"]}


def test_rows_of_train_without_a_label_stay_and_are_counted(tmp_path: Path) -> None:
    rows: list[Row] = [
        (text, None if i % 3 == 0 else label) for i, (text, label) in enumerate(WHOLE["train"])
    ]
    data = load("json", data_files=json_files(tmp_path, {**WHOLE, "train": rows}))
    train = data.splits["train"]
    assert data.task.reading.labels == ("x", "y")
    assert (train.labels.values == UNLABELLED).tolist() == [label is None for _, label in rows]
    assert list(data.labelled_train().inputs["text"]) == [text for text, label in rows if label is not None]
    assert data.notes == ("mood: 10 examples of train without a label, taught by the teachers alone",)


def test_train_without_any_label_is_refused(tmp_path: Path) -> None:
    rows: list[Row] = [(text, None) for text, _ in WHOLE["train"]]
    error = refusal("json", data_files=json_files(tmp_path, {**WHOLE, "train": rows}), labels=["x", "y"])
    assert error.cause.startswith("tasks.mood: 30 of 30 examples of train have no label: rows 0, 1, 2, ")
    assert error.cause.endswith(" 9 and 20 more")


def test_what_has_no_label_is_not_held_out(tmp_path: Path) -> None:
    rows: list[Row] = [(text, None if i % 2 else label) for i, (text, label) in enumerate(rows_of(0, 200))]
    data = load("json", data_files=json_files(tmp_path, {"train": rows}), holdout=0.2, labels=["x", "y"])
    sizes = sizes_of(data)
    assert sum(sizes) == 200
    assert min(sizes) > 5
    assert all((data.splits[split].labels.values >= 0).all() for split in ("validation", "test"))
    assert (data.splits["train"].labels.values == UNLABELLED).sum() == 100


def test_given_labels_set_the_order(tmp_path: Path) -> None:
    data = load_rows(tmp_path, WHOLE, labels=["y", "spare", "x"])
    assert data.task.reading.labels == ("y", "spare", "x")
    assert contents(data, "test") == WHOLE["test"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["x", "y", "x"], "stands twice"), (["x"], "one label only"), ([], "no label at all")],
)
def test_a_label_space_that_is_none(tmp_path: Path, labels: list[str], said: str) -> None:
    assert said in refusal("csv", data_files=csv_files(tmp_path, WHOLE), labels=labels).cause


# ---------------------------------------------------------------- labels that are mistakes


@pytest.mark.parametrize(
    ("label", "cause"),
    [
        (" ", "an empty label in row 30 of train"),
        ("", "an empty label in row 30 of train"),
        (" x ", "differ by case or blanks alone: 'x' 15 times, ' x ' 1 times; see row 30"),
        ("X", "differ by case or blanks alone: 'x' 15 times, 'X' 1 times; see row 30"),
    ],
)
def test_a_label_that_is_certainly_a_mistake_is_refused_with_its_row(
    tmp_path: Path, label: str, cause: str
) -> None:
    rows: dict[str, list[Row]] = {**WHOLE, "train": [*WHOLE["train"], ("more", label)]}
    error = refusal("json", data_files=json_files(tmp_path, rows))
    assert error.cause.startswith("tasks.mood: ")
    assert cause in error.cause
    assert "data.labels" in error.remedy or "without a label" in error.remedy


def test_labels_that_are_listed_may_differ_by_case(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {**WHOLE, "train": [*WHOLE["train"], ("more", "X")]}
    data = load("json", data_files=json_files(tmp_path, rows), labels=["x", "y", "X"])
    assert data.task.reading.labels == ("x", "y", "X")
    assert data.notes == ()


def test_a_class_with_very_few_examples_is_noted(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {**WHOLE, "train": [*rows_of(100, 60), ("more", "yy")]}
    (note,) = load_rows(tmp_path, rows).notes
    assert (
        note == "mood: classes with very few examples in train: 'yy' 1; check that they are not typing errors"
    )


def test_small_sets_have_small_classes_and_no_note(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {**WHOLE, "train": rows_of(100, 12, ("a", "b", "c", "x", "y"))}
    assert load_rows(tmp_path, rows).notes == ()


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_a_label_that_is_an_object_is_refused(tmp_path: Path, problem: str) -> None:
    file = tmp_path / "train.jsonl"
    cell = {"name": "x"} if problem == "single_label" else [{"name": "x"}]
    file.write_text("".join(json.dumps({"text": f"text {i}", "label": cell}) + "\n" for i in range(9)))
    section = {"path": "json", "data_files": {"train": str(file)}}
    for labels in (None, ["x", "y"]):
        task = {"kind": "text-classification", "problem": problem, "data": {**section, "labels": labels}}
        with pytest.raises(DataError, match="'name': 'x'"):
            load_task("mood", TaskConfig.model_validate_json(json.dumps(task), strict=True))


def test_one_label_found_is_refused(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {split: rows_of(100 * i, 5, ["x"]) for i, split in enumerate(SPLITS)})
    assert "one label only: ['x']" in refusal("csv", data_files=files).cause


def numbered(labels: Sequence[object], test: Sequence[object] | None = None) -> dict[str, list[Row]]:
    spaces = {"train": labels, "validation": labels, "test": test or labels}
    return {split: rows_of(100 * i, 24, space) for i, (split, space) in enumerate(spaces.items())}


def test_numbers_are_their_own_names_in_numeric_order(tmp_path: Path) -> None:
    data = load_rows(tmp_path, numbered([10, 2, 1]))
    assert data.task.reading.labels == ("1", "2", "10")
    assert [name for _, name in contents(data, "test")[:4]] == [
        str([10, 2, 1][i % 3]) for i in range(200, 204)
    ]


def test_numbers_are_positions_among_given_names(tmp_path: Path) -> None:
    data = load_rows(tmp_path, numbered([0, 1, 2]), labels=["bad", "plain", "good"])
    assert {int(text.split()[1]) % 3: name for text, name in contents(data, "train")} == {
        0: "bad",
        1: "plain",
        2: "good",
    }


def test_numbers_are_never_positions_among_numbers(tmp_path: Path) -> None:
    # stars 1, 2, 3 in train, a 0 in test: 1 must not come to mean the label at position 1
    error = refusal("csv", data_files=csv_files(tmp_path, numbered([1, 2, 3], [0, 1, 2, 3])))
    assert error.cause == "tasks.mood: row 0 of test: label 0 is not one of ['1', '2', '3']"


def test_numbers_outside_the_given_names_are_refused(tmp_path: Path) -> None:
    files = csv_files(tmp_path, numbered([1, 2]))
    assert (
        "label 2 is not one of ['bad', 'good']"
        in refusal("csv", data_files=files, labels=["bad", "good"]).cause
    )


def test_truth_values_are_labels(tmp_path: Path) -> None:
    data = load_rows(tmp_path, numbered(["True", "False"]))
    assert data.task.reading.labels == ("False", "True")
    assert [name for _, name in contents(data, "test")[:2]] == ["True", "False"]


def saved_classes(folder: Path, names: list[str], numbers: Sequence[int]) -> Path:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    values = {
        "text": [f"text {i}" for i in range(60)],
        "label": [numbers[i % len(numbers)] for i in range(60)],
    }
    datasets.Dataset.from_dict(values, features).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("labels", [None, ["pos", "neg"], ["neg", "spare", "pos"]])
def test_class_labels_keep_their_names_in_any_order(tmp_path: Path, labels: list[str] | None) -> None:
    folder = saved_classes(tmp_path / "saved", ["neg", "pos"], [0, 1])
    data = load(folder, labels=labels)
    assert data.task.reading.labels == tuple(labels or ["neg", "pos"])
    for split in SPLITS:
        assert all(name == ("neg", "pos")[int(text.split()[1]) % 2] for text, name in contents(data, split))


def test_class_labels_that_are_not_in_the_given_space_are_refused(tmp_path: Path) -> None:
    folder = saved_classes(tmp_path / "saved", ["neg", "pos"], [0, 1])
    assert (
        "row 0 of train: label 0 is not one of ['pos', 'other']"
        in refusal(folder, labels=["pos", "other"]).cause
    )


def test_the_hubs_minus_one_is_no_label(tmp_path: Path) -> None:
    data = load(saved_classes(tmp_path / "saved", ["neg", "pos"], [0, 1, -1]))
    train = data.splits["train"]
    assert (train.labels.values == UNLABELLED).tolist() == [
        int(text.split()[1]) % 3 == 2 for text in train.inputs["text"]
    ]
    for split in ("validation", "test"):
        assert {name for _, name in contents(data, split)} == {"neg", "pos"}


def test_files_that_no_split_reads_are_refused(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {"train": WHOLE["train"], "more": WHOLE["validation"], "test": WHOLE["test"]})
    error = refusal("csv", data_files=files)
    assert error.cause == (
        "tasks.mood.data.data_files.more: no split reads these files; splits are train, validation, test"
    )
    assert "Write validation in place of more" in error.remedy


@pytest.mark.parametrize("name", ["dev", "val", "valid"])
@pytest.mark.parametrize("saved", [True, False])
def test_validation_may_have_another_usual_name(tmp_path: Path, saved: bool, name: str) -> None:
    if saved:
        data = load(saved_dict(tmp_path / "saved", **{"train": 40, name: 5, "test": 6}))
    else:
        data = load(
            "csv",
            data_files=csv_files(
                tmp_path, {"train": rows_of(0, 40), name: rows_of(40, 5), "test": rows_of(45, 6)}
            ),
        )
    assert sizes_of(data) == (40, 5, 6)
    assert data.notes == (f"mood: validation is the split {name!r} of the data set",)


def test_a_split_that_is_named_is_no_other_one(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {"train": WHOLE["train"], "dev": WHOLE["validation"], "test": WHOLE["test"]})
    data = load("csv", data_files=files, splits={"validation": "dev"})
    assert contents(data, "validation") == WHOLE["validation"]
    assert data.notes == ()
    both = load("csv", data_files=files, splits={"train": "train+dev"})
    assert sum(sizes_of(both)) == 46
    assert "no validation split" in both.notes[0]
    sliced = load("csv", data_files=files, splits={"train": "train[:50%]+dev", "validation": "train[50%:]"})
    assert len(sliced.splits["train"]) == 15 + 8


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0]])
def test_numbers_in_one_split_and_texts_in_another_are_refused(tmp_path: Path, labels: list[float]) -> None:
    """Their order is not known: the hub's 0 may be entailment, and contradiction is the first by name."""
    numbers: list[Any] = [(text, labels[i % 2]) for i, (text, _) in enumerate(WHOLE["validation"])]
    files = json_files(tmp_path, {**WHOLE, "validation": numbers})
    error = refusal("json", data_files=files)
    assert error.cause == (
        f"tasks.mood: labels of validation are numbers ({labels[0]!r}), those of train are texts ('x')"
    )
    data = load("json", data_files=files, labels=["y", "x"])
    assert {name for _, name in contents(data, "validation")[::2]} == {"y"}


def test_whole_floats_are_the_integers_that_they_were(tmp_path: Path) -> None:
    """pandas makes floats of a column of integers where one is missing."""
    rows: dict[str, Any] = {
        split: [(text, i % 2) for i, (text, _) in enumerate(some)] for split, some in WHOLE.items()
    }
    rows["test"] = [(text, float(label)) for text, label in rows["test"]]
    data = load("json", data_files=json_files(tmp_path, rows))
    assert data.task.reading.labels == ("0", "1")
    assert contents(data, "test") == [(text, str(int(label))) for text, label in rows["test"]]
    rows["train"] = [(text, float(label)) for text, label in rows["train"]]
    named = load("json", data_files=json_files(tmp_path, rows), labels=["no", "yes"])
    assert contents(named, "train")[:2] == [(WHOLE["train"][0][0], "no"), (WHOLE["train"][1][0], "yes")]


# ---------------------------------------------------------------- unlabelled examples


def more_texts(folder: Path, texts: Sequence[str], column: str = "text") -> str:
    return str(write_csv(folder / "more.csv", [{column: text, "other": 1} for text in texts]))


def test_unlabelled_examples_come_after_train(tmp_path: Path) -> None:
    more = more_texts(tmp_path, ["new 1", "new 2"])
    data = load_rows(tmp_path, WHOLE, unlabelled={"path": "csv", "data_files": more})
    train = data.splits["train"]
    assert list(train.inputs["text"]) == [text for text, _ in WHOLE["train"]] + ["new 1", "new 2"]
    assert train.labels.values[-2:].tolist() == [UNLABELLED] * 2
    assert contents(replace(data, splits={"train": data.labelled_train()}), "train") == WHOLE["train"]
    assert data.labelled_train().keys.tolist() == train.keys[:30].tolist()
    assert data.distinct() == 48
    assert data.notes == ("mood: 2 examples of train without a label, taught by the teachers alone",)
    assert data.fingerprint() != load_rows(tmp_path, WHOLE).fingerprint()


def test_unlabelled_examples_that_stand_elsewhere_are_dropped_and_counted(tmp_path: Path) -> None:
    old = [WHOLE[split][0][0] for split in SPLITS]
    more = more_texts(tmp_path, ["new 1", *old, "new 1", "new 2"])
    data = load_rows(tmp_path, WHOLE, unlabelled={"path": "csv", "data_files": more})
    assert list(data.splits["train"].inputs["text"])[30:] == ["new 1", "new 2"]
    assert sizes_of(data) == (32, 8, 8)
    assert "mood: 4 unlabelled examples dropped: they stand elsewhere as well" in data.notes


def test_a_second_text_that_is_not_named_is_noted(tmp_path: Path) -> None:
    rows = [{"text": f"one {i}", "text_pair": f"other {i}", "label": "xy"[i % 2]} for i in range(60)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    noted = "mood: column text_pair is not read: name it in data.columns, for pairs of texts"
    assert noted in load("json", data_files={"train": str(file)}).notes
    pairs = load("json", data_files={"train": str(file)}, columns={"text_pair": "text_pair"})
    assert noted not in pairs.notes


def test_unlabelled_examples_have_columns_splits_and_a_limit_of_their_own(tmp_path: Path) -> None:
    texts = [f"new {i}" for i in range(40)]
    more: dict[str, Any] = {
        "path": "csv",
        "data_files": more_texts(tmp_path, texts, "body"),
        "split": "train[:30]",
        "columns": {"text": "body"},
    }
    whole = load_rows(tmp_path, WHOLE, unlabelled=more)
    assert list(whole.splits["train"].inputs["text"])[30:] == texts[:30]
    few = load_rows(tmp_path, WHOLE, unlabelled={**more, "limit": 7}, limit={"train": 12})
    chosen = list(few.splits["train"].inputs["text"])[12:]
    assert len(chosen) == 7
    assert chosen == [text for text in texts[:30] if text in chosen]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"path": "csv"}, "tasks.mood.data.unlabelled: csv without data_files"),
        ({"path": "csv", "data_files": "no.csv"}, "tasks.mood.data.unlabelled.data_files: no file no.csv"),
        ({"path": "no-such-folder"}, "tasks.mood.data.unlabelled: cannot load no-such-folder"),
    ],
)
def test_unlabelled_examples_that_are_not_there(tmp_path: Path, more: dict[str, Any], cause: str) -> None:
    error = refusal("csv", data_files=csv_files(tmp_path, WHOLE), unlabelled=more)
    assert error.cause.startswith(cause)


def test_unlabelled_examples_without_their_column(tmp_path: Path) -> None:
    more = {"path": "csv", "data_files": more_texts(tmp_path, ["new"], "txt")}
    error = refusal("csv", data_files=csv_files(tmp_path, WHOLE), unlabelled=more)
    assert error.cause == "tasks.mood: split unlabelled has no column 'text'; it has txt, other"
    assert "Set data.unlabelled.columns.text" in error.remedy


# ---------------------------------------------------------------- pairs of texts, and other problems


def pair_files(folder: Path, columns: Sequence[str] = ("text", "text_pair", "label")) -> dict[str, str]:
    files = {}
    for split, rows in WHOLE.items():
        made = [dict(zip(columns, (text, f"pair of {text}", label), strict=True)) for text, label in rows]
        files[split] = str(write_csv(folder / f"{split}.csv", made))
    return files


def test_a_pair_is_read_where_a_column_is_named_for_it(tmp_path: Path) -> None:
    files = pair_files(tmp_path, ("first", "second", "label"))
    data = load("csv", data_files=files, columns={"text": "first", "text_pair": "second"})
    assert data.task.reading.fields == ("text", "text_pair")
    test = data.splits["test"]
    assert test.inputs["text_pair"][0] == f"pair of {test.inputs['text'][0]}"
    keys = content_keys("text-classification", {name: test.inputs[name] for name in ("text", "text_pair")})
    assert test.keys.tolist() == keys.tolist()
    alone = load("csv", data_files=files, columns={"text": "first"})
    assert alone.task.reading.fields == ("text",)
    assert not set(alone.splits["test"].keys.tolist()) & set(test.keys.tolist())


def test_a_pair_column_that_is_missing_is_refused(tmp_path: Path) -> None:
    error = refusal("csv", data_files=pair_files(tmp_path), columns={"text_pair": "text_pear"})
    assert error.cause == ("tasks.mood: split train has no column 'text_pear'; it has text, text_pair, label")
    assert error.remedy.startswith("Did you mean 'text_pair'? Set data.columns.text_pair")


def test_equal_first_texts_with_other_seconds_are_other_examples(tmp_path: Path) -> None:
    rows = [{"text": "same", "text_pair": f"other {i}", "label": "xy"[i % 2]} for i in range(20)]
    files = {
        split: str(write_csv(tmp_path / f"{split}.csv", rows[i :: len(SPLITS)]))
        for i, split in enumerate(SPLITS)
    }
    data = load("csv", data_files=files, columns={"text_pair": "text_pair"})
    assert data.distinct() == 20
    assert data.notes == ()


@pytest.mark.parametrize(
    ("problem", "metric", "known"),
    [
        ("single_label", "micro_f1", "accuracy, macro_f1"),
        ("multi_label", "accuracy", "micro_f1, macro_f1, subset_accuracy"),
        ("regression", "mse", "pearson, spearman"),
    ],
)
def test_a_metric_that_the_problem_has_not_is_refused(problem: str, metric: str, known: str) -> None:
    section = {"kind": "text-classification", "problem": problem, "metric": metric, "data": {"path": "csv"}}
    with pytest.raises(ConfigError) as caught:
        load_task("mood", TaskConfig.model_validate(section))
    assert caught.value.cause == f"tasks.mood.metric: text-classification ({problem}) has no {metric!r}"
    assert caught.value.remedy == f"It has {known}."


# ---------------------------------------------------------------- which split is which


def saved_dict(folder: Path, **sizes: int) -> Path:
    start, tables = 0, {}
    for split, size in sizes.items():
        rows = rows_of(start, size)
        tables[split] = datasets.Dataset.from_dict(
            {"text": [t for t, _ in rows], "label": [v for _, v in rows]}
        )
        start += size
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    return folder


def sizes_of(data: TaskData) -> tuple[int, ...]:
    return tuple(len(examples) for examples in data.all_examples())


def test_splits_by_other_names(tmp_path: Path) -> None:
    folder = saved_dict(tmp_path / "saved", fit=20, dev=6, exam=5)
    assert sizes_of(load(folder, splits={"train": "fit", "validation": "dev", "test": "exam"})) == (20, 6, 5)


@pytest.mark.parametrize("saved", [True, False])
def test_slices_of_splits(tmp_path: Path, saved: bool) -> None:
    files = csv_files(tmp_path, {"train": rows_of(0, 40), "test": rows_of(40, 5)})
    source = (
        {"path": saved_dict(tmp_path / "saved", train=40, test=5)}
        if saved
        else {"path": "csv", "data_files": files}
    )
    data = load(**source, splits={"train": "train[:75%]", "validation": "train[75%:]"})
    assert contents(data, "train") == rows_of(0, 30)
    assert contents(data, "validation") == rows_of(30, 10)
    assert contents(data, "test") == rows_of(40, 5)
    both = load(**source, splits={"train": "train[:20]+train[30:]", "validation": "train[20:30]"})
    assert contents(both, "train") == rows_of(0, 20) + rows_of(30, 10)


def test_a_slice_without_a_test_split_has_one_held_out(tmp_path: Path) -> None:
    files = csv_files(tmp_path, {"train": rows_of(0, 200)})
    data = load("csv", data_files=files, splits={"train": "train[:80%]", "validation": "train[80%:]"})
    train, validation, test = sizes_of(data)
    assert validation == 40
    assert train + test == 160
    assert test > 0


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"validation": "devv"}, "tasks.mood.data.splits.validation: no split 'devv'"),
        ({"train": "fit"}, "tasks.mood.data.splits.train: no split 'fit'"),
        ({"validation": "devv[:5]"}, "devv"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_a_split_that_is_named_must_be_there(
    tmp_path: Path, saved: bool, splits: dict[str, str], said: str
) -> None:
    files = csv_files(tmp_path, {"train": rows_of(0, 40), "dev": rows_of(40, 5)})
    source = (
        {"path": saved_dict(tmp_path / "saved", train=40, dev=5)}
        if saved
        else {"path": "csv", "data_files": files}
    )
    assert said in refusal(**source, splits=splits).cause


@pytest.mark.parametrize("saved", [True, False])
def test_without_train_there_is_nothing(tmp_path: Path, saved: bool) -> None:
    files = csv_files(tmp_path, {"dev": rows_of(0, 5)})
    source = (
        {"path": saved_dict(tmp_path / "saved", dev=5)} if saved else {"path": "csv", "data_files": files}
    )
    error = refusal(**source)
    assert error.cause == "tasks.mood.data: no split 'train' among dev"
    assert error.remedy == "Name it in data.splits.train."


def test_what_is_missing_is_held_out_and_that_is_said(tmp_path: Path) -> None:
    data = load_rows(tmp_path, {"train": rows_of(0, 400)}, holdout=0.2)
    train, validation, test = sizes_of(data)
    assert train + validation + test == 400
    assert 50 < validation < 110
    assert 40 < test < 110
    assert data.notes == (
        f"mood: no validation split: {validation} examples of train held out for it",
        f"mood: no test split: {test} examples of train held out for it",
    )


def test_holding_out_does_not_look_at_the_order_of_rows(tmp_path: Path) -> None:
    rows = rows_of(0, 200)
    forwards = load_rows(tmp_path / "a", {"train": rows})
    backwards = load_rows(tmp_path / "b", {"train": rows[::-1]})
    for split in SPLITS:
        assert contents(backwards, split) == contents(forwards, split)[::-1]


def test_more_rows_move_none_of_the_old(tmp_path: Path) -> None:
    few = load_rows(tmp_path / "a", {"train": rows_of(0, 100)})
    many = load_rows(tmp_path / "b", {"train": rows_of(0, 200)})
    for split in SPLITS:
        assert set(contents(few, split)) <= set(contents(many, split))


def test_texts_of_two_splits_are_dropped_and_counted(tmp_path: Path) -> None:
    data = load_rows(
        tmp_path,
        {"train": rows_of(0, 20), "validation": rows_of(18, 6), "test": [*rows_of(23, 5), ("text 0", "y")]},
    )
    assert sizes_of(data) == (17, 5, 6)
    assert ("text 0", "y") in contents(data, "test")  # whatever label it has in train
    assert data.notes == (
        "mood: 1 examples of validation dropped: they stand in a later split as well",
        "mood: 3 examples of train dropped: they stand in a later split as well",
    )


def test_repeated_texts_of_one_split_stay(tmp_path: Path) -> None:
    data = load_rows(tmp_path, {**WHOLE, "train": WHOLE["train"] * 2})
    assert sizes_of(data) == (60, 8, 8)
    assert data.distinct() == 46


# ---------------------------------------------------------------- splits as such


def examples_of(texts: Sequence[str]) -> Examples:
    keys = content_keys("text-classification", {"text": texts})
    return Examples("mood", keys, {"text": list(texts)}, Ragged.single(np.arange(len(texts))))


TASK = text_classification("mood", ("x", "y"), 64)
TEXT_LISTS = st.lists(st.integers(0, 30).map(str), min_size=1, max_size=40)


@PROPERTY
@given(
    st.fixed_dictionaries({"train": TEXT_LISTS}, optional={"validation": TEXT_LISTS, "test": TEXT_LISTS}),
    st.floats(0.01, 0.49),
)
def test_no_text_stands_in_two_splits_and_none_is_lost(texts: dict[Split, list[str]], share: float) -> None:
    notes: list[str] = []
    given_splits: dict[Split, Examples] = {split: examples_of(values) for split, values in texts.items()}
    splits = _separate(_hold_out(TASK, given_splits, share, notes), notes)
    kept = {split: set(splits[split].inputs["text"]) for split in SPLITS}
    assert not kept["train"] & kept["validation"]
    assert not kept["train"] & kept["test"]
    assert not kept["validation"] & kept["test"]
    assert kept["train"] | kept["validation"] | kept["test"] == {
        text for values in texts.values() for text in values
    }
    for split in SPLITS:  # rows stay whole
        np.testing.assert_array_equal(splits[split].keys, examples_of(splits[split].inputs["text"]).keys)


@PROPERTY
@given(st.lists(st.integers(0, 99).map(str), min_size=1, max_size=60, unique=True), st.data())
def test_a_larger_limit_keeps_what_a_smaller_one_has(texts: list[str], data: st.DataObject) -> None:
    limits = sorted(data.draw(st.lists(st.integers(1, 70), min_size=2, max_size=4)))
    shuffled = data.draw(st.permutations(texts))
    before: set[str] = set()
    for limit in limits:
        chosen = list(limited(examples_of(texts), limit).inputs["text"])
        assert len(chosen) == min(limit, len(texts))
        assert chosen == [text for text in texts if text in chosen]  # in their own order
        assert before <= set(chosen)
        assert set(limited(examples_of(shuffled), limit).inputs["text"]) == set(chosen)
        before = set(chosen)


def test_limits_are_a_fair_sample() -> None:
    chosen = limited(examples_of([str(i) for i in range(4000)]), 1000).labels.values
    assert abs(chosen.mean() - 2000) < 150
    assert 420 < (chosen < 2000).sum() < 580


def test_limits_by_split(tmp_path: Path) -> None:
    few = load_rows(tmp_path, WHOLE, limit={"train": 5, "test": 3})
    more = load_rows(tmp_path, WHOLE, limit={"train": 12, "test": 300})
    assert (sizes_of(few), sizes_of(more)) == ((5, 8, 3), (12, 8, 8))
    assert set(contents(few, "train")) < set(contents(more, "train"))


def test_a_limit_on_train_does_not_change_what_is_held_out(tmp_path: Path) -> None:
    whole = load_rows(tmp_path, {"train": rows_of(0, 200)})
    limited = load_rows(tmp_path, {"train": rows_of(0, 200)}, limit={"train": 20})
    assert contents(whole, "test") == contents(limited, "test")
    assert contents(whole, "validation") == contents(limited, "validation")


def test_csv_task_is_what_it_says(csv_task: CsvTask) -> None:
    section = csv_task(train=20, validation=0, test=6, max_length=16)
    assert set(section["data"]["data_files"]) == {"train", "test"}
    with Path(section["data"]["data_files"]["train"]).open() as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["label"] for row in rows) == {"bad": 10, "good": 10}
    assert len({row["text"] for row in rows}) == 20


# ---------------------------------------------------------------- folds


def test_every_labelled_example_is_validated_on_in_one_fold(tmp_path: Path) -> None:
    extra = more_texts(tmp_path, ["unlabelled a", "unlabelled b"])
    rows = {**WHOLE, "train": [*WHOLE["train"], WHOLE["train"][0]]}  # one text twice
    data = load_rows(tmp_path, rows, unlabelled={"path": "csv", "data_files": extra})
    labelled = sorted(rows["train"] + rows["validation"])
    folds = [data.fold(number, 4) for number in range(4)]
    assert sorted(pair for fold in folds for pair in contents(fold, "validation")) == labelled
    for fold in folds:
        train = fold.labelled_train()
        assert not set(train.keys) & set(fold.splits["validation"].keys), (
            "also of the text that is there twice"
        )
        assert len(train) + len(fold.splits["validation"]) == len(labelled)
        assert len(fold.splits["validation"]) in (9, 10, 11)
        assert list(fold.splits["train"].inputs["text"])[-1].startswith("text"), "validation's come last"
        assert {"unlabelled a", "unlabelled b"} <= set(fold.splits["train"].inputs["text"])
        assert fold.splits["test"] is data.splits["test"]
        assert fold.fingerprint() != data.fingerprint()
    assert data.fold(1, 4).fingerprint() == folds[1].fingerprint()


def test_folds_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    other = {split: list(reversed(rows)) for split, rows in WHOLE.items()}
    a, b = (load_rows(tmp_path / name, rows) for name, rows in (("a", WHOLE), ("b", other)))
    for number in range(3):
        assert set(contents(a.fold(number, 3), "validation")) == set(
            contents(b.fold(number, 3), "validation")
        )


def test_texts_of_other_tasks_stay_at_the_end_of_a_folds_train(tmp_path: Path) -> None:
    extra = more_texts(tmp_path, ["taken a", "taken b", "taken c"])
    data = load_rows(tmp_path, WHOLE, unlabelled={"path": "csv", "data_files": extra})
    fold = replace(data, taken=3).fold(0, 2)
    assert list(fold.splits["train"].inputs["text"])[-3:] == ["taken a", "taken b", "taken c"]
    assert len(fold.within(1).splits["train"]) == len(fold.splits["train"]) - 2


def test_data_with_variants_have_no_folds(tmp_path: Path) -> None:
    data = replace(load_rows(tmp_path, WHOLE), variants={"dropout": Variants(1, {}, 0.0, 0, ())})
    with pytest.raises(ValueError, match="mood has variants"):
        data.fold(0, 2)
