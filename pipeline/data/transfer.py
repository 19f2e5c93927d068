"""All tasks of a run, with the training texts that they take from each other (`tasks.<task>.transfer`).

A task takes what the train splits of other tasks have after their limits, `data.unlabelled` included, but nothing that
these took themselves: so the result does not depend on the order of the tasks. Labels are left behind; the teachers of
the task that takes a text label it. What stands in the task's own validation or test is never taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, content_keys
from pipeline.config.fields import Split
from pipeline.config.resolved import transfer_sources
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData, join, limited, load_task, read_examples
from pipeline.errors import Errors
from pipeline.tasks import Reading, Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.plain_text import has_words, sentences

Texts = tuple[Sequence[str], ...]
"""Plain text as `Reading.plain` gives it: one column of n texts, or both sides of n pairs."""


def load_tasks(config: RunConfig, errors: Errors | None = None) -> dict[str, TaskData]:
    """Every task's data, with the texts that it takes from other tasks. Raises `DataError`; `errors` gets the others as
    well, and a task that cannot be loaded is missing in the result."""
    errors = errors or Errors()
    own: dict[str, TaskData] = {}
    for name, task in config.tasks.items():
        with errors:
            own[name] = load_task(name, task)
    return {name: _with_transfer(config, data, own) for name, data in own.items()}


def _with_transfer(config: RunConfig, data: TaskData, own: Mapping[str, TaskData]) -> TaskData:
    """`data`, its train split followed by texts of other tasks. own: every task's data without such texts."""
    name = data.task.name
    transfer, (sources, unfit) = config.tasks[name].transfer, transfer_sources(config, name)
    if transfer is None or not own.keys() >= set(sources):
        return data
    notes = (
        [f"transfer leaves out {', '.join(unfit)}: single texts do not fit a task of pairs"] if unfit else []
    )
    if sources:
        more, note = received(data, {source: own[source] for source in sources}, transfer.limit)
        splits = {**data.splits, "train": join(data.splits["train"], more)}
        data = replace(data, splits=splits, taken=len(more))
        notes.append(note)
    else:
        notes.append("transfer: no other task has texts that fit")
    return replace(data, notes=(*data.notes, *(f"{name}: {note}" for note in notes)))


def received(
    data: TaskData, sources: Mapping[str, TaskData], limit: int | None = None
) -> tuple[Examples, str]:
    """The texts that a task takes from `sources`, as its unlabelled examples, and one line that counts them.

    Each text once, none that its own train split has, that stands in its validation or test (see `in_held_out`), or
    without letters and digits; of the rest the `limit` with the smallest hashes.
    """
    task, train = data.task, data.splits["train"]
    examples, origin, without_words = _candidates(task, sources)
    fresh = np.zeros(len(examples), dtype=bool)
    fresh[np.unique(examples.keys, return_index=True)[1]] = True
    held_out = fresh & in_held_out(task.reading, examples, data.splits)
    ours, theirs = (marks(task.reading.plain(some.inputs)) for some in (train, examples))
    known = fresh & ~held_out & np.isin(theirs, ours)
    free = fresh & ~held_out & ~known
    taken = free & np.isin(examples.keys, limited(examples.take(np.flatnonzero(free)), limit).keys)
    dropped = {
        "without letters or digits": without_words,
        "duplicates": int((~fresh | known).sum()),
        "in validation or test": int(held_out.sum()),
        "beyond the limit": int((free & ~taken).sum()),
    }
    counts = np.bincount(origin[taken], minlength=len(sources))
    shares = ", ".join(f"{name} {count:,}" for name, count in zip(sources, counts, strict=True))
    note = f"{counts.sum():,} texts of other tasks join train without labels: {shares}"
    losses = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    return examples.take(np.flatnonzero(taken)), f"{note}; dropped: {losses}" if losses else note


def _candidates(task: Task, sources: Mapping[str, TaskData]) -> tuple[Examples, NDArray[np.int64], int]:
    """All texts of `sources` as n examples of the task, (n,) the number of the source of each, and how many more there
    are that have no letter and no digit."""
    inputs: dict[str, list[Any]] = {role: [] for role in task.reading.fields}
    sizes, without = [], 0
    for source in sources.values():
        made = converted(source, task.reading)
        wordy = [all(map(has_words, sides)) for sides in zip(*task.reading.plain(made), strict=True)]
        for role, column in inputs.items():
            column += compress(made[role], wordy)
        sizes.append(sum(wordy))
        without += len(wordy) - sizes[-1]
    columns = {role: Column(column) for role, column in inputs.items()}
    return read_examples(task, "transfer", columns), np.repeat(np.arange(len(sizes)), sizes), without


def converted(source: TaskData, reading: Reading) -> Mapping[str, Sequence[Any]]:
    """The training texts of `source` as inputs of another task: as they are where both have the same fields; of pairs,
    where single texts are wanted, the sentences of both sides."""
    theirs, inputs = source.task.reading, source.splits["train"].inputs
    if theirs.fields == reading.fields and type(theirs) is type(reading):
        return {role: inputs[role] for role in reading.fields}
    texts = theirs.plain(inputs)
    if len(texts) > len(reading.fields):
        distinct = dict.fromkeys(chain(*texts))  # a passage stands in as many pairs as it has questions
        texts = ([sentence for text in distinct for sentence in sentences(text)],)
    return reading.from_plain(*texts)


def in_held_out(reading: Reading, examples: Examples, splits: Mapping[Split, Examples]) -> NDArray[np.bool_]:
    """(n,) whether an example stands in validation or test: as a whole, as a sentence of a text there, or with a text
    from there as one of its sentences. Case and whitespace do not count. Pairs are compared as a whole."""
    texts = reading.plain(examples.inputs)
    there = [reading.plain(splits[split].inputs) for split in ("validation", "test")]
    whole = np.concatenate([marks(one) for one in there])
    if len(texts) > 1:
        return np.isin(marks(texts), whole)
    theirs = [sentence for (column,) in there for text in column for sentence in sentences(text)]
    stands = np.isin(marks(texts), np.concatenate((whole, marks((theirs,)))))
    ours = [sentences(text) for text in texts[0]]
    owners = np.repeat(np.arange(len(ours)), np.array([len(one) for one in ours], dtype=np.int64))
    stands[owners[np.isin(marks(([*chain(*ours)],)), whole)]] = True
    return stands


def marks(texts: Texts) -> NDArray[np.uint64]:
    """(n,) hashes of texts or pairs without their case and whitespace: tokenized or not, a text has the same."""
    return content_keys(
        "",
        {
            str(side): ["".join(text.split()).casefold() for text in column]
            for side, column in enumerate(texts)
        },
    )
