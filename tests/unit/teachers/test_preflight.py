"""Preflight: which teachers may label, and why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.config.schema import ServingConfig
from pipeline.errors import TeacherError
from pipeline.tasks.multi_label import MultiLabel
from pipeline.tasks.regression import Regression
from pipeline.tasks.text_classification import TextClassification
from students.export import save_task
from students.student import build_student
from teachers import preflight as module
from teachers.preflight import SAMPLE, Findings, judge, preflight, refuse, sample_of, with_agreement
from teachers.spec import TeacherSpec
from teachers.teacher import store_key
from tests.conftest import TinyModel

TASK = TextClassification("mood", ("bad", "good", "plain"), 16)


def sample(labels: NDArray[Any], task: TextClassification = TASK) -> Examples:
    inputs = {"text": [f"the mood is {number}" for number in range(len(labels))]}
    return Examples(task.name, content_keys(task.kind, inputs), inputs, Ragged.single(labels))


def values_of(
    predicted: NDArray[np.int64], skill: float = 3.0, noise: float = 0.3, classes: int = 3
) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    values = rng.normal(scale=noise, size=(len(predicted), classes)) + skill * np.eye(classes)[predicted]
    return values.astype(np.float32)


GOLD = np.random.default_rng(1).integers(0, 3, 120)


def problems(values: NDArray[np.floating], **changes: float) -> str:
    facts = {"difference": 0.0, "truncated": 0, **changes}
    found = judge("t", TASK, sample(GOLD), values, facts["difference"], int(facts["truncated"]))
    return "; ".join(found.problems)


def test_a_good_teacher_has_no_problems() -> None:
    found = judge("t", TASK, sample(GOLD), values_of(GOLD), 0.0, 6)

    assert found.problems == []
    assert found.score == 1.0
    assert found.majority == np.bincount(GOLD).max() / 120
    assert found.truncated == 6 / 120
    assert found.entropy is not None
    assert 0 < found.entropy < 0.6
    assert 0 <= found.self_loss < 1e-4


def test_permuted_labels_are_named() -> None:
    swapped = np.array([1, 0, 2])[GOLD]

    assert "labels look permuted" in problems(values_of(swapped))
    assert "it says 'good' where the data say 'bad', 'bad' where the data say 'good'" in problems(
        values_of(swapped)
    )


def test_a_weak_teacher_is_not_called_permuted() -> None:
    rng = np.random.default_rng(2)
    weak = np.where(rng.random(120) < 0.6, GOLD, rng.integers(0, 3, 120))

    assert problems(values_of(weak)) == ""


def test_a_teacher_at_majority_is_named_with_both_scores() -> None:
    most = np.full(120, np.bincount(GOLD).argmax())

    assert "is not above the" in problems(values_of(most))
    assert f"accuracy {100 * np.bincount(GOLD).max() / 120:.1f} on 120" in problems(values_of(most))


def test_uniform_answers_are_named_even_when_right() -> None:
    assert problems(values_of(GOLD, skill=0.01, noise=0.0)) == "its answers do not depend on the text"


def test_replicas_that_differ_are_named() -> None:
    assert "two replicas differ by up to 0.5" in problems(values_of(GOLD), difference=0.5)


def test_nan_is_named() -> None:
    values = values_of(GOLD)
    values[3, 1] = np.nan

    assert problems(values) == 'it answers NaN or Inf on example "the mood is 3"'


def test_targets_that_float16_cannot_hold_are_named() -> None:
    assert "float16 soft targets are" in problems(values_of(GOLD) + 40_000)


@pytest.mark.parametrize(("skill", "problem"), [(1.0, ""), (0.0, "not depend on the text")])
def test_numbers(skill: float, problem: str) -> None:
    task = Regression("strength", (), 16, center=1.0, scale=2.0)
    gold = np.random.default_rng(0).normal(1, 2, 80)
    values = (1 + skill * (gold - 1))[:, None].astype(np.float32)
    found = judge("t", task, sample(gold, task), values, 0.0, 0)

    assert problem in "; ".join(found.problems)
    assert bool(found.problems) == bool(problem)
    assert found.entropy is None
    assert found.ece is None


def test_several_labels_a_text() -> None:
    task = MultiLabel("topics", ("a", "b"), 16)
    gold = np.random.default_rng(0).integers(0, 2, (60, 2))
    right = (6.0 * gold - 3).astype(np.float32)

    assert judge("t", task, sample(gold, task), right, 0.0, 0).problems == []
    assert judge("t", task, sample(gold, task), -right, 0.0, 0).problems != []


def test_the_sample_is_the_same_every_time_whatever_the_order() -> None:
    many = sample(np.zeros(SAMPLE + 50, dtype=np.int64))
    turned = many.take(np.arange(len(many))[::-1])

    assert len(sample_of(many)) == SAMPLE
    assert sample_of(many).inputs == sample_of(turned).inputs


def found(name: str, problem: str = "") -> Findings:
    return Findings(
        name, "mood", "accuracy", 9, 0.9, 0.5, 0.2, 0.1, 0.0, 0.0, 0.0, {}, [problem] if problem else []
    )


def test_refuse_names_teacher_reason_and_the_key_that_overrides() -> None:
    with pytest.raises(TeacherError) as caught:
        refuse([found("fine"), found("weak", "too weak"), found("odd", "odd")], lambda name: False)

    assert caught.value.cause == "preflight: teachers.weak: too weak (and 1 more: odd)"
    assert "teachers.weak.preflight=warn" in caught.value.remedy


def test_warned_teachers_go_on() -> None:
    assert refuse([found("weak", "too weak")], lambda name: name == "weak") == [
        "preflight: teachers.weak: too weak"
    ]


def test_agreement_is_with_the_same_tasks_teachers_only() -> None:
    values = {"a": values_of(GOLD), "b": values_of(np.array([1, 0, 2])[GOLD])}
    findings = [found("a"), found("b")]
    both = with_agreement(findings, values, {"mood": TASK}, {"mood": sample(GOLD)})

    assert both[0].agreement == {"b": float((GOLD == 2).mean())}
    assert both[1].agreement == {"a": float((GOLD == 2).mean())}


# ---------------------------------------------------------------- real models


@pytest.fixture
def teacher(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny teacher whose head is saved with it."""
    from pipeline.models import open_tokenizer

    base = tiny_model("bert")
    save_task(build_student(base, [TASK]), "mood", open_tokenizer(base), tmp_path / "teacher")
    return tmp_path / "teacher"


def spec_of(folder: Path, name: str = "t") -> TeacherSpec:
    return TeacherSpec(name, str(folder), None, TASK, ServingConfig(), store_key(folder, TASK, "fp32"))


def test_two_replicas_of_a_saved_teacher_agree_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    (one,) = preflight([spec_of(teacher)], {"mood": sample(GOLD)}, tmp_path / "cache", on_ray=False)

    assert one.replica_difference == 0
    assert one.self_loss < 1e-4


def test_a_model_without_its_head_differs_between_replicas(tiny_model: TinyModel, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "headless"
    shutil.copytree(tiny_model("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(enumerate(TASK.labels))
    config["label2id"] = {label: i for i, label in enumerate(TASK.labels)}
    del config["architectures"]  # which would give it away before it is opened
    (folder / "config.json").write_text(json.dumps(config))
    (one,) = preflight([spec_of(folder)], {"mood": sample(GOLD)}, tmp_path / "cache", on_ray=False)

    assert one.replica_difference > 0
    assert "two replicas differ" in one.problems[0]


def test_what_is_known_is_not_asked_again(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = {"mood": sample(GOLD)}
    first = preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False)
    monkeypatch.setattr(module, "examine", lambda *_: pytest.fail("asked again"))

    assert preflight([spec_of(teacher)], examples, tmp_path / "cache", on_ray=False) == first
    renamed = preflight([spec_of(teacher, "other")], examples, tmp_path / "cache", on_ray=False)
    assert renamed[0].teacher == "other"
