"""What the data show before training: splits, labels and lengths that will make results weak. One note a finding."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.batch import Examples
from pipeline.config.kinds import METRICS
from pipeline.data.splits import TaskData
from pipeline.shown import points
from pipeline.tasks import Task
from pipeline.tasks.label_counts import label_counts
from pipeline.tasks.text_faults import text_faults
from pipeline.tasks.writing import writing_reading

LARGE_ERROR = 0.03
"""Standard error of a validation score from which the split is too small to choose by: two settings must then differ by
eight points (2 · √2 · 0.03) to be told apart for sure. Before training it is the largest possible one, √(0.25 ÷ n)."""
FEW = 5
"""Training examples of a label below which it is hardly learnt."""
DOMINANT = 0.8
"""Share of the most frequent label from which accuracy rewards predicting nothing else."""
SAMPLE = 500
"""Training examples that are encoded to measure truncation: a share to two points."""
MUCH_TRUNCATED = 0.05
"""Share of truncated texts from which a longer max_length is worth its cost."""
SHOWN_NAMES = 3
ENTITY = re.compile(r"[Oo0]|[BIESLUMbieslum][-_].+|.+[-_][BIESLUM]")
"""A label of entity tags in any style."""


def data_notes(data: TaskData) -> list[str]:
    """Notes on the splits and labels of one task."""
    return [
        *_small_validation(data),
        *_rare_labels(data),
        *_dominant_label(data),
        *_odd_tags(data),
        *_odd_pairs(data),
    ]


def _small_validation(data: TaskData) -> Iterator[str]:
    task, validation = data.task, data.splits["validation"]
    if METRICS[task.scoring.metric].shown != "points" or task.kind.continuous or task.kind.writes:
        return
    error = math.sqrt(0.25 / max(1, _decisions(task, validation)))
    if error >= LARGE_ERROR:
        yield (
            f"{task.name}: validation has {len(validation):,} examples, so that a score there has a standard error of up "
            f"to {points(error)} points: too few to choose settings by"
        )


def _decisions(task: Task, examples: Examples) -> int:
    """What a score counts: examples, or of kinds with a background label the items outside the background."""
    if task.reading.background is None:
        return len(examples)
    background = task.reading.labels.index(task.reading.background)
    return int((examples.labels.values != background).sum())


def _rare_labels(data: TaskData) -> Iterator[str]:
    """Labels that are missing in validation, or have fewer than `FEW` examples in train."""
    task = data.task
    train, validation = (label_counts(task, data.splits[split].labels) for split in ("train", "validation"))
    if not len(train):
        return
    few, absent = np.flatnonzero(train < FEW), np.flatnonzero(validation == 0)
    if len(few):
        shown = _listed([f"{task.reading.labels[i]!r} ({train[i]})" for i in few])
        yield f"{task.name}: fewer than {FEW} training examples of {shown}: label more of them, or merge the labels"
    if len(absent):
        shown = _listed([repr(task.reading.labels[i]) for i in absent])
        yield f"{task.name}: validation has no example of {shown}: nothing is chosen by how well they are learnt"


def _dominant_label(data: TaskData) -> Iterator[str]:
    task, counts = data.task, label_counts(data.task, data.splits["train"].labels)
    if task.scoring.metric != "accuracy" or "macro_f1" not in task.kind.selecting or not counts.sum():
        return
    share = float(counts.max() / counts.sum())
    if share >= DOMINANT:
        yield (
            f"{task.name}: {points(share)}% of the training labels are {task.reading.labels[int(counts.argmax())]!r}, so that "
            f"predicting nothing else reaches that accuracy: set tasks.{task.name}.metric to macro_f1"
        )


def _odd_tags(data: TaskData) -> Iterator[str]:
    """Labels of words that may be entity tags in another style, for which there is no F1 of entities."""
    task = data.task
    if not task.kind.labels_words or task.scoring.metric != "accuracy" or task.reading.background is not None:
        return
    if any(ENTITY.fullmatch(label) for label in task.reading.labels):
        yield (
            f"{task.name}: its labels look like entity tags, and its metric is accuracy, to which words outside entities count: write "
            "O and B-PER, I-PER (E-, S-) for an F1 of entities"
        )


def _odd_pairs(data: TaskData) -> Iterator[str]:
    """Pairs of source and target that are the same, or of which one is far longer than usual."""
    task, train = data.task, data.labelled_train()
    if not task.kind.writes:
        return
    sources, targets = train.inputs["source"], train.inputs["target"]
    sizes = writing_reading(task).sizes(sources)
    same = sum(source.strip() == target.strip() for source, target in zip(sources, targets, strict=True))
    faults = text_faults(targets, sizes, (sizes, targets) if task.kind.proportional else None)
    counts = {"are the same on both sides": same}
    counts |= {f"have a target that is {name}": int(has.sum()) for name, has in faults.items()}
    shown = [f"{count:,} {what}" for what, count in counts.items() if count]
    if shown:
        yield f"{task.name}: of {len(train):,} pairs of train {', '.join(shown)}"


def truncation_notes(data: TaskData, lengths: Mapping[str, tuple[Any, int]]) -> Iterator[str]:
    """Notes on models that truncate much of the task's texts. lengths: a tokenizer and most tokens, by the model's name."""
    task, train = data.task, data.splits["train"]
    sample = train.take(np.sort(np.argsort(train.keys, kind="stable")[:SAMPLE]))
    units = max(1, task.head.truncatable(task.reading.counts(sample.inputs)))
    alike: dict[tuple[int, int], list[str]] = {}
    for name, (tokenizer, length) in lengths.items():
        alike.setdefault((id(tokenizer), length), []).append(name)
    for names in alike.values():
        tokenizer, length = lengths[names[0]]
        encoded = task.head.encode(tokenizer, sample.inputs, length)
        if task.kind.audio and (longer := int((np.diff(encoded.sequences) > 1).sum())):
            yield (
                f"{task.name}: {points(longer / units)}% of the recordings are longer than the window of {_listed(names)}: none of them is "
                "learnt; they are written down in windows that overlap"
            )
        share = encoded.truncated / units
        if share > MUCH_TRUNCATED:
            yield (
                f"{task.name}: {points(share)}% of the {task.kind.truncates} are truncated at {length} tokens by "
                f"{_listed(names)}: raise max_length"
            )
        if (targets := encoded.targets) is None:
            continue
        share = targets.truncated / max(1, int((targets.counts > 0).sum()))
        if share > MUCH_TRUNCATED:
            yield (
                f"{task.name}: {points(share)}% of the targets are truncated at {int(targets.counts.max())} tokens by "
                f"{_listed(names)}: raise target_length"
            )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
