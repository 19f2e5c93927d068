"""A student as one of several workers trains it: alone, in DDP, or in FSDP2 (`pipeline.training.sharded`).

The training loop reads the student's weights, scores it and writes checkpoints as if it were alone: between steps of optimisation
the student has all weights on every worker, whatever holds them during the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.step import WithLoss, Workers
from students.student import MultiTaskStudent


class Replica:
    """The student itself: of one worker, or of each of several in DDP.

    student: has all weights · decay: see `pipeline.training.used_rows` · trained: its parameters are those of the optimiser · model: what `accumulate` calls.
    """

    decay = 1.0

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

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes notice of a step that `optimizer` has taken."""

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


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's hook, of a `torch.distributed.GradBucket`: the sum over the workers, since each has its share of the step's loss; DDP's own is the mean."""
    done: torch.futures.Future[Any] = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return done.then(lambda future: future.value()[0])
