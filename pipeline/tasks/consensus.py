"""What several teachers' candidate texts come to for each source. Pure functions.

The consensus is the candidate with the lowest expected risk under all candidates, minimum Bayes risk by chrF (Kumar & Byrne
2004; by chrF as in Freitag et al., arXiv:2111.09388; of speech by word error). It needs no common vocabulary.

Shapes: K teachers, n examples, C_k candidates of teacher k for each; texts are arrays of `pipeline.text_arrays.TEXT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.text_faults import loops
from pipeline.tasks.text_scores import CHRF_LIKENESS, Likeness
from pipeline.text_arrays import text_array


def consensus_texts(
    candidates: Sequence[NDArray[Any]], weights: Sequence[float], likeness: Likeness = CHRF_LIKENESS
) -> NDArray[Any]:
    """(n, 1) the candidates with the highest expected likeness, the first one of equals.

    candidates: (n, C_k) of each teacher · weights: (K,), whose sum is 1; a teacher of weight 0 is not among them.
    """
    chosen = [(own, weight) for own, weight in zip(candidates, weights, strict=True) if weight]
    joined = np.concatenate([own for own, _ in chosen], axis=1)
    shares = np.concatenate([np.full(own.shape[1], weight / own.shape[1]) for own, weight in chosen])
    return text_array([[consensus(row, shares, likeness)] for row in joined.tolist()])


def consensus(
    candidates: Sequence[str], shares: NDArray[np.float64], likeness: Likeness = CHRF_LIKENESS
) -> str:
    """The one of C texts with the highest Σ_c' share_c' · likeness(c, c'), the first one of equals. A text counts itself.

    Texts that are empty or mostly repeat the same words are no candidates, and have no vote, where there is another: chrF weighs
    recall more, so that of two texts a long one would win because it is long.
    """
    sound = [row for row, text in enumerate(candidates) if text.strip() and not loops(text)]
    rows = sound or list(range(len(candidates)))
    distinct = list(dict.fromkeys(candidates[row] for row in rows))
    if len(distinct) == 1:
        return distinct[0]
    place = [distinct.index(candidates[row]) for row in rows]
    votes = np.bincount(place, weights=shares[rows], minlength=len(distinct))
    return distinct[int(np.argmax(likeness.pairwise(distinct) @ votes))]


def nearest_texts(
    candidates: Sequence[NDArray[Any]], references: Sequence[str], likeness: Likeness = CHRF_LIKENESS
) -> NDArray[Any]:
    """(n, 1) the candidates of any teacher that are most like their reference, the first one of equals."""
    joined = np.concatenate(candidates, axis=1).tolist()
    return text_array([[_nearest(row, to, likeness)] for row, to in zip(joined, references, strict=True)])


def _nearest(candidates: Sequence[str], reference: str, likeness: Likeness) -> str:
    distinct = list(dict.fromkeys(candidates))
    return distinct[int(np.argmax([likeness.of(text, reference) for text in distinct]))]
