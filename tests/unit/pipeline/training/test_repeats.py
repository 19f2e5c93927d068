"""A limit on repeated tokens is kept unless validation scores lower with it, and then everywhere that the student writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config.load import parse_config
from pipeline.config.resolved import Job
from pipeline.data.splits import TaskData, read_examples
from pipeline.data.transfer import load_tasks
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.run_folder import student_folder
from pipeline.saved import score_student
from pipeline.soft import SoftTargets, Texts
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.text_faults import loops
from pipeline.text_arrays import text_array
from pipeline.training.feed import TaskSet
from pipeline.training.jobs import read_result, train_jobs
from pipeline.training.plan import new_plan
from pipeline.training.repeats import NGRAM, chosen_by_validation, limited, repeat_limits, repeats_note
from pipeline.training.step import Workers, predict
from students.student import MultiTaskStudent, build_student
from teachers.store import Store
from tests.tiny_speech import speech_task
from tests.tiny_writers import SOURCES, TARGETS, writer, writing_task
from tests.unit.pipeline.facts import facts_of

torch.set_num_threads(1)
TOKENS, LENGTH = 4096, 24
SPLITS = {"train": "sees a cat", "validation": "sees a dog", "test": "sees the dog"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt nothing, and loops."""
    return writer("bart", tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="module")
def student(folder: Path) -> MultiTaskStudent:
    return build_student(folder, [writing_task(target_length=LENGTH)])


def set_of(folder: Path, task: Task, gold: Sequence[str]) -> TaskSet:
    read = read_examples(task, "validation", {"source": Column(SOURCES), "target": Column(list(gold))})
    data = TaskData(task, {"train": read, "validation": read, "test": read})
    return TaskSet.of(data, open_tokenizer(folder))


def written(student: MultiTaskStudent, one: TaskSet, ngram: int = 0) -> NDArray[Any]:
    return predict(student, limited(one.task, ngram), one.validation, TOKENS, tokenizer=one.tokenizer)


@pytest.mark.parametrize("with_limit", [True, False])
def test_validation_decides(folder: Path, student: MultiTaskStudent, with_limit: bool) -> None:
    task = writing_task(target_length=LENGTH)
    probe = set_of(folder, task, TARGETS)
    free, held = (written(student, probe, ngram) for ngram in (0, NGRAM))
    assert any(map(loops, free.ravel()))
    assert not any(map(loops, held.ravel()))
    gold = held if with_limit else free
    one = set_of(folder, task, gold.ravel().tolist())
    limit = repeat_limits(student, [one], {"translate": free}, TOKENS, Workers())["translate"]
    assert limit["ngram"] == (NGRAM if with_limit else 0)
    assert limit["limited" if with_limit else "without"] == pytest.approx(1.0)
    note = repeats_note("small", "translate", limit)
    assert ("not kept" in note) != with_limit


def test_a_limit_that_changes_nothing_on_validation_is_kept(folder: Path, student: MultiTaskStudent) -> None:
    task = writing_task(target_length=NGRAM)  # too short for a repetition
    one = set_of(folder, task, TARGETS)
    texts = written(student, one)
    limit = repeat_limits(student, [one], {"translate": texts}, TOKENS, Workers())["translate"]
    assert limit["limited"] == limit["without"]
    assert limit["ngram"] == NGRAM, "a text of test may loop"


@pytest.mark.parametrize(
    ("task", "chosen"),
    [
        (writing_task(), True),
        (writing_task(beams=2), True),
        (writing_task(no_repeat_ngram=0), False),
        (writing_task(no_repeat_ngram=3), False),
        (writing_task(temperature=1.0), False),
        (speech_task(), True),
    ],
)
def test_what_the_config_says_is_not_tried(task: Task, chosen: bool) -> None:
    assert chosen_by_validation(task) == chosen


def test_the_saved_folder_and_the_test_texts_have_the_limit(folder: Path, tmp_path: Path) -> None:
    held, files = dict[str, list[str]](), dict[str, str]()
    task = limited(writing_task(target_length=LENGTH), NGRAM)
    for split, more in SPLITS.items():
        sources = [f"{source} {more}" for source in SOURCES]
        texts, _ = Predictor(folder, task).predict({"source": sources})
        held[split] = list(map(str, texts.values.ravel()))
        rows = [{"source": source, "target": text} for source, text in zip(sources, held[split], strict=True)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, rows)))
    data = {"path": "json", "data_files": files, "max_length": 32, "target_length": LENGTH}
    config = parse_config(
        {
            "name": "loops",
            "runs_dir": str(tmp_path / "runs"),
            "tasks": {"translate": {"kind": "sequence-to-sequence", "data": data}},
            "teachers": {"only": {"task": "translate", "model": str(folder)}},
            "students": {"small": {"model": str(folder)}},
            "loss": {"hard": 1.0, "soft": 0.0, "text": 0.5},
            "train": {"epochs": 1, "learning_rate": 1e-9, "precision": "fp32"},
            "tracking": {"enabled": False},
        }
    )
    read, store = load_tasks(config), Store(config.store_path)
    keys = read["translate"].splits["train"].keys
    store.append("0a", SoftTargets(keys, texts_of(held["train"])))
    plan = new_plan(config, facts_of(config), read, {"only": "0a"}, {"only": str(folder)})
    train_jobs(plan, Workers())
    for mode in ("distilled", "supervised"):
        facts, predicted = read_result(plan.run_dir, Job("small", mode))
        assert facts["repeat_limits"]["translate"]["ngram"] == NGRAM
        assert predicted["translate"].ravel().tolist() == held["test"]
    saved = student_folder(plan.run_dir, "small", "translate")
    assert json.loads((saved / "generation_config.json").read_text())["no_repeat_ngram_size"] == NGRAM
    evaluated = score_student(saved.parent, config, "test")["translate"]
    assert evaluated["exact_match"] == pytest.approx(1.0), "`evaluate` writes as the folder says"


def texts_of(texts: Sequence[str]) -> Texts:
    count = len(texts)
    return Texts(
        text_array([[text] for text in texts]),
        np.zeros((count, 1), np.float32),
        np.ones((count, 1), np.int32),
    )
