"""Losses and aggregation give the numbers they gave before: `losses.json` beside this file.

A refactor leaves the file as it is. Where a formula changes on purpose, write it anew from the repository's
root and say in the commit why the numbers moved::

    python -m tests.golden.test_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config.kinds import TEXT_CLASSIFICATION
from pipeline.config.schema import strategies
from pipeline.losses import LossInputs, LossWeights, hard_cross_entropy, soft_kl, task_loss
from teachers.aggregation import aggregate, ensemble

GOLDEN = Path(__file__).with_name("losses.json")

# Three teachers, four examples, three labels. Written out: random generators may change between releases.
TEACHERS = [
    [[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-4.0, 6.0, 1.5], [1.0, 1.0, 1.0]],
    [[1.5, 0.5, -0.5], [-2.0, 3.0, 0.0], [0.5, 2.5, 2.0], [3.0, -3.0, 0.0]],
    [[-0.5, 2.0, 0.0], [1.0, 4.0, -1.0], [-8.0, 8.0, 0.0], [0.2, -0.1, 0.7]],
]
WEIGHTS = [0.5, 0.3, 0.2]
STUDENT = [[0.3, -0.2, 0.1], [-1.0, 1.5, 0.5], [0.0, 0.0, 0.0], [2.0, 1.0, -3.0]]
LABELS = [0, 1, 1, 2]
SOME_LABELS = [0, -1, 1, 2]
VALID = [1.0, 1.0, 1.0, 0.0]
TEMPERATURES = (1.0, 2.0, 4.0)
Numbers = dict[str, list[float]]


def numbers() -> Numbers:
    """Every loss and strategy on the inputs above: name → values, flat."""
    found: dict[str, Tensor] = {}
    student, teachers, weights = torch.tensor(STUDENT), torch.tensor(TEACHERS), torch.tensor(WEIGHTS)
    some_labels = torch.tensor(SOME_LABELS)
    found["hard_cross_entropy"] = hard_cross_entropy(student, some_labels)
    for strategy in strategies(TEXT_CLASSIFICATION, labelled=True):
        found[f"ensemble {strategy}"] = ensemble(teachers, strategy=strategy, weights=weights)
        for temperature in TEMPERATURES:
            target = aggregate(
                teachers,
                strategy=strategy,
                weights=weights,
                temperature=temperature,
                labels=torch.tensor(LABELS),
            )
            found[f"aggregate {strategy} T={temperature:g}"] = target
            found[f"soft_kl {strategy} T={temperature:g}"] = soft_kl(student, target, temperature)
    inputs = LossInputs(student, some_labels, found["aggregate mean T=2"], torch.tensor(VALID))
    total, terms = task_loss(inputs, LossWeights({"hard": 0.3, "soft": 0.7}, 2.0, task=1.5), normaliser=3.0)
    found |= {"task_loss": total} | {f"task_loss {name}": term for name, term in terms.items()}
    return {name: [round(value, 8) for value in tensor.flatten().tolist()] for name, tensor in found.items()}


RECORDED: Numbers = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@pytest.fixture(scope="module")
def today() -> Numbers:
    return numbers()


def test_the_same_things_are_recorded(today: Numbers) -> None:
    assert list(today) == list(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_numbers_stand(name: str, today: Numbers) -> None:
    assert today[name] == pytest.approx(RECORDED[name], rel=1e-5, abs=1e-6)


def _write() -> None:
    """Record today's numbers, one name a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in numbers().items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    _write()
