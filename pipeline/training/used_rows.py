"""A student of whose token embeddings only the rows train that its texts use: the others have no gradient.

An optimiser's step takes as long for a row without a gradient as for another one, and the rows are most of a small student's
parameters. What AdamW does to a row without a gradient is its weight decay alone, which is a factor that all of them share.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from pipeline.batch import Encoded
from pipeline.training.replica import Replica
from pipeline.training.step import Workers
from students.student import MultiTaskStudent

MOST = 0.8
"""The share of its rows from which a table trains as a whole."""


class UsedRows(nn.Module):
    """An embedding of some of the ids. weight: (U, D), the rows of the ids `used` (U,), ascending · size: of the whole table."""

    def __init__(self, weight: Tensor, used: Tensor, size: int, padding: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        places = torch.full((size,), size, dtype=torch.int64, device=used.device)  # out of range: an error
        places[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("places", places, persistent=False)
        self.padding = None if padding is None else int(places[padding])

    def forward(self, ids: Tensor) -> Tensor:
        """(…, D) the rows of `ids` (…,), all of them used ones."""
        places: Tensor = self.get_buffer("places")
        return embedding(places[ids], self.weight, self.padding)


class UsedRowsReplica(Replica):
    """The student with `UsedRows` in the place of its token embeddings; all other parameters are the student's own."""

    def __init__(self, student: MultiTaskStudent, workers: Workers, used: NDArray[np.int64]) -> None:
        table = _table(student)
        assert table is not None, "see `used_ids`"
        self._table, self._used = table.weight, torch.from_numpy(used).to(table.weight.device)
        self._unused = torch.ones(len(table.weight), dtype=torch.bool, device=table.weight.device)
        self._unused[self._used] = False
        self._start = table.weight.detach()[self._unused].clone()
        rows = UsedRows(
            table.weight.detach()[self._used].clone(), self._used, len(table.weight), table.padding_idx
        )
        own = {id(one): one for one in (*student.parameters(), *student.buffers())}
        self._student = copy.deepcopy(student, {**own, id(table): rows})
        self._rows, self.decay = rows.weight, 1.0
        super().__init__(student, workers)

    def wrap(self) -> None:
        self.trained = self._student
        super().wrap()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self._rows.grad is None:
            return
        group = next(one for one in optimizer.param_groups if any(p is self._rows for p in one["params"]))
        self.decay *= 1 - group["lr"] * group["weight_decay"]

    def gather(self) -> None:
        with torch.no_grad():
            self._table[self._used] = self._rows
            self._table[self._unused] = self._start * self.decay

    def scatter(self) -> None:
        with torch.no_grad():
            self._rows.copy_(self._table[self._used])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
        def whole(value: Tensor) -> Tensor:
            if value.shape != self._rows.shape:  # the number of steps
                return value
            table = torch.zeros_like(self._table)
            table[self._used] = value
            return table

        state = super().optimizer_state(optimizer)
        number = self._number(optimizer)
        if number in state:
            state[number] = {key: whole(value) for key, value in state[number].items()}
        return state

    def load_optimizer(
        self, optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        number, used = self._number(optimizer), self._used.cpu()
        parts = {
            key: value[used] if value.shape == self._table.shape else value
            for key, value in state.get(number, {}).items()
        }
        super().load_optimizer(optimizer, {**state, number: parts} if parts else state)

    def _number(self, optimizer: torch.optim.Optimizer) -> int:
        """The number of the rows among the optimiser's parameters; -1 where they are frozen."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        return next((number for number, one in enumerate(parameters) if one is self._rows), -1)


def used_ids(student: MultiTaskStudent, sets: Sequence[Encoded]) -> NDArray[np.int64] | None:
    """(U,) the token ids of the training texts and of padding, ascending; None where the student's embeddings train as a whole: tied to
    other weights, as those of models that write, frozen, or used nearly all.
    """
    table = _table(student)
    if table is None or any(task.kind.writes for task in student.tasks.values()):
        return None
    there = np.zeros(len(table.weight), dtype=bool)
    for encoded in sets:
        there[encoded.columns["input_ids"]] = True
        there[encoded.pads["input_ids"]] = True
    own = getattr(
        student.encoder.config, "pad_token_id", None
    )  # some models pad once more: BigBird, Longformer
    for padding in (table.padding_idx, own):
        if padding is not None and 0 <= padding < len(there):
            there[padding] = True
    return np.flatnonzero(there) if there.sum() <= MOST * len(there) else None


def _table(student: MultiTaskStudent) -> nn.Embedding | None:
    """The student's token embeddings, where they are a plain table that trains and nothing else uses."""
    try:
        table = student.encoder.get_input_embeddings()
    except NotImplementedError:  # of characters, as CANINE's
        return None
    if type(table) is not nn.Embedding or not table.weight.requires_grad or table.max_norm is not None:
        return None
    if table.scale_grad_by_freq or table.sparse:
        return None
    owners = {
        id(module)
        for module in student.modules()
        for parameter in module.parameters(recurse=False)
        if parameter is table.weight
    }
    return table if owners == {id(table)} else None
