"""`augment.masked`: words replaced by what a masked language model finds likely in their place.

TinyBERT (Jiao et al. 2020, arXiv 1909.10351), algorithm 1, for words that are one token; a word of several tokens, for
which TinyBERT takes neighbours in GloVe's space, stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.augment.candidates import Candidates, word_keys
from pipeline.augment.fill_mask import NONE, VERSION, WINDOW, FillMask
from pipeline.config.data import MaskedConfig
from pipeline.config.resolved import absolute_model
from pipeline.models import fingerprint, resolve
from pipeline.tasks.variants import Place, Side

BLOCK_S = 20.0
"""Seconds of the model's work between two files of answers: what a kill may lose."""


class Masked:
    """See `pipeline.augment.make.Method`. Raises `TeacherError` where there is no such model.

    folder: of the answers of all models · where: the section's path, for errors · progress: called with the words asked
    about and their number · check: called between two texts; may raise, which keeps what was asked.
    """

    name = "masked"

    def __init__(
        self,
        config: MaskedConfig,
        folder: Path,
        where: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        model = resolve(absolute_model(config.model), config.revision, where)
        self.variants, self.share, self._width = config.variants, config.share, config.candidates
        self._model = FillMask(model, where)
        self._known = Candidates(folder, [fingerprint(model), VERSION, WINDOW], self._width)
        self._progress, self._check = progress, check

    def places(self, sides: Sequence[Side]) -> list[Place]:
        """The free words that are one token of the model's."""
        places = []
        for i, side in enumerate(sides):
            _, tokens = self._model.tokens(side.text, side.words)
            places += [(i, int(word)) for word in np.flatnonzero(side.free & (tokens >= 0))]
        return places

    def ask(self, asked: Mapping[str, Mapping[int, Side]]) -> tuple[float, int]:
        """Asks the model about the words that it was never asked about."""
        keys = {text: _keys(text, words) for text, words in asked.items()}
        everything = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *keys.values()]))
        new = {text: self._known.missing(own) for text, own in keys.items()}
        waiting = [text for text in sorted(new) if new[text].any()]
        done, total, block = 0, int(self._known.missing(everything).sum()), _Block(self._known)
        try:
            for text in waiting:
                words = asked[text]
                ids, tokens = self._model.tokens(text, next(iter(words.values())).words)
                places = tokens[np.array(list(words))[new[text]]]
                block.add(keys[text][new[text]], self._model.ask(ids, places, self._width))
                done += len(places)
                self._progress(done, total)
                self._check()
        finally:
            block.write()
        return self._known.seconds(everything), total

    def replacements(self, side: Side, word: int) -> Sequence[str]:
        """The model's candidates, best first."""
        (ids,) = self._known.of(word_keys(side.text, side.words[[word], 0]))
        return [self._model.words[i] for i in ids if i != NONE]


class _Block:
    """Answers that are not on disk yet; written every `BLOCK_S` seconds."""

    def __init__(self, known: Candidates) -> None:
        self._known, self._since = known, time.perf_counter()
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.int32]]] = []

    def add(self, keys: NDArray[np.uint64], ids: NDArray[np.int32]) -> None:
        self._parts.append((keys, ids))
        if time.perf_counter() - self._since > BLOCK_S:
            self.write()

    def write(self) -> None:
        if self._parts:
            keys, ids = (np.concatenate(column) for column in zip(*self._parts, strict=True))
            self._known.add(keys, ids, time.perf_counter() - self._since)
        self._parts, self._since = [], time.perf_counter()


def _keys(text: str, words: Mapping[int, Side]) -> NDArray[np.uint64]:
    """(n,) the keys of some words of a text, in their order. words: by index, with a side that has the text."""
    side = next(iter(words.values()))
    return word_keys(text, side.words[list(words), 0])
