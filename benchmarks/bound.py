"""The wall-clock seconds of a finished run ÷ the seconds that its arithmetic alone takes on the same machine.

    python -m benchmarks.bound RUN.yaml [--cores 2] [key=value …]

Goal: at most 1.3 for a cold run: one that made its teachers, its soft targets and its students in one launch. Its bound is the
sum over all parts (each teacher's fine-tuning and labelling, each student's and baseline's training) of

    steps × FLOPs of a step ÷ FLOPs a second

on one thread, ÷ the cores. A step's FLOPs are those that PyTorch counts in the bare model's matrix products on batches that the part
had, drawn evenly (`SAMPLE`); FLOPs a second are what the bare model reaches on these batches when nothing else is done:
forward, backward and AdamW for trainings, forward for labelling. So no tokenizer, store, loss, log, checkpoint, validation,
preflight, test, latency measurement, start of Ray or of a process is in the bound, and all of them are in the run.
A stage on hidden states counts as a plain training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine
from pipeline.batch import token_budget_batches
from pipeline.config.load import load_config
from pipeline.config.resolved import Job, jobs_of
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.models import open_tokenizer
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.report.schema import Report
from pipeline.run_folder import job_folder
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.feed import FedStep, Feed, TaskSet
from pipeline.training.optimizer import make_optimizer
from pipeline.training.plan import start_folder
from pipeline.training.result import read_facts
from students.student import MultiTaskStudent, build_student

SAMPLE = 40
"""Steps, or batches, of a part that are counted and timed."""


@dataclass(frozen=True)
class Part:
    """A part of a run. steps: how many it had · flops, seconds: mean of one, of the bare model on one thread."""

    name: str
    steps: float
    flops: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    config = load_config(arguments.run, arguments.overrides)
    report = Report.model_validate_json((config.run_dir / "report.json").read_text())
    inputs = prepare(config)
    print(f"{machine()}; {config.name}; one thread, then ÷ {arguments.cores} cores")
    print("| part | steps | GFLOP a step | GFLOP a second | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    bound = 0.0
    for part in parts(config, inputs):
        seconds = part.steps * part.seconds / arguments.cores
        bound += seconds
        rate = part.flops / part.seconds / 1e9
        print(f"| {part.name} | {part.steps:,.0f} | {part.flops / 1e9:.2f} | {rate:.0f} | {seconds:.1f} |")
    wall = sum(report.timings_s.values())
    cold = report.launches == 1 and report.forwards_ratio == 1
    print(
        f"run {wall:.0f} s ÷ bound {bound:.0f} s = {wall / bound:.2f}" + ("" if cold else "; NOT a cold run")
    )
    print("seconds of the run by stage: " + ", ".join(f"{k} {v:.0f}" for k, v in report.timings_s.items()))


def parts(config: RunConfig, inputs: Inputs) -> Iterable[Part]:
    """The parts of a finished run."""
    for spec in teacher_specs(config, inputs):
        data, teacher = inputs.data[spec.task.name], config.teachers[spec.name]
        if teacher.fine_tune is not None:
            yield _fine_tuned(spec.name, inputs, data, spec.max_length)
        yield _labelled(spec.name, Path(spec.model), data, spec.max_length, spec.serving.tokens_per_forward)
    for job in jobs_of(config):
        yield _trained(config, inputs, job)


def _fine_tuned(name: str, inputs: Inputs, data: TaskData, max_length: int | None) -> Part:
    recipe, base = inputs.resolved.fine_tunings[name].recipe, inputs.bases[name]
    facts = json.loads((inputs.teachers[name].parent / "fine_tune.json").read_text())
    sets = [TaskSet.of(data.without_variants(), open_tokenizer(base), max_length)]
    model = build_student(base, [data.task], layers=None, dropout=recipe.dropout, seed=0)
    feed = Feed(sets, recipe.batch_size, recipe.tokens_per_forward)
    flops, seconds = _step(model, feed, make_optimizer(model, recipe))
    return Part(f"fine-tune {name}", facts["steps"], flops, seconds)


def _labelled(name: str, folder: Path, data: TaskData, max_length: int | None, tokens: int) -> Part:
    model = build_student(folder, [data.task], layers=None, dropout=None, seed=0).eval()
    tokenizer, batches = open_tokenizer(folder), list[TensorBatch]()
    for examples in data.all_examples():
        encoded = data.task.head.encode(tokenizer, examples.inputs, max_length or data.task.head.max_length)
        order = np.argsort(encoded.lengths, kind="stable")[::-1]
        batches += [
            TensorBatch.of(encoded.pad(rows), torch.device("cpu"))
            for rows in token_budget_batches(encoded.lengths, order, tokens)
        ]

    @torch.inference_mode()
    def forward(batch: TensorBatch) -> None:
        model(data.task.name, batch.inputs)

    flops, seconds = _mean([batches[i] for i in _evenly(len(batches))], forward)
    return Part(f"label with {name}", len(batches), flops, seconds)


def _trained(config: RunConfig, inputs: Inputs, job: Job) -> Part:
    settings = inputs.resolved.students[job.student]
    train, folder = settings.train, start_folder(settings, inputs.teachers)
    tokenizer, facts = open_tokenizer(folder), read_facts(job_folder(config.run_dir, job))
    student = build_student(
        folder,
        [one.task for one in inputs.data.values()],
        layers=settings.layers,
        dropout=train.dropout,
        seed=0,
    )
    sources: Any = (
        [None] if job.mode == "distilled" else []
    )  # nothing is read of it: only that train is whole
    sets = [
        TaskSet.of(data, tokenizer, settings.lengths[name], sources) for name, data in inputs.data.items()
    ]
    feed = Feed(sets, train.batch_size, train.tokens_per_forward, sampling=train.task_sampling)
    tried = facts.get("schedules", {}).get("tried")
    epochs = sum(one["trained"] for one in tried) if tried else len(facts["epoch_seconds"])
    flops, seconds = _step(student, feed, make_optimizer(student, train))
    return Part(f"train {job.name}", epochs * feed.steps_per_epoch, flops, seconds)


def _step(model: MultiTaskStudent, feed: Feed, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """FLOPs and seconds of a bare training step: forward, backward, AdamW."""
    model.train()
    steps = list(feed.epoch(0, needs={"labels"}))

    def step(one: FedStep) -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in one.batches:
            output = model(one.task, batch.tokens.inputs)
            feed.sets[one.task].task.head.read_out(output, batch.tokens).square().mean().backward()
        optimizer.step()

    return _mean([steps[i] for i in _evenly(len(steps))], step)


def _mean(some: list[Any], run: Callable[[Any], None]) -> tuple[float, float]:
    """Mean FLOPs and seconds of `run` over `some`, after one that does not count."""
    run(some[0])
    counter = FlopCounterMode(display=False)
    with counter:
        for one in some:
            run(one)
    started = time.perf_counter()
    for one in some:
        run(one)
    return counter.get_total_flops() / len(some), (time.perf_counter() - started) / len(some)


def _evenly(count: int) -> list[int]:
    """At most `SAMPLE` places, spread over `count`."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))]


if __name__ == "__main__":
    main()
