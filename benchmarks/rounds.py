"""What rounds give, and what they cost: a config with `rounds`, round by round, under several seeds.

    python -m benchmarks.rounds CONFIG.yaml [--seeds 3] [-- key=value …]

Each round is the run that `tutelage train` makes, but in this process, on one thread and without Ray, so that CPU seconds can be
counted: writing (or predicting) by the student of the round before, scoring that by all teachers, training. All rounds of `rounds.count` are made, also those
after which `tutelage train` would end; `kept` is the round that validation keeps by its rule. Scores are points on validation and test, of the
only student. Of tasks that write there is a control: round 1 with share 0, which is as long and learns no own text. Teachers must be ready, or fine-tuned by an earlier run in the same `runs_dir`. Made rounds are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch

from benchmarks.common import machine
from pipeline.batch import Examples
from pipeline.config.kinds import writes
from pipeline.config.load import load_config
from pipeline.config.resolved import jobs_of
from pipeline.config.schema import RunConfig
from pipeline.models import resolve
from pipeline.predictor import Predictor
from pipeline.prepare import Inputs, prepare, teacher_specs
from pipeline.report.rounds import best_round
from pipeline.round_before import folders_before, own_specs, students_before
from pipeline.rounds import round_config
from pipeline.soft import SoftTargets
from pipeline.training.jobs import is_finished, read_result, train_jobs
from pipeline.training.plan import new_plan
from pipeline.training.step import Workers
from teachers.forced import forced_pairs
from teachers.spec import TeacherSpec
from teachers.store import Store

CHUNK = 256
SECONDS = "cpu-seconds.json"


@dataclass(frozen=True)
class Round:
    """One made round. test: score by task · seconds: CPU seconds by what was done, those of the first time."""

    validation: float
    test: Mapping[str, float]
    seconds: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    assert config.rounds is not None, "a config with rounds"
    print(f"{machine()}; {config.name}, share {config.rounds.share:g}", flush=True)
    every: list[list[Round]] = []
    controls: list[Round] = []
    for seed in range(arguments.seeds):
        own = config.model_copy(update={"name": f"{config.name}-seed{seed}", "seed": seed})
        rounds = []
        for number in range(config.rounds.count + 1):
            rounds.append(one := make(round_config(own, number, list(config.students))))
            print(f"seed {seed} round {number}: {shown(one)}", flush=True)
        print(f"seed {seed}: kept {kept([one.validation for one in rounds])}", flush=True)
        every.append(rounds)
        if any(writes(task.kind) for task in config.tasks.values()):
            controls.append(one := make(control(own)))
            print(f"seed {seed} control: {shown(one)}", flush=True)
    table(every)
    if controls:
        print(f"control: {line([rounds[0] for rounds in every], controls)}", flush=True)


def control(config: RunConfig) -> RunConfig:
    """The run that goes on from round 0 as round 1 does, on no own text."""
    later = round_config(config, 1, list(config.students))
    assert later.rounds is not None, "a later round"
    name = f"{config.name}-control"
    return later.model_copy(update={"name": name, "rounds": later.rounds.model_copy(update={"share": 0.0})})


def table(every: Sequence[Sequence[Round]]) -> None:
    """One line a round, then the gain of the round that is kept. every: the rounds of each seed."""
    for number in range(len(every[0])):
        print(
            f"{number}: {line([rounds[0] for rounds in every], [rounds[number] for rounds in every])}",
            flush=True,
        )
    best = [rounds[kept([one.validation for one in rounds])] for rounds in every]
    gains = [macro(one) - macro(rounds[0]) for one, rounds in zip(best, every, strict=True)]
    print(f"kept: {spread(gains)} ({', '.join(f'{100 * gain:+.1f}' for gain in gains)})", flush=True)


def line(firsts: Sequence[Round], made: Sequence[Round]) -> str:
    """Mean ± standard deviation over seeds: validation, test, its gain over round 0, test by task, CPU seconds."""
    gains = [macro(one) - macro(first) for one, first in zip(made, firsts, strict=True)]
    columns = {
        "validation": [one.validation for one in made],
        "test": [macro(one) for one in made],
        "gain": gains,
        **{task: [one.test[task] for one in made] for task in made[0].test},
    }
    scores = ", ".join(f"{name} {spread(values)}" for name, values in columns.items())
    seconds = ", ".join(
        f"{name} {mean(one.seconds.get(name, 0.0) for one in made):.0f}"
        for name in ("write", "score", "train")
    )
    return f"{scores}; CPU seconds: {seconds}"


def macro(one: Round) -> float:
    """The mean of a round's test scores."""
    return mean(one.test.values())


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation, in points."""
    points = [100 * value for value in values]
    return f"{mean(points):.1f}" + (f" ± {stdev(points):.1f}" if len(points) > 1 else "")


def shown(one: Round) -> str:
    tests = ", ".join(f"{task} {100 * score:.1f}" for task, score in one.test.items())
    return f"validation {100 * one.validation:.1f}, test {tests}, CPU seconds {dict(one.seconds)}"


def kept(scores: list[float]) -> int:
    """The round that is kept where rounds end after the first one that does not rise."""
    made = next(
        (number for number in range(1, len(scores)) if best_round(scores[: number + 1]) != number),
        len(scores),
    )
    return best_round(scores[: made + 1])


def make(config: RunConfig) -> Round:
    """One round, from the store where it is there."""
    inputs, folders, store = prepare(config), folders_before(config), Store(config.store_path)
    seconds, file = dict[str, float](), config.run_dir / SECONDS
    specs = teacher_specs(config, inputs)
    for spec in specs:
        fill(store, spec, [inputs.data[spec.task.name].splits["train"]])
    own = own_specs(config, inputs, folders)
    before = students_before(config, inputs, folders, own)
    own_of_all = [spec for by_task in own.values() for spec in by_task.values()]

    def write() -> None:
        for spec in own_of_all:
            fill(store, spec, [inputs.data[spec.task.name].splits["train"]])

    clocked(seconds, "write", write)
    force(inputs, store, specs, {})  # along references and teachers' texts: no part of a round
    clocked(
        seconds,
        "score",
        lambda: force(inputs, store, specs, {spec.task.name: spec.key for spec in own_of_all}),
    )
    keys, teachers = (
        {spec.name: spec.key for spec in specs},
        {name: str(one) for name, one in inputs.teachers.items()},
    )
    hidden = {spec.name: spec.hidden for spec in specs if spec.hidden is not None}
    tokens = {spec.name: spec.tokens for spec in specs if spec.tokens is not None}
    plan = new_plan(config, inputs.facts, inputs.data, keys, teachers, hidden, tokens, before)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    job = jobs_of(config)[0]
    if not is_finished(config.run_dir, job):
        clocked(seconds, "train", lambda: train_jobs(plan, Workers()))
        file.write_text(json.dumps(seconds))
    facts, predictions = read_result(config.run_dir, job)
    test = {
        task: data.task.scoring.scores(predictions[task], data.splits["test"])[data.task.scoring.metric]
        for task, data in inputs.data.items()
    }
    return Round(facts["kept"]["macro/score"], test, json.loads(file.read_text()))


def clocked(seconds: dict[str, float], name: str, call: Callable[[], object]) -> None:
    started = time.process_time()
    call()
    seconds[name] = round(time.process_time() - started, 1)


def fill(store: Store, spec: TeacherSpec, splits: Iterable[Examples]) -> None:
    """Stores what a teacher lacks, as the pool does."""
    for examples in splits:
        rows = store.missing(spec.key, examples.keys)
        if not len(rows):
            continue
        teacher = Predictor(
            resolve(spec.opened, spec.revision, spec.name),
            spec.task,
            dtype=spec.dtype,
            max_length=spec.max_length,
            labels=spec.labels,
            layer=None if spec.hidden is None else spec.hidden.layer,
        )
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            some = examples.take(part)
            if spec.forced and spec.tokens is not None:
                soft, vectors, _ = teacher.force(some.inputs, spec.tokens.form)
            else:
                soft, vectors, _ = teacher.label(some.inputs)
            store.append(spec.key, SoftTargets(some.keys, soft))
            if vectors is not None and spec.hidden is not None:
                store.append(spec.hidden.key, SoftTargets(some.keys, vectors))


def force(inputs: Inputs, store: Store, specs: Iterable[TeacherSpec], own: Mapping[str, str]) -> None:
    """Stores token targets along references and teachers' texts, and along own texts. own: their name in the store by task."""
    specs = list(specs)
    for spec in specs:
        if spec.tokens is None:
            continue
        task = spec.task.name
        keys = {one.name: one.key for one in specs if one.task.name == task}
        if task in own:
            keys["own"] = own[task]
        fill(store, spec.along_texts(), [forced_pairs(inputs.data[task], keys, store)])


if __name__ == "__main__":
    main()
