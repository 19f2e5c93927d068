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

CE and H are computed at temperature 1, so w_k does not depend on T. A teacher of weight 0 is not among the K,
whatever the strategy. The target of a single teacher is its own softmax(z / T), bit for bit.

A teacher may lack a label: its column is `ABSENT`, its probability 0, and in ``log_mean`` it has no vote on that
label. A teacher with all columns of a row `ABSENT` predicts nothing for the row: it is not among the K there.

Continuous rows (N, 1) are numbers: the target is Σ_k w_k z_k, with w as above and squared errors instead of CE.
``log_mean`` and ``entropy`` do not exist for them.
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
    The target of a row without any teacher is meaningless: the caller leaves the row out.

    Raises ValueError for weights that do not fit, for a strategy of texts, and for a strategy that needs labels where any is missing. It does
    so with one teacher too, so that a config is right or wrong whatever its weights.
    """
    missing = labels is None or bool((labels.isnan() if continuous else labels == UNLABELLED).any())
    if strategy == "consensus":
        raise ValueError("strategy 'consensus' is made for texts")
    if needs_labels(strategy) and missing:
        raise ValueError(f"strategy {strategy!r} needs the label of every example")
    logits, weights = _with_weight(logits.float(), weights)
    if continuous:
        return (_number_shares(logits, strategy, weights, labels).unsqueeze(-1) * logits).sum(dim=0)
    if len(logits) == 1:
        return softmax(logits[0] / temperature, dim=-1)
    present = is_present(logits)
    whole = bool(present.all())
    if strategy == "log_mean":
        return product_of_experts(logits, weights, temperature, None if whole else present)
    predicting = None if whole else present.any(dim=-1)
    match strategy:
        case "mean":
            shares = mean_shares(logits, weights)
        case "confidence":
            losses = _masked(_label_losses(logits, labels), predicting, -torch.inf)
            shares = confidence_shares(losses, weights)
        case "entropy":
            shares = entropy_shares(logits, weights, predicting)
        case "best":
            shares = best_shares(_masked(_label_losses(logits, labels), predicting, torch.inf))
    if predicting is not None:
        shares = _among(predicting, shares, weights)
    return (shares.unsqueeze(-1) * softmax(logits / temperature, dim=-1)).sum(dim=0)


def ensemble(logits: Tensor, *, strategy: Strategy, weights: Tensor, continuous: bool = False) -> Tensor:
    """(N, C) float32 probabilities at temperature 1: the prediction of a task's teachers together, without labels.

    For evaluation, which must not see labels: a strategy that needs labels is replaced by the weighted mean of the
    teachers, every other strategy is used as it is. Arguments as in `aggregate`.
    """
    unlabelled: Strategy = "mean" if needs_labels(strategy) else strategy
    return aggregate(
        logits, strategy=unlabelled, weights=weights, temperature=1.0, labels=None, continuous=continuous
    )


def mean_shares(logits: Tensor, weights: Tensor) -> Tensor:
    """(K, N): for every row the weights (K,) of the config (the usual ensemble, arXiv:1503.02531)."""
    return weights.unsqueeze(-1).expand(logits.shape[:2])


def product_of_experts(
    logits: Tensor, weights: Tensor, temperature: float, present: Tensor | None = None
) -> Tensor:
    """(N, C): the weighted geometric mean of the teachers' probabilities, renormalised (arXiv:1503.02531).

    present: (K, N, C) which labels each teacher has, None for all; only teachers that have a label vote on it.
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
    """(K, N): the higher a teacher's loss on the label, the lower its share (CA-MKD, arXiv:2201.00007).

    losses: (K, N) cross-entropies. confidence_k = (1 − softmax_k(losses)) / (K − 1), which sums to 1; it is
    multiplied by the config's weights and renormalised. Each confidence is between 0 and 1 / (K − 1): with equal
    weights no teacher of three gets more than half. The paper has one weighted soft loss for each teacher. One soft
    loss to the mixture has the same gradient, and is 0 when the student reaches the mixture.
    """
    confidence = (1 - softmax(losses, dim=0)) / (len(losses) - 1)
    return _normalised(weights.unsqueeze(-1) * confidence)


def entropy_shares(logits: Tensor, weights: Tensor, predicting: Tensor | None = None) -> Tensor:
    """(K, N): the higher a teacher's entropy, the lower its share; needs no labels.

    1 − H_k / Σ_j H_j with H the entropy at temperature 1, times the config's weights, renormalised: EBKD as
    CA-MKD's authors implement it (arXiv:2201.00007's code), but summing to 1. Where every H is 0, the config's
    weights. predicting: (K, N) which teachers have a prediction for a row, None for all.
    """
    entropies = torch.special.entr(softmax(logits, dim=-1)).sum(dim=-1)
    if predicting is not None:
        entropies = entropies * predicting
    total = entropies.sum(dim=0)
    uncertainty = torch.where(total > 0, entropies / total, 0.0)
    return _normalised(weights.unsqueeze(-1) * (1 - uncertainty))


def best_shares(losses: Tensor) -> Tensor:
    """(K, N) one-hot: 1 for the teacher with the lowest loss of a row of `losses` (K, N), the first of equal ones."""
    return one_hot(losses.argmin(dim=0), len(losses)).T.to(losses.dtype)


def _number_shares(numbers: Tensor, strategy: Strategy, weights: Tensor, labels: Tensor | None) -> Tensor:
    """(K, N) shares of teachers that predict one number a row; numbers: (K, N, 1)."""
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


def _masked(losses: Tensor, predicting: Tensor | None, value: float) -> Tensor:
    """The losses (K, N), with `value` where a teacher has no prediction."""
    return losses if predicting is None else losses.masked_fill(~predicting, value)


def _among(predicting: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """(K, N) shares renormalised over the teachers that predict a row; the config's weights where their shares are 0."""
    shares = torch.where(predicting, torch.nan_to_num(shares), 0.0)
    fallback = weights.unsqueeze(-1) * predicting
    shares = torch.where(shares.sum(dim=0) > 0, shares, fallback)
    return shares / shares.sum(dim=0).clamp(min=torch.finfo(shares.dtype).tiny)


def _with_weight(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (K', N, C) and weights (K',) of the teachers whose weight is not 0."""
    weights = weights.to(logits)
    if weights.shape != logits.shape[:1]:
        raise ValueError(f"{tuple(weights.shape)} weights do not fit logits {tuple(logits.shape)}")
    if bool((weights < 0).any()) or not abs(float(weights.sum()) - 1) <= 1e-4:  # `not`: NaN is refused too
        raise ValueError(f"teacher weights {weights.tolist()} must be 0 or more and sum to 1")
    used = weights > 0
    return logits[used], weights[used]


def _label_losses(logits: Tensor, labels: Tensor | None) -> Tensor:
    """(K, N) cross-entropy of each teacher's logits (K, N, C), at temperature 1, to labels (N,)."""
    assert labels is not None, "aggregate has checked"
    rows = labels.expand(logits.shape[:2]).unsqueeze(-1)
    return -log_softmax(logits, dim=-1).gather(-1, rows).squeeze(-1)


def _normalised(shares: Tensor) -> Tensor:
    """Shares (K, N) divided by their sum over the teachers."""
    return shares / shares.sum(dim=0)
