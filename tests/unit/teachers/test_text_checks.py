"""Preflight of teachers that write: which faults stop a run, and which are only told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.batch import Examples
from pipeline.curve import Curve
from pipeline.data.splits import read_examples
from pipeline.tasks.label_columns import Column
from pipeline.text_arrays import text_array
from teachers.checks import Findings, Predictions
from teachers.text_checks import judge_texts
from tests.tiny_writers import writing_task

NOUNS = ("house", "garden", "window", "kitchen", "street", "river", "bridge", "school", "station", "forest")
ENGLISH = [f"the {noun} is number {i} on my list" for i, noun in enumerate(NOUNS * 4)]
GERMAN = [f"{noun.upper()}: das ist Nummer {i} auf meiner Liste" for i, noun in enumerate(NOUNS * 4)]


def sample() -> Examples:
    return read_examples(writing_task(), "validation", {"source": Column(ENGLISH), "target": Column(GERMAN)})


def judged(texts: Sequence[str], difference: float = 0.0, curve: Curve | None = None) -> Findings:
    predictions = Predictions(text_array([[text] for text in texts]), 3, difference)
    return judge_texts("t", writing_task(), sample(), predictions, curve or Curve())


def test_a_good_teacher_passes() -> None:
    findings = judged([text.replace("das", "dies") for text in GERMAN])
    assert findings.problems == findings.warnings == []
    assert findings.score > 0.8 > findings.majority
    assert findings.chance is not None
    assert findings.chance < findings.score
    assert findings.truncated == pytest.approx(3 / len(GERMAN))


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        ([""] * len(GERMAN), "100.0% of its texts are empty"),
        (["ja nein ja " * 9] * len(GERMAN), "100.0% of its texts repeat the same few words"),
        (ENGLISH, "100.0% of its texts copy the source"),
        (GERMAN[7:] + GERMAN[:7], "in random order"),
    ],
)
def test_a_teacher_that_writes_nothing_of_use_is_refused(texts: Sequence[str], cause: str) -> None:
    findings = judged(texts)
    assert any(cause in problem for problem in findings.problems), findings


def test_another_language_is_named() -> None:
    findings = judged([text.replace("the", "teh").replace("my", "mai") for text in ENGLISH])
    assert any("another language" in flag for flag in [*findings.problems, *findings.warnings]), findings


def test_a_few_faults_are_a_warning() -> None:
    findings = judged(["", "", "", "", *GERMAN[4:]])
    assert findings.problems == []
    assert findings.warnings == ["10.0% of its texts are empty"]


def test_copies_that_are_right_are_no_fault() -> None:
    task = writing_task()
    same = read_examples(task, "validation", {"source": Column(GERMAN), "target": Column(GERMAN)})
    findings = judge_texts("t", task, same, Predictions(text_array([[text] for text in GERMAN])), Curve())
    assert not any("copy" in problem for problem in findings.problems)


def test_replicas_that_write_other_texts_are_a_warning() -> None:
    assert "two replicas write another text for 25.0% of the sources" in judged(GERMAN, 0.25).warnings
