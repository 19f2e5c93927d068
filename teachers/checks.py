"""Is a teacher worth distilling? The judgement, from its predictions on a sample of validation examples.

Pure functions, without Ray and without files; `teachers.preflight` makes the predictions. A fault that is certain is
a problem and stops the run; a fault that is only likely is a warning.

A score is compared with that of random predictions. Where each example has one item, these are the teacher's own
predictions in random order: a permutation test. Where an example has several items (words, positions of a context),
they are predictions of the same model under random heads, because even an untrained model prefers some items by
their form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED, Examples, Ragged, is_present
from pipeline.curve import Curve
from pipeline.errors import TeacherError
from pipeline.losses import hard_cross_entropy, soft_kl, soft_squared_error
from pipeline.soft import Dense
from pipeline.tasks import Task
from pipeline.tasks.scores import bootstrap, confusion, score_of
from pipeline.text_arrays import is_text
from teachers.aggregation import aggregate

UNIFORM = 0.995  # mean entropy ÷ ln(classes) from which predictions carry no information
CONSTANT = 1e-3  # standard deviations of the labels: numbers that vary less are all the same
REPLICAS = (
    0.1  # standard deviations of the logits; a random head differs by about 1, float noise by about 1e-3
)
ROUNDING = 0.05  # standard deviations of the logits, on average; measured with bf16: 0.002
CERTAIN, LIKELY = 1e-6, 1e-3  # p-values below which permuted names are a problem, and a warning
SHUFFLES = 100  # random orders of the predictions: their standard deviation to 7%
ENOUGH = 100  # examples from which "no better than random heads" is a problem, not a warning
FEW = 3  # fewest examples of a class under another name that count as a renaming
NAMED = 12  # permuted names that a message lists
SELF_LOSS = 1e-3  # nats at temperature 1: what float16 may cost
TEMPERATURE = 2.0
SHOWN_EPOCHS = 4  # of a learning curve, that a message lists
NO_CURVE = Curve()


@dataclass(frozen=True)
class Predictions:
    """What one teacher predicts on the sample, and what else only its model can measure.

    values: (M, C) float32 · truncated: examples (of a sentence, words) that lost tokens ·
    replica_difference: see `relative_difference` · rounding: see `rounding_of` · random_head_scores: (k,) float64, the metric of the same model
    under random heads; empty where an example has one item.
    """

    values: NDArray[np.floating]
    truncated: int = 0
    replica_difference: float = 0.0
    rounding: float = 0.0
    random_head_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How good one teacher is on the sample.

    score: the task's metric · majority: the metric of the best constant prediction · chance: the mean metric of random
    predictions, None where there are none · entropy: mean over rows of the entropy ÷ ln(classes), None for numbers
    · ece: expected calibration error, None where a prediction is not one label out of C · self_loss: the soft loss of
    the teacher to its own stored targets · replica_difference: see `relative_difference` · rounding: see `rounding_of` · truncated: share of the
    examples (words, for token-classification) · agreement: with each other teacher of the task, by name · problems:
    why it should not be distilled · warnings: why perhaps it should not.
    """

    teacher: str
    task: str
    metric: str
    examples: int
    score: float = 0.0
    majority: float = 0.0
    chance: float | None = None
    entropy: float | None = None
    ece: float | None = None
    self_loss: float = 0.0
    replica_difference: float = 0.0
    rounding: float = 0.0
    truncated: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Flag:
    """Something wrong with a teacher. certain: True makes it a problem, False a warning."""

    text: str
    certain: bool = True


def judge(
    name: str, task: Task, sample: Examples, predictions: Predictions, curve: Curve = NO_CURVE
) -> Findings:
    """The `Findings` of the teacher `name`; `with_agreement` fills in `agreement`, which is empty here.

    curve: of the teacher's fine-tuning, whose scores are those on the whole of validation; none for a ready teacher.
    """
    values, counts = predictions.values, task.reading.counts(sample.inputs)
    findings = Findings(teacher=name, task=task.name, metric=task.scoring.metric, examples=len(sample))
    if not np.isfinite(values).all():
        item = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        row = int(np.searchsorted(np.cumsum(counts), item, side="right"))
        problem = f'it predicts NaN or Inf on example "{_excerpt(task, sample, row)}"'
        return replace(findings, problems=[problem])
    rows = task.head.rows(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(counts))
    chance = predictions.random_head_scores
    if (counts == 1).all():
        chance = shuffled_scores(task, values, sample)
    findings = replace(
        findings,
        score=score_of(task, values, sample),
        majority=task.scoring.constant_score(sample),
        chance=float(chance.mean()) if len(chance) else None,
        entropy=None if task.kind.continuous else _entropy(rows),
        ece=task.scoring.scores(values, sample).get("ece"),
        self_loss=_self_loss(task, values, rows, counts),
        replica_difference=predictions.replica_difference,
        rounding=predictions.rounding,
        truncated=predictions.truncated / max(1, task.head.truncatable(counts)),
    )
    flags = [
        *_replica_flags(findings),
        *_rounding_flags(findings),
        *_prediction_flags(task, sample, values, rows, chance, findings),
        *_self_loss_flags(findings),
        *curve_flags(task, sample, values, curve),
    ]
    return replace(
        findings,
        problems=[flag.text for flag in flags if flag.certain],
        warnings=[flag.text for flag in flags if not flag.certain],
    )


def _prediction_flags(
    task: Task,
    sample: Examples,
    values: NDArray[np.floating],
    rows: torch.Tensor,
    chance: NDArray[np.float64],
    findings: Findings,
) -> list[Flag]:
    """The first certain fault of the predictions, or else every likely one."""
    likely = []
    for names, counts in _names_compared(task, values, sample):
        flag = permuted_flag(names, counts)
        if flag is not None and flag.certain:
            return [flag]
        likely += [flag] if flag is not None else []
    if _is_uniform(task, rows, findings.entropy):
        return [Flag("its predictions do not depend on the text")]
    flag = _chance_flag(task, sample, values, chance, findings)
    if flag is not None and flag.certain:
        return [flag]
    return [*likely[:1], *([flag] if flag is not None else []), *_loss_flags(task, sample, rows)]


# ---------------------------------------------------------------- weights and stored targets


def relative_difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Largest |a − b| of two replicas' (M, C) values ÷ the standard deviation of the values that are present.

    0 where a equals b; infinite where they differ and that standard deviation is 0.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = float(np.abs(a - b).max())
    if difference == 0:
        return 0.0
    present = np.concatenate((a[is_present(a)], b[is_present(b)]))
    spread = float(present.std()) if len(present) else 0.0
    return difference / spread if spread > 0 else float("inf")


def rounding_of(values: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    """Mean |a − b| of (M, C) values in a teacher's arithmetic and those in fp32 ÷ the standard deviation of the latter; both where
    they are present. 0 where that is 0."""
    present = is_present(values) & is_present(exact)
    if not present.any():
        return 0.0
    a, b = values[present].astype(np.float64), exact[present].astype(np.float64)
    spread = float(b.std())
    return float(np.abs(a - b).mean() / spread) if spread > 0 else 0.0


def _rounding_flags(findings: Findings) -> list[Flag]:
    if findings.rounding <= ROUNDING:
        return []
    return [
        Flag(
            f"in half precision its logits differ from those in fp32 by {findings.rounding:.2g} of their standard deviation: "
            f"set teachers.{findings.teacher}.serving.dtype to fp32"
        )
    ]


def _replica_flags(findings: Findings) -> list[Flag]:
    if findings.replica_difference <= REPLICAS:
        return []
    return [
        Flag(
            f"two replicas' logits differ by up to {findings.replica_difference:.2g} of their standard deviation: part of"
            " its weights is drawn at random"
        )
    ]


def _self_loss_flags(findings: Findings) -> list[Flag]:
    if findings.self_loss <= SELF_LOSS * TEMPERATURE**2:
        return []
    return [
        Flag(
            f"its soft targets, as they are stored, are {findings.self_loss:.2g} nats away from its predictions"
        )
    ]


def _self_loss(
    task: Task, values: NDArray[np.floating], rows: torch.Tensor, counts: NDArray[np.int64]
) -> float:
    """Mean soft loss of the teacher's predictions, in the student's place, to their own copy in the store."""
    half = Dense(Ragged.single(values), task.head.columns).half().values
    stored_values = torch.from_numpy(half.astype(np.float32))
    stored = task.head.rows(stored_values, torch.from_numpy(counts))
    target = aggregate(
        stored.unsqueeze(0),
        strategy="mean",
        weights=torch.ones(1),
        temperature=TEMPERATURE,
        labels=None,
        continuous=task.kind.continuous,
    )
    loss = (soft_squared_error if task.kind.continuous else soft_kl)(rows, target, TEMPERATURE)
    if not task.kind.continuous:
        loss = loss[is_present(rows).any(dim=-1)]
    return float(loss.mean())


# ---------------------------------------------------------------- loss and learning curve


def _loss_flags(task: Task, sample: Examples, rows: torch.Tensor) -> list[Flag]:
    """A flag where the hard loss of a teacher's `rows` (N, D) is not below that of predictions without knowledge.

    These are equal probabilities for all labels, ln(labels) nats, and, where there is a label space, the labels'
    frequencies in the sample. Rows without a prediction for their label are left out.
    """
    if task.kind.continuous:
        return []
    counts = torch.from_numpy(task.reading.counts(sample.inputs))
    labels = task.head.row_labels(torch.tensor(sample.labels.values), counts)
    known = labels != UNLABELLED
    known &= is_present(rows.gather(-1, labels.clamp(min=0).unsqueeze(-1))).squeeze(-1)
    rows, labels = rows[known], labels[known]
    if not len(rows):
        return []
    loss = float(hard_cross_entropy(rows, labels).mean())
    guessing = float(is_present(rows).sum(dim=-1).log().mean())
    shares = torch.bincount(labels) / len(labels)
    constant = float(torch.special.entr(shares).sum()) if task.reading.labels else guessing
    if loss < min(guessing, constant):
        return []
    bound, what = (
        (guessing, "equal probabilities for all labels")
        if loss >= guessing
        else (constant, "their frequencies")
    )
    confidence, right = torch.softmax(rows, dim=-1).max(dim=-1).values.mean(), rows.argmax(dim=-1) == labels
    why = "far too sure of wrong answers" if confidence > right.float().mean() else "hardly trained"
    text = f"its loss on the labels is {loss:.3f} nats, not below the {bound:.3f} of {what}: it is {why}"
    return [Flag(text, certain=False)]


def curve_flags(task: Task, sample: Examples, values: NDArray[np.floating], curve: Curve) -> list[Flag]:
    """A flag where the validation score was still rising when the fine-tuning ended. The standard error is that of the
    sample's score; that of the whole of validation is smaller."""
    from pipeline.shown import points

    if not curve.rise():
        return []
    error = float(bootstrap([task.scoring.statistics(values, sample)], task.scoring.score_of)[0].std())
    if not curve.rising(error):
        return []
    scores = ", ".join(map(points, curve.scores[-SHOWN_EPOCHS:]))
    return [
        Flag(
            f"its validation score was still rising when its fine-tuning ended ({scores}; standard error {points(error)}): "
            f"try fine_tune.epochs {2 * curve.epochs}",
            certain=False,
        )
    ]


# ---------------------------------------------------------------- permuted names


def permuted_flag(names: Sequence[str], counts: NDArray[np.int64]) -> Flag | None:
    """A flag where some of `names` (K,) look permuted in `counts` (K, K): row = gold, column = predicted.

    The one-to-one renaming that agrees with most examples is the solution of an assignment problem. A name that it
    changes counts if at least `FEW` of its examples, and more than half of them, are predicted under the other name.
    The p-value is that of a fair coin: each example is predicted under its own name or under the other one, with equal
    probability.

    A problem needs p < `CERTAIN`, over names that change places among each other, in closed cycles. A weak teacher may
    take one class for a similar one, but it predicts the similar one's examples right, which closes no cycle. A warning
    needs p < `LIKELY`, over names whose new name is predicted mostly for them: otherwise a teacher that predicts a few
    classes for everything would be warned of.
    """
    from scipy.optimize import linear_sum_assignment

    other = linear_sum_assignment(counts, maximize=True)[1]
    each = np.arange(len(names))
    renamed = counts[each, other]
    moved = (other != each) & (renamed >= FEW) & (2 * renamed > counts.sum(1))
    closed = _closed(moved, other)
    exclusive = moved & (2 * renamed > counts.sum(0)[other])
    certain = _p_of_renaming(counts, closed, other) < CERTAIN
    if not certain and _p_of_renaming(counts, exclusive, other) >= LIKELY:
        return None
    named = np.flatnonzero(closed if certain else exclusive).tolist()
    pairs = [f"{names[int(other[i])]!r} for {names[i]!r}" for i in named]
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    likeness = "look permuted" if certain else "may be permuted"
    return Flag(f"its labels {likeness}: it predicts {', '.join(pairs[:NAMED])}{more}", certain)


def _closed(moved: NDArray[np.bool_], other: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(K,) of the names in `moved` (K,), those on a cycle of the renaming `other` (K,) whose names are all in `moved`."""
    closed = moved.copy()
    for _ in closed:  # a cycle loses its members one after another, K steps at most
        closed &= closed[other]
    return closed


def _p_of_renaming(counts: NDArray[np.int64], moved: NDArray[np.bool_], other: NDArray[np.intp]) -> float:
    """p: the probability of so many renamed examples, or more, if own and other name were equally likely; 1 without any."""
    from scipy.stats import binom

    named = np.flatnonzero(moved)
    renamed = int(counts[named, other[named]].sum())
    kept = int(np.diag(counts)[np.union1d(named, other[named])].sum())
    return float(binom.sf(renamed - 1, renamed + kept, 0.5))


def _names_compared(
    task: Task, values: NDArray[np.floating], sample: Examples
) -> list[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Sets of names (K,) that a teacher may have permuted, each with its counts (K, K), gold × predicted.

    Entity types, where the task has several: counted over words that are in an entity both in gold and in the
    prediction, at any place of it. Then the labels.
    """
    classified = task.scoring.classified(values, sample)
    if classified is None or not len(classified[1]):
        return []
    counts = confusion(*classified)
    types = tuple(sorted({name for name in task.reading.entity_types if name}))
    if len(types) < 2:
        return [(task.reading.labels, counts)]
    member = np.array([[name == one for one in types] for name in task.reading.entity_types], dtype=np.int64)
    return [(types, member.T @ counts @ member), (task.reading.labels, counts)]


# ---------------------------------------------------------------- constant and random predictions


def shuffled_scores(
    task: Task, values: NDArray[Any], sample: Examples, count: int = SHUFFLES
) -> NDArray[np.float64]:
    """(count,) metrics of the predictions (n, C) in random orders of the rows; every call uses the same orders."""
    rng = np.random.default_rng(0)
    return np.array([score_of(task, rng.permutation(values), sample) for _ in range(count)])


def _is_uniform(task: Task, rows: torch.Tensor, entropy: float | None) -> bool:
    if entropy is not None:
        return entropy >= UNIFORM
    return float(rows.std()) <= CONSTANT


def _chance_flag(
    task: Task,
    sample: Examples,
    values: NDArray[np.floating],
    chance: NDArray[np.float64],
    findings: Findings,
) -> Flag | None:
    """A flag where the teacher's score is not clearly above that of constant predictions, or of random ones."""
    from pipeline.shown import points

    several = bool((task.reading.counts(sample.inputs) > 1).any())
    mean, spread = (float(chance.mean()), float(chance.std(ddof=1))) if len(chance) > 1 else (0.0, 0.0)
    source = "the same model under random heads" if several else "its own predictions in random order"
    measured = f"{task.scoring.metric} {points(findings.score)} on {len(sample)} validation examples"
    random = f"{points(mean)} ± {points(spread)} of {source}"
    if task.kind.continuous and findings.score < mean - 2 * spread:
        return Flag(f"its numbers fall where the labels rise, {measured}: their sign looks flipped")
    if findings.score <= findings.majority:
        return Flag(f"{measured} is not above the {points(findings.majority)} of a constant prediction")
    if len(chance) and findings.score <= mean:
        return Flag(f"{measured} is not above the {random}")
    if len(chance) and findings.score <= mean + 2 * spread:
        return Flag(
            f"{measured} is not clearly above the {random}", certain=several and len(sample) >= ENOUGH
        )
    error = float(bootstrap([task.scoring.statistics(values, sample)], task.scoring.score_of)[0].std())
    if findings.score <= findings.majority + 2 * error:
        return Flag(
            f"{measured} (± {points(error)}) is not clearly above the {points(findings.majority)} of a constant prediction",
            certain=False,
        )
    return None


def _entropy(rows: torch.Tensor) -> float:
    """Mean over rows (N, D) of the entropy ÷ ln(columns present); rows with fewer than two of them are left out."""
    choices = is_present(rows).sum(dim=-1)
    entropies = torch.special.entr(torch.softmax(rows, dim=-1)).sum(dim=-1)
    several = choices > 1
    return float((entropies[several] / choices[several].log()).mean()) if bool(several.any()) else 0.0


def _excerpt(task: Task, sample: Examples, row: int) -> str:
    fields = (sample.inputs[name][row] for name in task.reading.fields)
    return " | ".join(field if isinstance(field, str) else " ".join(field) for field in fields)[:80]


# ---------------------------------------------------------------- all teachers of a run


def with_agreement(
    findings: Sequence[Findings],
    values: Mapping[str, NDArray[Any]],
    tasks: Mapping[str, Task],
    samples: Mapping[str, Examples],
) -> list[Findings]:
    """The findings, each with `agreement` filled in. values: by teacher, its predictions (M, C)."""
    shares: dict[str, dict[str, float]] = {one.teacher: {} for one in findings}
    for a, b in combinations(findings, 2):
        if a.task != b.task or not (_finite(values[a.teacher]) and _finite(values[b.teacher])):
            continue
        share = tasks[a.task].scoring.agreement(values[a.teacher], values[b.teacher], samples[a.task])
        shares[a.teacher][b.teacher] = shares[b.teacher][a.teacher] = share
    return [replace(one, agreement=shares[one.teacher]) for one in findings]


def _finite(values: NDArray[Any]) -> bool:
    return is_text(values) or bool(np.isfinite(values).all())


def refuse(findings: Sequence[Findings], warn_only: Callable[[str], bool]) -> list[str]:
    """The warnings: a line for each teacher with warnings, or with problems that `warn_only` (teacher's name) allows.

    Raises `TeacherError` for the first teacher with problems that it does not allow.
    """
    stopping = [one for one in findings if one.problems and not warn_only(one.teacher)]
    if stopping:
        first, more = stopping[0], len(stopping) - 1
        also = f" (and {more} more: {', '.join(one.teacher for one in stopping[1:])})" if more else ""
        raise TeacherError(
            f"preflight: teachers.{first.teacher}: {'; '.join(first.problems)}{also}",
            f"Correct the teacher, or continue in spite of this with teachers.{first.teacher}.preflight=warn.",
        )
    return [
        f"preflight: teachers.{one.teacher}: {'; '.join([*one.problems, *one.warnings])}"
        for one in findings
        if one.problems or one.warnings
    ]
