"""The search: many trials on Ray Tune, on the same soft targets, each recorded while it runs.

Ray Tune decides which values are tried and which trials end early. The records of a study are in its trials' folders
(`tune.study`), not in Tune's own state. So the same command resumes a study that was killed at any point: ended trials
are kept and passed to the search algorithm, interrupted ones resume from their last checkpoint. A finished study
continues when `tune.trials` is raised.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray.tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.optuna import OptunaSearch

from pipeline.config.recipe import Facts
from pipeline.config.resolved import student_settings
from pipeline.config.schema import RunConfig
from pipeline.config.search import TuneConfig
from pipeline.errors import ExhaustedError
from pipeline.run_folder import RAY, RESULT, job_folder, ray_folder, stop_file
from pipeline.shared_runs import remove_weights_behind
from pipeline.synced import UrlFolder
from pipeline.training.checkpoint import remove_checkpoints
from pipeline.training.result import read_facts
from pipeline.urls import join
from tune.folds import fold_name
from tune.space import (
    distributions,
    domains,
    modes,
    most_epochs,
    nearest,
    points,
    student_of,
    values_of,
    with_values,
)
from tune.study import Trial, cause_of, folder_of, save, trial_name
from tune.trial import FOLD, Shared, run_trial, trial_job

CHECKPOINTS = 10
"""Checkpoints that Tune keeps of a population's trial: another trial may take one over some epochs after it was written."""
Watch = Callable[[Trial], None]
"""Called with a trial that started, finished an epoch, or ended."""


def search(
    config: RunConfig,
    shared: Shared,
    trials: list[Trial],
    watch: Watch,
    should_stop: Callable[[], bool],
    finals: Sequence[dict[str, Any]] | None = None,
    sync: Callable[[], None] = lambda: None,
) -> None:
    """Runs the remaining trials; adds them to `trials` and updates them while they run. Blocks. Ray must be running.

    trials: those of earlier launches · finals: points to train to their end, whatever it takes, in place of a search,
    each with its `number`, its `seed` and the trial that it `repeats` · should_stop: ends the search early, as does the time budget over all launches;
    running trials are then interrupted · sync: makes the trials' folders and what lies behind their URL equal. Raises `ExhaustedError` where Tune itself fails.
    """
    tune = config.tune
    assert tune is not None, "`tune.space.checked` comes first"
    remaining = tune.trials - sum(trial.ended for trial in trials)
    remaining_points = _remaining_points(config, shared.facts, trials)
    if finals is not None:
        remaining, remaining_points = len(finals), list(finals)
    if remaining <= 0 or remaining_points == []:
        return
    for trial in trials:
        _stop_file(shared.folder, trial.number).unlink(missing_ok=True)
    sync()
    recorder = _Recorder(shared, trials, watch, sync)
    stopper = _Stopper(should_stop, _deadline(tune, trials) if finals is None else None, recorder)
    recorder.stopper = stopper
    several = len(tune.metrics) > 1
    storage, filesystem = _storage(shared)
    _set_up_tune()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(_trainable, shared=shared), _resources(shared)),
        param_space=None if remaining_points is None else {"point": ray.tune.grid_search(remaining_points)},
        tune_config=ray.tune.TuneConfig(
            metric=None if several or remaining_points is None else tune.metrics[0],
            mode=None if several or remaining_points is None else modes(config)[0],
            search_alg=None if remaining_points is not None else _Optuna(config, shared.facts, trials),
            scheduler=_scheduler(config, shared.facts, shared.folder) if finals is None else FIFOScheduler(),
            num_samples=remaining if remaining_points is None else 1,
            max_concurrent_trials=tune.concurrency,
            reuse_actors=True,  # a new process imports for as long as a small student's epoch takes
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=storage,
            storage_filesystem=filesystem,
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=CHECKPOINTS),
            failure_config=ray.tune.FailureConfig(max_failures=tune.retries),
            callbacks=[recorder, _Silent()],
            stop=stopper,
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except ray.tune.TuneError as error:
        raise ExhaustedError(
            f"Ray Tune failed: {(str(error).strip().splitlines() or ['?'])[-1]}",
            "Run the same command again to go on with the trials that are left.",
        ) from error
    finally:
        recorder.close()
        if shared.study_url is None:
            shutil.rmtree(storage, ignore_errors=True)
        else:
            UrlFolder(shared.study_url).delete_folder(RAY)


def _storage(shared: Shared) -> tuple[str, Any]:
    """Path and pyarrow file system of Tune's own files, in the study's folder or behind its URL; None for this machine's."""
    if shared.study_url is None:
        return str(ray_folder(shared.folder.parent)), None
    return UrlFolder(shared.study_url).storage(RAY)


def _set_up_tune() -> None:
    """Silences Tune's own output, since `Watch` shows the trials. Also lets a trial end without a score, which a trial
    does that is stopped in its first epoch: by default Tune then ends the whole search."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _trainable(config: dict[str, Any], shared: Shared) -> None:
    # the next trial in this process waits this long for the last one's thread, else Tune drops it; default: 2 s
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    run_trial(config["point"], shared=shared)


def _resources(shared: Shared) -> dict[str, float]:
    """Resources of the process that Tune starts for a trial: those of its worker or, where it has a worker group of its
    own, as good as none."""
    train = shared.config.train
    if train.workers > 1:
        # one byte: Tune needs a request that is not empty, and any share of a CPU would be one that a worker lacks
        return {"memory": 1}
    requested = {"CPU": shared.cpus, "GPU": train.gpus_per_worker, **train.resources_per_worker}
    return {name: amount for name, amount in requested.items() if amount}


def cpus_per_trial_worker(config: RunConfig) -> float:
    """CPUs of each worker of a trial: as configured, else the machine's, divided evenly among the concurrent trials."""
    assert config.tune is not None, "`tune.space.checked` comes first"
    if config.train.cpus_per_worker is not None:
        return config.train.cpus_per_worker
    if config.cluster.address is not None:
        return 1
    share = (config.cluster.cpus or os.cpu_count() or 1) / (config.tune.concurrency * config.train.workers)
    return int(share) if share >= 1 else share


def _deadline(tune: TuneConfig, trials: Sequence[Trial]) -> float | None:
    """The `time.monotonic` at which the time budget ends, None without one. Trials of earlier launches count in it."""
    if tune.time_budget_s is None:
        return None
    spent = sum(trial.seconds for trial in trials) / tune.concurrency
    return time.monotonic() + max(0.0, tune.time_budget_s - spent)


# ---------------------------------------------------------------- the values to try


def _remaining_points(
    config: RunConfig, facts: Facts, trials: Sequence[Trial]
) -> list[dict[str, Any]] | None:
    """For `grid` and `random`, the points without an ended trial; None for other algorithms. An interrupted trial keeps
    its last values."""
    all_points = points(config, facts)
    if all_points is None:
        return None
    earlier = {trial.number: trial for trial in trials}
    return [
        {"number": number, "values": earlier[number].values if number in earlier else values}
        for number, values in enumerate(all_points)
        if number not in earlier or not earlier[number].ended
    ]


def _scheduler(config: RunConfig, facts: Facts, trials: Path) -> TrialScheduler:
    tune = config.tune
    assert tune is not None, "`tune.space.checked` comes first"
    if tune.scheduler == "asha":
        searched = tune.algorithm == "tpe"  # Tune accepts metric and mode in one place only
        return _Asha(
            config,
            facts,
            trials,
            time_attr="epoch" if tune.folds is None else FOLD,
            metric=tune.metrics[0] if searched else None,
            mode=modes(config)[0] if searched else None,
            max_t=(tune.folds or most_epochs(config, facts)) + 1,
            grace_period=tune.grace_epochs,
            reduction_factor=tune.reduction_factor,
        )
    if tune.scheduler == "pbt":
        mutations = {  # Ray multiplies a value unless its domain is a list
            path: domain if (choice := tune.space[path].choice) is None else list(choice)
            for path, domain in domains(tune).items()
        }
        return _Pbt(
            config,
            facts,
            time_attr="epoch",
            perturbation_interval=tune.grace_epochs,
            hyperparam_mutations={"point": {"values": mutations}},
            custom_explore_fn=_within(tune),
            log_config=False,
            synch=False,
        )
    return FIFOScheduler()


class _Asha(AsyncHyperBandScheduler):
    """Never ends a trial after its last epoch, since the trial must still write its result.

    A trial with a worker group is stopped by its stop file, as at Ctrl-C. If Tune killed it, its workers would keep
    their resources until Ray Train learns from Ray's dashboard that the driver is gone, and the next trial would wait.
    """

    def __init__(self, config: RunConfig, facts: Facts, trials: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._config, self._facts, self._folder, self._stopping = config, facts, trials, set[str]()

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if trial.trial_id in self._stopping:
            return TrialScheduler.CONTINUE
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action != TrialScheduler.STOP or _is_last(self._config, self._facts, trial, result):
            return TrialScheduler.CONTINUE
        if self._config.train.workers == 1:
            return action
        self._stopping.add(trial.trial_id)
        _stop_file(self._folder, trial.config["point"]["number"]).touch()
        return TrialScheduler.CONTINUE


class _Pbt(PopulationBasedTraining):
    """A trial that takes over another's weights and values keeps its own number and counts its takeovers. It does not
    after its last epoch, since no step would follow that trains with the new values.

    No trial is paused for a waiting one, as in Ray's own class: all trials have resources, and a trial that takes over
    waits only for a moment, in which Ray would pause the others one after another.
    """

    def __init__(self, config: RunConfig, facts: Facts, **settings: Any) -> None:
        super().__init__(**settings)
        self._config, self._facts = config, facts

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if _is_last(self._config, self._facts, trial, result):
            return TrialScheduler.CONTINUE
        action: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if action == TrialScheduler.PAUSE else action

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        own = trial.config["point"]
        config["point"] |= {"number": own["number"], "takeovers": own.get("takeovers", 0) + 1}
        return config, operations


def _is_last(config: RunConfig, facts: Facts, trial: TuneTrial, result: Mapping[str, Any]) -> bool:
    """Whether `result` is that of the trial's last epoch, or fold."""
    if config.tune is not None and config.tune.folds is not None:
        return bool(result[FOLD] == config.tune.folds)
    own = with_values(config, trial.config["point"]["values"])
    return bool(result["epoch"] >= student_settings(own, student_of(own), facts).train.epochs)


def _within(tune: TuneConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Brings values back into their ranges: population-based training multiplies them by 0.8 or 1.2."""

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        point = config["point"]
        values = {path: nearest(tune.space[path], value) for path, value in point["values"].items()}
        return {**config, "point": {**point, "values": values}}

    return explore


class _Optuna(OptunaSearch):
    """Optuna's search with numbered trials, which includes the trials of earlier launches.

    The config's own values come first, so that the winner is never worse than what the user had.
    """

    def __init__(self, config: RunConfig, facts: Facts, trials: Sequence[Trial]) -> None:
        tune = config.tune
        assert tune is not None, "`tune.space.checked` comes first"
        waiting = [trial for trial in trials if not trial.ended]
        own = None if trials else values_of(config, tune.space, facts)
        several = len(tune.metrics) > 1
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions = distributions(tune)
        super().__init__(
            space=self._distributions,
            metric=list(tune.metrics) if several else tune.metrics[0],
            mode=list(modes(config)) if several else modes(config)[0],
            points_to_evaluate=[trial.values for trial in waiting] + ([] if own is None else [own]),
            seed=tune.seed + len(trials),  # else a resumed search would begin with the same random points
        )
        self._waiting = [(_digest(trial.values), trial.number) for trial in waiting]
        self._next = max((trial.number for trial in trials), default=-1) + 1
        for trial in trials:
            if trial.ended:
                self._add(trial, tune.metrics)

    @property
    def _study(self) -> Any:
        return self._ot_study  # Ray makes it together with the space

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        values = super().suggest(trial_id)
        if values is None:
            return None
        digest = _digest(values)
        number = next((number for waiting, number in self._waiting if waiting == digest), None)
        if number is None:
            number, self._next = self._next, self._next + 1
        else:
            self._waiting.remove((digest, number))
        return {"point": {"number": number, "values": values}}

    def _add(self, trial: Trial, metrics: Sequence[str]) -> None:
        """Adds a trial that ended in an earlier launch to Optuna's study."""
        from optuna.trial import TrialState, create_trial

        scored = trial.status != "failed" and all(metric in trial.scores for metric in metrics)
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if scored else TrialState.FAIL,
                values=[trial.scores[metric] for metric in metrics] if scored else None,
                params=trial.values,
                distributions=self._distributions,
            )
        )


def _digest(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=float)


# ---------------------------------------------------------------- the records


class _Unsaved:
    """Pickled empty: Tune pickles it with its own state, which Tutelage never reads again."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Silent(_Unsaved, TrialProgressCallback):
    """In place of Tune's own, which prints a trial that ends without a result of this launch, whatever the verbosity."""

    def log_result(self, trial: TuneTrial, result: dict[str, Any], error: bool = False) -> None:
        """Prints nothing."""

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Prints nothing."""


class _Stopper(_Unsaved, ray.tune.Stopper):
    """Ends the search when it should stop or its time budget is spent, after the trials running at that moment have
    written their checkpoints."""

    def __init__(self, should_stop: Callable[[], bool], deadline: float | None, recorder: _Recorder) -> None:
        self._should_stop, self._deadline, self._recorder = should_stop, deadline, recorder
        self._awaited: set[int] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def is_stopping(self) -> bool:
        """Whether the search should stop or has spent its time: trials that end from now on are interrupted."""
        return self._should_stop() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def stop_all(self) -> bool:
        if not self.is_stopping():
            return False
        running = self._recorder.running()
        if self._awaited is None:
            self._awaited = running
            self._recorder.stop_trials(running)
        return not self._awaited & running


class _Recorder(_Unsaved, ray.tune.Callback):
    """Writes the trials' records; Tune calls it in the driver's process."""

    stopper: _Stopper

    def __init__(
        self,
        shared: Shared,
        trials: list[Trial],
        watch: Watch,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        self._shared, self._trials, self._watch, self._sync = shared, trials, watch, sync
        self._started: dict[int, float] = {}

    def running(self) -> set[int]:
        """Numbers of the trials that have started and not ended."""
        return set(self._started)

    def stop_trials(self, numbers: set[int]) -> None:
        """Writes the stop files of these trials: each writes a checkpoint and ends."""
        for number in numbers:
            _stop_file(self._shared.folder, number).touch()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        one = self._record_of(trial)
        one.status = "running"
        self._started.setdefault(one.number, time.monotonic())
        self._save(one)
        if (
            self.stopper.is_stopping()
        ):  # a trial that restarts after a takeover or a failure, or that had to wait
            self.stop_trials({one.number})
        else:
            _stop_file(self._shared.folder, one.number).unlink(missing_ok=True)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        one = self._record_of(trial)
        one.epochs, one.scores = int(result["epoch"]), self._scores(result)
        self._save(one)

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        one = self._record_of(trial)
        one.failures += 1
        self._save(one)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        one = self._record_of(trial)
        one.failures += 1
        one.error = cause_of(
            trial.error_file
        )  # in the driver; `get_error` reads a copy that may not exist yet
        self._end(one, "failed")

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        one = self._record_of(trial)
        self._sync()
        if (self._folder(one) / RESULT).is_file():
            facts = read_facts(self._folder(one))
            one.scores, one.epochs = facts["kept"], len(facts["epoch_seconds"])
            self._end(one, "finished")
        else:
            self._end(one, "interrupted" if self.stopper.is_stopping() else "early-stopped")

    def close(self) -> None:
        """Marks the trials that Tune ended without calling this recorder as interrupted."""
        for trial in self._trials:
            if trial.number in self._started:
                self._end(trial, "interrupted")

    def _end(self, one: Trial, status: Any) -> None:
        one.status = status
        self._save(one)
        self._started.pop(one.number, None)
        if one.status in ("early-stopped", "failed"):
            remove_weights(self._shared, one)

    def _save(self, one: Trial) -> None:
        if one.number in self._started:
            now = time.monotonic()
            one.seconds += now - self._started[one.number]
            self._started[one.number] = now
        save(self._shared.folder, one)
        self._watch(one)

    def _record_of(self, trial: TuneTrial) -> Trial:
        point = trial.config["point"]
        record = next((one for one in self._trials if one.number == point["number"]), None)
        if record is None:
            given = {key: point[key] for key in ("seed", "repeats") if key in point}
            record = Trial(point["number"], dict(point["values"]), **given)
            self._trials.append(record)
            self._trials.sort(key=lambda one: one.number)
        record.values = dict(point["values"])
        return record

    def _folder(self, one: Trial) -> Path:
        return training_folder(self._shared, one)

    def _scores(self, result: Mapping[str, Any]) -> dict[str, float]:
        prefixes = (*(f"{task}/" for task in self._shared.data), "macro/")
        return {
            name: float(value)
            for name, value in result.items()
            if name.startswith(prefixes) and isinstance(value, int | float)
        }


def training_folder(shared: Shared, trial: Trial) -> Path:
    """The folder of a trial's metrics, checkpoints and result."""
    return job_folder(folder_of(shared.folder, trial.number), trial_job(shared.config))


def remove_weights(shared: Shared, trial: Trial) -> None:
    """Removes a trial's checkpoints."""
    remove_checkpoints(training_folder(shared, trial))
    remove_weights_behind(None if shared.url is None else join(shared.url, trial_name(trial.number)))


def metrics_folder(shared: Shared, trial: Trial) -> Path:
    """The folder of the metrics.jsonl that shows a trial: of its training, or of that for its first fold."""
    own = folder_of(shared.folder, trial.number)
    return job_folder(own / fold_name(1) if shared.folds else own, trial_job(shared.config))


def _stop_file(trials: Path, number: int) -> Path:
    return stop_file(folder_of(trials, number))
