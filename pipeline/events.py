"""Distributions over a vocabulary as few events: some token ids and, last, all the others together.

Teachers answer with the ids that they find most probable, each teacher with others (`pipeline.soft.Sparse`). Over
the union of those ids every teacher, and the student, has a distribution of u + 1 events, given as the logs of their
probabilities at temperature 1. On those `teachers.aggregation.aggregate` and `pipeline.losses.soft_kl` work as they
do on logits: the temperature is applied to the events, for teachers and student alike. With all ids given, nothing is
approximated. Everything is computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax

from pipeline.batch import ABSENT
from pipeline.config.generation import TokenTargetsConfig
from pipeline.soft import NO_ID


def sparse_rows(
    logits: Tensor, form: TokenTargetsConfig, labels: Tensor, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Ids (N, k), their log-probabilities (N, k) and the log of the rest's (N,) of N distributions, as `Sparse` takes them.

    logits: (N, V) float32 · labels: (N,) the ids of the text itself · form: ``top``: the k most probable ids, the text's own
    in place of the last one where it is not among them, since the hard loss makes it an event · ``sampled``: the distinct ones of k draws, each with its
    share of the draws, which is an unbiased estimate of its probability (arXiv:2503.16870), and nothing for the rest ·
    seed: of the draws.
    """
    count = min(form.ids, logits.shape[-1])
    logs = logits.log_softmax(dim=-1)
    if form.form == "top":
        ids = logs.topk(count, dim=-1).indices
        known = (ids == labels.unsqueeze(-1)).any(dim=-1)
        ids[:, -1] = torch.where(known, ids[:, -1], labels)
        rest = logs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1).clamp(min=ABSENT)
        return _arrays(ids, logs.gather(-1, ids), rest)
    generator = torch.Generator(logits.device).manual_seed(seed)
    drawn = torch.multinomial(logs.exp(), count, replacement=True, generator=generator).sort(dim=-1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    times = torch.zeros_like(drawn).scatter_add(-1, first.cumsum(dim=-1) - 1, torch.ones_like(drawn))
    order = first.long().argsort(dim=-1, descending=True, stable=True)
    distinct = drawn.gather(-1, order).masked_fill(times == 0, NO_ID)
    shares = (times / count).log().clamp(min=ABSENT)
    return _arrays(distinct, shares, logs.new_full((len(logs),), ABSENT))


def _arrays(
    ids: Tensor, logs: Tensor, rest: Tensor
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    return (
        ids.cpu().numpy().astype(np.int32),
        logs.clamp(min=ABSENT).cpu().numpy(),
        rest.cpu().numpy(),
    )


def event_ids(ids: Tensor, labels: Tensor | None = None) -> Tensor:
    """(N, u) int64 the union of the teachers' ids, and of the labels, row by row; `NO_ID` in the place of a repetition.

    ids: (K, N, k) int, `NO_ID` where a row has fewer · labels: (N,) int64, each an id, so that a label is an event of
    its own. u = K · k, one more with labels. The first id of each row is real.
    """
    columns = ids.long().movedim(0, 1).flatten(1)
    if labels is not None:
        columns = torch.cat((columns, labels.unsqueeze(-1)), dim=-1)
    last = torch.iinfo(torch.int64).max
    columns = columns.masked_fill(columns == NO_ID, last).sort(dim=-1).values
    repeated = torch.zeros_like(columns, dtype=torch.bool)
    repeated[:, 1:] = columns[:, 1:] == columns[:, :-1]
    return columns.masked_fill(repeated | (columns == last), NO_ID)


def teacher_events(ids: Tensor, log_probabilities: Tensor, rest: Tensor, events: Tensor, size: int) -> Tensor:
    """(K, N, u + 1) float32 logs of the teachers' probabilities of the events, `ABSENT` where there is none.

    ids, log_probabilities: (K, N, k), rest: (K, N), as `pipeline.soft.Sparse` has them · events: (N, u) of
    `event_ids` · size: of the vocabulary. An id that a teacher has not listed gets an even share of that
    teacher's rest, of which as much is taken off: the sum stays 1.
    """
    rest, logs = rest.float(), log_probabilities.float()
    order = torch.where(ids == NO_ID, size, ids.long()).sort(dim=-1)
    listed = logs.gather(-1, order.indices)
    wanted = events.expand(*ids.shape[:2], -1).contiguous()
    at = torch.searchsorted(order.values, wanted).clamp(max=ids.shape[-1] - 1)
    is_listed = order.values.gather(-1, at) == wanted
    is_event = wanted != NO_ID
    unlisted = (size - (ids != NO_ID).sum(dim=-1)).clamp(min=1)
    share = rest - unlisted.log()
    of_events = torch.where(is_listed, listed.gather(-1, at), share.unsqueeze(-1))
    left = unlisted - (is_event & ~is_listed).sum(dim=-1)
    of_rest = torch.where(left > 0, share + left.clamp(min=1).log(), ABSENT)
    return torch.cat((of_events.masked_fill(~is_event, ABSENT), of_rest.unsqueeze(-1)), dim=-1).clamp(
        min=ABSENT
    )


def student_events(logits: Tensor, events: Tensor) -> Tensor:
    """(N, u + 1) float32 logs of the student's probabilities of the events, with gradients.

    logits: (N, V) any float dtype · events: (N, u) of `event_ids`. The rest is summed over the other ids, not taken
    as one minus the events, which would lose its digits where the events have nearly all of the mass. The vocabulary is
    normalised over the events and the rest: one pass over it, as a cross-entropy takes.
    """
    logits = logits.float()
    real = torch.where(events == NO_ID, events[:, :1], events)
    of_events = logits.gather(-1, real).masked_fill(events == NO_ID, ABSENT)
    of_rest: Tensor = _LogSumOfOthers.apply(logits, real)  # type: ignore[no-untyped-call]  # torch has no type for it
    return log_softmax(torch.cat((of_events, of_rest), dim=-1), dim=-1).clamp(min=ABSENT)


class _LogSumOfOthers(torch.autograd.Function):
    """(N, 1) log Σ exp of the logits (N, V) at all ids but `ids` (N, u), at least `ABSENT`.

    The exponentials are kept for the gradient, as a cross-entropy keeps its own; out of torch's functions a masked copy and
    its gradient would take as long once more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        """The sums."""
        highest = logits.amax(dim=-1, keepdim=True)
        others = (logits - highest).exp_().scatter_(-1, ids, 0.0)
        total = others.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(others, total)
        return (highest + total.log()).clamp(min=ABSENT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient on the logits, 0 at `ids`."""
        others, total = ctx.saved_tensors
        return others * (gradients[0] / total.clamp(min=torch.finfo(total.dtype).tiny)), None
