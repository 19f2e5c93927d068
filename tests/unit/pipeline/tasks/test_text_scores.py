"""chrF, BLEU, ROUGE-L and exact match from sums, against sacrebleu and rouge-score."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from pipeline.tasks.text_scores import (
    EXACT,
    ROUGE_L,
    bleu_of,
    chrf_of,
    mean_of,
    text_signatures,
    text_statistics,
)

TEXTS = ["The cat sat on the mat .", "une phrase, courte", "", "ab", "Schalte das Licht ein.", "好的。"]
GOLD = ["The cat is on the mat.", "une phrase courte", "nothing", "ab", "Schalte das Licht aus.", "好。"]


def test_scores_of_sums_are_those_of_the_corpus() -> None:
    statistics = text_statistics(TEXTS, GOLD)
    rng = np.random.default_rng(0)
    for rows in (np.arange(6), np.array([2]), np.array([2, 2]), np.array([3]), *rng.integers(0, 6, (20, 4))):
        sums = statistics[rows].sum(0)
        texts, gold = [TEXTS[i] for i in rows], [GOLD[i] for i in rows]
        assert 100 * chrf_of(sums) == pytest.approx(sacrebleu.corpus_chrf(texts, [gold]).score)
        assert 100 * bleu_of(sums) == pytest.approx(sacrebleu.corpus_bleu(texts, [gold], force=True).score)
        rouge = [
            RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure for a, b in zip(texts, gold, strict=True)
        ]
        assert mean_of(sums, ROUGE_L) == pytest.approx(np.mean(rouge))
        assert mean_of(sums, EXACT) == pytest.approx(
            np.mean([a == b for a, b in zip(texts, gold, strict=True)])
        )


def test_many_sums_at_once() -> None:
    statistics = text_statistics(TEXTS, GOLD)
    draws = np.stack([statistics[:3].sum(0), statistics[3:].sum(0)])
    for score in (chrf_of, bleu_of):
        assert score(draws).tolist() == [float(score(one)) for one in draws]
    assert chrf_of(np.zeros_like(draws)).tolist() == bleu_of(np.zeros_like(draws)).tolist() == [0, 0]


def test_equal_texts_score_1() -> None:
    sums = text_statistics(GOLD, GOLD).sum(0)
    assert [float(score) for score in (chrf_of(sums), mean_of(sums, EXACT))] == pytest.approx([1, 1])


def test_signatures_name_the_settings() -> None:
    own = text_signatures()
    assert "nc:6|nw:0" in own["chrf"]
    assert "tok:13a|smooth:exp" in own["bleu"]
