"""Several teachers' soft targets → one target. Pure functions, in float32.

Shapes: K teachers, N examples, C labels. p_k = softmax(z_k / T) of teacher k, v_k its weight from the config,
w_k the weight that an example gives it. All strategies but ``log_mean`` are mixtures Σ_k w_k p_k and differ in w:

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
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax

from pipeline.batch import UNLABELLED

Strategy = Literal["mean", "log_mean", "confidence", "entropy", "best"]


def needs_labels(strategy: Strategy) -> bool:
    """Whether the strategy looks at the examples' labels."""
    return strategy in ("confidence", "best")


def aggregate(
    logits: Tensor, *, strategy: Strategy, weights: Tensor, temperature: float, labels: Tensor | None
) -> Tensor:
    """(N, C) float32 probabilities at `temperature`, one target for each example.

    logits: (K, N, C) raw soft targets, any float dtype, finite · weights: (K,) ≥ 0, summing to 1 ·
    temperature: > 0 · labels: (N,) int64, or None where the strategy needs none.

    Raises ValueError for weights that do not fit, and for a strategy that needs labels when there are none
    or any is `UNLABELLED`; also with one teacher, so that whether a config is right does not depend on weights.
    """
    if needs_labels(strategy) and (labels is None or bool((labels == UNLABELLED).any())):
        raise ValueError(f"strategy {strategy!r} needs the label of every example")
    logits, weights = _taking_part(logits.float(), weights)
    if len(logits) == 1:
        return softmax(logits[0] / temperature, dim=-1)
    match strategy:
        case "mean":
            shares = mean_shares(logits, weights)
        case "log_mean":
            return product_of_experts(logits, weights, temperature)
        case "confidence":
            shares = confidence_shares(_label_losses(logits, labels), weights)
        case "entropy":
            shares = entropy_shares(logits, weights)
        case "best":
            shares = best_shares(_label_losses(logits, labels))
    return (shares.unsqueeze(-1) * softmax(logits / temperature, dim=-1)).sum(dim=0)


def ensemble(logits: Tensor, *, strategy: Strategy, weights: Tensor) -> Tensor:
    """(N, C) float32 probabilities at temperature 1: what a task's teachers answer together, without labels.

    For evaluation, where the labels are what is asked: strategies that need labels are scored by the weighted
    mean of their teachers, the others as themselves. logits, weights: as in `aggregate`.
    """
    blind: Strategy = "mean" if needs_labels(strategy) else strategy
    return aggregate(logits, strategy=blind, weights=weights, temperature=1.0, labels=None)


def mean_shares(logits: Tensor, weights: Tensor) -> Tensor:
    """(K, N): every example weighs its teachers by the config alone (the usual ensemble, arXiv:1503.02531)."""
    return weights.unsqueeze(-1).expand(logits.shape[:2])


def product_of_experts(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """(N, C): the weighted geometric mean of the teachers' probabilities, renormalised (arXiv:1503.02531)."""
    log_probabilities = log_softmax(logits / temperature, dim=-1)
    return softmax((weights.view(-1, 1, 1) * log_probabilities).sum(dim=0), dim=-1)


def confidence_shares(losses: Tensor, weights: Tensor) -> Tensor:
    """(K, N): teachers weigh less the worse they do on the label (CA-MKD, arXiv:2201.00007).

    losses: (K, N) cross-entropies. confidence_k = (1 − softmax_k(losses)) / (K − 1), which sums to 1; times
    the config's weights, renormalised. Between 0 and 1 / (K − 1) each: with equal weights no teacher of three
    gets more than half. The paper weighs one soft loss a teacher; one soft loss to the mixture has the same
    gradient, and is 0 when the student reaches the mixture.
    """
    confidence = (1 - softmax(losses, dim=0)) / (len(losses) - 1)
    return _normalised(weights.unsqueeze(-1) * confidence)


def entropy_shares(logits: Tensor, weights: Tensor) -> Tensor:
    """(K, N): teachers weigh less the less sure they are, no labels needed.

    1 − H_k / Σ_j H_j with H the entropy at temperature 1, times the config's weights, renormalised: EBKD as
    CA-MKD's authors implement it (arXiv:2201.00007's code), but summing to 1. Where no teacher has any
    entropy, the config's weights.
    """
    entropies = torch.special.entr(softmax(logits, dim=-1)).sum(dim=-1)
    total = entropies.sum(dim=0)
    unsure = torch.where(total > 0, entropies / total, 0.0)
    return _normalised(weights.unsqueeze(-1) * (1 - unsure))


def best_shares(losses: Tensor) -> Tensor:
    """(K, N) one-hot: the teacher with the lowest of the losses (K, N), the first of equals."""
    return one_hot(losses.argmin(dim=0), len(losses)).T.to(losses.dtype)


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
