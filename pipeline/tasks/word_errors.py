"""Word and character error rates of transcripts, by jiwer, from sums over examples. Rates are shares of 1 and may be above it.

Texts are compared after Whisper's basic normalisation: lower case, without punctuation, symbols and what stands in brackets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.text_scores import Likeness

WORD_ERRORS, WORDS, CHARACTER_ERRORS, CHARACTERS = range(4)
WIDTH = 4


def error_counts(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """(n, WIDTH) of n texts against one reference each: word errors (substitutions, deletions, insertions), words of the reference, and the
    same of characters."""
    import jiwer

    counts = np.zeros((len(texts), WIDTH))
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        own, gold = normalised(text), normalised(reference)
        words, characters = jiwer.process_words(gold, own), jiwer.process_characters(gold, own)
        counts[row] = (*_errors(words), *_errors(characters))
    return counts


def _errors(output: Any) -> tuple[int, int]:
    """The errors that jiwer counts, and the length of the reference."""
    missed = output.substitutions + output.deletions
    return missed + output.insertions, missed + output.hits


def wer_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) word error rates, from (…, WIDTH) sums of counts."""
    return np.asarray(sums[..., WORD_ERRORS] / np.maximum(sums[..., WORDS], 1))


def cer_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) character error rates, from (…, WIDTH) sums of counts."""
    return np.asarray(sums[..., CHARACTER_ERRORS] / np.maximum(sums[..., CHARACTERS], 1))


def word_error(text: str, reference: str) -> float:
    """The word error rate of one text."""
    return float(wer_of(error_counts([text], [reference])[0]))


def _pairwise(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[1 - word_error(text, reference) for reference in texts] for text in texts])


WORD_LIKENESS = Likeness(lambda text, reference: 1 - word_error(text, reference), _pairwise)
"""1 − word error rate."""


@lru_cache(maxsize=100_000)
def normalised(text: str) -> str:
    """A text as it is compared."""
    return str(_normaliser()(text)).strip()


@cache
def _normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


def compared(text: str, reference: str) -> list[tuple[str, str]]:
    """A transcript beside its reference, both normalised, in parts: what was done to the reference's words (``equal``, ``delete``, ``insert``,
    ``substitute``), and the transcript's words, of deleted ones the reference's."""
    import jiwer

    output = jiwer.process_words(normalised(reference), normalised(text))
    gold, own = output.references[0], output.hypotheses[0]
    return [
        (
            chunk.type,
            " ".join(
                gold[chunk.ref_start_idx : chunk.ref_end_idx]
                if chunk.type == "delete"
                else own[chunk.hyp_start_idx : chunk.hyp_end_idx]
            ),
        )
        for chunk in output.alignments[0]
    ]


def error_signatures() -> dict[str, str]:
    """How ``wer`` and ``cer`` are computed, for reports."""
    how = f"jiwer {version('jiwer')}, over all words of the split; normalisation: BasicTextNormalizer of transformers {version('transformers')}"
    return {"wer": how, "cer": how.replace("words", "characters")}
