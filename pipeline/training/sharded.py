"""A student in FSDP2, which leaves each worker a part of it. A module of its own: most trainings need not import FSDP2."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.training.replica import Replica
from pipeline.training.step import WithLoss


class ShardedReplica(Replica):
    """A copy of the student whose parameters, gradients and optimiser state are shared out over the workers (FSDP2).

    Each worker also has the whole student, weights alone, for validation and checkpoints.
    """

    def wrap(self) -> None:
        """Shards a copy of the student; parameters are never frozen: the config has refused it."""
        self.trained = copy.deepcopy(self.student)
        mesh = init_device_mesh(self.workers.device.type, (self.workers.world,))
        whole = set(getattr(self.trained.encoder, "_no_split_modules", None) or ())
        layers = [one for one in self.trained.modules() if type(one).__name__ in whole]
        for module in (*layers, self.trained):
            sharded = fully_shard(module, mesh=mesh)
            sharded.set_gradient_divide_factor(1.0)  # the sum: each worker has its share of the step's loss
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
        self.model = WithLoss(self.trained)

    def gather(self) -> None:
        with torch.no_grad():
            for own, part in self._pairs():
                own.copy_(part.full_tensor())

    def scatter(self) -> None:
        with torch.no_grad():
            for own, part in self._pairs():
                part.copy_(distribute_tensor(own.detach(), part.device_mesh, part.placements))

    def norm(self, norm: Tensor) -> Tensor:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
        return {
            number: {
                key: value.full_tensor() if isinstance(value, DTensor) else value
                for key, value in slot.items()
            }
            for number, slot in super().optimizer_state(optimizer).items()
        }

    def load_optimizer(
        self, optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]

        def part(number: int, value: Tensor) -> Tensor:
            like = parameters[number]
            if value.shape != like.shape:  # the number of steps
                return value
            return distribute_tensor(value.to(self.workers.device), like.device_mesh, like.placements)

        parts = {
            number: {key: part(number, value) for key, value in slot.items()}
            for number, slot in state.items()
        }
        super().load_optimizer(optimizer, parts)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, DTensor]]:
        for own, part in zip(self.student.parameters(), self.trained.parameters(), strict=True):
            assert isinstance(part, DTensor), "sharded"
            yield own, part
