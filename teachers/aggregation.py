"""Several teachers' soft targets → one target. Pure functions, in float32.

Shapes: K teachers, N rows, C labels; a row is one distribution: of a text, a word, an answer's start …
p_k = softmax(z_k / T) of teacher k, v_k its weight from the config, w_k the weight that a row gives it. All strategies but ``log_mean`` are mixtures Σ_k w_k p_k and differ in w:

=============  ==================================================================  ============  ======
strategy       target                                                              source        labels
=============  ==================================================================  ============  ======
``mean``       w_k = v_k                                                           1503.02531    no
``log_mean``   softmax(Σ_k v_k log p_k), a product of experts                      1503.02531    no
``confidence`` w_k ∝ v_k (1 − softmax_k CE(y, p_k)) / (K − 1)                      2201.00007    yes
``entropy``    w_k ∝ v_k (1 − H(p_k) / Σ_j H(p_j))                                 EBKD          no
``best``       w = one-hot at the lowest CE(y, p_k)                                            yes
=============  ==================================================================  ============  ======

CE and H are taken at temperature 1: who is trusted does not depend on how soft the target is. A teacher of
weight 0 takes no part whatever the strategy: it is not among the K. A single teacher's target is its own
softmax(z / T), bit for bit.

A teacher may have no word on a label (`ABSENT` in its column: probability 0, and in ``log_mean`` no vote on it)
or on a whole row (all columns `ABSENT`): it is then not among the K for that row.

Continuous rows (N, 1) are numbers: targets are Σ_k w_k z_k, w as above with squared errors for CE; ``log_mean``
and ``entropy`` do not exist for them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax

from pipeline.batch import ABSENT, UNLABELLED, is_present
from pipeline.config.schema import Strategy, needs_labels


def aggregate(
    logits: Tensor,
    *,
    strategy: Strategy,
    weights: Tensor,
    temperature: float,
    labels: Tensor | None,
    continuous: bool = False,
) -> Tensor:
    """(N, C) float32 probabilities at `temperature`, one target for each row; (N, 1) numbers where `continuous`.

    logits: (K, N, C) raw soft targets, any float dtype, finite · weights: (K,) ≥ 0, summing to 1 ·
    temperature: > 0 · labels: (N,) int64, or float where `continuous`, or None where the strategy needs none.
    A row on which no teacher has a word gets a target of no meaning: the caller leaves it out.

    Raises ValueError for weights that do not fit, and for a strategy that needs labels when there are none
    or any is missing; also with one teacher, so that whether a config is right does not depend on weights.
    """
    missing = labels is None or bool((labels.isnan() if continuous else labels == UNLABELLED).any())
    if needs_labels(strategy) and missing:
        raise ValueError(f"strategy {strategy!r} needs the label of every example")
    logits, weights = _taking_part(logits.float(), weights)
    if continuous:
        return (_number_shares(logits, strategy, weights, labels).unsqueeze(-1) * logits).sum(dim=0)
    if len(logits) == 1:
        return softmax(logits[0] / temperature, dim=-1)
    present = is_present(logits)
    whole = bool(present.all())
    if strategy == "log_mean":
        return product_of_experts(logits, weights, temperature, None if whole else present)
    speaking = None if whole else present.any(dim=-1)
    match strategy:
        case "mean":
            shares = mean_shares(logits, weights)
        case "confidence":
            losses = _silenced(_label_losses(logits, labels), speaking, -torch.inf)
            shares = confidence_shares(losses, weights)
        case "entropy":
            shares = entropy_shares(logits, weights, speaking)
        case "best":
            shares = best_shares(_silenced(_label_losses(logits, labels), speaking, torch.inf))
    if speaking is not None:
        shares = _among(speaking, shares, weights)
    return (shares.unsqueeze(-1) * softmax(logits / temperature, dim=-1)).sum(dim=0)


def ensemble(logits: Tensor, *, strategy: Strategy, weights: Tensor, continuous: bool = False) -> Tensor:
    """(N, C) float32 probabilities at temperature 1: what a task's teachers answer together, without labels.

    For evaluation, where the labels are what is asked: strategies that need labels are scored by the weighted
    mean of their teachers, the others as themselves. Arguments as in `aggregate`.
    """
    blind: Strategy = "mean" if needs_labels(strategy) else strategy
    return aggregate(
        logits, strategy=blind, weights=weights, temperature=1.0, labels=None, continuous=continuous
    )


def mean_shares(logits: Tensor, weights: Tensor) -> Tensor:
    """(K, N): every example weighs its teachers by the config alone (the usual ensemble, arXiv:1503.02531)."""
    return weights.unsqueeze(-1).expand(logits.shape[:2])


def product_of_experts(
    logits: Tensor, weights: Tensor, temperature: float, present: Tensor | None = None
) -> Tensor:
    """(N, C): the weighted geometric mean of the teachers' probabilities, renormalised (arXiv:1503.02531).

    present: (K, N, C) which labels each teacher knows, None for all; a label is voted on by those who know it.
    """
    log_probabilities = log_softmax(logits / temperature, dim=-1)
    votes = weights.view(-1, 1, 1)
    if present is None:
        return softmax((votes * log_probabilities).sum(dim=0), dim=-1)
    votes = votes * present
    total = votes.sum(dim=0)
    mean = (votes * log_probabilities).sum(dim=0) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return softmax(mean.masked_fill(total == 0, ABSENT), dim=-1)


def confidence_shares(losses: Tensor, weights: Tensor) -> Tensor:
    """(K, N): teachers weigh less the worse they do on the label (CA-MKD, arXiv:2201.00007).

    losses: (K, N) cross-entropies. confidence_k = (1 − softmax_k(losses)) / (K − 1), which sums to 1; times
    the config's weights, renormalised. Between 0 and 1 / (K − 1) each: with equal weights no teacher of three
    gets more than half. The paper weighs one soft loss a teacher; one soft loss to the mixture has the same
    gradient, and is 0 when the student reaches the mixture.
    """
    confidence = (1 - softmax(losses, dim=0)) / (len(losses) - 1)
    return _normalised(weights.unsqueeze(-1) * confidence)


def entropy_shares(logits: Tensor, weights: Tensor, speaking: Tensor | None = None) -> Tensor:
    """(K, N): teachers weigh less the less sure they are, no labels needed.

    1 − H_k / Σ_j H_j with H the entropy at temperature 1, times the config's weights, renormalised: EBKD as
    CA-MKD's authors implement it (arXiv:2201.00007's code), but summing to 1. Where no teacher has any
    entropy, the config's weights. speaking: (K, N) who has a word on a row at all, None for everybody.
    """
    entropies = torch.special.entr(softmax(logits, dim=-1)).sum(dim=-1)
    if speaking is not None:
        entropies = entropies * speaking
    total = entropies.sum(dim=0)
    unsure = torch.where(total > 0, entropies / total, 0.0)
    return _normalised(weights.unsqueeze(-1) * (1 - unsure))


def best_shares(losses: Tensor) -> Tensor:
    """(K, N) one-hot: the teacher with the lowest of the losses (K, N), the first of equals."""
    return one_hot(losses.argmin(dim=0), len(losses)).T.to(losses.dtype)


def _number_shares(numbers: Tensor, strategy: Strategy, weights: Tensor, labels: Tensor | None) -> Tensor:
    """(K, N) shares of teachers that say one number each, (K, N, 1)."""
    match strategy:
        case "mean":
            return mean_shares(numbers, weights)
        case "confidence" | "best":
            assert labels is not None, "aggregate has checked"
            losses = torch.square(numbers.squeeze(-1) - labels)
            if len(numbers) == 1 or strategy == "best":
                return best_shares(losses)
            return confidence_shares(losses, weights)
        case _:
            raise ValueError(f"strategy {strategy!r} is not made for numbers")


def _silenced(losses: Tensor, speaking: Tensor | None, value: float) -> Tensor:
    """Losses (K, N), `value` where a teacher has no word."""
    return losses if speaking is None else losses.masked_fill(~speaking, value)


def _among(speaking: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Shares (K, N) of those who speak, summing to 1 over them; the config's weights where those shares are 0."""
    shares = torch.where(speaking, torch.nan_to_num(shares), 0.0)
    fallback = weights.unsqueeze(-1) * speaking
    shares = torch.where(shares.sum(dim=0) > 0, shares, fallback)
    return shares / shares.sum(dim=0).clamp(min=torch.finfo(shares.dtype).tiny)


def _taking_part(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and weights of the teachers whose weight is not 0."""
    weights = weights.to(logits)
    if weights.shape != logits.shape[:1]:
        raise ValueError(f"{tuple(weights.shape)} weights do not fit logits {tuple(logits.shape)}")
    if bool((weights < 0).any()) or not abs(float(weights.sum()) - 1) <= 1e-4:  # `not`: NaN is refused too
        raise ValueError(f"teacher weights {weights.tolist()} must be 0 or more and sum to 1")
    taking_part = weights > 0
    return logits[taking_part], weights[taking_part]


def _label_losses(logits: Tensor, labels: Tensor | None) -> Tensor:
    """(K, N) cross-entropy of each teacher's logits (K, N, C), at temperature 1, to labels (N,)."""
    assert labels is not None, "aggregate has checked"
    rows = labels.expand(logits.shape[:2]).unsqueeze(-1)
    return -log_softmax(logits, dim=-1).gather(-1, rows).squeeze(-1)


def _normalised(shares: Tensor) -> Tensor:
    """Shares (K, N) divided by their sum over the teachers."""
    return shares / shares.sum(dim=0)
