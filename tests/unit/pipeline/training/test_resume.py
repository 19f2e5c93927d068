"""Interrupted and resumed equals uninterrupted, bit for bit: weights, optimiser, curves; also after kill -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.recipe import Patience
from pipeline.losses import LossWeights
from pipeline.tasks.text_classification import ClassScoring
from pipeline.training import checkpoint
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.loop import StopWatch, Trainer
from pipeline.training.stage import LossPlan, Stage
from tests.unit.pipeline.small_training import (
    DISTIL,
    StopAfter,
    curve,
    finish,
    optimizer_state,
    points,
    python,
    same_bits,
    settings,
    trainer_of,
    two_tasks,
    weights_of,
    with_hidden,
)

SETTINGS = {  # all with dropout 0.1, two tasks, two teachers, linear annealing
    "adamw": settings(early_stopping=Patience(patience=1)),
    "sgd": settings(early_stopping=Patience(patience=1), epochs=4, optimizer="sgd"),
    "bf16": settings(early_stopping=Patience(patience=1), epochs=2, precision="bf16"),
    "no momentum": settings(optimizer="sgd", momentum=0.0, epochs=1),
}
STAGED = {  # name → its stages; the others are in one part
    "stages": (
        Stage(LossPlan(others=LossWeights({"hidden": 1.0}, 1.0)), 1, 2e-3, 1e-2),
        Stage(LossPlan(others=LossWeights({"soft": 0.8, "hidden": 0.2}, 2.0)), 1, 1e-3, 1e-3),
        Stage(replace(DISTIL, annealing="linear"), 2, 1e-3, 1e-3),
    ),
    "gradual": (
        Stage(replace(DISTIL, annealing="linear"), 3, 1e-3, 1e-3, "gradual"),
        Stage(DISTIL, 1, 1e-3, 1e-3),
    ),
}
FOCUSED = "focus"
SETTINGS[FOCUSED] = settings(early_stopping=Patience(patience=1), epochs=4)
SETTINGS |= dict.fromkeys(STAGED, settings(early_stopping=Patience(patience=1), epochs=4))
SCORES = (0.5, 0.7, 0.6, 0.9)  # on validation, by epoch


def begin(
    folder: Path, name: str, should_stop: Callable[[], bool] = lambda: False, checkpoint_steps: int = 200
) -> Trainer:
    config = SETTINGS[name].model_copy(update={"checkpoint_steps": checkpoint_steps})
    losses = replace(DISTIL, annealing="linear")
    sets = [with_hidden(each) for each in two_tasks()] if name in STAGED else two_tasks()
    return trainer_of(
        folder,
        [replace(each, ensemble_skill=0.9) for each in sets] if name == FOCUSED else sets,
        config,
        losses,
        sampling=0.75,
        should_stop=should_stop,
        stages=STAGED.get(name, ()),
    )


def train(folder: Path, name: str, stops: Sequence[int] = ()) -> Trainer:
    """Trains to the end, interrupted after each of `stops` steps since the start or the last interruption."""
    for calls in stops:
        assert begin(folder, name, StopAfter(calls)).fit().status == "interrupted"
        torch.manual_seed(calls)  # whatever the process did in between
        torch.rand(calls)
    trainer = begin(folder, name)
    trainer.fit()
    return trainer


def differences(found: Trainer, expected: Trainer) -> list[str]:
    """What a resumed training has otherwise than the uninterrupted one."""
    pairs = {
        "weights": same_bits(weights_of(found.student), weights_of(expected.student)),
        "optimiser": same_bits(optimizer_state(found), optimizer_state(expected)),
        "best": same_bits(found.best, expected.best),
        "curves": points(found.folder) == points(expected.folder),
        "progress": replace(found.progress, epoch_seconds=[]) == replace(expected.progress, epoch_seconds=[]),
        "epochs": len(found.progress.epoch_seconds) == len(expected.progress.epoch_seconds),
    }
    return [name for name, same in pairs.items() if not same]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation gives `SCORES`, so that early stopping does the same whatever the rounding."""
    validate = Trainer._validate

    def scripted_validate(self: Trainer, epoch: int) -> None:
        monkeypatch.setattr(ClassScoring, "scores", lambda *_: {"accuracy": SCORES[epoch]})
        validate(self, epoch)

    monkeypatch.setattr(Trainer, "_validate", scripted_validate)


@pytest.fixture(scope="module")
def whole() -> dict[str, Trainer]:
    """Uninterrupted trainings, made when first asked for."""
    return {}


@pytest.fixture
def uninterrupted(
    whole: dict[str, Trainer], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trainer]:
    def of(name: str) -> Trainer:
        if name not in whole:
            whole[name] = train(tmp_path_factory.mktemp(name), name)
        return whole[name]

    return of


def test_the_same_training_twice_is_the_same(tmp_path: Path, uninterrupted: Callable[[str], Trainer]) -> None:
    first = uninterrupted("adamw")
    assert differences(train(tmp_path, "adamw"), first) == []
    assert first.total_steps > 3 * 8
    assert any("soft" in name for line in points(first.folder) for name in line["metrics"])


@pytest.mark.parametrize(
    "stops",
    [(1,), (5,), (10,), (11,), (3, 1, 1, 7), (20, 5)],
    ids=lambda stops: "+".join(map(str, stops)),
)
def test_stopped_at_some_step(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer], stops: Sequence[int]
) -> None:
    assert differences(train(tmp_path, "adamw", stops), uninterrupted("adamw")) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_at_every_step(tmp_path: Path, uninterrupted: Callable[[str], Trainer], name: str) -> None:
    expected, starts = uninterrupted(name), 0
    while (trainer := begin(tmp_path, name, should_stop=lambda: True)).fit().status == "interrupted":
        starts += 1
    assert differences(trainer, expected) == []
    epochs = len(expected.progress.epoch_seconds)
    assert starts == expected.progress.step - epochs  # at an epoch's end there is nothing to interrupt


def test_a_staged_training_stopped_at_the_ends_of_its_stages(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer]
) -> None:
    expected = uninterrupted("stages")
    steps = expected.feed.steps_per_epoch
    assert differences(train(tmp_path, "stages", (steps, 1, steps - 2, 1, 1)), expected) == []
    lines = points(tmp_path)
    hidden = [line["epoch"] for line in lines if "loss/hidden/mood" in line["metrics"]]
    soft = [line["epoch"] for line in lines if "loss/soft/mood" in line["metrics"]]
    scored = [line["epoch"] for line in lines if "macro/score" in line["metrics"]]
    errors = [line["epoch"] for line in lines if "validation/hidden/mood" in line["metrics"]]
    assert (set(hidden), set(soft), scored, errors) == ({1, 2}, {2, 3, 4}, [2, 3, 4], [1, 2])
    assert (
        expected.progress.best_epoch == 3
    )  # of the stages' that train heads, whose scores are 0.7, 0.6 and 0.9


def test_stopped_in_the_last_step_of_an_epoch_ends_in_the_next(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer]
) -> None:
    expected = uninterrupted("adamw")
    steps = expected.feed.steps_per_epoch
    stopped = begin(tmp_path, "adamw", StopAfter(steps)).fit()
    assert (stopped.status, stopped.step) == ("interrupted", steps + 1)
    assert curve(tmp_path, "macro/score") == [0.5]  # the epoch was scored first
    assert differences(train(tmp_path, "adamw"), expected) == []


def test_checkpoint_steps_change_nothing(tmp_path: Path, uninterrupted: Callable[[str], Trainer]) -> None:
    trainer = begin(tmp_path, "adamw", checkpoint_steps=2)
    trainer.fit()
    assert differences(trainer, uninterrupted("adamw")) == []
    assert len(list(tmp_path.glob("step-*"))) == checkpoint.KEEP


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_finished_training_starts_again_as_finished(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer], name: str
) -> None:
    expected = uninterrupted(name)
    assert expected.progress.status == {"adamw": "done", "sgd": "early_stopped"}[name]
    assert expected.progress.best_epoch == 1
    train(tmp_path, name)
    again = begin(tmp_path, name, should_stop=lambda: pytest.fail("took a step"))
    again.fit()
    assert set(differences(again, expected)) <= {"optimiser", "best"}, (
        "with which nothing is trained any more"
    )
    assert not again.student.training


def test_early_stopping_goes_back_to_weights_from_before_the_interruption(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer]
) -> None:
    steps = uninterrupted("adamw").feed.steps_per_epoch
    trainer = begin(tmp_path, "adamw", StopAfter(2 * steps + 1))  # the best epoch, the second, is over
    trainer.fit()
    best = {name: tensor.clone() for name, tensor in trainer.best.items()}
    resumed = train(tmp_path, "adamw")
    assert resumed.progress.best_epoch == 1
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights_of(resumed.student).items())


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    tmp_path: Path, uninterrupted: Callable[[str], Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path, "adamw", StopAfter(8), checkpoint_steps=3).fit()
    newest = max(tmp_path.glob("step-*"))
    file = newest / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert differences(train(tmp_path, "adamw"), uninterrupted("adamw")) == []
    assert "checksum mismatch" in caplog.text
    assert (tmp_path / f"{newest.name}.corrupt").exists()


def test_half_a_line_of_metrics_is_dropped(tmp_path: Path, uninterrupted: Callable[[str], Trainer]) -> None:
    begin(tmp_path, "adamw", StopAfter(12)).fit()
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 12, "tot')
    assert all(line["step"] <= 12 for line in read_metrics(tmp_path / METRICS))
    assert differences(train(tmp_path, "adamw"), uninterrupted("adamw")) == []


def test_damaged_lines_of_metrics_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / METRICS
    begin(tmp_path, "adamw", StopAfter(12)).fit()
    points = read_metrics(file)
    assert not caplog.messages
    with file.open("ab") as stream:
        stream.write(b"\0\0\0\n" + bytes(range(256)) + b"\n[1, 2]\n" + b'{"step": 13}\n')
    assert read_metrics(file) == points
    assert read_metrics(file) == points
    (warning,) = caplog.messages  # not one twice a second
    assert warning.startswith(f"{file}: ")


def test_a_resumed_training_takes_the_threads_that_it_was_begun_with(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        begin(tmp_path, "adamw", StopAfter(3)).fit()
        torch.set_num_threads(before)
        begin(tmp_path, "adamw", StopAfter(1)).fit()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_stop_file_is_seen(tmp_path: Path) -> None:
    watch = StopWatch(tmp_path / "STOP")
    assert not watch()
    (tmp_path / "STOP").touch()
    assert not watch()  # asked again too soon to look
    fresh = StopWatch(tmp_path / "STOP")
    assert fresh()
    (tmp_path / "STOP").unlink()
    assert fresh()  # a stop is not taken back


# ---------------------------------------------------------------- kill -9


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(StopAfter):
    """Kills the process at its `calls`-th call."""

    def __call__(self) -> bool:
        if super().__call__():
            die()
        return False


def kill_between_checkpoints(folder: Path) -> None:
    begin(folder, "no momentum", DieAt(7), checkpoint_steps=5).fit()


def kill_before_the_first_checkpoint(folder: Path) -> None:
    begin(folder, "no momentum", DieAt(2)).fit()


def kill_while_a_checkpoint_is_written(folder: Path) -> None:
    synced = DieAt(9)  # files and folders are synced one by one: this is in the second checkpoint
    sync = vars(checkpoint)["sync"]

    def sync_or_die(path: Path) -> None:
        synced()
        sync(path)

    vars(checkpoint)["sync"] = sync_or_die
    begin(folder, "no momentum", checkpoint_steps=3).fit()


def kill_between_an_epochs_score_and_its_checkpoint(folder: Path) -> None:
    trainer = begin(folder, "no momentum", checkpoint_steps=4)
    validate = trainer._validate

    def validate_and_die(epoch: int) -> None:
        validate(epoch)
        die()

    trainer._validate = validate_and_die  # type: ignore[method-assign]
    trainer.fit()


KILLS = (
    kill_between_checkpoints,
    kill_before_the_first_checkpoint,
    kill_while_a_checkpoint_is_written,
    kill_between_an_epochs_score_and_its_checkpoint,
)


def killed_trainings(folder: str) -> None:
    """In a process of its own: forks one training a kill and writes down how each ended."""
    ends = {}
    for kill in KILLS:
        child = os.fork()
        if child == 0:
            kill(Path(folder, kill.__name__))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ends[kill.__name__] = -os.waitstatus_to_exitcode(status)
    Path(folder, "ends.json").write_text(json.dumps(ends))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the killed trainings' folders."""
    folder = tmp_path_factory.mktemp("killed")
    finish(python(killed_trainings, folder))
    assert set(json.loads((folder / "ends.json").read_text()).values()) == {signal.SIGKILL}
    return folder


@pytest.mark.parametrize("kill", [kill.__name__ for kill in KILLS])
def test_killed_and_resumed_equals_uninterrupted(
    killed: Path, uninterrupted: Callable[[str], Trainer], kill: str
) -> None:
    expected = uninterrupted("no momentum")
    folder = killed / kill
    left = sorted(path.name for path in folder.glob("step-*")), bool(list(folder.glob(".part-*")))
    assert (
        left
        == {
            "kill_between_checkpoints": (["step-00000005"], False),
            "kill_before_the_first_checkpoint": ([], False),
            "kill_while_a_checkpoint_is_written": (["step-00000003"], True),
            "kill_between_an_epochs_score_and_its_checkpoint": (["step-00000004", "step-00000008"], False),
        }[kill]
    )
    assert differences(train(folder, "no momentum"), expected) == []
    assert not list(folder.glob(".part-*"))
