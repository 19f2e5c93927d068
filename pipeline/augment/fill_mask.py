"""A masked language model that says which words are likely in a word's place.

A word is asked about where it is one token of the model's, so that one mask stands for it. The answer depends on the text
and the place of the word alone: the copies of one text, each with another word masked, are a batch by themselves, all of
one length and without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import BadTargetsError, TeacherError
from pipeline.models import open_config, open_model, open_tokenizer, positions
from pipeline.tasks.spans import first_covered, last_covered
from pipeline.tasks.variants import LETTERS

VERSION = 1
"""Part of the name under which answers are kept: increase it when the same model gives other answers."""
WINDOW = 128
"""Most tokens, special tokens counted, that the model reads around a word."""
TOKENS_PER_FORWARD = 4096
SPARE = 8
"""Candidates that are looked at beyond those asked for: spellings of the word itself are none."""
ANCHOR = "a"
"""A text that every tokenizer has: beside it the others show what they are."""
NONE = -1
"""Stands for a candidate where the vocabulary has too few."""


class FillMask:
    """A fill-mask model. words: (V,) by id the whole word that the token is, "" where it is none.

    Raises `TeacherError` where the folder has no such model.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.where = where
        self.tokenizer = open_tokenizer_with_mask(folder, where)
        self.words = whole_words(self.tokenizer)
        self._ids = torch.tensor([i for i, word in enumerate(self.words) if word])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None
        self._folder = folder
        self._before, self._behind = special_tokens(self.tokenizer)
        self._room = min(WINDOW, positions(folder) or WINDOW) - len(self._before) - len(self._behind)

    def tokens(self, text: str, words: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a text, without special tokens, and for each of `words` (W, 2), characters ``[start, end)``, the
        place of the token that is this word; -1 where it is not exactly one known token."""
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids, spans = encoded["input_ids"], np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        starts, ends = spans[:, 0], spans[:, 1]
        first, last = first_covered(starts, ends, words), last_covered(starts, ends, words)
        places = np.full(len(words), -1)
        pieces = np.bincount(first[first >= 0], minlength=len(words))
        for place in np.flatnonzero((first >= 0) & (first == last)):
            if pieces[first[place]] == 1 and self.words[ids[place]]:
                places[first[place]] = place
        return ids, places

    @torch.inference_mode()
    def ask(self, ids: Sequence[int], places: NDArray[np.int64], candidates: int) -> NDArray[np.int32]:
        """(n, candidates) int32 ids of the likeliest whole words, best first, for each of `places` (n,) of a text's
        tokens masked by itself; the word itself, in whatever case, is none of them.

        Raises `BadTargetsError` where the model gives NaN.
        """
        answers = np.full((len(places), candidates), NONE, dtype=np.int32)
        rows, masks = zip(*(self._masked(ids, int(place)) for place in places), strict=True)
        batch, at = torch.tensor(rows), torch.tensor(masks)
        size = max(1, TOKENS_PER_FORWARD // batch.shape[1])
        for start in range(0, len(rows), size):
            logits = self._logits(batch[start : start + size], at[start : start + size])[:, self._ids]
            best = logits.topk(min(candidates + SPARE, len(self._ids)))
            if not bool(torch.isfinite(best.values).all()):
                raise BadTargetsError(
                    f"{self.where}: {self._folder} gives NaN or Inf", "Give another fill-mask model."
                )
            for row, some in enumerate(self._ids[best.indices].tolist(), start=start):
                own = self.words[ids[places[row]]].casefold()
                others = [one for one in some if self.words[one].casefold() != own][:candidates]
                answers[row, : len(others)] = others
        return answers

    def _masked(self, ids: Sequence[int], place: int) -> tuple[list[int], int]:
        """Token ids of the window around `place`, which is masked, with special tokens, and where the mask stands."""
        start = max(0, min(place - self._room // 2, len(ids) - self._room))
        window = [*self._before, *ids[start : start + self._room], *self._behind]
        masked = len(self._before) + place - start
        window[masked] = self.tokenizer.mask_token_id
        return window, masked

    def _logits(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """(n, V) logits at the masks `at` (n,) of `ids` (n, length). The head reads the masks' states alone: over all
        tokens a vocabulary of logits costs more than the encoder of a small model."""
        if self._model is None:
            self._model = open_fill_mask(self._folder).to(self._device)

        def masks_alone(module: Any, inputs: Any, output: Any) -> Any:
            states = output.last_hidden_state
            output.last_hidden_state = states[torch.arange(len(at)), at.to(states.device), None]
            return output

        hook = self._model.base_model.register_forward_hook(masks_alone)
        try:
            ids = ids.to(self._device)
            logits: torch.Tensor = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        finally:
            hook.remove()
        return logits[:, 0].float().cpu()


def open_fill_mask(folder: Path) -> Any:
    """The model. Raises `TeacherError` where the folder lacks the weights of its head."""
    from transformers import AutoModelForMaskedLM

    return open_model(AutoModelForMaskedLM, folder, complete=True)


def open_tokenizer_with_mask(folder: Path, where: str) -> Any:
    """The tokenizer of a fill-mask model. Raises `TeacherError` for one without mask or without offsets."""
    tokenizer = open_tokenizer(folder)
    if tokenizer.mask_token_id is None or not tokenizer.is_fast:
        lack = "no mask token" if tokenizer.mask_token_id is None else "no character offsets"
        raise TeacherError(
            f"{where}: the tokenizer of {folder} has {lack}", "Give a fill-mask model, as bert-base."
        )
    return tokenizer


def check_fill_mask(folder: Path, where: str) -> None:
    """Raises `TeacherError` unless the folder has a fill-mask model with its head. Runs nothing."""
    config = open_config(folder)
    named = config.architectures or []
    if named and not any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in named):
        raise TeacherError(
            f"{where}: {folder} is a {' or '.join(named)}, no fill-mask model",
            "Give a …ForMaskedLM model, as bert-base.",
        )
    open_tokenizer_with_mask(folder, where)
    try:
        open_fill_mask(folder)
    except TeacherError as error:
        raise TeacherError(f"{where}: {error.cause}", error.remedy) from None


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens before and behind a text."""
    (anchor,) = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"][-1:]
    whole = tokenizer(ANCHOR)["input_ids"]
    last = len(whole) - 1 - whole[::-1].index(anchor)
    first = whole.index(tokenizer(ANCHOR, add_special_tokens=False)["input_ids"][0])
    return whole[:first], whole[last + 1 :]


def whole_words(tokenizer: Any) -> list[str]:
    """By id the word of letters that a token is, as it stands behind another word; "" for pieces of words, special tokens
    and marks."""
    (anchor,) = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"][-1:]
    before = tokenizer.decode([anchor])
    special = set(tokenizer.all_special_ids)
    decoded = tokenizer.batch_decode(
        [[anchor, i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False
    )
    words = []
    for i, text in enumerate(decoded):
        word = text.removeprefix(f"{before} ")
        whole = i not in special and word != text and LETTERS.fullmatch(word) is not None
        words.append(word if whole else "")
    return words
