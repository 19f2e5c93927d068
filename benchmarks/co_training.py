"""Teachers that stay as they are against teachers that are trained on, synchronously and asynchronously: step times and scores.

    python -m benchmarks.co_training RUN.yaml [key=value …]

RUN.yaml has a `co_train` section and one student. For each of its `seeds` every mode trains the student to its end, in this process, with the teachers in actors of
a private Ray; `fixed` reads stored targets. The modes take turns by epoch, so that other work on the machine meets all alike: step
times are compared epoch by epoch, without the first one, in which actors start. Teachers that are lacking are fine-tuned first. No baseline,
no tracking. Prints tables in Markdown.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch

from benchmarks.common import machine, mean_and_error, ratios, spread
from pipeline.cluster import connected
from pipeline.config.load import load_config
from pipeline.config.resolved import Job, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.predictor import Predictor
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.run_folder import live_teacher_folder
from pipeline.soft import SoftTargets
from pipeline.tasks.scores import score_of
from pipeline.training.fine_tune import TEACHER, fine_tune
from pipeline.training.jobs import read_result, train_jobs
from pipeline.training.live_actor import remote_teacher
from pipeline.training.plan import new_plan
from pipeline.training.step import Workers
from teachers.ensemble import ensemble_values
from teachers.store import Store

MODES: dict[str, dict[str, float] | None] = {
    "fixed": None,
    "synchronous": {"max_age": 0, "mutual": 0.0},
    "asynchronous": {"max_age": 4, "mutual": 0.0},
    "mutual": {"max_age": 0, "mutual": 0.5},
}
"""What each mode sets of `co_train`."""


@dataclass
class Turns:
    """Lets several threads work in turn, each with random numbers of its own."""

    waiting: list[str]
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, name: str) -> None:
        """Waits for the thread's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == name)

    def give(self, name: str, *, last: bool = False) -> None:
        """Ends the thread's turn; after its last one it has no more."""
        with self.changed:
            self.waiting.remove(name)
            if not last:
                self.waiting.append(name)
            self.changed.notify_all()

    def after_epoch(self, name: str) -> None:
        """Lets the others have a turn each."""
        state = torch.get_rng_state()
        self.give(name)
        self.wait(name)
        torch.set_rng_state(state)


def main() -> None:
    config = load_config(sys.argv[1], sys.argv[2:])
    torch.set_num_threads(1)
    inputs = prepare(config)
    make_teachers(config, inputs)
    store_targets(config, inputs)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as the student's process
    runs = [
        {mode: config_of(config, mode, seed) for mode in MODES} for seed in config.seeds or (config.seed,)
    ]
    with connected(config):
        for configs in runs:
            train_in_turn(configs, inputs)
    show(runs, inputs)


def train_in_turn(configs: Mapping[str, RunConfig], inputs: Inputs) -> None:
    """Trains the student in all modes, which take turns by epoch."""
    turns, failures = Turns(list(configs)), list[BaseException]()

    def work(mode: str, train: Callable[[], None]) -> None:
        turns.wait(mode)
        try:
            train()
        except BaseException as error:
            failures.append(error)
        turns.give(mode, last=True)

    threads = [
        threading.Thread(target=work, args=(mode, partial(train, own, inputs, turns, mode)))
        for mode, own in configs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def config_of(config: RunConfig, mode: str, seed: int) -> RunConfig:
    """The run in one mode and with one seed, under a name of its own, without baselines."""
    assert config.co_train is not None, "RUN.yaml has a co_train section"
    changes = MODES[mode]
    own = None if changes is None else config.co_train.model_copy(update=changes)
    name = f"{config.name}-{seed}-{mode}"
    alone = {"seed": seed, "seeds": (), "baselines": (), "stages": ()}
    return config.model_copy(update={"name": name, "co_train": own, **alone})


def make_teachers(config: RunConfig, inputs: Inputs) -> None:
    """Fine-tunes the teachers that are not there yet."""
    for name in inputs.to_fine_tune():
        data, recipe = inputs.data[config.teachers[name].task], inputs.resolved.fine_tunings[name].recipe
        fine_tune(inputs.bases[name], data, recipe, inputs.teachers[name].parent)
        print(f"teacher {name} made", flush=True)


def store_targets(config: RunConfig, inputs: Inputs) -> None:
    """Stores the targets of the teachers as they are at the start, on train alone."""
    store = Store(config.store_path)
    for spec in teacher_specs(config, inputs):
        examples = inputs.data[spec.task.name].splits["train"]
        lacking = examples.take(store.missing(spec.key, examples.keys))
        if len(lacking):
            targets, _ = Predictor(inputs.teachers[spec.name], spec.task, dtype=spec.dtype).predict(
                lacking.inputs
            )
            store.append(spec.key, SoftTargets(lacking.keys, targets))


def train(config: RunConfig, inputs: Inputs, turns: Turns, mode: str) -> None:
    """Trains the student in one mode, an epoch a turn."""
    specs = {spec.name: spec for spec in teacher_specs(config, inputs)}
    keys, folders = (
        {name: spec.key for name, spec in specs.items()},
        {n: str(f) for n, f in inputs.teachers.items()},
    )
    config.run_dir.mkdir(parents=True, exist_ok=True)
    plan = new_plan(config, inputs.facts, inputs.data, keys, folders, live=specs)
    reference = ray.put(plan)
    train_jobs(
        plan,
        Workers(),
        report=lambda epochs, scores: turns.after_epoch(mode),
        host=partial(remote_teacher, plan, reference),
    )


def show(runs: Sequence[Mapping[str, RunConfig]], inputs: Inputs) -> None:
    """Prints scores on test, means over the seeds, and step times."""
    student = next(iter(runs[0]["fixed"].students))
    results = [
        {mode: read_result(own.run_dir, Job(student, "distilled")) for mode, own in configs.items()}
        for configs in runs
    ]
    facts = results[0]["fixed"][0]
    steps = facts["step"] / len(facts["epoch_seconds"])
    print(f"{machine()}; {steps:g} steps an epoch, {len(runs)} seeds\n")
    print(
        "| teachers | task | teachers on test | ensemble | student | student − with fixed ones, ± standard error |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for mode in MODES:
        for task in inputs.data:
            teachers, ensembles = zip(*(taught(one[mode], inputs, task) for one in runs), strict=True)
            own, fixed = (
                [
                    100 * score_of(inputs.data[task].task, one[m][1][task], inputs.data[task].splits["test"])
                    for one in results
                ]
                for m in (mode, "fixed")
            )
            gain, error = mean_and_error(np.subtract(own, fixed).tolist())
            spread_of_gain = f" ± {error:.1f}" if len(runs) > 1 else ""
            each = ", ".join(f"{score:.1f}" for score in np.mean(teachers, axis=0))
            print(
                f"| {mode} | {task} | {each} | {np.mean(ensembles):.1f} | {np.mean(own):.1f} | {gain:+.1f}{spread_of_gain} |"
            )
    print("\n| teachers | seconds a step | ÷ fixed |\n| --- | ---: | ---: |")
    epochs = {mode: [s for one in results for s in one[mode][0]["epoch_seconds"][1:]] for mode in MODES}
    for mode, seconds in epochs.items():
        print(
            f"| {mode} | {spread([one / steps for one in seconds])} | {spread(ratios(seconds, epochs['fixed']))} |"
        )


def taught(config: RunConfig, inputs: Inputs, task: str) -> tuple[list[float], float]:
    """Scores of a task's teachers on test in percent, as they are at the end of a run, and of their ensemble."""
    data, together = inputs.data[task], task_aggregation(config, task)
    test = data.splits["test"]
    folders = {
        name: live_teacher_folder(config.run_dir, name) / TEACHER
        if config.co_trained
        else inputs.teachers[name]
        for name in together.weights
    }
    values = [predicted(folder, inputs, task) for folder in folders.values()]
    counts = data.task.reading.counts(test.inputs)
    ensemble = ensemble_values(data.task, values, counts, together.strategy, together.weights)
    scores = [100 * score_of(data.task, own, test) for own in (*values, ensemble)]
    return scores[:-1], scores[-1]


def predicted(folder: Path, inputs: Inputs, task: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(M, C) predictions of a teacher on its task's test split."""
    data = inputs.data[task]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        Predictor(folder, data.task).predict(data.splits["test"].inputs)[0].values
    )
    return values


if __name__ == "__main__":
    main()
