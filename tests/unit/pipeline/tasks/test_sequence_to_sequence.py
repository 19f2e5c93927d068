"""Kind sequence-to-sequence: what is read, encoded, written and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch

from pipeline.batch import NO_TOKEN, UNLABELLED
from pipeline.config.generation import GenerationConfig, TokenTargetsConfig
from pipeline.data.splits import read_examples
from pipeline.errors import DataError, TeacherError
from pipeline.models import open_model, open_tokenizer, vocabulary
from pipeline.predictor import Predictor
from pipeline.soft import Sparse, Texts
from pipeline.tasks import Task
from pipeline.tasks.forced import decoder_inputs
from pipeline.tasks.generation import generation_settings
from pipeline.tasks.label_columns import Column
from pipeline.tasks.writing import writing_head
from pipeline.text_arrays import text_array
from tests.tiny_writers import FAMILIES, SOURCES, TARGETS, tokenizer, writer, writing_task

torch.set_num_threads(1)


def read(task: Task, sources: list[Any], targets: list[Any]) -> Any:
    return read_examples(task, "train", {"source": Column(sources), "target": Column(targets)})


# ---------------------------------------------------------------- reading


def test_a_target_of_null_is_unknown_and_labels_name_targets() -> None:
    task = writing_task()
    examples = read(task, ["a", "b", "c"], ["x", None, "x"])
    assert task.reading.labelled(examples.labels).tolist() == [True, False, True]
    labels = examples.labels.values
    assert labels[0] == labels[2] != UNLABELLED == labels[1]
    assert read(task, ["a"], ["y"]).keys[0] == examples.keys[0], "targets take no part in the key"
    assert read(task, ["a"], ["y"]).labels.values[0] != labels[0]


@pytest.mark.parametrize(
    ("sources", "targets", "cause"),
    [
        (["a", " "], ["x", "y"], "row 1 of train: source is empty"),
        (["a", "b"], ["x", ""], "row 1 of train: target is empty"),
        (["a", 3], ["x", "y"], "row 1 of train: source is 3, not text"),
        (["a", "b"], [["x"], "y"], "row 0 of train: target is"),
        ([{"en": "a", "fr": "b"}], ["x"], "row 0 of train: source is {'en': 'a', 'fr': 'b'}, not text"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(sources: list[Any], targets: list[Any], cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        read(writing_task(), sources, targets)


# ---------------------------------------------------------------- encoding


def test_sources_have_the_prefix_and_both_sides_are_cut_and_counted() -> None:
    words, task = tokenizer(), writing_task(max_length=5, target_length=4)
    head = writing_head(task).of_model("the ", GenerationConfig())
    encoded = head.encode(words, {"source": SOURCES, "target": TARGETS})
    whole = [words("the " + source)["input_ids"] for source in SOURCES]
    targets = [words(target)["input_ids"] for target in TARGETS]
    assert encoded.lengths.tolist() == [min(5, len(ids)) for ids in whole]
    assert encoded.targets is not None
    assert encoded.targets.counts.tolist() == [min(4, len(ids)) for ids in targets]
    assert encoded.truncated == sum(len(ids) > 5 for ids in whole)
    assert encoded.targets.truncated == sum(len(ids) > 4 for ids in targets)
    first = encoded.targets.take(np.array([0])).values.tolist()
    assert first[-1] == words.eos_token_id, "a truncated target keeps its end mark"


def test_words_are_refused() -> None:
    with pytest.raises(TeacherError, match="hidden states"):
        writing_task().head.encode(tokenizer(), {"source": SOURCES}, words=True)


# ---------------------------------------------------------------- writing


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: writer(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def alone(folder: Path, source: str, **settings: Any) -> str:
    """What transformers writes for one source."""
    words, model = open_tokenizer(folder), _model(folder)
    batch = words([source], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=12, max_length=None, **settings)
    return str(words.batch_decode(ids, skip_special_tokens=True)[0]).strip()


def _model(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return open_model(AutoModelForSeq2SeqLM, folder)


@torch.no_grad()
def log_probability(folder: Path, source: str, ids: list[int]) -> float:
    """The sum over the tokens of a text, the model forced along them."""
    model, words = _model(folder), open_tokenizer(folder)
    batch = words([source], return_tensors="pt", return_token_type_ids=False)
    target = torch.tensor([ids])
    logits = model(**batch, decoder_input_ids=decoder_inputs(model, target)).logits
    return float(logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_written_as_each_source_alone(folders: dict[str, Path], family: str, beams: int) -> None:
    task = writing_task(beams=beams, candidates=beams)
    texts, truncated = Predictor(folders[family], task).predict({"source": SOURCES})
    assert isinstance(texts, Texts)
    assert texts.values.shape == (len(SOURCES), beams)
    assert truncated == 0
    assert texts.values[:, 0].tolist() == [alone(folders[family], s, num_beams=beams) for s in SOURCES]
    assert np.isfinite(texts.scores).all()


@pytest.mark.parametrize("settings", [{}, {"beams": 3, "candidates": 3, "length_penalty": 0.5}])
def test_a_text_has_the_log_probability_of_its_tokens(
    folders: dict[str, Path], settings: dict[str, Any]
) -> None:
    folder = folders["t5"]
    texts = Predictor(folder, writing_task(**settings)).predict({"source": SOURCES})[0]
    assert isinstance(texts, Texts)
    model, words = _model(folder), open_tokenizer(folder)
    own = generation_settings(GenerationConfig(**settings), 12)
    for row, source in enumerate(SOURCES):
        batch = words([source], return_tensors="pt", return_token_type_ids=False)
        written = model.generate(**batch, **own, num_return_sequences=settings.get("candidates", 1))[:, 1:]
        for place, ids in enumerate(written.tolist()):
            end = ids.index(words.eos_token_id) + 1 if words.eos_token_id in ids else len(ids)
            assert texts.lengths[row, place] == end
            expected = log_probability(folder, source, ids[:end])
            assert texts.scores[row, place] == pytest.approx(expected, abs=2e-3)


def test_samples_differ_and_are_as_many_as_asked(folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    task = writing_task(temperature=2.0, candidates=4)
    texts = Predictor(folders["t5"], task).predict({"source": SOURCES})[0]
    assert texts.values.shape == (len(SOURCES), 4)
    assert any(len(set(row)) > 1 for row in texts.values.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_distributions_along_texts_are_those_of_the_model(folders: dict[str, Path], family: str) -> None:
    task, size = writing_task(), len(tokenizer())
    predictor = Predictor(folders[family], task, tokens_per_forward=20)
    soft, _, truncated = predictor.force({"source": SOURCES, "text": TARGETS}, TokenTargetsConfig(ids=size))
    assert isinstance(soft, Sparse)
    assert truncated == 0
    assert soft.space == vocabulary(predictor.tokenizer)
    counts = [len(tokenizer()(target)["input_ids"]) for target in TARGETS]
    assert soft.counts.tolist() == counts
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        one = soft.take(np.array([row]))
        ids = tokenizer()(target)["input_ids"]
        at = (one.ids.values == np.array(ids)[:, None]).argmax(axis=1)
        total = one.log_probabilities[np.arange(len(ids)), at].sum()
        assert total == pytest.approx(log_probability(folders[family], source, ids), rel=1e-3)
        assert (one.rest < -50).all(), "all ids are listed"


# ---------------------------------------------------------------- scores


def test_scores_are_those_of_sacrebleu() -> None:
    task = writing_task()
    examples = read(task, SOURCES, TARGETS)
    texts = ["le rouge chat", "un chien", "le grand chien", "un chat voit", "rouge"]
    scores = task.scoring.scores(text_array([[text, "second"] for text in texts]), examples)
    assert 100 * scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [TARGETS]).score)
    assert 100 * scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [TARGETS]).score)
    assert scores["exact_match"] == pytest.approx(2 / 5)
    assert task.scoring.constant_score(examples) < scores["chrf"], "copies of the sources"


def test_gold_and_answers_in_words() -> None:
    task = writing_task()
    examples = read(task, SOURCES, TARGETS)
    items = np.zeros(len(SOURCES), dtype=np.int64)
    assert task.scoring.answers(examples.labels.values, examples, items) == TARGETS
    values = text_array([[source] for source in SOURCES])
    assert task.scoring.answers(task.scoring.decisions(values, examples), examples, items) == SOURCES


def test_decoder_reads_the_target_one_position_later() -> None:
    class Plain:
        class config:  # noqa: N801 - as transformers' models have it
            decoder_start_token_id, pad_token_id = 7, 0

    target = torch.tensor([[4, 5, 1], [4, 1, NO_TOKEN]])
    assert decoder_inputs(Plain(), target).tolist() == [[7, 4, 5], [7, 4, 1]]
