"""Cross-validation of a search's trials: `tune.folds`.

A validation split of a few hundred examples cannot tell two students apart that differ by a point. With k folds every labelled
example of train and validation is validated on once, by a student and by teachers that were trained without it. A trial
is then k trainings, and its result is theirs put together: mean scores, and predictions of all folds, which the search
pairs by example as those of a validation split.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from pipeline.data.splits import TaskData, join
from pipeline.prepare import fold_inputs
from pipeline.running import Run
from pipeline.shared_runs import teacher_sources
from pipeline.targets import make_targets
from pipeline.tracking.tracker import NullTracker
from pipeline.training.result import read_facts, read_predictions, write_result
from teachers.spec import HiddenTargets, TokenTargets


@dataclass(frozen=True)
class Fold:
    """What the trainings of one fold read; the fields are those of `pipeline.training.plan.Plan`."""

    data: Mapping[str, TaskData]
    teacher_keys: Mapping[str, str]
    teacher_folders: Mapping[str, str]
    hidden: Mapping[str, HiddenTargets]
    tokens: Mapping[str, TokenTargets]


def make_folds(run: Run, of: int) -> list[Fold]:
    """Makes the teachers of every fold and stores their soft targets. Ray must be up. Adds what they labelled to the run."""
    folds = []
    for number in range(of):
        run.display.line(f"fold {number + 1} of {of}: teachers that have not seen its labels")
        inputs = fold_inputs(run.config, run.inputs, number, of)
        one = replace(
            run, inputs=inputs, tracker=NullTracker(), keys={}, hidden={}, tokens={}, labelled={}, findings=[]
        )
        make_targets(one)
        for teacher, done in one.labelled.items():
            run.labelled[teacher] = run.labelled[teacher] + done
        folders = teacher_sources(run.config, inputs.teachers)
        folds.append(Fold(inputs.data, one.keys, folders, one.hidden, one.tokens))
    return folds


def fold_name(number: int) -> str:
    """Name of the folder of a trial's training for fold `number`, from 1."""
    return f"fold-{number}"


def pooled(folds: Sequence[Fold]) -> dict[str, TaskData]:
    """The data that the pooled predictions are of: validation has that of every fold, in order."""
    first = folds[0].data
    validations = {name: [fold.data[name].splits["validation"] for fold in folds] for name in first}
    return {
        name: replace(data, splits={**data.splits, "validation": reduce(join, validations[name])})
        for name, data in first.items()
    }


def mean_scores(folders: Sequence[Path]) -> dict[str, float]:
    """Mean validation scores of the finished trainings in `folders`."""
    return mean_of([read_facts(folder)["kept"] for folder in folders])


def mean_of(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of scores by name, which are the same for all."""
    return {name: statistics.mean(one[name] for one in scores) for name in scores[0]}


def write_pooled(folder: Path, folders: Sequence[Path]) -> None:
    """Writes a trial's result, of its finished trainings. folder: of the result · folders: by fold."""
    facts, each = [read_facts(one) for one in folders], [read_predictions(one) for one in folders]
    predictions = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    seconds = [second for one in facts for second in one["epoch_seconds"]]
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, {"kept": mean_scores(folders), "epoch_seconds": seconds}, predictions)
