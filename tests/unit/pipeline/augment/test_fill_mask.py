"""A tiny masked language model: which words it is asked about, and what it answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.augment import fill_mask
from pipeline.augment.fill_mask import NONE, FillMask, check_fill_mask, open_fill_mask
from pipeline.errors import BadTargetsError, TeacherError
from pipeline.tasks.variants import side_of, word_of
from tests.conftest import FILLER, Architecture, TinyFillMask, TinyModel

TEXT = "This film, surely, is a very good story of the zebra"


def asked(model: FillMask, text: str, candidates: int = 5) -> dict[str, list[str]]:
    """Candidates by word of a text."""
    side = side_of(text)
    ids, tokens = model.tokens(text, side.words)
    words = np.flatnonzero(tokens >= 0)
    answers = model.ask(ids, tokens[words], candidates)
    return {
        word_of(side, word): [model.words[i] for i in row if i != NONE]
        for word, row in zip(words, answers, strict=True)
    }


def test_words_that_are_one_token_are_asked_about(tiny_fill_mask: TinyFillMask) -> None:
    answers = asked(FillMask(tiny_fill_mask(), "x"), TEXT)
    assert list(answers) == ["This", "film", "is", "a", "very", "good", "story", "of", "the"]
    for word, some in answers.items():
        assert len(set(some)) == 5
        assert word.lower() not in some
        assert all(one.isalpha() for one in some)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_answers_are_the_likeliest_words_of_a_plain_forward(
    tiny_fill_mask: TinyFillMask, architecture: Architecture
) -> None:
    folder = tiny_fill_mask(architecture)
    model = FillMask(folder, "x")
    answers = asked(model, TEXT)
    plain, tokenizer = open_fill_mask(folder), model.tokenizer
    for word in ("film", "the"):
        inputs = tokenizer(TEXT.replace(word, tokenizer.mask_token, 1), return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.inference_mode():
            logits = plain(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits[0, place]
        order = [model.words[i] for i in logits.argsort(descending=True).tolist()]
        assert answers[word] == [one for one in order if one and one != word][:5]


def test_other_texts_and_parts_of_a_text_change_no_answer(
    tiny_fill_mask: TinyFillMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FillMask(tiny_fill_mask(), "x")
    whole = asked(model, TEXT)
    asked(model, "another film")
    assert asked(model, TEXT) == whole
    monkeypatch.setattr(fill_mask, "TOKENS_PER_FORWARD", 1)  # a row at a time
    assert asked(model, TEXT) == whole


def test_of_a_long_text_the_words_around_are_read(tiny_fill_mask: TinyFillMask) -> None:
    model = FillMask(tiny_fill_mask(positions=16), "x")
    long = " ".join(FILLER * 3)
    ids, tokens = model.tokens(long, side_of(long).words)
    assert len(ids) > 16
    assert model.ask(ids, tokens, 3).shape == (len(ids), 3)
    for place in (0, len(ids) // 2, len(ids) - 1):
        window, mask = model._masked(ids, place)
        assert len(window) == 16
        assert window[mask] == model.tokenizer.mask_token_id
        assert window.count(model.tokenizer.mask_token_id) == 1
        assert (window[0], window[-1]) == (model.tokenizer.cls_token_id, model.tokenizer.sep_token_id)


def test_a_small_vocabulary_gives_fewer_candidates(tiny_fill_mask: TinyFillMask) -> None:
    model = FillMask(tiny_fill_mask(), "x")
    count = sum(map(bool, model.words))
    assert len(asked(model, "a film", 1000)["film"]) == count - 1


def test_nan_is_refused(tiny_fill_mask: TinyFillMask) -> None:
    model = FillMask(tiny_fill_mask(), "tasks.t.augment.masked")
    asked(model, "film")
    with torch.no_grad():
        next(model._model.parameters()).fill_(float("nan"))
    with pytest.raises(BadTargetsError, match=r"tasks\.t\.augment\.masked: .* gives NaN or Inf"):
        asked(model, "film")


# ---------------------------------------------------------------- what is no fill-mask model


def test_a_fill_mask_model_passes(tiny_fill_mask: TinyFillMask) -> None:
    check_fill_mask(tiny_fill_mask(), "x")


def test_models_of_another_kind_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"^x: .* is a BertModel, no fill-mask model"):
        check_fill_mask(tiny_model(), "x")
    nameless = shutil.copytree(tiny_model(), tmp_path / "nameless")
    config = nameless / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForMaskedLM"'))
    with pytest.raises(TeacherError, match=r"^x: .* has no weights cls\.predictions"):
        check_fill_mask(nameless, "x")


def test_a_tokenizer_without_mask_is_refused(
    tiny_fill_mask: TinyFillMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bare:
        mask_token_id = None
        is_fast = True

    def bare(folder: Path) -> Any:
        return Bare()

    monkeypatch.setattr(fill_mask, "open_tokenizer", bare)
    with pytest.raises(TeacherError, match="has no mask token"):
        check_fill_mask(tiny_fill_mask(), "x")
