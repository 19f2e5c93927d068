"""The time of a search, compared with as many live runs, and of a trial, compared with the training in it.

    python -m benchmarks.search [--trials 16] [--runs 1]

Goal: T live runs ÷ a search of T trials ≥ 10 at T = 16. Both start with fine-tuned teachers (`make demo` makes them) and
nothing else; both are commands, timed from start to end, one at a time.

- The search is `tutelage tune examples/search.yaml` from an empty store. It labels, runs its trials with ASHA, two at a
  time, then trains the default weights and the winner and scores them on test; all of this counts. It has no baseline
  and one seed, since finding the winner needs neither.
- A live run (`benchmarks.live`) is the training of one trial in its own process: the same student, data, loop and early
  stopping. Its teachers run for every batch of every epoch, nothing is stored, and no scheduler ends it early. T of them
  differ only in their loss weights, so one is measured and counts T times.

A trial's overhead is its seconds in trial.json ÷ the seconds of the epochs that it trained, for trials that ran to their end;
the epochs of a first stage that another trial has trained are not among them. It does
not include the start of a process, where a trial got a new one. The search from first to last trial ÷ (all epochs ÷
concurrent trials) includes everything. An epoch is its optimiser steps: validation and checkpoints are overhead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import machine, ratios, spread
from pipeline.config.load import load_config
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.prepare import prepare
from pipeline.run_folder import job_folder
from pipeline.training.log import METRICS, read_metrics
from tune.run import best_config, study_config
from tune.space import student_of
from tune.study import folder_of, load

SEARCH = "examples/search.yaml"
ALONE = ("baselines=[]", "seeds=[]")
TUTELAGE = str(Path(sys.executable).parent / "tutelage")


@dataclass(frozen=True)
class Live:
    """Wall-clock seconds of a live run: in all, of each epoch, and of the teachers within the epochs."""

    total: float
    epochs: Sequence[float]
    teachers: float


@dataclass(frozen=True)
class Study:
    """Wall-clock seconds of a search.

    trials: from the first one's start to the last one's end · teachers: preflight and labelling · epochs: of each
    trial · last: the epochs of the two trainings after the trials · overheads: a ratio for each trial that ran to its
    end.
    """

    total: float
    trials: float
    teachers: float
    epochs: Sequence[Sequence[float]]
    last: float
    overheads: Sequence[float]
    concurrency: int

    @property
    def in_trials(self) -> float:
        """Wall-clock seconds of the epochs of all trials, of which `concurrency` ran at a time."""
        return sum(map(sum, self.epochs)) / self.concurrency

    @property
    def fixed(self) -> float:
        """Seconds that do not depend on the number of trials."""
        return self.total - self.trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1, help="Rounds of one search and one live run each.")
    arguments = parser.parse_args()
    missing = prepare(load_config(SEARCH)).to_fine_tune()
    if missing:
        sys.exit(f"not fine-tuned yet: {', '.join(missing)}; run `make demo` first")
    print(f"{machine()}; {arguments.trials} trials, {arguments.runs} rounds, median (range)")
    studies, lives = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.runs):
            studies.append(run_search(cold(Path(scratch)), arguments.trials))
            lives.append(run_live(cold(Path(scratch))))
    show_factor(studies, lives)
    show_parts(studies[0], lives[0])
    show_overhead(studies)


# ---------------------------------------------------------------- measuring


def cold(scratch: Path) -> Path:
    """A new folder for runs that has the fine-tuned teachers and nothing else."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "_teachers").symlink_to(load_config(SEARCH).teachers_dir.absolute())
    return folder


def timed(*command: str) -> tuple[float, str]:
    """The command's wall-clock seconds and its output. Raises `CalledProcessError` where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


def run_live(folder: Path) -> Live:
    """Times one live run. folder: for its runs."""
    command = (sys.executable, "-m", "benchmarks.live", SEARCH, *ALONE, f"runs_dir={folder}")
    seconds, printed = timed(*command)
    return Live(seconds, **json.loads(printed.splitlines()[-1]))


def run_search(folder: Path, trials: int) -> Study:
    """Times one search of so many trials. folder: for its runs."""
    overrides = (*ALONE, f"runs_dir={folder}", f"tune.trials={trials}")
    seconds, _ = timed(TUTELAGE, "tune", SEARCH, *overrides)
    return study(load_config(SEARCH, overrides), seconds)


def study(config: RunConfig, seconds: float) -> Study:
    """The times of the search of `config`, which took `seconds` in all, from the files in its folders."""
    assert config.tune is not None, f"{SEARCH} is a search"
    own = study_config(config).run_dir
    stages = json.loads((own / "study.json").read_text(encoding="utf-8"))["timings_s"]
    trials = load(own / "trials")
    seen = set[float]()
    epochs = [epoch_seconds(config, folder_of(own / "trials", trial.number), seen) for trial in trials]
    return Study(
        total=seconds,
        trials=stages["search"],
        teachers=stages["preflight"] + stages["label"],
        epochs=epochs,
        last=sum(sum(epoch_seconds(config, run.run_dir, seen)) for run in (config, best_config(config, {}))),
        overheads=[
            trial.seconds / sum(seconds_of)
            for trial, seconds_of in zip(trials, epochs, strict=True)
            if trial.status == "finished"
        ],
        concurrency=config.tune.concurrency,
    )


def epoch_seconds(config: RunConfig, run_dir: Path, seen: set[float]) -> list[float]:
    """Seconds of the optimiser steps of each epoch of the student that a run or trial trained in `run_dir`.

    seen: when the epochs of other trainings ended. Those of them that this training took over are left out; the others are added.
    """
    folder = job_folder(run_dir, Job(student_of(config), "distilled"))
    points = [point for point in read_metrics(folder / METRICS) if "time/epoch_s" in point["metrics"]]
    own = [point for point in points if point["time"] not in seen]
    seen.update(point["time"] for point in own)
    return [float(point["metrics"]["time/epoch_s"]) for point in own]


# ---------------------------------------------------------------- showing


def show_factor(studies: Sequence[Study], lives: Sequence[Live]) -> None:
    """Prints live runs ÷ search, as measured, and extrapolated to other numbers of trials by a line."""
    trials = len(studies[0].epochs)
    whole = [one.total for one in studies]
    print(f"seconds: search {spread(whole)}, one live run {spread([one.total for one in lives])}")
    factor = ratios([trials * one.total for one in lives], whole)
    print(f"{trials} live runs ÷ a search of {trials} trials: {spread(factor)}")
    slopes = [one.trials / trials for one in studies]
    print(f"the search: {spread([one.fixed for one in studies])} s and {spread(slopes)} s a trial", end="; ")
    for count in (4, 16, 64):
        line = [one.fixed + slope * count for one, slope in zip(studies, slopes, strict=True)]
        print(f"÷ at {count} trials {spread(ratios([count * one.total for one in lives], line))}", end=", ")
    print(f"for ever more {spread(ratios([one.total for one in lives], slopes))}")


def show_parts(one: Study, live: Live) -> None:
    """Prints the parts of the seconds of live runs and search, of the first round."""
    trials = len(one.epochs)
    training, start = sum(live.epochs) - live.teachers, live.total - sum(live.epochs)
    rest = one.fixed - one.teachers - one.last
    print(f"seconds of {trials} live runs → of the search")
    print(f"  teachers' forwards {trials * live.teachers:.0f} → {one.teachers:.0f}, preflight included")
    print(f"  epochs without them {trials * training:.0f} → {one.in_trials:.0f}, and {one.last:.0f}", end=" ")
    print("for the default weights and the winner at the end")
    print(
        f"  starts, validation, checkpoints {trials * start:.0f} → {one.trials - one.in_trials:.0f}", end=" "
    )
    print(f"in trials, {rest:.0f} around them")
    print(f"  epochs {trials * len(live.epochs)} → {sum(map(len, one.epochs))}, ASHA and early stopping")


def show_overhead(studies: Sequence[Study]) -> None:
    """Prints trials ÷ the epochs in them."""
    overheads = [ratio for one in studies for ratio in one.overheads]
    print(f"trial ÷ its epochs, {len(overheads)} finished trials: {spread(overheads)}")
    print(
        f"all trials ÷ their epochs, process starts included: {spread([one.trials / one.in_trials for one in studies])}"
    )


if __name__ == "__main__":
    main()
