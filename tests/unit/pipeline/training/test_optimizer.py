"""The optimiser's parameter groups, and the learning rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.training.optimizer import learning_rate_factor, make_optimizer
from tests.unit.pipeline.small_training import settings, student_of, two_tasks


def test_weight_decay_is_for_matrices_alone() -> None:
    student = student_of(two_tasks())
    frozen = student.encoder.get_parameter("embeddings.position_embeddings.weight")
    frozen.requires_grad_(False)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decays, spared = set[str](), set[str]()
    groups = make_optimizer(student, settings(weight_decay=0.02)).param_groups
    for group in groups:
        (decays if group["weight_decay"] == 0.02 else spared).update(names[id(p)] for p in group["params"])
    assert {group["weight_decay"] for group in groups} == {0.02, 0.0}
    assert spared == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert decays | spared == set(names.values()) - {names[id(frozen)]}
    assert sum(len(group["params"]) for group in groups) == len(decays) + len(spared)  # each parameter once


def test_what_a_checkpoint_counts_on_does_not_hang_on_settings() -> None:
    student = student_of(two_tasks())

    def order(**changes: Any) -> list[int]:
        groups = make_optimizer(student, settings(**changes)).param_groups
        return [id(parameter) for group in groups for parameter in group["params"]]

    assert order() == order(weight_decay=0.0) == order(head_learning_rate=0.5) == order(optimizer="sgd")


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 0.2, [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", 0.11, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),  # rounded up to whole steps
        ("cosine", 0.0, [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]),
        ("linear", 1.0, [k / 11 for k in range(1, 11)]),
    ],
)
def test_learning_rate_factors(schedule: str, warmup: float, factors: list[float]) -> None:
    found = [learning_rate_factor(step, 10, warmup, schedule) for step in range(10)]
    assert found == pytest.approx(factors)
