"""Scores of texts against reference texts: chrF, BLEU, ROUGE-L and exact match, from sums of statistics over examples.

sacrebleu and rouge-score count n-grams and subsequences. The scores are functions of the sums of the counts (of ROUGE-L and
exact match: of the examples' own scores), so that a bootstrap over examples needs no text again. Scores are shares of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHRF_ORDERS = 6
"""Character n-grams of chrF, without word n-grams."""
CHRF_BETA = 2
"""How many times recall weighs as much as precision."""
BLEU_ORDERS = 4
CHRF, BLEU = slice(0, 3 * CHRF_ORDERS), slice(3 * CHRF_ORDERS, 3 * CHRF_ORDERS + 2 + 2 * BLEU_ORDERS)
ROUGE_L, EXACT, COUNT = BLEU.stop, BLEU.stop + 1, BLEU.stop + 2
WIDTH = COUNT + 1


def text_statistics(
    texts: Sequence[str], references: Sequence[str], *, rouge: bool = True
) -> NDArray[np.float64]:
    """(n, WIDTH) of n texts against one reference each. rouge: with ROUGE-L, which takes longer than all others; else 0."""
    statistics = np.zeros((len(texts), WIDTH))
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        statistics[row, CHRF] = chrf_counts(text, reference)
        statistics[row, BLEU] = bleu_counts(text, reference)
        if rouge:
            statistics[row, ROUGE_L] = _rouge().score(reference, text)["rougeL"].fmeasure
        statistics[row, EXACT] = text.strip() == reference.strip()
        statistics[row, COUNT] = 1
    return statistics


def chrf_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) chrF, from (…, WIDTH) sums of statistics.

    Popović 2015, as sacrebleu computes it: F of the mean precision and recall over the orders of which both sides have
    n-grams, recall weighted β² = 4 times.
    """
    return _chrf_of_counts(sums[..., CHRF])


def _chrf_of_counts(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) chrF, from (…, 3 · CHRF_ORDERS) sums of `chrf_counts`."""
    counts = flat.reshape(*flat.shape[:-1], CHRF_ORDERS, 3)
    own, gold, matched = np.moveaxis(counts, -1, 0)
    both = (own > 0) & (gold > 0)
    orders = np.maximum(both.sum(axis=-1), 1)
    precision = np.where(both, matched / np.maximum(own, 1), 0).sum(axis=-1) / orders
    recall = np.where(both, matched / np.maximum(gold, 1), 0).sum(axis=-1) / orders
    weight = CHRF_BETA**2
    below = weight * precision + recall
    return np.where(below > 0, (1 + weight) * precision * recall / np.where(below > 0, below, 1), 0.0)


def bleu_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…,) BLEU, from (…, WIDTH) sums of statistics, by sacrebleu: 13a tokens, exponential smoothing."""
    from sacrebleu.metrics.bleu import BLEU as SACREBLEU

    rows = sums[..., BLEU].reshape(-1, 2 + 2 * BLEU_ORDERS).astype(int)
    scores = [
        SACREBLEU.compute_bleu(
            correct=row[2 : 2 + BLEU_ORDERS].tolist(),
            total=row[2 + BLEU_ORDERS :].tolist(),
            sys_len=int(row[0]),
            ref_len=int(row[1]),
            smooth_method="exp",
        ).score
        for row in rows
    ]
    return np.array(scores).reshape(sums.shape[:-1]) / 100


def mean_of(sums: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    """(…,) the mean over examples of `ROUGE_L` or `EXACT`, from (…, WIDTH) sums of statistics."""
    return np.asarray(sums[..., column] / np.maximum(sums[..., COUNT], 1))


def text_chrf(text: str, reference: str) -> float:
    """chrF of one text."""
    return float(_chrf_of_counts(np.array(chrf_counts(text, reference), dtype=np.float64)))


def pairwise_chrf(texts: Sequence[str]) -> NDArray[np.float64]:
    """(n, n) chrF of each text, the row, with each as its reference; 1 with itself where it has a character.

    sacrebleu takes the n-grams out of the texts; those of all pairs are matched at once, order by order.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    grams = [extract_all_char_ngrams(text, CHRF_ORDERS, include_whitespace=False) for text in texts]
    counts = np.zeros((len(texts), len(texts), CHRF_ORDERS, 3))
    for order in range(CHRF_ORDERS):
        places: dict[str, int] = {}
        for own in grams:
            for gram in own[order]:
                places.setdefault(gram, len(places))
        numbers = np.zeros((len(texts), len(places)), dtype=np.int32)
        for row, own in enumerate(grams):
            numbers[row, [places[gram] for gram in own[order]]] = list(own[order].values())
        totals = numbers.sum(axis=1)
        counts[:, :, order, 0], counts[:, :, order, 1] = totals[:, None], totals[None]
        for row, own_numbers in enumerate(numbers):  # row by row: n · n · places may be much memory
            counts[row, :, order, 2] = np.minimum(own_numbers, numbers).sum(axis=1)
    return _chrf_of_counts(counts.reshape(len(texts), len(texts), -1))


def chrf_counts(text: str, reference: str) -> list[int]:
    """For each order from 1: n-grams of the text, of its reference, and of both."""
    return list(_sacrebleu_chrf()._extract_corpus_statistics([text], [[reference]])[0])


def bleu_counts(text: str, reference: str) -> list[int]:
    """Words of the text and of its reference; n-grams of both, then of the text, for each order from 1."""
    return list(_sacrebleu_bleu()._extract_corpus_statistics([text], [[reference]])[0])


def text_signatures() -> dict[str, str]:
    """How sacrebleu computes ``chrf`` and ``bleu``, in its own notation, for reports."""
    chrf, bleu = _sacrebleu_chrf(), _sacrebleu_bleu()
    chrf.corpus_score(["a"], [["a"]])
    bleu.corpus_score(["a"], [["a"]])
    return {"chrf": str(chrf.get_signature()), "bleu": str(bleu.get_signature())}


@cache
def _sacrebleu_chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF as SACRECHRF

    return SACRECHRF(char_order=CHRF_ORDERS, word_order=0, beta=CHRF_BETA)


@cache
def _sacrebleu_bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU as SACREBLEU

    return SACREBLEU(force=True)  # a text that ends in " ." is no reason for a warning


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@dataclass(frozen=True)
class Likeness:
    """How alike texts are: 1 where they are the same, 0 or less where nothing is.

    of: of a text and its reference · pairwise: (n, n) of each text, the row, with each as its reference.
    """

    of: Callable[[str, str], float]
    pairwise: Callable[[Sequence[str]], NDArray[np.float64]]


CHRF_LIKENESS = Likeness(text_chrf, pairwise_chrf)
"""By chrF."""
