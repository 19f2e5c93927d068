"""Question answering: answers as words of the context, whatever tokenizer and windows a model reads them with."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel

from pipeline.batch import ABSENT, Examples, Ragged
from pipeline.config.kinds import QUESTION_ANSWERING
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import load_task
from pipeline.errors import ConfigError, DataError, TeacherError
from pipeline.losses import LossWeights
from pipeline.models import open_model, open_tokenizer
from pipeline.predictor import Predictor
from pipeline.tasks import MAKERS, Task
from pipeline.tasks import question_answering as module
from pipeline.tasks.heads import model_class
from pipeline.tasks.label_columns import Column
from pipeline.tasks.question_answering import (
    LONGEST_ANSWER,
    Answer,
    answers_of,
    best_spans,
    from_train,
    question_answering,
    squad_scores,
)
from pipeline.tasks.spans import word_spans
from pipeline.training.step import Aggregation, MicroBatch, WithLoss, accumulate, predict
from students.export import save_task
from students.student import MultiTaskStudent
from tests.conftest import FILLER, GOOD, TinyModel
from tests.unit.pipeline.tasks.questions import (
    ASSETS,
    CONTEXT,
    batch_of,
    columns_of,
    long_context,
    read,
    task_of,
)

QA = ASSETS / "qa"


def cells_of(context: str, answers: Any, starts: Any = None) -> list[int]:
    cells: list[int] = (
        read([(context, answers)], None if starts is None else [starts]).labels.values[0].tolist()
    )
    return cells


def test_it_is_a_task() -> None:
    task: Task = task_of()
    assert MAKERS[QUESTION_ANSWERING] is from_train
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert (task.reading.labels, task.head.columns, task.reading.fields) == (
        (),
        ("start", "end"),
        ("question", "context"),
    )
    assert task.kind.pipeline is None


# ---------------------------------------------------------------- data


def test_gold_answers_become_cells() -> None:
    squad = {"text": ["1952", "in 1952"], "answer_start": [48, 45]}
    examples = read(
        [
            (CONTEXT, ["Ada"]),
            (CONTEXT, ["wrote it"]),
            (CONTEXT, squad),
            (CONTEXT, [{"text": "Grace wrote", "answer_start": 22}]),
            (CONTEXT, []),
            (CONTEXT, {"text": [], "answer_start": []}),
            (CONTEXT, None),
            (CONTEXT, ("it in 1843.",)),
        ]
    )
    cells = examples.labels.values.tolist()
    assert cells == [[1, 1], [2, 3], [12, 12], [7, 8], [0, 0], [0, 0], [-1, -1], [3, 6]]
    assert examples.inputs["answers"][2:5] == [["1952", "in 1952"], ["Grace wrote"], []]
    assert examples.inputs["answers"][6] == []
    assert task_of().reading.labelled(examples.labels).tolist() == [True] * 6 + [False, True]
    assert task_of().reading.counts(examples.inputs).tolist() == [1 + len(word_spans(CONTEXT))] * 8


def test_an_answer_is_the_words_that_it_touches() -> None:
    assert cells_of("a re-entry, pre-flight check", ["entry, pre"]) == [4, 6]
    assert cells_of("prehistoric times", ["historic tim"]) == [1, 2]
    assert cells_of("born in 1815–1852 there", ["1852"]) == [5, 5]
    assert cells_of("他在东京出生。", ["东京"]) == [3, 4]
    assert cells_of("e\u0301te\u0301 2019 e\u0301te\u0301", ["te\u0301 2019"]) == [1, 2]
    assert cells_of("so 👩‍👩‍👧 said", ["said"]) == [7, 7]


def test_starts_tell_occurrences_apart() -> None:
    assert cells_of(CONTEXT, ["wrote"]) == [2, 2]
    assert cells_of(CONTEXT, ["wrote"], [28]) == [8, 8]
    assert cells_of(CONTEXT, {"text": ["wrote"], "answer_start": [28]}) == [8, 8]
    assert cells_of(CONTEXT, {"text": ["wrote"]}) == [2, 2]


def test_a_split_without_answers_is_unlabelled() -> None:
    columns = columns_of([(CONTEXT, None)] * 2)
    del columns["answers"]
    inputs, labels = task_of().reading.read(columns, "unlabelled")
    assert labels.values.tolist() == [[-1, -1]] * 2
    assert inputs["answers"] == [[], []]


@pytest.mark.parametrize(
    ("context", "answers", "starts", "what"),
    [
        (CONTEXT, ["Alan"], None, "'Alan' is not in the context"),
        (CONTEXT, ["ada"], None, "'ada' is not in the context"),
        (CONTEXT, ["Ada", "Alan"], None, "'Alan' is not in the context"),
        (CONTEXT, ["Ada"], [1], "'Ada' is not at character 1 of the context"),
        (CONTEXT, ["1952."], [-5], "'1952.' is not at character -5"),
        (CONTEXT, {"text": ["Ada"], "answer_start": [4]}, None, "'Ada' is not at character 4"),
        (CONTEXT, ["Ada", "it"], [0], "2 answers and 1 starts"),
        (CONTEXT, {"text": ["Ada"], "answer_start": []}, None, "1 answers and 0 starts"),
        (CONTEXT, {"text": ["Ada"], "answer_start": [0]}, [0], "and so does answer_starts"),
        (CONTEXT, ["Ada"], ["0"], "no list of whole numbers"),
        (CONTEXT, ["Ada"], [True], "no list of whole numbers"),
        (CONTEXT, ["Ada"], 0, "no list of whole numbers"),
        (CONTEXT, 1843, None, "1843, no list of strings"),
        (CONTEXT, [1843], None, "no list of strings"),
        (CONTEXT, {"text": "Ada"}, None, "no list of strings"),
        (CONTEXT, {"answer": ["Ada"]}, None, "no list of strings"),
        (CONTEXT, [""], None, "the answer '' is empty"),
        (CONTEXT, [" "], None, "the answer ' ' is empty"),
        ("", [], None, "context is empty"),
        (" \n\t", [], None, "context is empty"),
        (None, [], None, "context is None, not text"),
        (7, [], None, "context is 7, not text"),
    ],
)
def test_a_bad_row_is_named(context: Any, answers: Any, starts: Any, what: str) -> None:
    rows = [(CONTEXT, ["Ada"]), (context, answers)]
    with pytest.raises(DataError) as caught:
        read(rows, None if starts is None else [None, starts])
    assert caught.value.cause.startswith("tasks.qa: row 1 of train: ")
    assert what in caught.value.cause
    assert len(caught.value.remedy) > 10
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_text_is_compared_as_the_data_set_has_it() -> None:
    """An answer in another normal form than its context is not found: nothing is guessed."""
    composed = unicodedata.normalize("NFC", "e\u0301te\u0301")
    with pytest.raises(DataError, match="is not in the context"):
        cells_of("un e\u0301te\u0301", [composed])


@pytest.mark.parametrize("question", ["", " \u00a0", None, 3])
def test_a_question_is_text(question: Any) -> None:
    columns = {**columns_of([(CONTEXT, [])]), "question": Column([question])}
    with pytest.raises(DataError, match="row 0 of test: question is"):
        task_of().reading.read(columns, "test")


def config_of(**data: Any) -> TaskConfig:
    return TaskConfig.model_validate({"kind": "question-answering", "data": {"path": "json", **data}})


def test_train_says_whether_there_are_questions_without_an_answer() -> None:
    def made(*answers: Any) -> Task:
        return from_train("qa", config_of(), columns_of([(CONTEXT, one) for one in answers]))

    assert made(["Ada"], None, {"text": ["it"]}) == question_answering("qa", 128, "f1", False)
    assert made(["Ada"], []) == question_answering("qa", 128, "f1", True)
    assert made(["Ada"], {"text": [], "answer_start": []}) == made(["Ada"], [])
    with pytest.raises(DataError, match="row 1 of train"):
        made(["Ada"], 1843)


def test_make_refuses_what_a_config_cannot_mean() -> None:
    columns = columns_of([(CONTEXT, ["Ada"])])
    with pytest.raises(DataError, match="no label space"):
        from_train("qa", config_of(labels=("a", "b")), columns)
    with pytest.raises(ConfigError, match="max_length 12 has no room"):
        from_train("qa", config_of(max_length=12), columns)
    assert config_of().declared.content(()) == ("question", "context")


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("form", ["squad", "dicts", "lists"])
def test_data_sets_load_in_each_form(tmp_path: Path, form: str) -> None:
    texts = [["Ada"], [], None, ["wrote", "Grace wrote"], ["1952"], ["a compiler"]]
    starts = [[0], [], None, [28, 22], [48], [34]]
    rows: list[dict[str, Any]] = []
    for i, (text, start) in enumerate(zip(texts, starts, strict=True)):
        row: dict[str, Any] = {"question": f"Question {i}?", "context": f"{CONTEXT} {i}", "id": i}
        if text is None or start is None:
            row["answers"] = None
        elif form == "squad":
            row["answers"] = {"text": text, "answer_start": start}
        elif form == "dicts":
            row["answers"] = [{"text": t, "answer_start": s} for t, s in zip(text, start, strict=True)]
        else:
            row["answers"] = text
        if form == "lists":
            row["answer_starts"] = start
        rows.append(row)
    files = {
        "train": write_jsonl(tmp_path / "train.jsonl", rows[:4]),
        "validation": write_jsonl(tmp_path / "validation.jsonl", rows[4:5]),
        "test": write_jsonl(tmp_path / "test.jsonl", rows[5:]),
    }
    columns = {"answers": "answers", "answer_starts": "answer_starts"} if form == "lists" else {}
    data = load_task("qa", config_of(data_files=files, columns=columns, max_length=32))
    assert data.task == question_answering("qa", 32, "f1", True)
    assert data.splits["train"].labels.values.tolist() == [[1, 1], [0, 0], [-1, -1], [8, 8]]
    assert data.splits["train"].inputs["answers"][3] == ["wrote", "Grace wrote"]
    assert data.splits["validation"].labels.values.tolist() == [[12, 12]]
    assert data.splits["test"].labels.values.tolist() == [[9, 10]]
    assert [len(data.labelled_train()), data.distinct()] == [3, 6]


def test_an_answer_may_be_a_text_with_its_start(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Who {i}?",
            "context": f"{CONTEXT} {i}",
            "answers": "Ada",
            "start": CONTEXT.index("Ada"),
        }
        for i in range(3)
    ]
    files = {
        split: write_jsonl(tmp_path / f"{split}.jsonl", rows[i : i + 1])
        for i, split in enumerate(("train", "validation", "test"))
    }
    data = load_task("qa", config_of(data_files=files, columns={"answer_starts": "start"}))
    assert data.splits["train"].inputs["answers"] == [["Ada"]]
    assert data.splits["train"].labels.values.tolist() == [[1, 1]]


def test_questions_without_any_answer_teach_nothing(tmp_path: Path) -> None:
    rows = [{"question": f"Who {i}?", "context": CONTEXT, "answers": []} for i in range(3)]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match="no question of train has an answer"):
        load_task("qa", config_of(data_files={"train": file}))


def test_answers_take_no_part_in_the_content(tmp_path: Path) -> None:
    one, other = (read([(CONTEXT, answers)]) for answers in (["Ada"], []))
    assert one.keys.tolist() == other.keys.tolist()


@pytest.mark.skipif(not QA.exists(), reason="no example data: python examples/fetch_assets.py qa")
def test_the_examples_data_set_loads() -> None:
    files = {split: str(QA / f"{split}.jsonl") for split in ("train", "validation", "test")}
    columns = {"answers": "answers", "answer_starts": "answer_starts"}
    data = load_task("qa", config_of(data_files=files, columns=columns))
    assert data.task == question_answering("qa", data.task.head.max_length, unanswerable=True)
    test = data.splits["test"]
    values = np.full((int(data.task.reading.counts(test.inputs).sum()), 2), -20.0)
    values[np.cumsum(data.task.reading.counts(test.inputs)) - data.task.reading.counts(test.inputs)] = -10
    firsts = np.cumsum(data.task.reading.counts(test.inputs)) - data.task.reading.counts(test.inputs)
    for side in (0, 1):
        values[firsts + test.labels.values[:, side], side] = 20
    found = data.task.scoring.scores(values, test)
    assert found["no_answer_accuracy"] == 1
    assert found["f1"] > 0.9  # some golds end inside a word, some are longer than LONGEST_ANSWER
    assert data.task.scoring.constant_score(test) == pytest.approx((test.labels.values[:, 0] == 0).mean())


# ---------------------------------------------------------------- values


def student_of(tiny_model: TinyModel, task: Task, scale: float = 1.0) -> MultiTaskStudent:
    """Random weights; `scale`: of the head's."""
    student = MultiTaskStudent(open_model(AutoModel, tiny_model("bert")), [task])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.nn.init.normal_(student.model("qa").qa_outputs.weight, std=0.02 * scale)
    return student


def saved(student: MultiTaskStudent, tiny_model: TinyModel, folder: Path) -> Path:
    """The student's task as a Hugging Face folder."""
    save_task(student, "qa", open_tokenizer(tiny_model("bert")), folder)
    return folder


def test_one_token_a_word_in_one_window_is_the_models_own_word(tiny_model: TinyModel, tmp_path: Path) -> None:
    task = task_of()
    folder = saved(student_of(tiny_model, task), tiny_model, tmp_path / "qa")
    inputs = {"question": ["is it good", "the"], "context": ["the film was very long", "a superb scene"]}
    labelled, truncated = Predictor(folder, task).predict(inputs)
    assert truncated == 0
    model, tokenizer = open_model(model_class(task.kind), folder), open_tokenizer(folder)
    batch = tokenizer(inputs["question"], inputs["context"], padding=True, return_tensors="pt")
    with torch.no_grad():
        output: Any = model(**batch)
    logits = torch.stack((output.start_logits, output.end_logits), -1).numpy()
    for i, words in enumerate((5, 3)):
        first = batch.sequence_ids(i).index(1)
        own = logits[i, [0, *range(first, first + words)]]
        np.testing.assert_array_equal(labelled.values[slice(*labelled.offsets[[i, i + 1]])], own)


def test_a_context_that_fits_is_read_alike_at_any_max_length(tiny_model: TinyModel, tmp_path: Path) -> None:
    task = task_of()
    folder = saved(student_of(tiny_model, task), tiny_model, tmp_path / "qa")
    inputs = {"question": ["was it good ?"], "context": ["the unaffable story of a film, warm-hearted"]}
    said = [Predictor(folder, task, max_length=length).predict(inputs)[0].values for length in (48, 56, 64)]
    np.testing.assert_array_equal(said[0], said[1])
    np.testing.assert_array_equal(said[0], said[2])
    in_windows = Predictor(folder, task, max_length=20).predict(inputs)[0].values
    assert in_windows.shape == said[0].shape
    assert (in_windows > ABSENT).all()


def test_a_teacher_and_a_student_give_the_same_values(tiny_model: TinyModel, tmp_path: Path) -> None:
    """In any batches: `Predictor.predict` and `predict` on one model."""
    task = task_of(20)
    student = student_of(tiny_model, task)
    folder = saved(student, tiny_model, tmp_path / "qa")
    contexts = [long_context(words, words) for words in (3, 40, 9, 60, 1, 12)]
    inputs = {"question": ["good ?"] * 6, "context": contexts}
    labelled, _ = Predictor(folder, task, tokens_per_forward=100).predict(inputs)
    encoded = task.head.encode(open_tokenizer(folder), inputs)
    said = predict(student, task, encoded, tokens=10_000)
    np.testing.assert_allclose(said, labelled.values, atol=1e-5)
    assert labelled.offsets.tolist() == [0, *np.cumsum(encoded.counts)]


def test_rows_of_several_teachers() -> None:
    task, counts = task_of(), torch.tensor([3, 1, 5])
    values = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0))
    rows = task.head.rows(values, counts)
    assert rows.shape == (4, 6, 5)
    for k in range(4):
        assert torch.equal(rows[k], task.head.rows(values[k], counts))
        assert torch.equal(task.head.flat(rows[k], counts), values[k])
    assert torch.equal(rows[1, 4], values[1, 4:9, 0])  # the third example's start
    assert torch.equal(rows[1, 1, :3], values[1, 0:3, 1])  # the first one's end
    assert (rows[1, 1, 3:] == ABSENT).all()
    labels = torch.tensor([[1, 2], [0, 0], [3, 4]])
    assert task.head.row_labels(labels, counts).tolist() == [1, 2, 0, 0, 3, 4]
    assert rows[0].gather(1, task.head.row_labels(labels, counts)[:, None])[5] == values[0, 4 + 4, 1]


# ---------------------------------------------------------------- answers


def slow_best(values: NDArray[np.float64], no_answer: bool) -> tuple[int, int]:
    best, found = -math.inf, (0, 0)
    for length in range(LONGEST_ANSWER):
        for first in range(1, len(values) - length):
            total = values[first, 0] + values[first + length, 1]
            if total > best:
                best, found = total, (first, first + length)
    return (0, 0) if no_answer and values[0].sum() >= best else found


@settings(deadline=None, max_examples=100)
@given(
    counts=st.lists(st.integers(2, 70), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    rough=st.booleans(),
    no_answer=st.booleans(),
)
def test_answers_are_the_best_spans(counts: list[int], seed: int, rough: bool, no_answer: bool) -> None:
    rng = np.random.default_rng(seed)
    values = 3 * rng.normal(size=(sum(counts), 2))
    values[rng.random(values.shape) < 0.1] = ABSENT
    if rough:
        values = values.round()  # ties
    parts = np.split(values, np.cumsum(counts)[:-1])
    found = best_spans(values, np.array(counts), no_answer=no_answer)
    assert [tuple(span) for span in found.tolist()] == [slow_best(part, no_answer) for part in parts]


def test_answers_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 60, 40)
    values = rng.normal(size=(counts.sum(), 2)).astype(np.float16)
    whole = best_spans(values, counts, no_answer=True)
    monkeypatch.setattr(module, "PADDED_CELLS", 100)
    np.testing.assert_array_equal(best_spans(values, counts, no_answer=True), whole)
    assert 0 < (whole[:, 0] == 0).sum() < 40 or (whole[:, 0] > 0).all()


def values_of(*spans: tuple[int, int], context: str = CONTEXT, none: float = 0.0) -> NDArray[np.float32]:
    """Values of questions on one context, each answered by the cells given; 0: no answer."""
    cells = 1 + len(word_spans(context))
    values = np.full((len(spans), cells, 2), -5, dtype=np.float32)
    values[:, 0] = none
    for i, (first, last) in enumerate(spans):
        values[i, first, 0] = values[i, last, 1] = 5
    return values.reshape(-1, 2)


def test_an_answer_is_a_piece_of_the_context() -> None:
    inputs = {"question": ["?"] * 3, "context": [CONTEXT] * 3}
    said = answers_of(values_of((1, 1), (0, 0), (9, 12)), inputs, no_answer=True)
    assert said == [Answer("Ada", 0, 3), Answer("", 0, 0), Answer("a compiler in 1952", 34, 52)]
    spaced = {"question": ["?"], "context": ["  Ada\t  wrote\n it "]}
    assert answers_of(values_of((2, 3), context=spaced["context"][0]), spaced, no_answer=True) == [
        ("wrote\n it", 8, 17)
    ]


def test_without_unanswerable_questions_there_is_always_an_answer() -> None:
    inputs = {"question": ["?"], "context": [CONTEXT]}
    values = values_of((0, 0), none=50)
    assert answers_of(values, inputs, no_answer=True) == [("", 0, 0)]
    assert answers_of(values, inputs, no_answer=False) != [("", 0, 0)]
    tie = values_of((1, 1), none=5)
    assert answers_of(tie, inputs, no_answer=True) == [("", 0, 0)]
    tie[0, 0] -= 0.01
    assert answers_of(tie, inputs, no_answer=True)[0].text == "Ada"


# ---------------------------------------------------------------- metric


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "exact"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("a cat", ["the cat."], 1, 1),
        ("cat", ["dog"], 0, 0),
        ("the big cat", ["cat"], 2 / 3, 0),
        ("cat sat mat", ["cat sat on a mat"], 6 / 7, 0),
        ("cat cat", ["cat"], 2 / 3, 0),
        ("cat", ["dog", "Cat", "big cat"], 1, 1),
        ("big cat", ["a dog", "big red cat"], 4 / 5, 0),
        ("U.S.", ["US"], 1, 1),
        ("3.14", ["314"], 1, 1),
        ("re-entry", ["reentry"], 1, 1),
        ("1,000", ["1000"], 1, 1),
        ("cat\u00a0 sat", ["cat sat"], 1, 1),
        ("theatre", ["atre"], 0, 0),
        ("“cat”", ["cat"], 0, 0),  # string.punctuation is ASCII, in the official script too
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [], 1, 1),  # normalised to nothing
        ("", ["the"], 1, 1),  # a gold that is normalised to nothing is no gold
        ("cat", ["the", "cat"], 1, 1),
        ("", ["the", "cat"], 0, 0),
    ],
)
def test_squad_scores(answer: str, golds: list[str], f1: float, exact: float) -> None:
    assert squad_scores(answer, golds) == pytest.approx((f1, exact))


words = st.lists(st.sampled_from(["the", "cat", "Cat", "sat.", "a", "mat", "U.S.", "-"]), max_size=5).map(
    " ".join
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(words, st.lists(words.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5)
)
def test_squad_scores_are_those_of_torchmetrics(rows: list[tuple[str, list[str]]]) -> None:
    from torchmetrics.functional.text import squad

    rows = [(said, golds) for said, golds in rows if all(re.sub(r"\W|the|\ba\b", "", gold) for gold in golds)]
    if not rows:
        return
    theirs = squad(
        [{"prediction_text": said, "id": str(i)} for i, (said, _) in enumerate(rows)],
        [
            {"answers": {"text": golds, "answer_start": [0] * len(golds)}, "id": str(i)}
            for i, (_, golds) in enumerate(rows)
        ],
    )
    ours = 100 * np.mean([squad_scores(said, golds) for said, golds in rows], axis=0)
    np.testing.assert_allclose(ours, [float(theirs["f1"]), float(theirs["exact_match"])], rtol=1e-5)


def four() -> tuple[Examples, NDArray[np.float32]]:
    """Right, half right, rightly none, wrongly answered."""
    examples = read(
        [(CONTEXT, ["Ada"]), (CONTEXT, ["Grace wrote", "a compiler"]), (CONTEXT, []), (CONTEXT, [])]
    )
    return examples, values_of((1, 1), (7, 7), (0, 0), (2, 3))


def test_scores() -> None:
    examples, values = four()
    found = task_of().scoring.scores(values, examples)
    assert found == pytest.approx(
        {
            "f1": (1 + 2 / 3 + 1 + 0) / 4,
            "exact_match": 2 / 4,
            "answerable_f1": (1 + 2 / 3) / 2,
            "no_answer_accuracy": 1 / 2,
        }
    )
    assert list(found)[:2] == ["f1", "exact_match"]
    for metric in ("f1", "exact_match"):
        task = task_of(metric=metric)
        sums = task.scoring.statistics(values, examples)
        assert sums.shape == (4, 2)
        assert task.scoring.score_of(sums.sum(0)) == pytest.approx(found[metric])
        assert task.scoring.score_of(np.stack((sums[:2].sum(0), sums[2:].sum(0)))).shape == (2,)
        assert task.scoring.constant_score(examples) == 0.5
    answerable = examples.take(np.array([0, 1]))
    assert task_of().scoring.scores(values[: len(values) // 2], answerable) == pytest.approx(
        {"f1": 5 / 6, "exact_match": 0.5}
    )
    assert task_of().scoring.constant_score(answerable) == 0
    assert task_of().scoring.classified(values, examples) is None


def test_scores_do_not_depend_on_the_order_of_examples() -> None:
    rng = np.random.default_rng(0)
    rows: list[tuple[str, list[str]]] = [
        (long_context(int(n), i), []) for i, n in enumerate(rng.integers(1, 60, 20))
    ]
    golds = [[" ".join(context.split()[:2])] if i % 3 else [] for i, (context, _) in enumerate(rows)]
    examples = read([(context, gold) for (context, _), gold in zip(rows, golds, strict=True)])
    counts = task_of().reading.counts(examples.inputs)
    said = Ragged.of(np.split(rng.normal(size=(counts.sum(), 2)), np.cumsum(counts)[:-1]))
    order = rng.permutation(20)
    moved = examples.take(order), said.take(order).values
    assert task_of().scoring.scores(said.values, examples) == pytest.approx(
        task_of().scoring.scores(moved[1], moved[0])
    )
    statistics = task_of().scoring.statistics(said.values, examples)
    np.testing.assert_array_equal(statistics[order], task_of().scoring.statistics(moved[1], moved[0]))


def test_agreement_is_of_spans() -> None:
    examples, values = four()
    other = values_of((1, 1), (7, 8), (0, 0), (2, 2))
    assert task_of().scoring.agreement(values, other, examples) == 0.5
    assert task_of().scoring.agreement(values, values, examples) == 1


def test_only_labelled_examples_are_scored() -> None:
    examples = read([(CONTEXT, ["Ada"]), (CONTEXT, None)])
    values = values_of((1, 1), (1, 1))
    for scored in (task_of().scoring.scores, task_of().scoring.statistics):
        with pytest.raises(DataError, match="1 of 2 examples to score have no label"):
            scored(values, examples)
    with pytest.raises(DataError):
        task_of().scoring.constant_score(examples)


# ---------------------------------------------------------------- use


def test_a_label_mapping() -> None:
    assert task_of().head.groups({0: "NEGATIVE", 1: "POSITIVE"}, None, "teachers.big") is None
    with pytest.raises(TeacherError, match=r"teachers\.big\.labels"):
        task_of().head.groups({0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": None}, "teachers.big")


def test_a_new_head_has_two_outputs(tiny_model: TinyModel, tmp_path: Path) -> None:
    classifier = tiny_model("bert", ("a", "b", "c"))
    student = MultiTaskStudent(open_model(AutoModel, classifier), [task_of()])
    model = student.model("qa")
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert model.qa_outputs.out_features == model.config.num_labels == 2
    assert model.config.id2label == {0: "start", 1: "end"}
    assert model.config.problem_type is None


@pytest.mark.parametrize("unanswerable", [True, False])
def test_the_snippet_gives_the_students_own_answer(
    tiny_model: TinyModel, tmp_path: Path, unanswerable: bool
) -> None:
    task = task_of(unanswerable=unanswerable)
    student, question = student_of(tiny_model, task, 40), "is the film good ?"
    with torch.no_grad():  # hidden states have one norm, so none is as much like the first CLS as itself
        first = open_tokenizer(tiny_model("bert"))(question, long_context(10), return_tensors="pt")
        cls = student.encoder(**first).last_hidden_state[0, 0]
        student.model("qa").qa_outputs.weight += 0.5 * cls
    folder = saved(student, tiny_model, tmp_path / "qa")
    said = []
    for seed in range(4):
        context = long_context(10, seed)
        own_question = f"question, context = {question!r}, {context!r}"
        lines = re.sub(r"^question, context = .*$", own_question, task.head.snippet(), flags=re.MULTILINE)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(lines.replace("path/to/this/folder", str(folder)), {})
        inputs = {"question": [question], "context": [context]}
        (own,) = answers_of(Predictor(folder, task).predict(inputs)[0].values, inputs, no_answer=unanswerable)
        assert out.getvalue() == f"{own.text or 'no answer'}\n"
        said.append(own.text)
    assert (said[0] == "") == unanswerable


def test_the_snippet_runs_as_it_stands(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = saved(student_of(tiny_model, task_of()), tiny_model, tmp_path / "qa")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(task_of().head.snippet().replace("path/to/this/folder", str(folder)), {})
    assert out.getvalue().strip()
    compile(task_of(unanswerable=False).head.snippet(), "snippet", "exec")


def test_training_lowers_the_loss(tiny_model: TinyModel) -> None:
    """The student learns to point at a good word, from labels and from a teacher, in windows and without."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, list[str]]] = []
    for i in range(24):
        filler = list(rng.choice(FILLER, 5 + i))
        good = str(rng.choice(GOOD))
        if i % 4:
            filler.insert(int(rng.integers(len(filler))), good)
        rows.append((" ".join(filler), [good] if i % 4 else []))
    examples, task = read(rows), task_of(20)
    tokenizer = open_tokenizer(tiny_model())
    encoded = task.head.encode(tokenizer, examples.inputs)
    assert len(encoded.offsets) - 1 > 24  # some in windows
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = MultiTaskStudent(open_model(AutoModel, tiny_model(layers=1)), [task])
    right = np.zeros((encoded.counts.sum(), 2), dtype=np.float32)
    for side in (0, 1):
        right[np.cumsum(encoded.counts) - encoded.counts + examples.labels.values[:, side], side] = 8
    micro = MicroBatch(
        batch_of(encoded), torch.from_numpy(examples.labels.values), torch.from_numpy(right)[None]
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    autocast = torch.autocast("cpu", enabled=False)
    aggregation = Aggregation("mean", torch.ones(1))
    losses: list[dict[str, float]] = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = accumulate(
            WithLoss(student),
            task,
            [micro],
            LossWeights({"hard": 0.5, "soft": 0.5}, 2.0),
            aggregation,
            24,
            autocast,
        )
        optimizer.step()
        losses.append({name: float(term) for name, term in terms.items()})
    for name in ("total", "hard", "soft"):
        assert losses[-1][name] < 0.5 * losses[0][name], name
    # an example counts as the mean of its start and its end, as in Hugging Face's own loss
    cells = float(np.log(encoded.counts).mean())
    assert losses[0]["hard"] == pytest.approx(cells, rel=0.3)
    said = predict(student, task, encoded, tokens=500)
    assert task.scoring.scores(said, examples)["f1"] > task.scoring.constant_score(examples)
