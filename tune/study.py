"""A study's trials on disk: the values, status and scores of each. No Ray here.

`trials/<number>/trial.json` is written when a trial starts, after each epoch and when it ends, so that a study killed
at any point can be resumed. A trial's curve is read from metrics.jsonl of its training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.files import write_atomically
from pipeline.report.schema import GainRecord, TrialRecord, TrialStatus
from pipeline.run_folder import TRIAL

ENDED = ("finished", "early-stopped", "failed")
DEFAULT = -1
"""Stands for the number of a trial: the config's own values where no trial that finished has them."""


@dataclass
class Trial:
    """One trial. values: by dotted path · scores: validation scores of the checkpoint that it would keep, as shares, by
    ``macro/score`` and ``<task>/<metric>``."""

    number: int
    values: dict[str, Any]
    status: TrialStatus = "running"
    epochs: int = 0
    seconds: float = 0.0
    """Wall-clock time over all launches."""
    scores: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    error: str | None = None
    seed: int | None = None
    """The training's seed where it is another than the config's."""
    repeats: int | None = None
    """Of a finalist's training: the number of the trial whose values it has, `DEFAULT` for the config's own."""

    @property
    def ended(self) -> bool:
        """Whether the trial is over: a later launch does not resume it."""
        return self.status in ENDED


def folder_of(trials: Path, number: int) -> Path:
    """The folder of trial `number`. trials: the study's folder of trials."""
    return trials / trial_name(number)


def trial_name(number: int) -> str:
    """`007` for 7: the name of a trial's folder, and the end of its name in MLflow."""
    return f"{number:03d}"


def save(trials: Path, trial: Trial) -> None:
    """Writes trial.json."""
    write_atomically(folder_of(trials, trial.number) / TRIAL, json.dumps(asdict(trial), indent=1))


def load(trials: Path) -> list[Trial]:
    """Every trial that has started, by ascending number. A `running` one, whose study was killed, becomes `interrupted`."""
    names = {one.name for one in fields(Trial)}
    trials_on_disk = []
    for file in sorted(trials.glob(f"*/{TRIAL}")):
        record = json.loads(file.read_text(encoding="utf-8"))
        trial = Trial(**{name: value for name, value in record.items() if name in names})
        if trial.status == "running":
            trial.status = "interrupted"
        trials_on_disk.append(trial)
    return sorted(trials_on_disk, key=lambda trial: trial.number)


def cause_of(error_file: str | None) -> str:
    """A failed trial's error on one line: the last exception's name and message, of a `TutelageError` its cause alone;
    without an exception, the last line of the file that Tune wrote."""
    file = None if error_file is None else Path(error_file)
    text = file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""
    exceptions = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)): (.+)$", text, re.MULTILINE)
    if exceptions:
        kind, message = exceptions[-1]
        return message if hasattr(errors, kind) else f"{kind}: {message}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"


def best(trials: Sequence[Trial], metrics: Sequence[str], modes: Sequence[str]) -> Trial | None:
    """The winner: the best finished trial or, where none has finished, the best one with scores; None without any.

    With several metrics, the trial of the Pareto front with the highest macro score. The lower number wins a tie.
    """
    scored = _scored(trials, metrics)
    finished = [trial for trial in scored if trial.status == "finished"] or scored
    if not finished:
        return None
    if len(metrics) == 1:
        return max(finished, key=lambda trial: (_gain(trial, metrics[0], modes[0]), -trial.number))
    return max(
        pareto_front(finished, metrics, modes),
        key=lambda trial: (trial.scores.get("macro/score", 0.0), -trial.number),
    )


def pareto_front(trials: Sequence[Trial], metrics: Sequence[str], modes: Sequence[str]) -> list[Trial]:
    """The trials that no other trial dominates: none is at least as good in every metric and better in one. Trials with
    equal scores are all on the front. modes: ``max`` or ``min`` of each metric.
    """
    gains = {
        trial.number: tuple(_gain(trial, metric, mode) for metric, mode in zip(metrics, modes, strict=True))
        for trial in _scored(trials, metrics)
    }

    def dominated(own: tuple[float, ...]) -> bool:
        return any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in gains.values()
        )

    return [trial for trial in trials if trial.number in gains and not dominated(gains[trial.number])]


def _scored(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    return [
        trial for trial in trials if trial.status != "failed" and all(one in trial.scores for one in metrics)
    ]


def _gain(trial: Trial, metric: str, mode: str) -> float:
    return trial.scores[metric] if mode == "max" else -trial.scores[metric]


def records(
    trials: Sequence[Trial],
    metrics: Sequence[str],
    modes: Sequence[str],
    winner: int | None,
    gains: Mapping[int, GainRecord],
) -> tuple[TrialRecord, ...]:
    """The trials in the form of study.json. Scores that are not finite are left out. gains: by number."""
    front = {trial.number for trial in pareto_front(trials, metrics, modes)}
    return tuple(
        TrialRecord(
            **{name: value for name, value in asdict(trial).items() if name not in ("seed", "repeats")}
            | {
                "seconds": round(trial.seconds, 2),
                "scores": {name: score for name, score in trial.scores.items() if isfinite(score)},
            },
            gain=gains.get(trial.number),
            best=trial.number == winner,
            pareto=trial.number in front,
        )
        for trial in trials
    )
