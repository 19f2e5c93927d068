"""What Ray Tune is given and how its word is taken: suggestions, schedulers, stopping, records. No Ray runs here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.utils import flatten_dict

from pipeline.config.schema import RunConfig
from pipeline.errors import DivergedError, TeacherError
from pipeline.report.schema import TrialStatus
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.result import write_result
from tests.unit.tune.studies import search_of, trial_of, with_facts
from tune.search import (
    _deadline,
    _Optuna,
    _Recorder,
    _remaining_points,
    _resources,
    _scheduler,
    _set_up_tune,
    _Stopper,
    _trainable,
    _within,
    cpus_per_trial_worker,
    search,
    training_folder,
)
from tune.space import distributions
from tune.study import Trial, cause_of, load
from tune.trial import Shared

SPACE: dict[str, Any] = {
    "loss.temperature": {"uniform": [1, 8]},
    "students.half.train.weight_decay": {"loguniform": [1e-3, 1]},
    "loss.annealing": {"choice": ["constant", "linear"]},
}
OWN = {"loss.temperature": 2.0, "students.half.train.weight_decay": 0.01, "loss.annealing": "constant"}
GRID: dict[str, Any] = {
    "loss.soft": {"choice": [0.1, 0.5, 0.9]},
    "loss.annealing": {"choice": ["constant", "linear"]},
}
NOWHERE = Path("nowhere")
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def shared_of(folder: Path, config: RunConfig | None = None) -> Shared:
    """What trials share, as far as the driver looks into it: of the data, the tasks' names."""
    data = cast(Any, dict.fromkeys(("movies", "stars")))
    return Shared(*with_facts(config or search_of(SPACE)), folder, data, {}, {}, 1.0)


def in_tune(number: int, **values: Any) -> TuneTrial:
    """A trial as Tune has it."""
    return TuneTrial("tutelage", stub=True, config={"point": {"number": number, "values": {**OWN, **values}}})


# ---------------------------------------------------------------- resources and time


@pytest.mark.parametrize(
    ("run", "concurrency", "cpus"),
    [
        ({"cluster.cpus": 8}, 2, 4),
        ({"cluster.cpus": 8}, 3, 2),  # whole ones, as threads are
        ({"cluster.cpus": 8, "train.workers": 2}, 2, 2),
        ({"cluster.cpus": 2}, 4, 0.5),  # or no more than two trials would run at a time
        ({"cluster.cpus": 2, "train.workers": 2}, 4, 0.25),
        ({"cluster.cpus": 8, "train.cpus_per_worker": 3}, 2, 3),
        ({"cluster.cpus": 8, "train.cpus_per_worker": 0.5}, 2, 0.5),
        ({"cluster.address": "auto"}, 2, 1),
    ],
)
def test_trials_share_the_cpus(run: dict[str, Any], concurrency: int, cpus: float) -> None:
    assert cpus_per_trial_worker(search_of(SPACE, run, concurrency=concurrency)) == cpus


def test_a_trial_asks_for_what_its_training_takes(tmp_path: Path) -> None:
    assert _resources(shared_of(tmp_path)) == {"CPU": 1.0}
    more = {"train.gpus_per_worker": 0.5, "train.resources_per_worker": {"student": 1.0}}
    shared = replace(shared_of(tmp_path, search_of(SPACE, more)), cpus=2.0)
    assert _resources(shared) == {"CPU": 2.0, "GPU": 0.5, "student": 1.0}
    group = shared_of(tmp_path, search_of(SPACE, {**more, "train.workers": 2}))
    assert _resources(group) == {"memory": 1}  # its workers have what it takes


def test_time_spent_by_earlier_launches_counts() -> None:
    def left(budget: float | None, *seconds: float) -> float | None:
        tune = search_of(SPACE, time_budget_s=budget, concurrency=2).tune
        assert tune is not None
        deadline = _deadline(tune, [trial_of(number, seconds=spent) for number, spent in enumerate(seconds)])
        return None if deadline is None else deadline - time.monotonic()

    assert left(None, 50.0) is None
    assert left(100.0) == pytest.approx(100, abs=2)
    assert left(100.0, 50.0, 70.0) == pytest.approx(40, abs=2)  # two at a time
    assert left(100.0, 500.0) == pytest.approx(0, abs=2)


# ---------------------------------------------------------------- points known up front


def numbers(points: Sequence[dict[str, Any]] | None) -> list[int]:
    assert points is not None
    return [point["number"] for point in points]


def test_ended_trials_are_not_run_again() -> None:
    config = search_of(GRID, algorithm="grid", trials=6)
    assert numbers(_remaining_points(*with_facts(config), [])) == [0, 1, 2, 3, 4, 5]
    trials = [
        trial_of(0, 0.5),
        trial_of(1, status="failed"),
        trial_of(3, 0.5, "interrupted", values={"loss.soft": 0.123, "loss.annealing": "linear"}),
        trial_of(4, 0.5, "early-stopped"),
    ]
    left = _remaining_points(*with_facts(config), trials)
    assert left is not None
    assert numbers(left) == [2, 3, 5]
    assert left[0]["values"] == {"loss.soft": 0.5, "loss.annealing": "constant"}
    assert left[1]["values"]["loss.soft"] == 0.123  # as a population had changed it
    assert left[2]["values"] == {"loss.soft": 0.9, "loss.annealing": "linear"}


def test_a_finished_random_search_goes_on_with_more_trials() -> None:
    def config(trials: int) -> RunConfig:
        return search_of(SPACE, algorithm="random", trials=trials)

    first = _remaining_points(*with_facts(config(3)), [])
    assert first is not None
    ended = [trial_of(point["number"], 0.5, values=point["values"]) for point in first]
    assert _remaining_points(*with_facts(config(3)), ended) == []
    assert numbers(_remaining_points(*with_facts(config(5)), ended)) == [3, 4]
    assert _remaining_points(*with_facts(search_of(SPACE)), ended) is None


@pytest.mark.parametrize(
    "config",
    [
        search_of(GRID, algorithm="grid", trials=16),  # fewer points than trials
        search_of(GRID, algorithm="grid", trials=6),
        search_of(SPACE, algorithm="random", trials=6),
        search_of(SPACE, trials=5),
    ],
)
def test_a_finished_search_starts_nothing(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.tune, "Tuner", lambda *parts, **settings: pytest.fail("Tune was started"))
    ended = [trial_of(number, 0.5) for number in range(6)]
    search(
        config, shared_of(tmp_path, config), ended, lambda trial: pytest.fail("a trial ran"), lambda: False
    )
    assert not ray.is_initialized()
    assert len(ended) == 6


def test_copies_of_a_populations_checkpoints_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune copies one an epoch and trial; the one it has another trial take over must still be there."""
    given: dict[str, Any] = {}

    def tuner(*parts: Any, **settings: Any) -> Any:
        given.update(settings)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr(ray.tune, "Tuner", tuner)
    config = search_of(RATES, scheduler="pbt", algorithm="random", trials=4, concurrency=4)
    search(config, shared_of(tmp_path, config), [], lambda trial: None, lambda: False)
    assert given["run_config"].checkpoint_config.num_to_keep == 10
    assert (given["tune_config"].metric, given["tune_config"].mode) == ("macro/score", "max")
    assert given["tune_config"].max_concurrent_trials == 4, "all of the population at once"


@pytest.mark.parametrize("metric", ["macro/score", ["macro/score", "movies/nll"]])
def test_a_trial_that_ends_without_a_score_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch, metric: Any
) -> None:
    """As at Ctrl-C in the first epoch; this is what Tune then takes for its last result."""
    result = {"config": {"point": {"number": 0, "values": OWN}}, "trial_id": "a", "pid": 3, "done": True}
    tune = cast(Any, SimpleNamespace(_metric=None, _scheduler_alg=SimpleNamespace(metric=None)))
    tune._search_alg = SimpleNamespace(metric=metric)
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "")  # put back as it was
    monkeypatch.delenv("TUNE_DISABLE_STRICT_METRIC_CHECKING")
    with pytest.raises(ValueError, match="did not include the specified metric"):
        TuneController._validate_result_metrics(tune, flatten_dict(result))
    _set_up_tune()
    TuneController._validate_result_metrics(tune, flatten_dict(result))


def test_a_trial_may_take_its_time_to_leave_the_process_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "")  # put back as it was
    monkeypatch.delenv("TUNE_FUNCTION_THREAD_TIMEOUT_S")
    monkeypatch.setattr("tune.search.run_trial", lambda point, shared: None)
    _trainable({"point": {}}, shared_of(tmp_path))
    assert os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] == "60"


# ---------------------------------------------------------------- what Optuna suggests


def points_by(optuna: _Optuna, count: int) -> list[dict[str, Any]]:
    suggestions = [optuna.suggest(f"{id(optuna)}-{n}") for n in range(count)]
    return [point["point"] for point in suggestions if point is not None]


def test_the_configs_own_values_come_first() -> None:
    first, second, third = points_by(_Optuna(*with_facts(search_of(SPACE)), []), 3)
    assert first == {"number": 0, "values": OWN}
    assert (second["number"], third["number"]) == (1, 2)
    assert second["values"] != third["values"] != OWN


def test_own_values_outside_the_space_are_not_tried() -> None:
    (first,) = points_by(_Optuna(*with_facts(search_of(SPACE, {"loss.temperature": 9.0})), []), 1)
    assert first["number"] == 0
    assert 1 <= first["values"]["loss.temperature"] <= 8


def test_what_is_suggested_is_in_the_space_and_json() -> None:
    space = {
        "loss.temperature": {"quniform": [0.5, 4, 0.5]},
        "train.epochs": {"randint": [1, 4]},
        "students.half.max_length.movies": {"lograndint": [8, 32]},
        "students.half.layers": {"choice": [1, [0, 3], None]},
    }
    config = search_of(space)
    assert config.tune is not None
    known = distributions(config.tune)
    for point in points_by(_Optuna(*with_facts(config), []), 12):
        values = json.loads(json.dumps(point["values"]))
        assert values == point["values"]
        assert values.keys() == space.keys()
        for path, one in known.items():
            assert one._contains(one.to_internal_repr(values[path])), path


def test_interrupted_trials_are_handed_out_again_under_their_own_numbers() -> None:
    earlier = _Optuna(*with_facts(search_of(SPACE)), [])
    begun = points_by(earlier, 4)
    statuses: tuple[TrialStatus, ...] = ("interrupted", "finished", "running", "failed")
    trials = [
        trial_of(point["number"], 0.5, status, values=json.loads(json.dumps(point["values"])))
        for point, status in zip(begun, statuses, strict=True)
    ]
    again = points_by(_Optuna(*with_facts(search_of(SPACE)), trials), 4)
    assert again[:2] == [begun[0], begun[2]]
    assert [point["number"] for point in again] == [0, 2, 4, 5]
    assert all(point["values"] != one["values"] for point in again[2:] for one in begun)


def test_two_interrupted_trials_of_the_same_values_stay_two() -> None:
    trials = [trial_of(number, status="interrupted", values=OWN) for number in (1, 3)]
    suggested = points_by(_Optuna(*with_facts(search_of(SPACE)), trials), 3)
    assert [point["number"] for point in suggested] == [1, 3, 4]
    assert suggested[0]["values"] == suggested[1]["values"] == OWN


def test_numbers_go_on_after_the_highest() -> None:
    """Where a trial's folder was removed, no other one's may be taken."""
    trials = [trial_of(number, 0.5, values=OWN) for number in (0, 1, 5)]
    assert [point["number"] for point in points_by(_Optuna(*with_facts(search_of(SPACE)), trials), 2)] == [
        6,
        7,
    ]


def test_ended_trials_are_told() -> None:
    trials = [
        trial_of(0, 0.5, values=OWN),
        trial_of(1, 0.75, "early-stopped", values={**OWN, "loss.temperature": 3.0}),
        trial_of(2, 0.9, "failed", values=OWN, error="lost"),
        trial_of(3, status="finished", values=OWN),
        trial_of(4, 0.6, "interrupted", values={**OWN, "loss.temperature": 4.0}),
    ]
    study = _Optuna(*with_facts(search_of(SPACE)), trials)._study
    states = [(one.state.name, one.value) for one in study.trials]
    assert states == [
        ("WAITING", None),
        ("COMPLETE", 0.5),
        ("COMPLETE", 0.75),
        ("FAIL", None),
        ("FAIL", None),
    ]
    assert study.best_trial.params == {**OWN, "loss.temperature": 3.0}


def test_it_learns_from_what_was_told() -> None:
    """Twenty trials say that small temperatures are good: the next ones are small."""
    space = {"loss.temperature": {"uniform": [1, 8]}}
    trials = [trial_of(n, 1 - n / 20, values={"loss.temperature": 1 + 7 * n / 20}) for n in range(20)]
    temperatures = [
        point["values"]["loss.temperature"]
        for point in points_by(_Optuna(*with_facts(search_of(space)), trials), 8)
    ]
    assert sum(temperatures) / len(temperatures) < 3


def test_a_resumed_search_draws_other_points() -> None:
    (_, first) = points_by(_Optuna(*with_facts(search_of(SPACE)), []), 2)
    (other,) = points_by(_Optuna(*with_facts(search_of(SPACE)), [trial_of(0, 0.5, values=OWN)]), 1)
    assert other["values"] != first["values"]


def test_several_metrics_have_directions_of_their_own() -> None:
    config = search_of(SPACE, metric=["macro/score", "movies/nll"], scheduler="none")
    ended = trial_of(0, 0.5, values=OWN, scores={"movies/nll": 0.7})
    part = trial_of(1, 0.5, values=OWN)  # not all of them: its launch was killed
    optuna = _Optuna(*with_facts(config), [ended, part])
    assert [one.name for one in optuna._study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [one.values for one in optuna._study.trials] == [[0.5, 0.7], None]
    (point,) = points_by(optuna, 1)
    optuna.on_trial_complete(f"{id(optuna)}-0", {"macro/score": 0.8, "movies/nll": 0.2})
    assert point["number"] == 2
    assert [one.values for one in optuna._study.best_trials] == [[0.8, 0.2]]


# ---------------------------------------------------------------- schedulers


def test_schedulers_are_what_was_asked_for() -> None:
    assert isinstance(_scheduler(*with_facts(search_of(SPACE)), NOWHERE), AsyncHyperBandScheduler)
    assert type(_scheduler(*with_facts(search_of(SPACE, scheduler="none")), NOWHERE)) is FIFOScheduler
    rates = {"loss.temperature": {"uniform": [1, 8]}}
    population = _scheduler(
        *with_facts(search_of(rates, scheduler="pbt", algorithm="random", grace_epochs=2)), NOWHERE
    )
    assert isinstance(population, PopulationBasedTraining)
    assert population._perturbation_interval == 2


def halving(
    config: RunConfig, metric: str = "macro/score", folder: Path = NOWHERE
) -> AsyncHyperBandScheduler:
    scheduler = _scheduler(*with_facts(config), folder)
    assert isinstance(scheduler, AsyncHyperBandScheduler)
    if config.tune is not None and config.tune.algorithm != "tpe":  # else Tune tells it
        assert scheduler.set_search_properties(metric, "max")
    return scheduler


def actions_of(
    scheduler: Any, trial: TuneTrial, scores: Sequence[float], metric: str = "macro/score"
) -> list[str]:
    """What it says after each epoch, up to the one that it ends."""
    scheduler.on_trial_add(None, trial)
    actions: list[str] = []
    for epoch, score in enumerate(scores, 1):
        actions.append(scheduler.on_trial_result(None, trial, {"epoch": epoch, metric: score}))
        if actions[-1] == STOP:
            break
    return actions


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_trials_that_are_behind_are_ended(algorithm: str) -> None:
    scheduler = halving(search_of(SPACE, algorithm=algorithm, grace_epochs=2, reduction_factor=2))
    assert actions_of(scheduler, in_tune(0), [0.5, 0.6, 0.7, 0.8]) == [CONTINUE] * 4
    assert actions_of(scheduler, in_tune(1), [0.1, 0.1, 0.1, 0.1]) == [CONTINUE, STOP]
    assert actions_of(scheduler, in_tune(2), [0.1, 0.9, 0.9, 0.9]) == [CONTINUE] * 4


def test_errors_are_better_small() -> None:
    scheduler = halving(search_of(SPACE, metric="movies/nll"))
    assert actions_of(scheduler, in_tune(0), [0.5, 0.4, 0.3, 0.2], "movies/nll") == [CONTINUE] * 4
    assert actions_of(scheduler, in_tune(1), [0.9], "movies/nll") == [STOP]
    assert actions_of(scheduler, in_tune(2), [0.3] * 4, "movies/nll") == [CONTINUE] * 4


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 8, 9])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_no_trial_is_ended_at_its_last_epoch(epochs: int, factor: int) -> None:
    """It would count as ended early, and its result would be missing, though all of it was trained."""
    scheduler = halving(search_of(SPACE, {"train.epochs": epochs}, reduction_factor=factor))
    assert actions_of(scheduler, in_tune(0), [0.9] * epochs) == [CONTINUE] * epochs
    falling = [0.9] * (epochs - 1) + [0.1]
    assert actions_of(scheduler, in_tune(1), falling) == [CONTINUE] * epochs


def test_a_trial_of_more_epochs_than_the_config_has_them_all() -> None:
    space = {"train.epochs": {"choice": [2, 4, 12]}}
    scheduler = halving(search_of(space))
    for number, epochs in enumerate((12, 4, 2)):
        trial = in_tune(number, **{"train.epochs": epochs})
        assert actions_of(scheduler, trial, [0.5] * epochs) == [CONTINUE] * epochs


RATES: dict[str, Any] = {
    "loss.temperature": {"uniform": [1, 2]},
    "loss.soft": {"choice": [0.1, 0.5, 0.9]},
    "loss.annealing": {"choice": ["constant", "linear"]},
    "loss.task_weights.movies": {"randint": [1, 4]},
    "train.weight_decay": {"quniform": [0, 0.7, 0.1]},
}
MINE = {
    "loss.temperature": 1.5,
    "loss.soft": 0.5,
    "loss.annealing": "constant",
    "loss.task_weights.movies": 3,
    "train.weight_decay": 0.7,
}


def test_a_trial_with_a_worker_group_is_asked_to_end_once(tmp_path: Path) -> None:
    """Killed, it would leave its workers their CPUs."""
    config = search_of(SPACE, algorithm="random", reduction_factor=2)
    train = config.train.model_copy(update={"workers": 2})
    scheduler = halving(config.model_copy(update={"train": train}), folder=tmp_path)
    for number in (0, 1):
        (tmp_path / f"{number:03d}").mkdir()
    assert actions_of(scheduler, in_tune(0), [0.5, 0.6]) == [CONTINUE] * 2
    assert not (tmp_path / "000/STOP").exists()
    late = in_tune(1)
    assert actions_of(scheduler, late, [0.1]) == [CONTINUE]
    asked = tmp_path / "001/STOP"
    assert asked.exists()
    asked.unlink()
    assert cast(Any, scheduler).on_trial_result(None, late, {"epoch": 2, "macro/score": 0.1}) == CONTINUE
    assert not asked.exists()


def population() -> Any:
    scheduler = _scheduler(*with_facts(search_of(RATES, scheduler="pbt", algorithm="random")), NOWHERE)
    assert isinstance(scheduler, PopulationBasedTraining)
    assert scheduler.set_search_properties("macro/score", "max")
    return scheduler


def test_a_trial_that_takes_over_anothers_values_stays_itself_and_in_range() -> None:
    """With the other one's number it would write into the other one's folder."""
    scheduler, tune = population(), search_of(RATES).tune
    assert tune is not None
    known = distributions(tune)
    low = TuneTrial("tutelage", stub=True, config={"point": {"number": 3, "values": MINE}})
    high = TuneTrial("tutelage", stub=True, config={"point": {"number": 8, "values": dict(MINE)}})
    seen = []
    for _ in range(60):
        config, _ = scheduler._get_new_config(low, high)
        assert (config["point"]["number"], config["point"]["takeovers"]) == (3, 1)
        values = json.loads(json.dumps(config["point"]["values"]))
        assert values.keys() == MINE.keys()
        for path, one in known.items():
            assert one._contains(one.to_internal_repr(values[path])), (path, values[path])
        seen.append(values)
        high.config["point"]["values"] = values  # over and over, as in a long search
    assert {values["loss.annealing"] for values in seen} == {"constant", "linear"}
    assert len({values["loss.temperature"] for values in seen}) > 5
    assert low.config["point"] == {"number": 3, "values": MINE}
    low.config = config
    again, _ = scheduler._get_new_config(low, high)
    assert again["point"]["takeovers"] == 2, "so that it is told from a trial that is started again"


def test_nobody_waits_for_one_that_starts_again() -> None:
    """Ray's scheduler would pause each that reports meanwhile, and then those that report while that one starts."""
    scheduler = population()
    first, second = (
        TuneTrial("tutelage", stub=True, config={"point": {"number": number, "values": dict(MINE)}})
        for number in (0, 1)
    )
    assert second.status == TuneTrial.PENDING
    tune = SimpleNamespace(search_alg=None, get_trials=lambda: [first, second])
    for trial in (first, second):
        scheduler.on_trial_add(tune, trial)
    assert scheduler.on_trial_result(tune, first, {"epoch": 1, "macro/score": 0.5}) == CONTINUE


def test_nobody_takes_anything_over_after_its_last_epoch() -> None:
    """It would be finished with values that nothing was trained with."""
    scheduler = population()
    trial = TuneTrial("tutelage", stub=True, config={"point": {"number": 0, "values": MINE}})
    assert scheduler.on_trial_result(None, trial, {"epoch": 4, "macro/score": 0.1}) == CONTINUE
    with pytest.raises(KeyError):  # before, Ray's own scheduler is asked, which does not know this trial
        scheduler.on_trial_result(None, trial, {"epoch": 3, "macro/score": 0.1})


@given(factor=st.sampled_from([0.8, 1.2]), times=st.integers(1, 12), path=st.sampled_from(list(RATES)))
@settings(max_examples=60, deadline=None)
def test_changed_values_come_back_into_their_ranges(factor: float, times: int, path: str) -> None:
    tune = search_of(RATES).tune
    assert tune is not None
    explore, known = _within(tune), distributions(tune)[path]
    config: dict[str, Any] = {"point": {"number": 5, "values": dict(MINE)}}
    for _ in range(times):
        if tune.space[path].choice is None:
            config["point"]["values"][path] *= factor
        config = explore(config)
        value = config["point"]["values"][path]
        assert known._contains(known.to_internal_repr(value)), value
    rest = {name: value for name, value in config["point"]["values"].items() if name != path}
    assert rest == {name: value for name, value in MINE.items() if name != path}
    assert config["point"]["number"] == 5


# ---------------------------------------------------------------- records


class Study:
    """A recorder, what it wrote and what it told, and Tune's side of its trials."""

    def __init__(self, folder: Path, trials: Sequence[Trial] = ()) -> None:
        self.folder, self.trials = folder, list(trials)
        self.seen: list[tuple[int, str, int]] = []
        self.shared = shared_of(folder)
        self.asked, self.deadline = False, None
        self.recorder = _Recorder(
            self.shared, self.trials, lambda one: self.seen.append((one.number, one.status, one.epochs))
        )
        self.stopper = _Stopper(lambda: self.asked, self.deadline, self.recorder)
        self.recorder.stopper = self.stopper

    def start(self, number: int, **values: Any) -> TuneTrial:
        trial = in_tune(number, **values)
        self.recorder.on_trial_start(0, [], trial)
        return trial

    def epoch(self, trial: TuneTrial, epoch: int, score: float) -> None:
        result = {
            "epoch": epoch,
            "macro/score": score,
            "movies/accuracy": score,
            "stars/pearson": score,
            "training_iteration": epoch,
            "time_total_s": 3.5,
            "done": False,
            "config": trial.config,
        }
        self.recorder.on_trial_result(0, [], trial, result)

    def end(self, trial: TuneTrial) -> None:
        self.recorder.on_trial_complete(0, [], trial)

    def training(self, number: int, *, result: dict[str, Any] | None = None) -> Path:
        """The trial's training folder, with a checkpoint and, where it came to its end, its result."""
        folder = training_folder(self.shared, Trial(number, {}))
        save_checkpoint(folder, 5, {}, {})
        if result is not None:
            write_result(folder, result, {})
        return folder

    @property
    def record(self) -> Trial:
        """The only trial, as a later launch finds it."""
        (trial,) = load(self.folder)
        return trial


RESULT = {"kept": {"macro/score": 0.75, "movies/accuracy": 0.7}, "epoch_seconds": [1.0, 1.0, 1.0]}


def test_a_trial_with_a_result_is_finished_and_keeps_its_weights(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.start(4, **{"loss.temperature": 3.0})
    assert study.recorder.running() == {4}
    study.epoch(trial, 1, 0.5)
    folder = study.training(4, result=RESULT)
    study.end(trial)
    record = study.record
    assert (record.number, record.status, record.epochs) == (4, "finished", 3)
    assert record.scores == RESULT["kept"]  # of the weights kept, not of the last epoch
    assert record.values == {**OWN, "loss.temperature": 3.0}
    assert study.trials == [record]
    assert list(folder.glob("step-*")), "for the run of a winner"
    assert (folder / "result.json").exists()
    assert study.recorder.running() == set()
    assert study.seen == [(4, "running", 0), (4, "running", 1), (4, "finished", 3)]


def test_a_trial_that_tune_ended_is_early_stopped(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.start(0)
    study.epoch(trial, 2, 0.5)
    folder = study.training(0)
    study.end(trial)
    assert (study.record.status, study.record.epochs) == ("early-stopped", 2)
    assert study.record.scores == {"macro/score": 0.5, "movies/accuracy": 0.5, "stars/pearson": 0.5}
    assert not list(folder.glob("step-*"))


def test_a_trial_that_had_to_end_is_interrupted_and_keeps_its_weights(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.start(0)
    folder = study.training(0)
    study.asked = True
    study.end(trial)
    assert study.record.status == "interrupted"
    assert list(folder.glob("step-*")), "to go on from"


def test_a_trial_that_came_to_its_end_while_it_had_to_is_finished(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.start(0)
    study.training(0, result=RESULT)
    study.asked = True
    study.end(trial)
    assert study.record.status == "finished"


def test_what_tune_ends_without_a_word_is_interrupted(tmp_path: Path) -> None:
    study = Study(tmp_path)
    ended = study.start(0)
    study.training(0, result=RESULT)
    study.end(ended)
    study.start(1)
    folder = study.training(1)
    study.recorder.close()
    assert [trial.status for trial in load(tmp_path)] == ["finished", "interrupted"]
    assert list(folder.glob("step-*"))
    assert study.recorder.running() == set()


def test_a_record_is_there_from_the_start(tmp_path: Path) -> None:
    """A study that is killed knows which trials to go on with, and how far they were."""
    study = Study(tmp_path)
    trial = study.start(0)
    assert json.loads((tmp_path / "000" / "trial.json").read_text())["status"] == "running"
    study.epoch(trial, 1, 0.5)
    assert (study.record.status, study.record.epochs) == ("interrupted", 1)


def test_an_interrupted_trial_goes_on_in_its_own_record(tmp_path: Path) -> None:
    before = trial_of(2, 0.5, "interrupted", values=OWN, epochs=1, seconds=100.0)
    study = Study(tmp_path, [trial_of(0, 0.9), before, trial_of(7, 0.9)])
    trial = study.start(2)
    study.start(5)
    assert [one.number for one in study.trials] == [0, 2, 5, 7]
    assert study.trials[1] is before
    assert (before.status, before.epochs) == ("running", 1)
    study.epoch(trial, 2, 0.6)
    study.training(2, result=RESULT)
    study.end(trial)
    assert before.status == "finished"
    assert 100 <= before.seconds < 110  # of all launches


def test_values_that_a_population_changed_are_the_trials(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.start(0)
    trial.config["point"]["values"] = {**OWN, "loss.temperature": 7.0}
    study.recorder.on_trial_start(0, [], trial)
    assert study.record.values["loss.temperature"] == 7.0


@pytest.fixture(autouse=True)
def no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Tune keeps the driver's files of an experiment, without a Ray to ask for it."""
    monkeypatch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path))


def failing(folder: Path, error: Exception | None) -> TuneTrial:
    """A trial whose failure Tune has written down, its experiment not yet copied to where results are kept."""
    trial = in_tune(0)
    trial.storage = StorageContext(str(folder), "tune", trial_dir_name="trial")
    assert trial.local_path is not None
    Path(trial.local_path).mkdir(parents=True, exist_ok=True)
    if error is not None:
        trial.handle_error(error)  # type: ignore[arg-type]  # what a trial's process dies of may be anything
    return trial


def raised_in_ray(error: Exception) -> RayTaskError:
    """The error as Ray brings it from a worker, its traceback for a message."""
    import traceback

    try:
        raise error
    except Exception:
        return RayTaskError("ImplicitFunc.train", traceback.format_exc(), error)


def test_a_trial_that_failed_says_why(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials")
    study.start(0)
    folder = study.training(0)
    trial = failing(tmp_path, raised_in_ray(TeacherError("students.half: lost is not there", "Look for it.")))
    study.recorder.on_trial_recover(0, [], trial)
    assert (study.record.status, study.record.failures) == ("interrupted", 1)
    assert list(folder.glob("step-*")), "it is tried again from there"
    study.recorder.on_trial_error(0, [], trial)
    assert (study.record.status, study.record.failures) == ("failed", 2)
    assert study.record.error == "students.half: lost is not there"
    assert not list(folder.glob("step-*"))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (raised_in_ray(DivergedError("the loss is NaN: step 3", "Lower it.")), "the loss is NaN: step 3"),
        (raised_in_ray(ValueError("no such shape\nat all")), "ValueError: no such shape"),
        (raised_in_ray(AssertionError()), "AssertionError"),
        (RuntimeError("The actor died.\n\tpid: 5\n\nWorker exit detail: OOM."), "Worker exit detail: OOM."),
    ],
)
def test_a_cause_is_one_line(tmp_path: Path, error: Exception, cause: str) -> None:
    assert cause_of(failing(tmp_path, error).error_file) == cause


def test_a_cause_that_nobody_wrote_down(tmp_path: Path) -> None:
    assert cause_of(failing(tmp_path, None).error_file) == "unknown"


# ---------------------------------------------------------------- stopping


def test_a_stop_waits_for_the_trials_that_ran_to_write_their_checkpoints(tmp_path: Path) -> None:
    study = Study(tmp_path)
    first, second = study.start(0), study.start(1)
    assert not study.stopper.stop_all()
    study.asked = True
    assert not study.stopper.stop_all()
    study.end(first)
    study.start(2)  # Tune starts the next one at once: it is not waited for
    assert not study.stopper.stop_all()
    study.end(second)
    assert study.stopper.stop_all()
    assert not study.stopper("trial", {"epoch": 1})


def test_a_stop_before_any_trial_is_at_once(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.asked = True
    assert study.stopper.stop_all()


def test_spent_time_is_a_stop_like_any(tmp_path: Path) -> None:
    """Killed, a worker group would keep the CPUs that the winner's training needs."""
    study = Study(tmp_path)
    trial = study.start(0)
    early = _Stopper(lambda: False, time.monotonic() + 60, study.recorder)
    assert (early.is_stopping(), early.stop_all()) == (False, False)
    assert not (tmp_path / "000/STOP").exists()
    study.stopper = study.recorder.stopper = _Stopper(lambda: False, time.monotonic() - 1, study.recorder)
    assert (study.stopper.is_stopping(), study.stopper.stop_all()) == (True, False)
    assert (tmp_path / "000/STOP").exists()
    study.end(trial)
    assert study.record.status == "interrupted"
    assert study.stopper.stop_all()


def test_a_trial_that_starts_while_all_must_stop_is_asked_to_as_well(tmp_path: Path) -> None:
    """One that failed, or that takes over another's weights, starts again: the stop would wait for all its epochs."""
    study = Study(tmp_path)
    first = study.start(0)
    study.asked = True
    assert not study.stopper.stop_all()
    (tmp_path / "000/STOP").unlink()
    study.recorder.on_trial_start(0, [], first)
    study.start(1)
    assert all((tmp_path / name / "STOP").exists() for name in ("000", "001"))
    study.asked = False
    study.start(1)
    assert not (tmp_path / "001/STOP").exists()


def test_tune_pickles_nothing_of_ours(tmp_path: Path) -> None:
    """Locks, threads and trackers hang on what watches trials."""
    study = Study(tmp_path)
    assert study.recorder.__getstate__() == study.stopper.__getstate__() == {}
