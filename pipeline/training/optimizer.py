"""The optimiser of a training, and its learning rate over the steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.config.recipe import Recipe
from students.student import MultiTaskStudent


def make_optimizer(student: MultiTaskStudent, config: Recipe) -> torch.optim.Optimizer:
    """AdamW, fused where possible, or SGD. Weight decay on matrices only; heads and projections have their own learning
    rate.

    Each group's peak learning rate is its `initial_lr`.
    """
    encoder = set(student.encoder.parameters())
    # Parameters are grouped by what they are, not by their settings: a checkpoint depends on the order of the groups,
    # and a trial with other settings may take it over.
    groups: dict[tuple[bool, bool], list[Tensor]] = {(e, m): [] for e in (True, False) for m in (True, False)}
    for parameter in student.parameters():
        if parameter.requires_grad:
            groups[parameter in encoder, parameter.ndim > 1].append(parameter)
    options = [
        {
            "params": parameters,
            "initial_lr": config.learning_rate if in_encoder else config.head_learning_rate,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (in_encoder, is_matrix), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        # Not fused: fused SGD fails where a head gets its first gradient at a later step than the encoder.
        return torch.optim.SGD(options, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(options, lr=config.learning_rate, fused=True)


def learning_rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at `step` of `total`, counted from 0: linear warm-up, then `schedule`."""
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    match schedule:
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case _:
            return 1.0
