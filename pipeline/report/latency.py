"""Latencies for one example: a task's students and teachers take turns on the same test examples."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.predictor import Predictor
from pipeline.prepare import Inputs
from pipeline.report.schema import Latencies, Latency, TaskLatencies
from pipeline.run_folder import student_folder
from pipeline.training.repeats import as_saved

Key = TypeVar("Key")
EXAMPLES = 8
ROUNDS = 30  # at most
FEWEST_ROUNDS = 3
SECONDS = 2.0  # time for one model, unless the least number of rounds takes longer
DISTURBED = 1.5  # median ÷ best from which on other work must have run during the measurement
OVERLOAD = 2.0  # load average ÷ cores; this run's own training, which has just ended, may still account for 1


def latencies(config: RunConfig, inputs: Inputs) -> Latencies:
    """Latencies of every student's exported folders and of every teacher, task by task, on one thread of this machine's
    CPU, in fp32.

    Each measurement is the prediction for one example alone, tokenizer included. All models of a task are in memory
    at once. There is one thread because PyTorch's threads wait for each other where free cores are missing: a small
    model then takes tens of times as long.
    """
    with _one_thread():
        tasks = _by_task(config, inputs)
    return Latencies(tasks=tasks, busy=busy(tasks, os.getloadavg()[0], os.cpu_count() or 1))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _by_task(config: RunConfig, inputs: Inputs) -> dict[str, TaskLatencies]:
    tasks = {}
    for name, data in inputs.data.items():
        test = data.splits["test"]
        rows = [test.take(np.array([row])).inputs for row in range(min(EXAMPLES, len(test)))]
        students, teachers = _students(config, name, data), _teachers(config, inputs, name)
        models = {("student", student): predictor for student, predictor in students.items()}
        models |= {("teacher", teacher): predictor for teacher, predictor in teachers.items()}
        predicts = {key: predictor.predict for key, predictor in models.items()}
        times = measure(predicts, rows, SECONDS / len(inputs.data))
        tasks[name] = TaskLatencies(
            students={model: times["student", model] for model in students},
            teachers={model: times["teacher", model] for model in teachers},
        )
    return tasks


def _students(config: RunConfig, task: str, data: TaskData) -> dict[str, Predictor]:
    """Predictors of the students' exported folders of the task, by student."""
    folders = {
        name: student_folder(config.run_dir, name, task)
        for name in config.students
        if task in config.tasks_of(name)
    }
    return {
        name: Predictor(
            folder, as_saved(data.task, folder), max_length=config.students[name].max_length.get(task)
        )
        for name, folder in folders.items()
    }


def _teachers(config: RunConfig, inputs: Inputs, task: str) -> dict[str, Predictor]:
    return {
        name: Predictor(
            inputs.teachers[name],
            inputs.data[task].task,
            max_length=teacher.max_length,
            labels=teacher.labels,
        )
        for name, teacher in config.teachers.items()
        if teacher.task == task
    }


def measure(
    models: Mapping[Key, Callable[[Any], object]], examples: list[Any], seconds: float
) -> dict[Key, Latency]:
    """Times `models` in rounds: in each round every model in turn predicts every example, one at a time.

    `best_ms`: each example's fastest round, then the mean over examples. Other work on the machine only adds time, so
    the fastest round is nearest to the model's own time. Models take turns so that all meet the same disturbances.
    `median_ms`: the same with the median over rounds.

    seconds: time for each model; no further round begins after that time times the number of models.
    """
    times: dict[Key, list[list[float]]] = {key: [] for key in models}
    started = time.perf_counter()
    for number in range(ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > seconds * len(models):
            break
        for key, answer in models.items():
            answer(examples[0])  # not timed: loads this model's weights into the CPU's caches again
            times[key].append([_seconds(answer, example) for example in examples])
    return {key: _latency(np.array(rounds)) for key, rounds in times.items()}


def _seconds(answer: Callable[[Any], object], example: Any) -> float:
    started = time.perf_counter()
    answer(example)
    return time.perf_counter() - started


def _latency(seconds: NDArray[np.float64]) -> Latency:
    """Best and median latency of (rounds, examples) seconds."""
    best, median = seconds.min(axis=0).mean(), np.median(seconds, axis=0).mean()
    return Latency(best_ms=round(1000 * float(best), 3), median_ms=round(1000 * float(median), 3))


def busy(tasks: Mapping[str, TaskLatencies], load: float, cores: int) -> str | None:
    """The reason why these times are not reliable, or None. load: mean number of running processes over 1 minute."""
    ratios = {
        f"{name} on {task}": one.median_ms / one.best_ms
        for task, models in tasks.items()
        for name, one in {**models.teachers, **models.students}.items()
        if one.best_ms > 0
    }
    worst = max(ratios, key=lambda name: ratios[name], default="")
    if worst and ratios[worst] > DISTURBED:
        return f"the median answer of {worst} took {ratios[worst]:.1f} times as long as its best"
    if load > OVERLOAD * cores:
        return f"the load average was {load:.1f} on {cores} cores"
    return None
