"""One distilled training without a store: the teachers answer anew in every step of every epoch.

    python -m benchmarks.live RUN.yaml [key=value …]

What a run costs where soft targets are not kept: the student, data, batches, losses and loop of a search's trial, and
for each batch a forward of each of its task's teachers, in this process and with all of its cores. No baseline, no test,
no tracking. Teachers must be there. The last line printed is JSON, all in seconds: ``epochs``, of each, and
``teachers``, what of them all the forwards took. `benchmarks.search` sets it against a search.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.batch import Drawn
from pipeline.config.load import load_config
from pipeline.config.resolved import Job, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.predictor import Predictor
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.run_folder import job_folder
from pipeline.soft import Dense
from pipeline.training.baseline import PLAIN
from pipeline.training.feed import TaskSet
from pipeline.training.jobs import new_plan, start_folder, task_sets, train_job
from pipeline.training.result import RESULT
from pipeline.training.step import Aggregation, Workers
from teachers.spec import TeacherSpec


class LiveTeacher:
    """A `pipeline.training.feed.TargetSource` without a store; counts the seconds that its forwards take."""

    def __init__(self, spec: TeacherSpec) -> None:
        self.seconds = 0.0
        self.teacher = Predictor(
            Path(spec.model),
            spec.task,
            dtype=spec.serving.dtype,
            tokens_per_batch=spec.serving.tokens_per_batch,
            max_length=spec.max_length,
            labels=spec.labels,
        )

    def targets(self, batch: Drawn) -> Dense:
        """The teacher's soft targets of the batch, as the store would have them."""
        started = time.perf_counter()
        soft, _ = self.teacher.predict(batch.inputs)
        self.seconds += time.perf_counter() - started
        return soft.half()


def main() -> None:
    config = load_config(sys.argv[1], sys.argv[2:])
    torch.set_num_threads(os.cpu_count() or 1)
    inputs = prepare(config)
    specs = {spec.name: spec for spec in teacher_specs(config, inputs)}
    teachers = {name: LiveTeacher(spec) for name, spec in specs.items()}
    epochs = train(config, inputs, teachers)
    print(json.dumps({"epochs": epochs, "teachers": sum(one.seconds for one in teachers.values())}))


def train(config: RunConfig, inputs: Inputs, teachers: dict[str, LiveTeacher]) -> list[float]:
    """The config's first student trained as a trial is, but for its teachers; returns the seconds of each epoch."""
    job = Job(next(iter(config.students)), "distilled")
    plan = replace(new_plan(config, inputs.data, {}, {}), trial=True)
    student = plan.students[job.student]
    start = start_folder(student, inputs.teachers)
    sets = [live(config, one, teachers) for one in task_sets(plan, start, job.student, None)]
    train_job(
        plan, job, start, sets, Workers(), lambda: False, {PLAIN: student.train}, lambda epochs, scores: None
    )
    result = json.loads((job_folder(plan.run_dir, job) / RESULT).read_text(encoding="utf-8"))
    return [float(seconds) for seconds in result["epoch_seconds"]]


def live(config: RunConfig, one: TaskSet, teachers: dict[str, LiveTeacher]) -> TaskSet:
    """The task with its teachers as sources."""
    weights = task_aggregation(config, one.task.name).weights
    strategy = task_aggregation(config, one.task.name).strategy
    aggregation = Aggregation(strategy, torch.tensor(list(weights.values())))
    return replace(one, sources=tuple(teachers[name] for name in weights), aggregation=aggregation)


if __name__ == "__main__":
    main()
