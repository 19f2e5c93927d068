"""One distilled training without a store: the teachers compute their soft targets in every step of every epoch.

    python -m benchmarks.live RUN.yaml [key=value …]

Measures a run that does not store soft targets. Student, data, batches, losses and loop are those of a search's trial;
for each batch, every teacher of its task runs in this process, with all cores. No baseline, no test, no tracking. The
teachers must exist. The last line of output is JSON in seconds: ``epochs``, of each epoch, and ``teachers``, their
forward passes within all epochs. `benchmarks.search` compares it with a search.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.batch import Drawn
from pipeline.config.load import load_config
from pipeline.config.resolved import Job, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.run_folder import RESULT, job_folder
from pipeline.soft import Dense
from pipeline.training.baseline import PLAIN
from pipeline.training.feed import TaskSet
from pipeline.training.hidden import HiddenMatch
from pipeline.training.jobs import train_job
from pipeline.training.plan import new_plan, start_folder
from pipeline.training.step import Aggregation, Workers
from teachers.spec import TeacherSpec


class LiveTeacher:
    """Soft and hidden targets of one teacher without a store; adds up the seconds of its forward passes."""

    def __init__(self, spec: TeacherSpec) -> None:
        self.seconds = 0.0
        self.predictor = Predictor(
            Path(spec.model),
            spec.task,
            dtype=spec.dtype,
            tokens_per_forward=spec.serving.tokens_per_forward,
            max_length=spec.max_length,
            labels=spec.labels,
            layer=None if spec.hidden is None else spec.hidden.layer,
        )

    def targets(self, batch: Drawn) -> Dense:
        """The teacher's soft targets of the batch, in float16 as in the store."""
        started = time.perf_counter()
        soft, _ = self.predictor.predict(batch.inputs)
        self.seconds += time.perf_counter() - started
        assert isinstance(soft, Dense), "only of kinds that do not write"
        return soft.half()


@dataclass(frozen=True)
class LiveHidden:
    """A live teacher's hidden targets."""

    teacher: LiveTeacher

    def targets(self, batch: Drawn) -> Dense:
        """The hidden targets of the batch's words, in float16 as in the store."""
        started = time.perf_counter()
        _, hidden, _ = self.teacher.predictor.label(batch.inputs)
        self.teacher.seconds += time.perf_counter() - started
        assert hidden is not None, "the spec names a layer"
        return hidden


def main() -> None:
    config = load_config(sys.argv[1], sys.argv[2:])
    torch.set_num_threads(os.cpu_count() or 1)
    inputs = prepare(config)
    specs = {spec.name: spec for spec in teacher_specs(config, inputs)}
    teachers = {name: LiveTeacher(spec) for name, spec in specs.items()}
    epochs = train(config, inputs, teachers)
    print(json.dumps({"epochs": epochs, "teachers": sum(one.seconds for one in teachers.values())}))


def train(config: RunConfig, inputs: Inputs, teachers: dict[str, LiveTeacher]) -> list[float]:
    """Trains the config's first student as a trial does, but with live teachers; returns the seconds of each epoch."""
    job = Job(next(iter(config.students)), "distilled")
    plan = replace(new_plan(config, inputs.facts, inputs.data, {}, {}), trial=True)
    student = plan.students[job.student]
    start = start_folder(student, inputs.teachers)
    tokenizer = open_tokenizer(start)
    sets = [
        live(config, data, teachers, tokenizer, student.lengths[name], student.hidden)
        for name, data in inputs.data.items()
    ]
    for teacher in teachers.values():
        teacher.seconds = 0.0  # the pass for the mean of the hidden targets is part of the start
    train_job(
        plan,
        job,
        folder=start,
        sets=sets,
        workers=Workers(),
        should_stop=lambda: False,
        schedules={PLAIN: student.train},
        report=lambda epochs, scores: None,
    )
    result = json.loads((job_folder(plan.run_dir, job) / RESULT).read_text(encoding="utf-8"))
    return [float(seconds) for seconds in result["epoch_seconds"]]


def live(
    config: RunConfig,
    data: TaskData,
    teachers: dict[str, LiveTeacher],
    tokenizer: Any,
    length: int,
    hidden: bool,
) -> TaskSet:
    """A task with its live teachers as target sources. hidden: whether the student learns from hidden targets."""
    together = task_aggregation(config, data.task.name)
    own, shares = [teachers[name] for name in together.weights], list(together.weights.values())
    aggregation = Aggregation(together.strategy, torch.tensor(shares))
    one = TaskSet.of(data, tokenizer, length, own, aggregation, words=hidden)
    if not hidden:
        return one
    match = HiddenMatch.over([LiveHidden(teacher) for teacher in own], shares, one.train, one.examples)
    return replace(one, hidden=match)


if __name__ == "__main__":
    main()
