"""What a teacher is worth: alone, with and without it, in the metric and in skill, for every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipeline.batch import ABSENT
from pipeline.report.ensembles import TaskTeachers
from pipeline.report.worth import task_worth
from pipeline.tasks.skill import example_losses, relative_losses, skill
from tests.unit.pipeline.report.teacher_samples import KINDS, N, strong_and_weak, topics, words


def test_a_teacher_is_worth_what_the_ensemble_loses_without_it() -> None:
    worth = task_worth(strong_and_weak())
    strong, weak = worth.teachers["strong"], worth.teachers["weak"]
    assert worth.ensemble.metric.score == strong.alone.metric.score == 0.9
    assert strong.without is not None
    assert strong.without.metric.score == weak.alone.metric.score == 0.5
    assert strong.metric is not None
    assert strong.metric.mean == pytest.approx(0.4)
    assert strong.metric.measurable
    # 45% of texts only strong has right, 5% only weak: variance 0.5 − 0.4² by text
    assert strong.metric.error == pytest.approx(np.sqrt((0.5 - 0.16) / N), rel=0.1)


def test_a_teacher_that_changes_no_answer_has_no_measurable_worth() -> None:
    weak = task_worth(strong_and_weak()).teachers["weak"]
    assert weak.metric is not None
    assert (weak.metric.mean, weak.metric.error, weak.metric.measurable) == (0, 0, False)


def test_the_ensembles_skill_is_the_skill_of_every_other_place() -> None:
    teachers = strong_and_weak(strong=0.75, weak=0.25)
    own = task_worth(teachers).ensemble.skill
    together = teachers.combine(teachers.weights)
    assert own is not None
    assert own.score == skill(relative_losses(teachers.task, together, teachers.validation))


def test_skills_of_one_task_have_one_unit() -> None:
    """A model that does not see a word is not measured against the higher loss of equal probabilities."""
    teachers = words([[4, 0], [ABSENT, ABSENT], [0, 4], [0, 4]])
    without = task_worth(teachers).teachers["one"].without
    together = teachers.combine(teachers.weights)
    losses, _ = example_losses(teachers.task, teachers.predictions["two"], teachers.validation)
    _, constant = example_losses(teachers.task, together, teachers.validation)
    assert without is not None
    assert without.skill is not None
    assert without.skill.score == pytest.approx(1 - losses.sum() / constant)


def test_a_teacher_with_part_of_the_labels_has_no_skill_alone() -> None:
    worth = task_worth(topics([[0, 4, ABSENT], [4, 0, ABSENT], [0, 4, ABSENT], [0, 4, ABSENT]]))
    one, two = worth.teachers["one"], worth.teachers["two"]
    assert (two.lacks, two.orphans, two.alone.skill) == (("c",), (), None)
    assert two.skill is not None  # the ensemble has every label, and so has teacher one
    assert (one.lacks, one.orphans, one.skill) == ((), ("c",), None)
    assert one.metric is not None


def test_a_single_teacher_has_nothing_to_be_left_out_of() -> None:
    teachers = topics()
    single = replace(teachers, predictions={"one": teachers.predictions["one"]}, weights={"one": 1.0})
    worth = task_worth(single)
    assert worth.best is None
    assert (worth.teachers["one"].without, worth.teachers["one"].metric) == (None, None)


def test_a_teacher_of_weight_0_changes_nothing_and_leaves_the_other_alone() -> None:
    worth = task_worth(strong_and_weak(strong=1.0, weak=0.0))
    assert worth.teachers["strong"].metric is None
    weak = worth.teachers["weak"].metric
    assert weak is not None
    assert (weak.mean, weak.error) == (0, 0)


def test_the_best_weights_are_never_behind_the_configured_ones_best_teacher() -> None:
    best = task_worth(strong_and_weak(strong=0.1, weak=0.9)).best
    assert best is not None
    assert best.scores.metric.score == 0.9
    assert best.gain.mean == pytest.approx(0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_worth(kind: str) -> None:
    make: Callable[..., TaskTeachers] = KINDS[kind]
    worth = task_worth(make())
    assert worth.teachers["one"].alone.metric.score == pytest.approx(1)
    for one in worth.teachers.values():
        assert one.metric is not None
        assert one.skill is not None
        assert np.isfinite([one.metric.mean, one.metric.error, one.skill.mean, one.skill.error]).all()
    first = worth.teachers["one"].skill
    assert first is not None
    assert first.mean > 0
