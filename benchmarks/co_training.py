"""Teachers that stay as they are against teachers that are trained on, synchronously and asynchronously: step times and scores.

    python -m benchmarks.co_training RUN.yaml [key=value …]

RUN.yaml has a `co_train` section and one student. Every mode trains the student to its end, in this process, with the teachers in actors of
a private Ray; `fixed` reads stored targets. The modes take turns by epoch, so that other work on the machine meets all alike: step
times are compared epoch by epoch, without the first one, in which actors start. Teachers that are lacking are fine-tuned first. No baseline,
no tracking. Prints tables in Markdown.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch

from benchmarks.common import machine, ratios, spread
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

MAX_AGE = 4
MODES = {"fixed": None, "synchronous": 0, "asynchronous": MAX_AGE}


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
    turns, failures = Turns(list(MODES)), list[BaseException]()

    def work(mode: str, train: Callable[[], None]) -> None:
        turns.wait(mode)
        try:
            train()
        except BaseException as error:
            failures.append(error)
        turns.give(mode, last=True)

    configs = {mode: config_of(config, mode) for mode in MODES}
    threads = [
        threading.Thread(target=work, args=(mode, partial(train, own, inputs, turns, mode)))
        for mode, own in configs.items()
    ]
    with connected(config):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    show(configs, inputs)


def config_of(config: RunConfig, mode: str) -> RunConfig:
    """The run in one mode, under a name of its own, without baselines."""
    assert config.co_train is not None, "RUN.yaml has a co_train section"
    age = MODES[mode]
    own = None if age is None else config.co_train.model_copy(update={"max_age": age})
    return config.model_copy(
        update={"name": f"{config.name}-{mode}", "co_train": own, "baselines": (), "stages": ()}
    )


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


def show(configs: Mapping[str, RunConfig], inputs: Inputs) -> None:
    """Prints scores on test, and step times."""
    student = next(iter(configs["fixed"].students))
    results = {mode: read_result(own.run_dir, Job(student, "distilled")) for mode, own in configs.items()}
    epochs = {mode: facts["epoch_seconds"][1:] for mode, (facts, _) in results.items()}
    steps = results["fixed"][0]["step"] / len(results["fixed"][0]["epoch_seconds"])
    print(f"{machine()}; {steps:g} steps an epoch\n")
    print("| teachers | task | teachers on test | ensemble | student |\n| --- | --- | --- | ---: | ---: |")
    for mode, config in configs.items():
        for task, data in inputs.data.items():
            test, together = data.splits["test"], task_aggregation(config, task)
            folders = {
                name: live_teacher_folder(config.run_dir, name) / TEACHER
                if config.co_trained
                else inputs.teachers[name]
                for name in together.weights
            }
            values = {name: predicted(folder, inputs, task) for name, folder in folders.items()}
            counts = data.task.reading.counts(test.inputs)
            ensemble = ensemble_values(
                data.task, list(values.values()), counts, together.strategy, together.weights
            )
            scores = ", ".join(f"{100 * score_of(data.task, own, test):.1f}" for own in values.values())
            own = score_of(data.task, results[mode][1][task], test)
            print(
                f"| {mode} | {task} | {scores} | {100 * score_of(data.task, ensemble, test):.1f} | {100 * own:.1f} |"
            )
    print("\n| teachers | seconds a step | ÷ fixed |\n| --- | ---: | ---: |")
    for mode, seconds in epochs.items():
        print(
            f"| {mode} | {spread([one / steps for one in seconds])} | {spread(ratios(seconds, epochs['fixed']))} |"
        )


def predicted(folder: Path, inputs: Inputs, task: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(M, C) predictions of a teacher on its task's test split."""
    data = inputs.data[task]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        Predictor(folder, data.task).predict(data.splits["test"].inputs)[0].values
    )
    return values


if __name__ == "__main__":
    main()
