"""The losses of a student: pure functions from logits, labels and targets to a number.

A task's loss is a sum of terms, each with a name and a weight. The ``hard`` term compares the student with the
labels, the ``soft`` term with its teachers' aggregated soft targets, the ``hidden`` term a projection of its hidden
vectors with its teachers', word by word. A term has one value per row, in nats (for numbers: squared error; for
hidden vectors: squared error in variances of the targets; of models that label the frames of a recording: one value a text). `task_loss` weights, masks and sums them. Everything is computed in float32, for every dtype
of the logits. A task's head names its terms: `DISTRIBUTION_LOSSES` for every kind of classification (of texts, words
or an answer's start and end), `NUMBER_LOSSES` for numbers.

Not here: how several teachers become one target (`teachers.aggregation`) and how tasks are drawn
(`pipeline.training.schedule`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss, log_softmax

from pipeline.batch import ABSENT, NO_TOKEN, UNLABELLED

Needs = Literal["labels", "targets", "hidden"]
"""What a term compares the student with: labels, soft targets or hidden targets."""


@dataclass(frozen=True)
class LossWeights:
    """The weight of each term of a task's loss at one step.

    terms: weight by term; the config normalises their sum to 1, and `annealed` keeps it, but for `ON_POLICY`, whose rows are others;
    a term that is not named has weight 0 · temperature: of teachers and student in the soft term, > 0 · task: weight of the whole task ·
    label_smoothing: ε < 1 of the hard term of texts · beta: of the soft term, see `soft_divergence`.
    """

    terms: Mapping[str, float]
    temperature: float
    task: float = 1.0
    label_smoothing: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class HiddenInputs:
    """The inputs of the hidden term for the W words of N rows' examples, and K teachers.

    projected: (W, D) the student's, any float dtype · target: (W, D) standardised vectors of all teachers, end to end,
    finite · weights: (D, K) of a dimension's squared error, 0 in the columns of other teachers; a column's sum is the
    teacher's aggregation weight · counted: (W, K), what a word counts: 0 where the student or the teacher lacks it.
    """

    projected: Tensor
    target: Tensor
    weights: Tensor
    counted: Tensor


@dataclass(frozen=True)
class FrameInputs:
    """The recordings of N texts.

    logits: (N, F, V), any float dtype, padded on the right · counts: (N,) int64 frames of each · texts: (N, L) int64 token ids without blanks, padded by
    `NO_TOKEN` · blank: the id of a frame without a token.
    """

    logits: Tensor
    counts: Tensor
    texts: Tensor
    blank: int


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the loss of N rows of one task.

    logits: (N, C) the student's, any float dtype · labels: (N,) int64, `UNLABELLED` where there is none ·
    target: (N, C) float, the teachers' probabilities at the temperature; None without teachers ·
    valid: (N,) float, what a row counts: usually 1, and 0 for a row that only fills the batch (its other values:
    any finite ones); (1,) for all rows alike · taught: (N,) float, 0 for a row on which no teacher has a prediction; None for all 1 · hidden: of the words of the
    same examples; None where the hidden term has no weight · spread: (N,) float32, see `mean_surprise`; None where no label is
    smoothed · frames: of models that label frames, of which N is the number of frames, `labels` are not read, and the hard loss has a row a text; None for others.
    """

    logits: Tensor
    labels: Tensor
    target: Tensor | None
    valid: Tensor
    taught: Tensor | None = None
    hidden: HiddenInputs | None = None
    spread: Tensor | None = None
    frames: FrameInputs | None = None


@dataclass(frozen=True)
class LossTerm:
    """One part of a task's loss.

    name: of its weight and of its curve · needs: what the rows must have for it; rows without do not count · rows:
    (inputs, weights) → (N,) float32, a pure function; for ``hidden`` (W,), and they are counted already.
    """

    name: str
    needs: Needs
    rows: Callable[[LossInputs, LossWeights], Tensor]


def annealed(
    weights: Mapping[str, float], progress: float, annealing: Literal["constant", "linear"]
) -> dict[str, float]:
    """The terms' weights when `progress` of the training, in [0, 1], is done; their sum does not change.

    ``linear``: every weight but the hard one and `ON_POLICY` falls in a straight line to 0, and the hard one takes what they lose.
    From hard = 0, soft = 1 this is teacher annealing (BAM, arXiv:1907.04829): λ·CE(y) + (1 − λ)·soft loss, with
    λ = progress, which at temperature 1 has the gradient of the cross-entropy to BAM's target
    λ·y + (1 − λ)·p_T.

    Raises ValueError for a progress outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress} is outside [0, 1]")
    if annealing == "constant":
        return dict(weights)
    others = {name: weight for name, weight in weights.items() if name not in ("hard", ON_POLICY)}
    hard = weights.get("hard", 0.0) + sum(others.values()) * progress
    own = {ON_POLICY: weights[ON_POLICY]} if ON_POLICY in weights else {}
    return {"hard": hard} | {name: weight * (1 - progress) for name, weight in others.items()} | own


def hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 cross-entropy in nats of logits (N, C) to labels (N,) int64; `UNLABELLED` rows give 0."""
    return cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="none")


def mean_surprise(logits: Tensor) -> Tensor:
    """(N,) float32 −1/V Σ log softmax(logits) in nats, the cross-entropy of an even distribution. logits: (N, V), any float
    dtype."""
    logits = logits.float()
    return logits.logsumexp(dim=-1) - logits.mean(dim=-1)


def smoothed_cross_entropy(inputs: LossInputs, smoothing: float) -> Tensor:
    """(N,) float32 cross-entropy in nats to labels that keep 1 − ε and share ε evenly over the vocabulary (Szegedy et al.,
    arXiv:1512.00567, section 7). Raises ValueError where ε > 0 and the inputs have no `spread`."""
    hard = hard_cross_entropy(inputs.logits, inputs.labels)
    if not smoothing:
        return hard
    if inputs.spread is None:
        raise ValueError("smoothed labels need the mean over the vocabulary and there is none")
    return (1 - smoothing) * hard + smoothing * inputs.spread.where(inputs.labels != UNLABELLED, 0.0)


def soft_kl(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(N,) float32 T² · KL(target ‖ softmax(logits / T)) in nats (Hinton et al., arXiv:1503.02531, section 2).

    logits: (N, C), any float dtype · target: (N, C) probabilities, already at temperature T, zeros allowed ·
    temperature: T > 0. Gradient on the logits: T · (softmax(logits / T) − target); T² is what keeps its scale
    independent of T. The target's own entropy is subtracted, so a student that equals its teacher has loss 0
    (up to about T² · 1e-7, the rounding of float32).
    """
    target = target.float()
    log_probabilities = log_softmax(logits.float() / temperature, dim=-1)
    divergence = torch.xlogy(target, target) - target * log_probabilities  # xlogy: 0 · log 0 = 0
    return temperature**2 * divergence.sum(dim=-1)


def soft_divergence(logits: Tensor, target: Tensor, temperature: float, beta: float) -> Tensor:
    """(N,) float32 T² times the generalised Jensen-Shannon divergence in nats of target P and student Q = softmax(logits / T) (GKD,
    arXiv:2306.13649, section 2): β · KL(P ‖ M) + (1 − β) · KL(Q ‖ M) with M = β · P + (1 − β) · Q; for β = 0 KL(P ‖ Q), and for β = 1
    KL(Q ‖ P), to which the divergence tends when it is divided by β, or by 1 − β.

    Arguments as of `soft_kl` · beta: β in [0, 1].
    """
    if beta == 0:
        return soft_kl(logits, target, temperature)
    target, log_student = target.float(), log_softmax(logits.float() / temperature, dim=-1)
    # a student's weight on what no teacher knows costs much, and not infinitely
    log_target = target.log().clamp(min=ABSENT)
    if beta == 1:
        divergence = log_student.exp() * (log_student - log_target)
        return temperature**2 * divergence.sum(dim=-1)
    shares = (math.log(beta) + log_target, math.log1p(-beta) + log_student)
    log_middle = torch.logaddexp(*shares)
    divergence = beta * target * (log_target - log_middle)
    divergence = divergence + (1 - beta) * log_student.exp() * (log_student - log_middle)
    return temperature**2 * divergence.sum(dim=-1)


def hard_squared_error(values: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32 squared error of values (N, 1) to labels (N,) float; NaN, no label, gives 0."""
    known = ~labels.isnan()
    return torch.where(known, torch.square(values.float().squeeze(-1) - labels.nan_to_num()), 0.0)


def soft_squared_error(values: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(N,) float32 squared error of values (N, 1) to the aggregated target (N, 1); numbers have no temperature."""
    return torch.square(values.float() - target).squeeze(-1)


def ctc_surprise(frames: FrameInputs) -> Tensor:
    """(N,) float32 −log p(text | recording) in nats, over all ways in which frames can be labelled with the text (Graves et al., 2006,
    "Connectionist temporal classification"); 0, without a gradient, for a text that its frames are too few for."""
    there = frames.texts != NO_TOKEN
    return ctc_loss(
        log_softmax(frames.logits.float(), dim=-1).transpose(0, 1),
        frames.texts.masked_fill(~there, frames.blank),
        frames.counts,
        there.sum(dim=-1),
        blank=frames.blank,
        reduction="none",
        zero_infinity=True,
    )


def hidden_squared_error(hidden: HiddenInputs) -> Tensor:
    """(W,) float32 squared errors of projected hidden vectors, weighted over dimensions; 0 for a word that does not
    count. The mean vector, 0 in every dimension, has 1 on average."""
    errors = torch.square(hidden.projected.float() - hidden.target)
    return ((errors @ hidden.weights) * hidden.counted).sum(dim=-1)


def _divergence(inputs: LossInputs, own: LossWeights) -> Tensor:
    return soft_divergence(inputs.logits, _target(inputs), own.temperature, own.beta)


def _has_label(inputs: LossInputs) -> Tensor:
    return inputs.labels != UNLABELLED


HIDDEN_LOSS = LossTerm("hidden", "hidden", lambda inputs, _: hidden_squared_error(_hidden(inputs)))
DISTRIBUTION_LOSSES = (
    LossTerm("hard", "labels", lambda inputs, _: hard_cross_entropy(inputs.logits, inputs.labels)),
    LossTerm("soft", "targets", _divergence),
    HIDDEN_LOSS,
)
NUMBER_LOSSES = (
    LossTerm("hard", "labels", lambda inputs, _: hard_squared_error(inputs.logits, inputs.labels)),
    LossTerm(
        "soft",
        "targets",
        lambda inputs, own: soft_squared_error(inputs.logits, _target(inputs), own.temperature),
    ),
    HIDDEN_LOSS,
)
ON_POLICY = "on_policy"
"""The name of the term that reads the positions of a student's own texts."""
TEXT_LOSSES = (
    LossTerm("hard", "labels", lambda inputs, own: smoothed_cross_entropy(inputs, own.label_smoothing)),
    LossTerm("soft", "targets", lambda inputs, own: _divergence(inputs, own) * _has_label(inputs)),
    LossTerm(ON_POLICY, "targets", lambda inputs, own: _divergence(inputs, own) * ~_has_label(inputs)),
)
"""Of the positions of a text. What a text is, the reference, a teacher's or the student's own, is decided where it is drawn
(`pipeline.training.texts`); a position of an own text has no label."""


FRAME_LOSSES = (
    LossTerm("hard", "labels", lambda inputs, _: ctc_surprise(_frames(inputs))),
    LossTerm("soft", "targets", _divergence),
)
"""Of a model that labels frames: ``hard`` of whole texts, ``soft`` frame by frame."""


def needs_of(terms: Sequence[LossTerm], weights: LossWeights) -> frozenset[Needs]:
    """What the terms need that have a weight other than 0."""
    return frozenset(term.needs for term in terms if weights.terms.get(term.name))


def task_loss(
    inputs: LossInputs,
    weights: LossWeights,
    normaliser: float,
    terms: Sequence[LossTerm] = DISTRIBUTION_LOSSES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One task's loss: the scalar to differentiate, and its unweighted terms, detached, for the log.

    total = task · Σ_term weight · Σ_i term_i / normaliser, and of each term Σ_i term_i / normaliser by name; sums
    over the valid rows. `normaliser`: how many rows a step of that many examples has on average, over all its
    micro-batches and workers, so that totals and terms of the parts simply add up to those of the whole. A term without
    weight takes no part in the total, so that it has no gradient. If it needs targets it is not computed, and absent
    from what is returned; one that needs labels is, for its curve, where another term reads the logits.

    Raises ValueError for a weight of a term that is not there, a term that needs targets where there are none (never
    silently the hard loss alone), a target of another shape than the logits, or a normaliser that is not above 0.
    """
    if not normaliser > 0:
        raise ValueError(f"normaliser {normaliser} must be above 0")
    unknown = set(weights.terms) - {term.name for term in terms}
    if unknown:
        raise ValueError(f"no loss term is called {min(unknown)!r}; there are {[t.name for t in terms]}")
    sums: dict[str, Tensor] = {}
    reads_logits = needs_of(terms, weights) != {"hidden"}
    for term in terms:
        if not weights.terms.get(term.name) and not (term.needs == "labels" and reads_logits):
            continue
        rows = term.rows(inputs, weights)
        if term.needs != "hidden":
            rows = rows * inputs.valid
        if term.needs == "targets" and inputs.taught is not None:
            rows = rows * inputs.taught
        sums[term.name] = rows.sum() / normaliser
    weighted = [weights.terms[name] * value for name, value in sums.items() if weights.terms.get(name)]
    total = functools.reduce(torch.add, weighted)
    return weights.task * total, {name: value.detach() for name, value in sums.items()}


def _hidden(inputs: LossInputs) -> HiddenInputs:
    """The inputs of the hidden term. Raises ValueError where there are none."""
    if inputs.hidden is None:
        raise ValueError("the hidden term needs hidden targets and there are none")
    return inputs.hidden


def _frames(inputs: LossInputs) -> FrameInputs:
    """The inputs of a loss of frames. Raises ValueError where there are none."""
    if inputs.frames is None:
        raise ValueError("the loss of frames needs frames and there are none")
    return inputs.frames


def _target(inputs: LossInputs) -> Tensor:
    """(N, C) the inputs' target. Raises ValueError where there is none or it has another shape than the logits."""
    if inputs.target is None:
        raise ValueError("a loss term needs targets and there is no target")
    if inputs.target.shape != inputs.logits.shape:
        shapes = f"{tuple(inputs.target.shape)} does not fit logits {tuple(inputs.logits.shape)}"
        raise ValueError(f"target {shapes}")
    return inputs.target
