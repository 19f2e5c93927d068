"""`tutelage check` warns of splits, labels and lengths that will make results weak, and is silent about good ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS
from pipeline.config.schema import TaskConfig
from pipeline.data.quality import data_notes, truncation_notes
from pipeline.data.splits import TaskData, read_examples
from pipeline.models import open_tokenizer
from pipeline.tasks import MAKERS, Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.conftest import TinyModel


def examples(task: Task, labels: Any, text: str = "a b") -> Examples:
    """Examples with these labels and texts of two words, or of several."""
    inputs = {"text": [f"{text} {i}" for i in range(len(labels))]}
    return Examples(task.name, content_keys("k", inputs), inputs, Ragged.single(np.asarray(labels)))


def data_of(task: Task, train: Any, validation: Any) -> TaskData:
    """A task's data with these labels; test has those of validation."""
    parts = {"train": train, "validation": validation, "test": validation}
    return TaskData(task, {split: examples(task, labels) for split, labels in parts.items()})  # type: ignore[misc]


def moods(metric: str = "accuracy") -> Task:
    return text_classification("mood", ("bad", "good", "plain"), 8, metric)


EVEN = np.arange(300) % 3


def test_good_data_have_no_notes() -> None:
    assert data_notes(data_of(moods(), EVEN, EVEN)) == []


def test_a_small_validation_split() -> None:
    (note,) = data_notes(data_of(moods(), EVEN, EVEN[:100]))
    assert note == (
        "mood: validation has 100 examples, so that a score there has a standard error of up to 5.0 points: too few to "
        "choose settings by"
    )
    numbers = regression("mood", 8, center=0.0, scale=1.0)  # a correlation is no share
    assert data_notes(data_of(numbers, np.arange(9.0), np.arange(9.0))) == []


def test_of_a_tagger_the_entities_count() -> None:
    task = token_classification("names", ("O", "B-PER"), 8)
    words = np.tile([0, 0, 0, 1], 400)

    def split(sentences: int) -> Examples:
        labels = Ragged(words[: 4 * sentences], np.arange(sentences + 1) * 4)
        inputs = {"words": [["a", "b", "c", str(i)] for i in range(sentences)]}
        return Examples("names", content_keys("k", inputs), inputs, labels)

    def notes(sentences: int) -> list[str]:
        return data_notes(
            TaskData(task, {"train": split(400), "validation": split(sentences), "test": split(9)})
        )

    assert "standard error of up to 5.0 points" in notes(100)[0]  # 100 entities in 400 words
    assert notes(300) == []


@pytest.mark.parametrize(
    ("labels", "noted"),
    [
        (("O", "PER", "LOC"), True),
        (("B_PER", "I_PER", "O"), True),
        (("PER-B", "PER-I", "other"), True),
        (("NOUN", "VERB", "ADJ"), False),
        (("O", "B-PER", "I-PER"), False),
    ],
)
def test_entity_tags_in_another_style(labels: tuple[str, ...], noted: bool) -> None:
    config = TaskConfig(kind="token-classification", data=DataConfig(path="json", data_files={"train": "t"}))
    columns = {"words": Column([["a", "b", "c"]] * 9), "labels": Column([list(labels)] * 9)}
    task = MAKERS[config.declared]("tags", config, columns)
    examples = {split: read_examples(task, split, columns) for split in SPLITS}
    notes = [note for note in data_notes(TaskData(task, examples)) if "look like entity tags" in note]
    assert len(notes) == noted


def test_rare_and_absent_labels() -> None:
    train = np.concatenate((EVEN % 2, [2, 2, 2]))
    rare, absent = data_notes(data_of(moods(), train, EVEN % 2))
    assert (
        rare == "mood: fewer than 5 training examples of 'plain' (3): label more of them, or merge the labels"
    )
    assert absent == (
        "mood: validation has no example of 'plain': nothing is chosen by how well they are learnt"
    )


def test_labels_among_several_are_counted_each() -> None:
    task = multi_label("mood", ("calm", "loud"), 8)
    marks = np.stack((np.arange(300) % 2, np.arange(300) == 7), axis=1).astype(np.int64)
    rare, absent = data_notes(data_of(task, marks, np.stack((marks[:, 0], 0 * marks[:, 0]), axis=1)))
    assert "of 'loud' (1)" in rare
    assert "no example of 'loud'" in absent


@pytest.mark.parametrize(
    ("share", "metric", "noted"), [(0.9, "accuracy", 1), (0.7, "accuracy", 0), (0.9, "macro_f1", 0)]
)
def test_a_dominant_label_under_accuracy(share: float, metric: str, noted: int) -> None:
    labels = np.where(np.arange(300) % 10 < 10 * share, 0, 1 + np.arange(300) // 10 % 2)
    notes = data_notes(data_of(moods(metric), labels, labels))
    assert len(notes) == noted
    if noted:
        assert "90.0% of the training labels are 'bad'" in notes[0]
        assert "set tasks.mood.metric to macro_f1" in notes[0]


def test_truncation_by_model(tiny_model: TinyModel) -> None:
    task, tokenizer = moods(), open_tokenizer(tiny_model("bert"))
    texts = examples(task, EVEN[:20], text="good bad good bad")
    data = TaskData(task, {"train": texts, "validation": texts, "test": texts})
    short = (tokenizer, 6)
    lengths = {"teacher large": (tokenizer, 32), "teacher base": short, "student half": short}
    assert list(truncation_notes(data, lengths)) == [
        "mood: 100.0% of the texts are truncated at 6 tokens by teacher base, student half: raise max_length"
    ]
