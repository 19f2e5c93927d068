"""One frozen model: label order by name, example order as given, and which models are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.arithmetic import Dtype
from pipeline.batch import ABSENT
from pipeline.errors import TeacherError
from pipeline.models import hidden_layer, open_tokenizer
from pipeline.predictor import Predictor, check_model
from pipeline.tasks import Task
from pipeline.tasks.spans import word_spans
from pipeline.tasks.text_classification import text_classification
from tests.conftest import Architecture, TinyModel, texts_of

LABELS = ("bad", "good", "plain")
TASK = text_classification("mood", LABELS, 32, "accuracy")
TEXTS = [text for label in range(3) for text in texts_of(label, 12)]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


def predicted(folder: Path, task: Task = TASK, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    return Predictor(folder, task).predict({"text": texts})[0].values


@pytest.fixture
def copied(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A classifier's folder that the test may change."""
    return shutil.copytree(tiny_model("bert", LABELS), tmp_path / "teacher")


def relabel(folder: Path, names: Sequence[str]) -> None:
    """Other names for the folder's outputs."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    file.write_text(json.dumps(config))


# ---------------------------------------------------------------- what it predicts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_models_in_the_examples_order(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model(architecture, LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = open_tokenizer(folder)
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    predictions = predicted(folder)
    assert predictions.dtype == np.float32
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-5, rtol=0)
    assert len(np.unique(predictions.round(6), axis=0)) == len(TEXTS)  # so that a wrong order would show


@pytest.mark.parametrize("order", [("good", "plain", "bad"), ("plain", "good", "bad")])
def test_labels_are_aligned_by_name(copied: Path, order: tuple[str, ...]) -> None:
    expected = predicted(copied)
    relabel(copied, order)
    predictions = predicted(copied)
    for column, name in enumerate(LABELS):
        assert np.array_equal(predictions[:, column], expected[:, order.index(name)])
    shuffled = predicted(copied, text_classification("mood", ("good", "bad", "plain"), 32))
    assert np.array_equal(shuffled, predictions[:, [1, 0, 2]])


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_examples_changes_no_prediction(tiny_model: TinyModel, order: str) -> None:
    rows = np.arange(len(TEXTS))[::-1]
    if order == "shuffled":
        rows = np.random.default_rng(0).permutation(len(TEXTS))
    expected = predicted(tiny_model("bert", LABELS))
    predictions = predicted(tiny_model("bert", LABELS), texts=[TEXTS[i] for i in rows])
    np.testing.assert_allclose(predictions, expected[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_token_budget_changes_no_prediction(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS)
    expected = predicted(folder)
    for tokens in (1, 17, 100, 10**6):
        predictions, _ = Predictor(folder, TASK, tokens_per_forward=tokens).predict({"text": TEXTS})
        np.testing.assert_allclose(predictions.values, expected, atol=1e-5, rtol=0)  # measured < 1e-7


def test_a_batch_that_does_not_fit_the_device_changes_no_prediction(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(tiny_model("bert", LABELS), TASK)
    expected = predictor.predict({"text": TEXTS})[0].values
    forward = type(predictor.model).forward

    def cramped(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
        if len(input_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(type(predictor.model), "forward", cramped)
    np.testing.assert_allclose(predictor.predict({"text": TEXTS})[0].values, expected, atol=1e-6)


def test_the_same_examples_give_the_same_bytes(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", LABELS)
    assert predicted(folder).tobytes() == predicted(folder).tobytes()


def test_dropout_takes_no_part(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model("bert", LABELS), TASK)
    first, second = (predictor.predict({"text": TEXTS})[0].values for _ in range(2))
    assert np.array_equal(first, second)


def test_texts_are_cut_to_the_tasks_length_and_counted(tiny_model: TinyModel) -> None:
    task = text_classification("mood", LABELS, 6)
    predictor = Predictor(tiny_model("bert", LABELS), task)
    texts = ["good", "good film is fair", "good film is fair too", "good film is fair and long and long"]
    logits, truncated = predictor.predict({"text": texts})
    assert truncated == 2  # four words and two special tokens fit
    assert len(predictor.tokenizer("good film is fair")["input_ids"]) == 6
    np.testing.assert_allclose(
        logits.values[3], logits.values[1], atol=1e-5
    )  # nothing after the fourth word is seen


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_predicts_nearly_the_same(tiny_model: TinyModel, dtype: Dtype) -> None:
    folder = tiny_model("bert", LABELS)
    predictions = Predictor(folder, TASK, dtype=dtype).predict({"text": TEXTS})[0].values
    assert predictions.dtype == np.float32
    np.testing.assert_allclose(predictions, predicted(folder), atol=5e-3)
    assert not np.array_equal(predictions, predicted(folder))


def test_a_model_may_have_a_length_of_its_own(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", LABELS, positions=40)
    texts = ["good " * 35]
    whole, shorter = (Predictor(folder, TASK, max_length=length) for length in (40, 6))
    assert [predictor.predict({"text": texts})[1] for predictor in (whole, shorter)] == [0, 1]
    np.testing.assert_allclose(
        shorter.predict({"text": texts})[0].values,
        predicted(folder, text_classification("mood", LABELS, 6), texts),
        atol=1e-6,
    )
    with pytest.raises(TeacherError, match="max_length 41 is more than the model's 40 positions"):
        Predictor(folder, TASK, max_length=41)


def test_several_labels_may_mean_one_and_some_none(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", ("awful", "meh", "fine", "spam"))
    declared = {"awful": "bad", "meh": "bad", "fine": "good", "spam": None}
    predictions = Predictor(folder, TASK, labels=declared).predict({"text": TEXTS})[0].values
    own = predicted(folder, text_classification("mood", ("awful", "meh", "fine", "spam"), 32))
    np.testing.assert_allclose(predictions[:, 0], np.logaddexp(own[:, 0], own[:, 1]), atol=1e-5)
    np.testing.assert_array_equal(predictions[:, 1], own[:, 2])
    assert (predictions[:, 2] == ABSENT).all()  # it knows nothing of `plain`


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "names",
    [("bad", "good", "neutral"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("bad", "good"), (*LABELS, "other")],
)
def test_another_label_space_is_refused(tiny_model: TinyModel, names: tuple[str, ...]) -> None:
    folder = tiny_model("bert", names)
    for attempt in (lambda: Predictor(folder, TASK), lambda: check_model(folder, TASK, "teachers.x")):
        with pytest.raises(TeacherError) as error:
            attempt()
        assert all(name in error.value.cause for name in (*names, *LABELS, "task mood"))
        assert ".labels" in error.value.remedy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_too_short_for_the_task_is_refused(tiny_model: TinyModel, architecture: Architecture) -> None:
    folder = tiny_model(architecture, LABELS, positions=40)
    long = " ".join(["good film"] * 30)
    logits, truncated = Predictor(folder, text_classification("mood", LABELS, 40)).predict({"text": [long]})
    assert truncated == 1
    assert np.isfinite(logits.values).all()
    with pytest.raises(TeacherError, match="max_length 41 is more than the model's 40 positions"):
        Predictor(folder, text_classification("mood", LABELS, 41))


def test_a_model_of_another_kind_is_refused_before_it_is_opened(tiny_model: TinyModel) -> None:
    with pytest.raises(
        TeacherError, match=r"teachers\.x: .* is a BertModel, text-classification needs"
    ) as caught:
        check_model(tiny_model("bert"), TASK, "teachers.x")
    assert "fine_tune" in caught.value.remedy


# ---------------------------------------------------------------- hidden vectors of words


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_vectors_are_means_over_a_words_tokens(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model(architecture, LABELS)
    layer = hidden_layer(folder, 2, "teachers.big")
    teacher = Predictor(folder, TASK, layer=layer, tokens_per_forward=64)
    soft, hidden, truncated = teacher.label({"text": TEXTS})
    assert hidden is not None
    assert hidden.space == layer
    assert hidden.values.dtype == np.dtype("float16")
    plain, counted = teacher.predict({"text": TEXTS})
    assert np.array_equal(soft.values, plain.values)
    assert truncated == counted
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = open_tokenizer(folder)
    for row in (0, 17):
        tokens = tokenizer([TEXTS[row]], return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens, output_hidden_states=True).hidden_states[2][0]
        spans = tokens.encodings[0].offsets
        words = word_spans(TEXTS[row]).tolist()
        expected = [
            np.mean([states[t] for t, (a, b) in enumerate(spans) if a < end and b > start and b > a], axis=0)
            for start, end in words
        ]
        vectors = hidden.take(np.array([row])).values
        np.testing.assert_allclose(vectors, np.array(expected), rtol=2e-3, atol=2e-3)


def test_a_layer_that_is_not_there_is_refused(tiny_model: TinyModel) -> None:
    folder = tiny_model("bert", LABELS)
    with pytest.raises(TeacherError, match=r"teachers.big.hidden_layer: 3, and .* has 2 layers"):
        hidden_layer(folder, 3, "teachers.big")
