"""First stages that trainings share: two trainings that begin alike train their first stage once.

Half of a training may be spent on hidden states, before anything that a search varies has an effect. So the training that first
ends such a stage leaves a copy of its checkpoint, and others with the same beginning go on from there. What decides a stage
is hashed, not what a config says: whether a value has an effect on it need not be known.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.recipe import Recipe
from pipeline.files import write_atomically
from pipeline.training.checkpoint import adopt_checkpoint, newest_checkpoint
from pipeline.training.feed import Feed
from pipeline.training.log import METRICS
from pipeline.training.stage import Stage
from students.student import MultiTaskStudent

KEPT = 8
"""Beginnings that are kept at once: where a search varies what its first stages depend on, each trial leaves one."""
OTHERS = {"epochs", "learning_rate", "head_learning_rate", "early_stopping", "checkpoint_steps", "workers"}
"""Keys of a recipe that have no effect on a first stage: its own epochs and rates are the stage's, and any number of
workers or checkpoints gives the same steps. The number of workers counts by the random state that each has."""


def digest_of(
    student: MultiTaskStudent, feed: Feed, config: Recipe, stage: Stage, focused: bool
) -> str | None:
    """A hash of all that decides a first stage; None where it learns more than hidden states, so that it is not shared.

    student: before its first step · focused: whether the training counts what each task has drawn.
    """
    losses = {name: stage.losses.at(name, 0.0) for name in feed.sets}
    terms = {name: {term for term, weight in one.terms.items() if weight} for name, one in losses.items()}
    if any(own != {"hidden"} for own in terms.values()) or stage.losses.annealing != "constant":
        return None
    content = blake2b(digest_size=16)
    settings = {
        "config": config.model_dump(mode="json", exclude=OTHERS),
        "stage": [stage.epochs, stage.learning_rate, stage.head_learning_rate, stage.unfreeze],
        "losses": {name: [one.terms["hidden"], one.task] for name, one in losses.items()},
        "feed": [feed.seed, feed.workers.world, str(feed.workers.device.type), focused],
        "threads": torch.get_num_threads(),
    }
    content.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        content.update(name.encode() + _bytes(tensor))
    for name, one in feed.sets.items():
        assert one.hidden is not None, "its loss is of hidden states alone"
        arrays: list[NDArray[Any]] = [
            one.examples.keys,
            one.gold.keys,
            one.train.offsets,
            one.train.sequences,
        ]
        arrays += [one.train.units, *one.train.columns.values()]
        content.update(name.encode())
        for array in arrays:
            content.update(array.tobytes())
        for tensor in (one.hidden.mean, one.hidden.deviation, one.hidden.weights):
            content.update(_bytes(tensor))
    return content.hexdigest()


def publish(training: Path, place: Path) -> None:
    """Leaves a copy of a training's newest checkpoint and of its log in `place`, unless one is there.

    place: a folder named by the digest; beside it at most `KEPT` are kept.
    """
    newest = newest_checkpoint(training)
    if newest is None or place.exists():
        return
    part = place.with_name(f".part-{place.name}-{training.parent.name}-{training.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copytree(newest, part / newest.name)
    write_atomically(part / METRICS, (training / METRICS).read_bytes())
    try:
        part.rename(place)
    except OSError:  # another training was first
        shutil.rmtree(part, ignore_errors=True)
    with suppress(FileNotFoundError):  # another training removes some at the same moment
        every = sorted(place.parent.glob("[!.]*"), key=lambda one: one.stat().st_mtime)
        for old in every[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def take(place: Path, training: Path) -> bool:
    """Begins a training with the copy in `place`; returns whether it is there. training: has no checkpoint yet."""
    copy = newest_checkpoint(place)
    if copy is None:
        return False
    training.mkdir(parents=True, exist_ok=True)
    try:
        metrics = (place / METRICS).read_bytes()
        adopt_checkpoint(copy, training)
    except (FileNotFoundError, shutil.Error):  # removed meanwhile: others have come
        return False
    write_atomically(training / METRICS, metrics)
    return True


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.detach().cpu().numpy().tobytes()
    return data
