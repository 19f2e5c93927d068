"""Texts of other tasks: what becomes of them, that none leaks out of validation or test, and the same ones every time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.batch import Examples, Ragged
from pipeline.config.fields import SPLITS, Split
from pipeline.config.load import parse_config
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData, read_examples
from pipeline.data.transfer import converted, in_held_out, load_tasks, received
from pipeline.prepare import prepare
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.conftest import CsvTask, TinyRun, write_csv

PAIR = ("text", "text_pair")
LABELS = ("x", "y")
TEXTS = text_classification("texts", LABELS, 64)
MARKS = multi_label("marks", LABELS, 64)
NUMBERS = regression("numbers", 64)
PAIRS = text_classification("pairs", LABELS, 64, fields=PAIR)
WORDS = token_classification("words", ("O", "B-X"), 64)
TAGS = token_classification("tags", ("N", "V"), 64)
ANSWERS = question_answering("answers", 64)
Inputs = Mapping[str, Sequence[Any]]
NOTHING: Inputs = {}


def examples_of(task: Task, inputs: Inputs) -> Examples:
    columns = {role: Column(inputs.get(role, [])) for role in task.reading.fields}
    return read_examples(task, "train", columns)


def data_of(task: Task, train: Inputs, validation: Inputs = NOTHING, test: Inputs = NOTHING) -> TaskData:
    given: dict[Split, Inputs] = {"train": train, "validation": validation, "test": test}
    return TaskData(task, {split: examples_of(task, inputs) for split, inputs in given.items()})


def texts(*values: str) -> TaskData:
    return data_of(TEXTS, {"text": list(values)})


# ---------------------------------------------------------------- from kind to kind

PASSAGE = "It rains. Dr. Who leaves! 好。"


@pytest.mark.parametrize(
    ("source", "inputs", "task", "expected"),
    [
        (MARKS, {"text": ["Whole. Text", "b"]}, TEXTS, {"text": ["Whole. Text", "b"]}),
        (TEXTS, {"text": ["Whole. Text"]}, NUMBERS, {"text": ["Whole. Text"]}),
        (WORDS, {"words": [["a", "b", "."], ["北", "京"]]}, TEXTS, {"text": ["a b .", "北京"]}),
        (
            ANSWERS,
            {"question": ["Who?", "Why?"], "context": [PASSAGE, PASSAGE]},
            TEXTS,
            {"text": ["Who?", "Why?", "It rains.", "Dr.", "Who leaves!", "好。"]},
        ),
        (PAIRS, {"text": ["A. B"], "text_pair": ["C"]}, MARKS, {"text": ["A. B", "C"]}),
        (PAIRS, {"text": ["One. Two"], "text_pair": ["C"]}, MARKS, {"text": ["One.", "Two", "C"]}),
        (
            TEXTS,
            {"text": ["Don't go. 北京!"]},
            WORDS,
            {"words": [["Don", "'", "t", "go", "."], ["北", "京", "!"]]},
        ),
        (
            ANSWERS,
            {"question": ["Who?"], "context": ["A man."]},
            WORDS,
            {"words": [["Who", "?"], ["A", "man", "."]]},
        ),
        (TAGS, {"words": [["U.S.", "don't"]]}, WORDS, {"words": [["U.S.", "don't"]]}),
        (PAIRS, {"text": ["a"], "text_pair": ["b"]}, ANSWERS, {"question": ["a"], "context": ["b"]}),
        (ANSWERS, {"question": ["a"], "context": ["B. C"]}, PAIRS, {"text": ["a"], "text_pair": ["B. C"]}),
    ],
)
def test_texts_become_inputs_of_another_kind(
    source: Task, inputs: Inputs, task: Task, expected: Inputs
) -> None:
    assert converted(data_of(source, inputs), task.reading) == expected


@pytest.mark.parametrize("task", [TEXTS, MARKS, NUMBERS, WORDS, PAIRS, ANSWERS], ids=lambda task: task.name)
def test_every_kind_takes_texts_as_its_own_without_labels(task: Task) -> None:
    source = data_of(question_answering("other", 64), {"question": ["Is it so?"], "context": ["It is. Yes."]})
    own = data_of(task, task.reading.from_plain(*(["some text of its own"],) * len(task.reading.fields)))
    more, note = received(own, {"other": source})
    count = 1 if len(task.reading.fields) > 1 else 3
    assert len(more) == count
    assert not task.reading.labelled(more.labels).any()
    assert (
        more.keys.tolist() == examples_of(task, more.inputs).keys.tolist()
    )  # the store knows them by their content
    assert note == f"{count} texts of other tasks join train without labels: other {count}"


def test_what_has_no_words_is_dropped_and_counted() -> None:
    more, note = received(texts("own"), {"b": texts("", " ", "...", "😀", "fine")})
    assert more.inputs == {"text": ["fine"]}
    assert note.endswith("b 1; dropped: 4 without letters or digits")
    for task, own in ((TEXTS, {"text": ["own"]}), (WORDS, {"words": [["own"]]})):
        more, note = received(data_of(task, own), {"b": texts("...", "!")})
        assert len(more) == 0
        assert "0 texts of other tasks join train without labels: b 0" in note
    pairs = data_of(PAIRS, {"text": ["a", "!", "c"], "text_pair": ["?", "b", "d"]})
    more, _ = received(data_of(ANSWERS, {"question": ["own"], "context": ["own"]}), {"pairs": pairs})
    assert (more.inputs["question"], more.inputs["context"]) == (["c"], ["d"])


def test_each_text_is_taken_once_and_none_that_train_has() -> None:
    sources = {"a": texts("one", "one", "two"), "b": texts("two", "three", "OWN  text")}
    more, note = received(texts("own text"), sources)
    assert more.inputs["text"] == ["one", "two", "three"]
    assert note == ("3 texts of other tasks join train without labels: a 2, b 1; dropped: 3 duplicates")


# ---------------------------------------------------------------- no leak


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("task", "held_out", "source", "inputs"),
    [
        (TEXTS, {"text": ["A good film."]}, MARKS, {"text": ["A good film."]}),
        (TEXTS, {"text": ["a good film ."]}, MARKS, {"text": ["A good  film."]}),
        (TEXTS, {"text": ["A good film."]}, WORDS, {"words": [["A", "good", "film", "."]]}),
        (
            TEXTS,
            {"text": ["A good film."]},
            ANSWERS,
            {"question": ["A good film."], "context": ["A good film."]},
        ),
        (
            TEXTS,
            {"text": ["A good film. Or not?"]},
            MARKS,
            {"text": ["A good film."]},
        ),  # a part of the held-out text
        (
            TEXTS,
            {"text": ["A good film."]},
            MARKS,
            {"text": ["Seen. A good film. Or not?"]},
        ),  # the other way round
        (WORDS, {"words": [["It", "'s", "U.S.", "news"]]}, MARKS, {"text": ["It's U.S. news"]}),
        (WORDS, {"words": [["It", "is", "so", "."]]}, MARKS, {"text": ["It is so."]}),
        (PAIRS, {"text": ["a"], "text_pair": ["b"]}, ANSWERS, {"question": ["a"], "context": ["B"]}),
        (ANSWERS, {"question": ["a"], "context": ["b"]}, PAIRS, {"text": ["a"], "text_pair": ["b"]}),
    ],
)
def test_nothing_of_validation_or_test_is_taken(
    split: str, task: Task, held_out: Inputs, source: Task, inputs: Inputs
) -> None:
    own = {role: ["own"] if role != "words" else [["own"]] for role in task.reading.fields}
    data = data_of(task, own, **{split: held_out})
    more, note = received(data, {"b": data_of(source, inputs)})
    assert len(more) == 0
    assert note.endswith("b 0; dropped: 1 in validation or test")


def test_a_cut_passage_leaves_out_the_held_out_sentence_alone() -> None:
    data = data_of(TEXTS, {"text": ["own"]}, test={"text": ["it rained"]})
    passage = data_of(ANSWERS, {"question": ["Why?"], "context": ["We left early! It rained\n\nSo what?"]})
    more, _ = received(data, {"b": passage})
    assert more.inputs["text"] == ["Why?", "We left early!", "So what?"]


def test_a_text_that_shares_a_sentence_is_no_leak() -> None:
    data = data_of(TEXTS, {"text": ["own"]}, test={"text": ["Thank you. It was late."]})
    more, _ = received(data, {"b": texts("Thank you. It was early.")})
    assert len(more) == 1


def test_a_pair_with_a_held_out_passage_and_another_question_is_another_pair() -> None:
    data = data_of(
        ANSWERS, {"question": ["own"], "context": ["own"]}, test={"question": ["a"], "context": ["b"]}
    )
    more, _ = received(data, {"b": data_of(PAIRS, {"text": ["c"], "text_pair": ["b"]})})
    assert len(more) == 1


def test_held_out_is_found_among_others() -> None:
    data = data_of(TEXTS, {"text": ["own"]}, {"text": ["v"]}, {"text": ["t"]})
    there = in_held_out(
        TEXTS.reading, examples_of(TEXTS, {"text": ["a", "V", "own", "T ", "x. T"]}), data.splits
    )
    assert there.tolist() == [False, True, False, True, False]  # "x." is an initial


def test_load_tasks_loads_each(csv_task: CsvTask) -> None:
    run = {
        "name": "run",
        "tasks": {"mood": csv_task(), "tone": csv_task(("bad", "good", "plain"))},
        "teachers": {name: {"task": name, "model": "m"} for name in ("mood", "tone")},
        "students": {"s": {"model": "m"}},
    }
    found = load_tasks(parse_config(run))
    assert {name: data.task.reading.labels for name, data in found.items()} == {
        "mood": ("bad", "good"),
        "tone": ("bad", "good", "plain"),
    }


# ---------------------------------------------------------------- the same ones every time


def test_a_larger_limit_keeps_what_a_smaller_one_has() -> None:
    sources = {name: texts(*(f"{name} {i}" for i in range(300))) for name in ("a", "b", "c")}
    before: set[str] = set()
    for limit in (1, 50, 400, 900, 5000):
        more, note = received(texts("own"), sources, limit)
        chosen = list(more.inputs["text"])
        assert len(set(chosen)) == min(limit, 900)
        assert before <= set(chosen)
        before = set(chosen)
        assert (f"{900 - limit} beyond the limit" in note) == (limit < 900)
    more, note = received(texts("own"), sources, 300)
    shares = [sum(text.startswith(name) for text in more.inputs["text"]) for name in sources]
    assert min(shares) > 60  # over all sources together, each as likely
    assert f"a {shares[0]}, b {shares[1]}, c {shares[2]}; dropped: 600 beyond the limit" in note


def test_data_of_a_larger_limit_give_those_of_a_smaller_one(tmp_path: Path) -> None:
    def loaded(limit: int | None) -> TaskData:
        return load_tasks(config_of(tmp_path, {"mood": {"tasks": "all", "limit": limit}}))["mood"]

    every = loaded(None)
    assert every.taken == 39
    for limit in (1, 5, 20, 38):
        less, expected = every.within(limit), loaded(limit)
        assert less.taken == expected.taken == limit
        assert less.fingerprint() == expected.fingerprint()
        assert less.facts() == expected.facts()
        assert every.facts().within(limit) == replace(less.facts(), words=every.facts().words)
    assert all(every.within(limit) is every for limit in (39, 50, None))


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [f"text {i}" for i in range(100)]
    forwards, _ = received(texts("own"), {"b": texts(*rows)}, 20)
    backwards, _ = received(texts("own"), {"b": texts(*rows[::-1])}, 20)
    assert set(forwards.keys) == set(backwards.keys)


TASKS: dict[str, dict[str, Any]] = {
    "mood": {"kind": "text-classification"},
    "tone": {"kind": "text-classification"},
    "tags": {"kind": "token-classification"},
    "pairs": {"kind": "text-classification", "columns": {"text_pair": "text_pair"}},
}


def config_of(folder: Path, transfer: Mapping[str, Any], order: Sequence[str] = tuple(TASKS)) -> RunConfig:
    """Four tasks of ten training rows each, of which tags and tone share one text."""
    tasks: dict[str, Any] = {}
    for name in order:
        files = {}
        for split in SPLITS:
            rows: list[dict[str, Any]] = []
            for i in range(10 if split == "train" else 4):
                text = f"{name} {split} {i}" if (split, i) != ("train", 0) else f"{name[0]} shared"
                row = {"text": text, "text_pair": f"Second {name} {split} {i}.", "label": "xy"[i % 2]}
                words = {"words": text.split(), "labels": ["NV"[i % 2]] * len(text.split())}
                rows.append(words if name == "tags" else row)
            files[split] = str(folder / f"{name}-{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"path": "json", "data_files": files, "columns": TASKS[name].get("columns", {})}
        tasks[name] = {"kind": TASKS[name]["kind"], "data": data, "transfer": transfer.get(name)}
    teachers = {name: {"task": name, "model": "m"} for name in order}
    return parse_config(
        {"name": "r", "tasks": tasks, "teachers": teachers, "students": {"s": {"model": "m"}}}
    )


ALL = dict.fromkeys(TASKS, "all")


def shown(data: TaskData) -> list[str]:
    """The plain texts that joined train."""
    train = data.splits["train"]
    return [" | ".join(sides) for sides in zip(*data.task.reading.plain(train.inputs), strict=True)][10:]


def test_the_order_of_the_tasks_does_not_matter_and_nothing_is_passed_on(tmp_path: Path) -> None:
    forwards = load_tasks(config_of(tmp_path, ALL))
    backwards = load_tasks(config_of(tmp_path, ALL, list(TASKS)[::-1]))
    for name, data in forwards.items():
        assert data.splits["train"].keys.tolist() == backwards[name].splits["train"].keys.tolist()
        assert data.notes == backwards[name].notes
        assert data.fingerprint() == backwards[name].fingerprint()
    alone = load_tasks(config_of(tmp_path, {"mood": "all"}))  # tone and tags take nothing: mood is the same
    assert alone["mood"].splits["train"].keys.tolist() == forwards["mood"].splits["train"].keys.tolist()
    assert [len(alone[name].splits["train"]) for name in TASKS] == [10 + 39, 10, 10, 10]
    assert shown(forwards["mood"])[:2] == ["p shared", "pairs train 1"]
    assert not any(
        "validation" in text or "test" in text for data in forwards.values() for text in shown(data)
    )


def test_a_run_says_what_it_took(tmp_path: Path) -> None:
    data = load_tasks(
        config_of(tmp_path, {**ALL, "tone": ["tags"], "tags": {"tasks": ["tone", "mood"], "limit": 5}})
    )
    assert data["mood"].notes[-1:] == (
        "mood: 39 texts of other tasks join train without labels: pairs 20, tags 10, tone 9; dropped: 1 duplicates",
    )
    assert data["pairs"].notes == (
        "pairs: transfer leaves out mood, tags, tone: single texts do not fit a task of pairs",
        "pairs: transfer: no other task has texts that fit",
    )
    assert data["tone"].notes[-1:] == (
        "tone: 9 texts of other tasks join train without labels: tags 9; dropped: 1 duplicates",
    )
    (note,) = data["tags"].notes
    assert note.startswith("tags: 5 texts of other tasks join train without labels: mood ")
    assert note.endswith("; dropped: 1 duplicates, 14 beyond the limit")


def test_what_is_taken_is_what_the_other_task_trains_on(tmp_path: Path, csv_task: CsvTask) -> None:
    more = write_csv(tmp_path / "more.csv", [{"text": f"unlabelled {i}"} for i in range(3)])
    tasks = {
        "mood": {**csv_task(), "transfer": ["tone"]},
        "tone": csv_task(seed=1, unlabelled={"path": "csv", "data_files": str(more)}, limit={"train": 5}),
    }
    teachers = {name: {"task": name, "model": "m"} for name in tasks}
    run = {"name": "r", "tasks": tasks, "teachers": teachers, "students": {"s": {"model": "m"}}}
    data = load_tasks(parse_config(run))
    assert list(data["mood"].splits["train"].inputs["text"])[48:] == list(
        data["tone"].splits["train"].inputs["text"]
    )
    assert len(data["mood"].splits["train"]) == 48 + 5 + 3


# ---------------------------------------------------------------- what stays as it is


def test_teachers_are_made_of_the_same_examples(tiny_run: TinyRun) -> None:
    run = tiny_run()
    before = prepare(parse_config(run))
    run["tasks"]["mood"]["transfer"] = run["tasks"]["tone"]["transfer"] = "all"
    after = prepare(parse_config(run))
    assert after.teachers == before.teachers  # none is fine-tuned again
    assert after.resolved.fine_tunings == before.resolved.fine_tunings
    assert len(after.data["mood"].splits["train"]) == 96
    for name in ("mood", "tone"):
        old, new = before.facts.tasks[name], after.facts.tasks[name]
        assert new.words > old.words
        assert new == replace(old, examples=96, taken=48, words=new.words)
        assert (
            after.data[name].labelled_train().keys.tolist() == before.data[name].splits["train"].keys.tolist()
        )
        for split in ("validation", "test"):
            assert (
                after.data[name].splits[split].keys.tolist() == before.data[name].splits[split].keys.tolist()
            )
    assert after.fingerprints(parse_config(run)) != before.fingerprints(
        parse_config(run)
    )  # but it is another run


def test_a_run_with_other_texts_in_the_other_task_is_another_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"mood": ["tone"]})
    before = load_tasks(config)
    write = Path(config.tasks["tone"].data.data_files["train"])  # type: ignore[index, arg-type]
    write.write_text(write.read_text().replace("tone train 3", "tone train 33"))
    after = load_tasks(config)
    assert after["mood"].fingerprint() != before["mood"].fingerprint()
    assert after["pairs"].fingerprint() == before["pairs"].fingerprint()


def test_labels_of_the_source_do_not_come_along() -> None:
    source = texts("a", "b")
    labelled = replace(source.splits["train"], labels=Ragged.single(np.array([1, 0])))
    source = replace(source, splits={**source.splits, "train": labelled})
    more, _ = received(texts("own"), {"b": source})
    assert not TEXTS.reading.labelled(more.labels).any()
