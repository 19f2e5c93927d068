"""A student as one of several workers trains it: alone, in DDP, or in FSDP2, which leaves each worker a part of it.

The training loop reads the student's weights, scores it and writes checkpoints as if it were alone: between steps of optimisation
the student has all weights on every worker, whatever holds them during the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.schema import WorkerStrategy
from pipeline.training.step import WithLoss, Workers
from students.student import MultiTaskStudent


class Replica:
    """The student itself: of one worker, or of each of several in DDP.

    student: has all weights · trained: its parameters are those of the optimiser · model: what `accumulate` calls.
    """

    def __init__(self, student: MultiTaskStudent, workers: Workers) -> None:
        self.student = self.trained = student
        self.workers = workers
        self.wrap()

    def wrap(self) -> None:
        """Takes notice of which parameters are frozen now."""
        self.model: nn.Module = WithLoss(self.trained)
        if self.workers.world > 1:
            # unused: a step trains one task's head
            model = DistributedDataParallel(
                self.model, find_unused_parameters=True, gradient_as_bucket_view=True
            )
            model.register_comm_hook(None, lambda _, bucket: _summed(bucket))
            self.model = model

    def gather(self) -> None:
        """Gives the student the trained weights. To be called on all workers."""

    def scatter(self) -> None:
        """Gives the trained parameters the student's weights. To be called on all workers."""

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of all gradients, of what `clip_grad_norm_` returns for the trained parameters."""
        return norm

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
        """The optimiser's state of each parameter by its number, whole. To be called on all workers."""
        state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
        return state

    def load_optimizer(
        self, optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        """The inverse of `optimizer_state`. To be called on all workers."""
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(state), "param_groups": groups})


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


def replica_of(student: MultiTaskStudent, workers: Workers, strategy: WorkerStrategy) -> Replica:
    """The student as this worker trains it."""
    sharded = strategy == "fsdp" and workers.world > 1
    return ShardedReplica(student, workers) if sharded else Replica(student, workers)


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's hook, of a `torch.distributed.GradBucket`: the sum over the workers, since each has its share of the step's loss; DDP's own is the mean."""
    done: torch.futures.Future[Any] = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return done.then(lambda future: future.value()[0])
