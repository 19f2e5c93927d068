"""Supervised baselines that runs share: what labels alone teach a student is trained once, not once a run.

A supervised baseline reads no target of a teacher, so runs that differ in losses, stages, aggregation or teachers have the
same one.

::

    <runs_dir>/_baselines/<hash>/   a finished training's facts, predictions on the test splits, and metrics.jsonl

The hash is of all that decides them. Weights are not kept: nothing reads a baseline's.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from pipeline.config.recipe import StudentRecipe, steps_of_pass
from pipeline.config.resolved import StudentSettings
from pipeline.config.view import changes_results
from pipeline.data.splits import TaskData
from pipeline.errors import CorruptError
from pipeline.files import write_atomically
from pipeline.models import fingerprint
from pipeline.run_folder import RESULT
from pipeline.training.baseline import baseline_schedules
from pipeline.training.log import METRICS
from pipeline.training.repeats import chosen_by_validation
from pipeline.training.result import read_facts, read_predictions, write_result

logger = logging.getLogger(__name__)
RECIPE = 2  # raise when the same inputs would give another baseline
TRAINED_BY = "trained_by"
"""The key of a finished training's facts with the name of the run that trained it."""


def schedules_of(settings: StudentSettings, data: Sequence[TaskData]) -> dict[str, StudentRecipe]:
    """The schedules of a student's supervised baseline, by name. data: of the student's tasks."""
    labelled, every = (
        steps_of_pass([len(examples) for examples in splits], settings.train.batch_size)
        for splits in ([own.labelled_train() for own in data], [own.splits["train"] for own in data])
    )
    return baseline_schedules(settings.train, labelled, every)


def baseline_folder(
    root: Path, settings: StudentSettings, start: Path, data: Mapping[str, TaskData], seed: int
) -> Path:
    """The folder of a student's supervised baseline: `root`/<hash of all that decides it>.

    start: the model that the student starts from · data: by task.
    """
    own = {name: data[name] for name in settings.lengths}
    schedules = {
        name: {
            key: value
            for key, value in one.model_dump(mode="json").items()
            if value is not None and changes_results(f"train.{key}")
        }
        for name, one in schedules_of(settings, list(own.values())).items()
    }
    tasks = [
        [
            name,
            one.task.kind.name,
            one.task.head.version,
            list(one.task.reading.labels),
            one.task.scoring.metric,
            settings.lengths[name] or one.task.head.max_length,
            dict(one.task.head.decoding),
            chosen_by_validation(one.task),
            settings.loss.tasks[name].weight,
            settings.loss.tasks[name].label_smoothing,
        ]
        for name, one in own.items()
    ]
    facts = [RECIPE, fingerprint(start), repr(settings.layers), seed, schedules, tasks]
    digest = blake2b(json.dumps(facts).encode(), digest_size=16)
    for one in own.values():
        for examples in (one.labelled_train(), one.splits["validation"]):
            digest.update(examples.keys.tobytes() + examples.labels.values.tobytes())
        digest.update(one.splits["test"].keys.tobytes())
    return root / digest.hexdigest()


def take(folder: Path, training: Path) -> str | None:
    """Makes `training`, which has not begun, the finished baseline in `folder`; returns the name of the run that trained it,
    or None where there is none. A damaged one is removed, with a warning."""
    if training.exists() or not (folder / RESULT).is_file():
        return None
    try:
        facts, predictions = read_facts(folder), read_predictions(folder)
        metrics = (folder / METRICS).read_bytes()
    except (CorruptError, OSError) as error:
        cause = error.cause if isinstance(error, CorruptError) else error
        logger.warning("%s; the baseline is trained again", cause)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    write_atomically(training / METRICS, metrics)
    write_result(training, facts, predictions)
    return str(facts[TRAINED_BY])


def publish(training: Path, folder: Path, run: str) -> None:
    """Leaves a copy of a finished baseline in `folder` for other runs, unless one is there. run: the name of its run."""
    if (folder / RESULT).is_file():
        return
    write_atomically(folder / METRICS, (training / METRICS).read_bytes())
    write_result(folder, {**read_facts(training), TRAINED_BY: run}, read_predictions(training))
