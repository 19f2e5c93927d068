"""The number of threads: what is clearly faster now, and nothing left changed."""

from __future__ import annotations

import pytest
import torch

from pipeline.training import threads as module
from pipeline.training.threads import chosen, faster_threads


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [({2: 0.5, 1: 0.07}, 1), ({2: 0.04, 1: 0.07}, 2), ({2: 0.08, 1: 0.07}, 2), ({8: 0.09, 1: 0.07}, 1)],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(
    seconds: dict[int, float], threads: int
) -> None:
    assert chosen(seconds) == threads


@pytest.mark.parametrize(
    ("several", "threads"), [([0.5, 0.5, 0.04], 2), ([0.5, 0.5, 0.5], 1), ([0.04], 2)], ids=str
)
def test_a_moment_of_other_work_does_not_decide(
    monkeypatch: pytest.MonkeyPatch, several: list[float], threads: int
) -> None:
    left = iter(several)
    monkeypatch.setattr(module, "step_seconds", lambda count: {count: next(left), 1: 0.07})
    assert faster_threads(2, pause_s=0)[0] == threads
    assert not list(left), "no more looks than are needed"


def test_nothing_is_measured_where_there_is_no_choice() -> None:
    assert faster_threads(1) == (1, {})


def test_both_are_measured_and_nothing_is_left_changed() -> None:
    before, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    threads, seconds = faster_threads(before + 1)
    assert seconds.keys() == {before + 1, 1}
    assert all(value > 0 for value in seconds.values())
    assert threads == chosen(seconds)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (before, gradients)
