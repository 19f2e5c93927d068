"""Teachers that are trained on beside their student, in one process without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.batch import UNLABELLED, Drawn, Ragged
from pipeline.config.load import parse_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.data.transfer import load_tasks
from pipeline.errors import BadTargetsError, CorruptError, DivergedError, TeacherError
from pipeline.predictor import Predictor
from pipeline.run_folder import job_folder, live_teacher_folder
from pipeline.soft import Dense, SoftTargets
from pipeline.training import jobs as training
from pipeline.training.checkpoint import BESIDE, newest_checkpoint
from pipeline.training.fine_tune import TEACHER, is_finished
from pipeline.training.jobs import train_jobs
from pipeline.training.live import Live, LiveTargets, LiveTeachers
from pipeline.training.live_teacher import Done, LiveTeacher, LocalTeacher
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import Trainer
from pipeline.training.plan import Plan, new_plan
from pipeline.training.schedule import Step
from pipeline.training.step import Workers
from students.student import open_trained
from teachers.spec import TeacherSpec
from tests.conftest import TinyModel, TinyRun
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.small_training import StopAfter

JOB = Job("bare", "distilled")
ROWS = np.array([5, 2, 40, 7])
TEACHERS = {"mood-bert": ("mood", ("good", "bad")), "tone-bert": ("tone", ("bad", "good", "plain"))}


@pytest.fixture
def make_plan(tiny_run: TinyRun, tiny_model: TinyModel) -> Callable[..., Plan]:
    """Plans of a run whose two teachers are trained on: the first one has its labels in another order than its task."""

    def make(name: str = "tiny", train: dict[str, Any] | None = None, **co_train: Any) -> Plan:
        teachers = {
            teacher: {"task": task, "model": str(tiny_model("bert", labels))}
            for teacher, (task, labels) in TEACHERS.items()
        }
        recipe = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "dropout": 0.1, "precision": "fp32"}
        config = parse_config(
            tiny_run(
                name=name,
                teachers=teachers,
                students={"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}},
                train={**recipe, "early_stopping": None, "checkpoint_steps": 5, **(train or {})},
                baselines=[],
                co_train={"learning_rate": 1e-3, **co_train},
            )
        )
        return plan_of(config)

    return make


def plan_of(config: RunConfig) -> Plan:
    data = load_tasks(config)
    folders = {name: teacher.model for name, teacher in config.teachers.items()}
    specs = {
        name: TeacherSpec(name, folders[name], None, data[own.task].task, own.serving, key="")
        for name, own in config.teachers.items()
    }
    return new_plan(config, facts_of(config), data, {}, folders, live=specs)


def teacher_of(plan: Plan, name: str = "mood-bert", steps: int = 40) -> LiveTeacher:
    assert plan.live is not None
    teacher = plan.live.open(name, plan.data[plan.live.specs[name].task.name], plan.seed)
    teacher.begin(steps)
    return teacher


def values_of(teacher: LiveTeacher) -> np.ndarray[Any, Any]:
    soft = teacher.targets(ROWS).targets.soft
    assert isinstance(soft, Dense)
    return soft.values


def outcome(plan: Plan) -> dict[str, bytes]:
    """Weights of the student and of the teachers at the end."""
    files = [
        *plan.run_dir.glob("students/*/*/*.safetensors"),
        *plan.run_dir.glob("teachers/*/*/*.safetensors"),
    ]
    assert len(files) == 4
    return {str(file.relative_to(plan.run_dir)): file.read_bytes() for file in files}


def measured(plan: Plan, name: str) -> list[float]:
    lines = read_metrics(job_folder(plan.run_dir, JOB) / METRICS)
    return [line["metrics"][name] for line in lines if name in line["metrics"]]


# ---------------------------------------------------------------- one teacher


def test_a_teacher_that_has_not_learnt_answers_as_the_predictor(make_plan: Callable[..., Plan]) -> None:
    """Columns in the task's order, whatever the model's own; keys of the rows asked for."""
    plan = make_plan()
    data = plan.data["mood"]
    expected, _ = Predictor(Path(plan.teacher_folders["mood-bert"]), data.task).predict(
        data.splits["train"].take(ROWS).inputs
    )
    answer = teacher_of(plan).targets(ROWS)
    assert isinstance(answer.targets.soft, Dense)
    assert answer.targets.soft.space == ("bad", "good")
    np.testing.assert_allclose(answer.targets.soft.values, expected.values, atol=2e-3)
    assert answer.targets.keys.tolist() == data.splits["train"].keys[ROWS].tolist()
    assert answer.batches == 0


def test_a_teacher_learns_its_labels(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    teacher = teacher_of(plan, steps=100)
    labels = plan.data["mood"].splits["train"].labels.values[ROWS]
    for step in range(40):
        teacher.learn(step, ROWS)
    assert values_of(teacher).argmax(axis=1).tolist() == labels.tolist()
    assert teacher.targets(ROWS).batches == 40
    assert teacher.targets(ROWS).loss < 0.6  # ln 2 before


def test_a_teacher_follows_its_student_where_it_is_told_to(make_plan: Callable[..., Plan]) -> None:
    """With nearly all weight on the student's predictions, it comes to say the opposite of the labels."""
    plan = make_plan(mutual=0.99)
    teacher = teacher_of(plan, steps=100)
    labels = plan.data["mood"].splits["train"].labels.values[ROWS]
    opposite = Ragged.single(8 * np.eye(2, dtype=np.float32)[1 - labels])
    for step in range(40):
        teacher.learn(step, ROWS, opposite)
    assert values_of(teacher).argmax(axis=1).tolist() == (1 - labels).tolist()


def test_what_it_answers_has_no_effect_on_what_it_learns(make_plan: Callable[..., Plan]) -> None:
    """Nor have the random numbers of the process."""
    teachers = [teacher_of(make_plan(name)) for name in ("quiet", "asked")]
    for step in range(3):
        teachers[0].learn(step, ROWS)
        teachers[1].targets(ROWS[:2])
        torch.rand(7)
        teachers[1].learn(step, ROWS)
    assert np.array_equal(values_of(teachers[0]), values_of(teachers[1]))


def test_it_learns_from_every_nth_batch(make_plan: Callable[..., Plan]) -> None:
    teacher = teacher_of(make_plan(every=2))
    before = values_of(teacher)
    teacher.learn(0, ROWS)
    assert np.array_equal(values_of(teacher), before)
    teacher.learn(1, ROWS)
    assert not np.array_equal(values_of(teacher), before)


def test_texts_without_labels_teach_it_nothing(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    data = plan.data["mood"]
    train = replace(
        data.splits["train"], labels=Ragged.single(np.full(len(data.splits["train"]), UNLABELLED))
    )
    plan = replace(plan, data={**plan.data, "mood": replace(data, splits={**data.splits, "train": train})})
    teacher = teacher_of(plan)
    before = values_of(teacher)
    teacher.learn(0, ROWS)
    assert np.array_equal(values_of(teacher), before)


def test_a_saved_teacher_goes_on_to_the_same_bits(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    whole, first = teacher_of(make_plan("a")), teacher_of(make_plan("b"))
    for step in range(4):
        whole.learn(step, ROWS)
        if step < 2:
            first.learn(step, ROWS)
    first.save(tmp_path / "state.safetensors")
    again = teacher_of(make_plan("c"))
    assert again.load(tmp_path / "state.safetensors") == 2
    for step in (2, 3):
        again.learn(step, ROWS)
    assert np.array_equal(values_of(again), values_of(whole))


def test_a_damaged_state_is_refused(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"no state")
    with pytest.raises(CorruptError, match="mood-bert"):
        teacher_of(make_plan()).load(tmp_path / "state.safetensors")


def test_a_teacher_that_diverges_answers_no_more(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(train={"max_skipped_steps": 1, "gradient_clip": None}, learning_rate=1e30)
    teacher = teacher_of(plan)

    def learn_on() -> None:
        for step in range(10):
            teacher.learn(step, ROWS)

    with pytest.raises(DivergedError, match="teacher mood-bert: the loss is NaN or Inf"):
        learn_on()
    with pytest.raises(DivergedError, match="mood-bert"):
        teacher.targets(ROWS)


def test_any_failure_to_learn_is_met_again(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a batch to be learnt, so its error must not be lost."""
    teacher = teacher_of(make_plan())

    def fail(self: Trainer, step: object) -> bool:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "take", fail)
        with pytest.raises(RuntimeError, match="gone"):
            teacher.learn(0, ROWS)
    with pytest.raises(RuntimeError, match="gone"):
        teacher.targets(ROWS)


# ---------------------------------------------------------------- beside a student


class Recorded:
    """A host that notes its calls; its targets are its batches so far."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.batches = 0

    def targets(self, rows: np.ndarray[Any, Any]) -> Any:
        self.calls.append(("targets", int(rows[0])))
        values = np.full((len(rows), 1), self.batches, dtype=np.float32)
        soft = Dense(Ragged.single(values), ("value",))
        return Done(LiveTargets(SoftTargets(rows.astype(np.uint64), soft), self.batches, float("nan")))

    def learn(self, step: int, rows: np.ndarray[Any, Any], predictions: Ragged | None) -> None:
        self.calls.append(("learn", int(rows[0])))
        self.batches += 1


def steps_of(*rows: int, task: str = "mood") -> list[Step]:
    return [Step(task, np.array([row])) for row in rows]


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_targets_are_at_most_so_many_steps_old(max_age: int) -> None:
    host, coming, ages = Recorded(), steps_of(*range(8)), []
    live = LiveTeachers({"one": host}, {"one": "mood"}, max_age)  # type: ignore[dict-item]
    for number in range(8):
        live.expect(number, coming[number : number + 1 + max_age])
        ages.append(live.taken([])["co_train/age/mood"])
    assert ages == [min(number, max_age) for number in range(8)]
    assert [row for call, row in host.calls if call == "targets"] == list(range(8))
    assert [row for call, row in host.calls if call == "learn"] == list(range(8))


def test_other_tasks_ask_no_teacher() -> None:
    host = Recorded()
    live = LiveTeachers({"one": host}, {"one": "mood"}, 1)  # type: ignore[dict-item]
    coming = [*steps_of(0, task="tone"), *steps_of(1)]
    live.expect(0, coming)
    assert live.taken([]) == {}
    assert host.calls == [("targets", 1)]
    live.expect(1, coming[1:])
    assert live.taken([]) == {"co_train/age/mood": 0.0}
    assert live.tasks == {"mood"}


def test_targets_of_other_examples_are_refused(make_plan: Callable[..., Plan]) -> None:
    examples = make_plan().data["mood"].splits["train"]
    soft = Dense(Ragged.single(np.zeros((2, 1), dtype=np.float32)), ("value",))
    source = Live("one")
    source.receive(np.array([3, 1]), SoftTargets(examples.keys[[3, 2]], soft))
    with pytest.raises(CorruptError, match="one"):
        source.targets(Drawn(examples, np.array([3, 1])))


def test_targets_that_are_no_numbers_end_the_training() -> None:
    soft = Dense(Ragged.single(np.array([[0.0], [np.inf]], dtype=np.float16)), ("value",))
    with pytest.raises(BadTargetsError, match="teacher one"):
        Live("one").receive(np.array([3, 1]), SoftTargets(np.array([3, 1], dtype=np.uint64), soft))


def test_the_same_seed_gives_the_same_student_and_teachers(make_plan: Callable[..., Plan]) -> None:
    """And the teachers' learning shows in the student."""
    plans = [make_plan("first"), make_plan("second"), make_plan("still", every=1000)]
    for plan in plans:
        train_jobs(plan, Workers())
    first, second, still = map(outcome, plans)
    assert first == second
    assert all(first[name] != still[name] for name in first)
    assert set(measured(plans[0], "co_train/age/mood")) == {0.0}
    assert measured(plans[0], "co_train/loss/mood-bert")
    for name, folder in plans[0].teacher_folders.items():
        own = live_teacher_folder(plans[0].run_dir, name)
        assert is_finished(own)
        before, after = (load_file(Path(one) / "model.safetensors") for one in (folder, own / TEACHER))
        assert any(not torch.equal(before[key], after[key]) for key in after)


@pytest.mark.parametrize("mutual", [0.0, 0.5])
def test_interrupted_and_resumed_is_uninterrupted(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, mutual: float
) -> None:
    whole, parts = make_plan("whole", mutual=mutual), make_plan("parts", mutual=mutual)
    train_jobs(whole, Workers())
    for calls in (4, 9, 1000):
        monkeypatch.setattr(training, "StopWatch", lambda file, calls=calls: StopAfter(calls))
        train_jobs(parts, Workers())
    assert outcome(whole) == outcome(parts)


def test_a_checkpoint_with_a_damaged_teacher_is_set_aside(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Student and teachers go back together, to the checkpoint before it, and come to the same bits."""
    whole, parts = make_plan("whole"), make_plan("parts")
    train_jobs(whole, Workers())
    monkeypatch.setattr(training, "StopWatch", lambda file: StopAfter(14))
    train_jobs(parts, Workers())
    newest = newest_checkpoint(job_folder(parts.run_dir, JOB))
    assert newest is not None
    (newest / BESIDE / "tone-bert.safetensors").write_bytes(b"damaged")
    monkeypatch.undo()
    train_jobs(parts, Workers())
    assert "set aside" in caplog.text
    assert outcome(whole) == outcome(parts)


def test_asynchronous_targets_are_older_and_logged(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(max_age=2)
    train_jobs(plan, Workers())
    ages = measured(plan, "co_train/age/mood")
    assert 0 < max(ages) <= 2


def test_a_lost_local_file_of_a_teacher_is_no_silent_start(make_plan: Callable[..., Plan]) -> None:
    teacher = LocalTeacher(teacher_of(make_plan()))
    with pytest.raises(CorruptError, match="cannot be read"):
        teacher.load(Path("nowhere.safetensors"))


def test_weights_that_are_missing_are_refused(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A head that was never saved would be a random teacher."""
    plan = make_plan()
    folder = Path(shutil.copytree(plan.teacher_folders["mood-bert"], tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="classifier"):
        open_trained(folder, plan.data["mood"].task)
