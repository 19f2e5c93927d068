"""`data.options`, formats by ending, SQuAD's own files, and how cells that are empty are read."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.fields import SPLITS
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import TaskData, load_task
from pipeline.errors import DataError
from tests.unit.pipeline.data.test_json_documents import SQUAD

LABELS = ("x", "y")


def csv_text(delimiter: str = ",", header: bool = True, start: int = 0) -> str:
    rows = [f"text {i}{delimiter}{LABELS[i % 2]}\n" for i in range(start, start + 40)]
    return (f"text{delimiter}label\n" if header else "") + "".join(rows)


def load(folder: Path, name: str, content: str | bytes, **data: Any) -> TaskData:
    """A task whose three splits are files of the same content, but for the numbers in its texts."""
    kind, path = data.pop("kind", "text-classification"), data.pop("path", "csv")
    problem = data.pop("problem", "single_label")
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    section = {"path": path, "data_files": {"train": str(file)}, "holdout": 0.3, **data}
    task = TaskConfig.model_validate_json(
        json.dumps({"kind": kind, "problem": problem, "data": section}), strict=True
    )
    return load_task("mood", task)


def texts(data: TaskData) -> set[str]:
    return {text for split in SPLITS for text in data.splits[split].inputs["text"]}


def refusal(folder: Path, name: str, content: str | bytes, **data: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(folder, name, content, **data)
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("train.tsv", csv_text("\t"), {}),
        ("train.tsv.gz", gzip.compress(csv_text("\t").encode()), {}),
        ("train.csv", csv_text(";"), {"delimiter": ";"}),
        ("train.txt", csv_text("|"), {"sep": "|"}),
        ("train.csv", csv_text(header=False), {"names": ["text", "label"]}),
        ("train.csv", csv_text().encode("utf-16"), {"encoding": "utf-16"}),
    ],
)
def test_csv_in_other_forms(tmp_path: Path, name: str, content: str | bytes, options: dict[str, Any]) -> None:
    data = load(tmp_path, name, content, options=options)
    assert data.task.reading.labels == LABELS
    assert texts(data) == {f"text {i}" for i in range(40)}


def test_quotes_that_are_part_of_the_text(tmp_path: Path) -> None:
    data = load(tmp_path, "train.tsv", csv_text("\t") + '"open\tx\n', options={"quoting": 3})
    assert '"open' in texts(data)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("delimeter", "Did you mean 'delimiter'?"),
        ("converters", "Did you mean"),
        ("xyzzy", "It takes sep, delimiter"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(tmp_path: Path, option: str, remedy: str) -> None:
    error = refusal(tmp_path, "train.csv", csv_text(), options={option: ";"})
    assert error.cause == f"tasks.mood.data.options: csv has no option '{option}'"
    assert error.remedy.startswith(remedy)


def test_an_option_of_another_type_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "train.csv", csv_text(), options={"quoting": "none"})
    assert "Check data.options (quoting)" in error.remedy


@pytest.mark.parametrize(("delimiter", "shown"), [("\t", r'"\t"'), (";", '";"')])
def test_another_delimiter_is_guessed(tmp_path: Path, delimiter: str, shown: str) -> None:
    error = refusal(tmp_path, "train.csv", csv_text(delimiter))
    assert f"set data.options: {{delimiter: {shown}}}" in error.remedy


def test_json_under_the_name_of_csv(tmp_path: Path) -> None:
    assert refusal(tmp_path, "train.csv", '{"text": "a"}\n' * 3).remedy == (
        "The file looks like JSON: set data.path to json."
    )


@pytest.mark.parametrize("options", [{}, {"field": "data"}])
def test_squads_own_file(tmp_path: Path, options: dict[str, Any]) -> None:
    article = {**SQUAD["data"][0]}
    articles = [
        {
            "title": f"Cats {i}",
            "paragraphs": [{**article["paragraphs"][0], "context": f"The cat sat {i} times."}],
        }
        for i in range(20)
    ]
    content = json.dumps({"version": "v2.0", "data": articles})
    data = load(tmp_path, "train.json", content, path="json", kind="question-answering", options=options)
    sizes = {split: len(data.splits[split]) for split in SPLITS}
    assert sum(sizes.values()) == 60
    assert data.task.reading.labelled(
        data.splits["test"].labels
    ).all()  # the question without answers stays in train
    answers = [one for split in SPLITS for one in data.splits[split].inputs["answers"]]
    assert sorted(map(tuple, answers)) == [()] * 40 + [("cat",)] * 20


def test_columns_of_json(tmp_path: Path) -> None:
    content = json.dumps({"text": [f"text {i}" for i in range(40)], "label": list(LABELS) * 20})
    assert texts(load(tmp_path, "train.json", content, path="json")) == {f"text {i}" for i in range(40)}


def test_a_broken_line_of_json(tmp_path: Path) -> None:
    error = refusal(tmp_path, "train.jsonl", '{"text": "a", "label": "x"}\n{"text": "b",}\n', path="json")
    assert error.cause.startswith(f"tasks.mood.data: {tmp_path / 'train.jsonl'}:2:14: ")


def test_rows_that_look_like_logs_of_chats_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {i}", "label": LABELS[i % 2], "type": "user", "message": {"a": "b"}}
        for i in range(40)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert len(texts(load(tmp_path, "train.jsonl", content, path="json"))) == 40


# ---------------------------------------------------------------- empty cells


@pytest.mark.parametrize("labels", [("x", "y"), ("0", "1")])
def test_an_empty_cell_is_a_row_without_a_label(tmp_path: Path, labels: tuple[str, str]) -> None:
    rows = "".join(f"text {i},{labels[i % 2]}\n" for i in range(40))
    data = load(tmp_path, "train.csv", f"text,label\nnone,\n{rows}")
    assert data.task.reading.labels == labels
    assert "none" in data.splits["train"].inputs["text"]
    assert "mood: 1 example of train without a label, taught by the teachers alone" in data.notes


def test_an_empty_cell_among_numbers(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{i / 8}\n" for i in range(40))
    data = load(tmp_path, "train.csv", f"text,label\nnone,\n{rows}", problem="regression")
    assert "mood: 1 example of train without a label, taught by the teachers alone" in data.notes


def test_a_column_of_csv_that_nobody_reads_may_be_of_any_form(tmp_path: Path) -> None:
    """pandas reads in parts, and a column that is numbers in the first one must not be texts in the second."""
    rows = [f"text {i},{'xy'[i % 2]},{i if i < 11_000 else 'zz'},,\n" for i in range(11_500)]
    data = load(tmp_path, "train.csv", "text,label,extra,,\n" + "".join(rows))
    assert sum(len(examples) for examples in data.all_examples()) == 11_500


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0"], ("0", "1")),
        (["10", "9", "+2"], ("2", "9", "10")),
        (["01", "02"], ("01", "02")),
        (["0.0", "1.0"], ("0", "1")),
        (["0.5", "1", "2e1"], ("0.5", "1", "20")),
        (["True", "false"], ("False", "True")),
        (["1", "0", "unsure"], ("0", "1", "unsure")),
        (["NA", "None"], ("NA", "None")),
    ],
)
def test_a_label_column_of_csv_is_what_all_of_its_cells_are(
    tmp_path: Path, cells: list[str], labels: tuple[str, ...]
) -> None:
    """Also where the first that differs is further down than pandas reads at once; an empty cell changes nothing."""
    *usual, last = cells
    rows = [f"text {i},{usual[i % len(usual)]}\n" for i in range(11_000)]
    rows += [f"more {i},{last}\n" for i in range(200)] + ["none,\n"]
    data = load(tmp_path, "train.csv", "text,label\n" + "".join(rows))
    assert data.task.reading.labels == labels
    assert sum(len(examples) for examples in data.all_examples()) == 11_201


def test_a_target_or_an_answer_in_csv_is_a_text_also_where_it_is_a_number(tmp_path: Path) -> None:
    sums = "source,target\n" + "".join(f"{i} and {i} is?,{2 * i if i else ''}\n" for i in range(60))
    data = load(tmp_path, "sums.csv", sums, kind="sequence-to-sequence")
    pairs = [
        pair
        for one in data.all_examples()
        for pair in zip(one.inputs["source"], one.inputs["target"], strict=True)
    ]
    assert ("7 and 7 is?", "14") in pairs
    rows = "question,context,answers\n" + "".join(
        f"Year {i}?,In {1800 + i} it rained.,{1800 + i}\n" for i in range(60)
    )
    data = load(tmp_path, "years.csv", rows, kind="question-answering", max_length=48)
    assert ["1807"] in [answers for one in data.all_examples() for answers in one.inputs["answers"]]


def test_an_archive_of_several_splits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "all.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.csv", csv_text())
        archive.writestr("test.csv", csv_text())
    error = refusal(tmp_path, "all.zip", file.read_bytes())
    assert error.cause == f"tasks.mood.data: {file} has several files: train.csv, test.csv"


@pytest.mark.parametrize(
    ("content", "remedy"),
    [(b"PAR1\xff\x00", "set data.path to parquet"), (b"\x1f\x8b\x08\xff", "give it the name train.csv.gz")],
)
def test_other_formats_under_the_name_of_csv(tmp_path: Path, content: bytes, remedy: str) -> None:
    assert remedy in refusal(tmp_path, "train.csv", content).remedy


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    error = refusal(tmp_path, "train.csv", csv_text(), data_files={"train": str(tmp_path / "more")})
    assert error.cause == f"tasks.mood.data.data_files: {tmp_path / 'more'} is a folder"


def test_an_empty_cell_of_a_test_set_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\na,x\nb,\nc,\n")
    files = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    data = load(tmp_path, "train.csv", csv_text(), data_files=files)
    assert list(data.splits["test"].inputs["text"]) == ["a"]
    assert "mood: 2 of 3 examples of test dropped: they have no label" in data.notes
