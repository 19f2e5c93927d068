"""Data sets → checked splits of one task's examples. `datasets` loads; this module checks, splits and limits."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import UNLABELLED, Examples, Ragged, content_keys
from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS, Split
from pipeline.config.recipe import TaskFacts
from pipeline.config.schema import TaskConfig
from pipeline.data.files import EMPTY, source_of
from pipeline.data.identity import cache_name, facts_of
from pipeline.data.load import Source, fields_of, load_splits, with_fields
from pipeline.data.recordings import with_recordings
from pipeline.disk_cache import cached
from pipeline.errors import ConfigError, DataError
from pipeline.shown import counted
from pipeline.strings import Strings, joined
from pipeline.tasks import MAKERS, Task
from pipeline.tasks.label_columns import Column, check_inferred, names_of, show_rows
from pipeline.tasks.recording import content as content_of
from pipeline.tasks.spans import word_spans

SHOWN_COLUMNS = 30
WORD_SAMPLE = 500
"""Texts of a split whose words are counted."""


@dataclass(frozen=True)
class Variants:
    """What one method of `augment` made of a task's texts. count: variants that joined train · dropped: how many did not, by
    reason · seconds: what making them took, in whatever run · asked: words that a masked language model was asked about in
    this launch · shown: a few texts, each with a variant of it."""

    count: int
    dropped: Mapping[str, int]
    seconds: float
    asked: int
    shown: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TaskData:
    """A task with its checked examples: no text is in two splits, every label is in the label space, and only train
    has examples without labels.

    Train has the task's own examples, then `taken` of other tasks, then the variants of its own, by method.
    """

    task: Task
    splits: Mapping[Split, Examples]
    notes: tuple[str, ...] = field(default=())
    taken: int = 0
    variants: Mapping[str, Variants] = field(default_factory=dict)

    def without_variants(self) -> TaskData:
        """The same data before variants joined train."""
        if not self.variants:
            return self
        train = self.splits["train"]
        rows = np.arange(len(train) - sum(made.count for made in self.variants.values()))
        return replace(self, splits={**self.splits, "train": train.take(rows)}, variants={})

    def all_examples(self) -> list[Examples]:
        """The examples of train, validation and test, in this order."""
        return [self.splits[split] for split in SPLITS]

    def labelled_train(self) -> Examples:
        """The examples of train that have labels."""
        train = self.splits["train"]
        labelled = self.task.reading.labelled(train.labels)
        return train if labelled.all() else train.take(np.flatnonzero(labelled))

    def facts(self, expected: int = 0) -> TaskFacts:
        """What settings are derived from. The majority is that of all labels of train: of texts, words, or decisions.

        Labels that variants kept do not count. expected: variants that are still to be made.
        """
        labelled, labels = self.without_variants().labelled_train(), len(self.task.reading.labels)
        majority = None
        if labels:
            values = labelled.labels.values
            _, counts = np.unique(values[values != UNLABELLED], return_counts=True)
            majority = float(counts.max() / counts.sum())
        return TaskFacts(
            labels=labels or None,
            continuous=self.task.kind.continuous,
            examples=len(self.splits["train"]) + expected,
            labelled=len(labelled),
            majority=majority,
            taken=self.taken,
            words=self._words(expected),
            writes=self.task.kind.writes,
        )

    def _words(self, expected: int) -> int:
        """About how many words train, with `expected` texts more, and validation have, from a sample of their texts."""
        total, learnt = 0.0, ((self.splits["train"], expected), (self.splits["validation"], 0))
        for examples, more in learnt:
            count = min(WORD_SAMPLE, len(examples))
            sample = examples.take(np.linspace(0, len(examples) - 1, count).astype(np.int64))
            sides = self.task.reading.plain(sample.inputs)
            words = sum(len(word_spans(text)) for side in sides for text in side)
            total += words / max(1, count) * (len(examples) + more)
        return round(total)

    def within(self, limit: int | None) -> TaskData:
        """With no more than `limit` texts of other tasks: those that `transfer.limit` takes."""
        if limit is None or self.taken <= limit:
            return self
        train, variants = self.splits["train"], sum(made.count for made in self.variants.values())
        end = len(train) - variants
        own, taken, last = np.split(np.arange(len(train)), [end - self.taken, end])
        rows = np.concatenate((own, taken[_smallest(train.keys[taken], limit)], last))
        return replace(self, splits={**self.splits, "train": train.take(rows)}, taken=limit)

    def fold(self, number: int, of: int) -> TaskData:
        """Another split of the labelled examples of train and validation: those of fold `number`, from 0, are validation,
        the others are train, beside train's examples without labels. Which fold an example is in is decided by its content.

        Raises ValueError where train has variants: those of a validation text would be among them.
        """
        if self.variants:
            raise ValueError(f"{self.task.name} has variants")
        train, validation = self.splits["train"], self.splits["validation"]
        labelled = self.task.reading.labelled(train.labels)
        keys = np.unique(np.concatenate((train.keys[labelled], validation.keys)))
        chosen = keys[np.argsort(_mixed(keys, 3), kind="stable")[number::of]]
        moved, stays = np.isin(train.keys, chosen) & labelled, np.isin(validation.keys, chosen)
        own = np.arange(len(train)) < len(train) - self.taken
        parts = [
            train.take(np.flatnonzero(~moved & own)),
            validation.take(np.flatnonzero(~stays)),
            train.take(np.flatnonzero(~own)),
        ]
        held = join(train.take(np.flatnonzero(moved)), validation.take(np.flatnonzero(stays)))
        splits: dict[Split, Examples] = {**self.splits, "train": reduce(join, parts), "validation": held}
        return replace(self, splits=splits)

    def fingerprint(self) -> str:
        """Hash of every split's examples and labels, in their order."""
        digest = blake2b(digest_size=8)
        for examples in self.all_examples():
            digest.update(examples.keys.tobytes() + examples.labels.values.tobytes() + b"|")
            more = [
                column for role, column in examples.inputs.items() if role not in self.task.reading.fields
            ]
            digest.update(json.dumps(more).encode() if more else b"")  # the inputs that only scores read
        return digest.hexdigest()

    def distinct(self) -> int:
        """Number of distinct examples over all splits: each teacher must label these."""
        return len(np.unique(np.concatenate([examples.keys for examples in self.all_examples()])))


def load_task(name: str, config: TaskConfig) -> TaskData:
    """One task's data: loaded, checked, split, without texts that are in two splits, limited. Of unchanged local files it is
    taken from disk where reading them took long."""
    facts = facts_of(name, config)
    if facts is None:
        return read_task(name, config)
    return cached(cache_name(name), facts, partial(read_task, name, config))


def read_task(name: str, config: TaskConfig) -> TaskData:
    """As `load_task`, read anew."""
    kind, named = config.declared, config.data.columns
    _check_metric(name, config, kind.selecting)
    fields = kind.content(named)
    columns = {role: named.get(role, role) for role in (*fields, *kind.truths(named))}
    unknown = set(named) - set(columns)
    if unknown:
        raise DataError(
            f"tasks.{name}.data.columns: {config.kind} has no {min(unknown)!r}",
            f"It reads {', '.join(kind.roles)}.",
        )
    texts, labels = ([columns[role] for role in roles if role in columns] for roles in (fields, kind.labels))
    others = tuple(columns.values())
    source = Source(f"tasks.{name}.data", config.data, texts, labels, others, kind.text_labels)
    tables, notes = load_splits(source)
    tables = {split: with_fields(table, columns.values()) for split, table in tables.items()}
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"tasks.{name}: split {split} is empty", EMPTY)
        _check_columns(name, split, table, columns)
    if kind.audio:
        tables, more = with_recordings(name, config.data, tables, columns[fields[0]])
        notes += more
    read = {split: _columns(table, columns, fields) for split, table in tables.items()}
    task = MAKERS[kind](name, config, read["train"])
    notes += [
        f"column {role} is not read: name it in data.columns, for pairs of texts"
        for role in kind.optional_inputs
        if role not in named and role in tables["train"].column_names and role not in columns.values()
    ]
    label = read["train"].get(kind.labels[0])
    if task.reading.labels and config.data.labels is None and label is not None and label.names is None:
        notes += check_inferred(name, "train", label.values)
        _check_alike(name, {split: columns[kind.labels[0]].values for split, columns in read.items()})
    splits = {split: read_examples(task, split, read[split]) for split in tables}
    splits = _with_labels(task, splits, notes)
    _check_labelled(task, splits)
    splits = _hold_out(task, splits, config.data.holdout, notes)
    splits = _separate(splits, notes)
    splits = {split: limited(examples, config.data.limit.get(split)) for split, examples in splits.items()}
    _check_filled(task, splits, notes)
    _check_labelled(task, splits)
    if config.data.unlabelled is not None:
        splits = {**splits, "train": _with_unlabelled(task, config.data, columns, splits, notes)}
    unlabelled = int((~task.reading.labelled(splits["train"].labels)).sum())
    if unlabelled:
        notes.append(
            f"{counted(unlabelled, 'example')} of train without a label, taught by the teachers alone"
        )
    return TaskData(task, splits, tuple(f"{name}: {note}" for note in notes))


def _check_metric(name: str, config: TaskConfig, metrics: Sequence[str]) -> None:
    if config.metric is not None and config.metric not in metrics:
        raise ConfigError(
            f"tasks.{name}.metric: {config.kind} ({config.problem}) has no {config.metric!r}",
            f"It has {', '.join(metrics)}.",
        )


def _check_alike(name: str, labels: Mapping[Split, Sequence[Any]]) -> None:
    """Raises `DataError` where train has texts as labels and another split numbers: which is which is not known."""

    def kinds(values: Sequence[Any]) -> set[bool]:
        """Whether labels are texts, of all that are not missing, also in lists."""
        flat = (one for value in values for one in (value if isinstance(value, list | tuple) else (value,)))
        return {isinstance(one, str) for one in flat if one is not None}

    train = kinds(labels["train"])
    for split, values in labels.items():
        if train == {True} and kinds(values) == {False}:
            number = next(value for value in values if value is not None)
            text = next(value for value in labels["train"] if value is not None)
            raise DataError(
                f"tasks.{name}: labels of {split} are numbers ({number!r:.80}), those of train are texts ({text!r:.80})",
                "Write the same labels in every split, or list data.labels in the order of the numbers.",
            )


def _with_labels(task: Task, splits: Mapping[Split, Examples], notes: list[str]) -> dict[Split, Examples]:
    """The splits, validation and test without examples that have no label; a split of theirs without any label is left out, so
    that one is held out of train."""
    kept: dict[Split, Examples] = {}
    for split, examples in splits.items():
        labelled = task.reading.labelled(examples.labels)
        missing = int((~labelled).sum())
        if split == "train" or not missing:
            kept[split] = examples
        elif missing < len(examples):
            notes.append(f"{missing} of {len(examples)} examples of {split} dropped: they have no label")
            kept[split] = examples.take(np.flatnonzero(labelled))
        else:
            notes.append(f"split {split} is not used: none of its {missing} examples has a label")
    return kept


def _check_labelled(task: Task, splits: Mapping[Split, Examples]) -> None:
    """Raises `DataError` unless all examples of validation and test, and some of train, have labels."""
    for split, examples in splits.items():
        labelled = task.reading.labelled(examples.labels)
        if not labelled.any() or (split != "train" and not labelled.all()):
            missing = np.flatnonzero(~labelled)
            raise DataError(
                f"tasks.{task.name}: {len(missing)} of {len(examples)} examples of {split} have no label: "
                f"{show_rows(missing.tolist())}",
                "Validation and test need every label, train some; mend the rows or name other splits.",
            )


def _check_filled(task: Task, splits: Mapping[Split, Examples], notes: Sequence[str]) -> None:
    """Raises `DataError`, with the notes on the splits, where one has no examples left."""
    for split in SPLITS:
        if not len(splits[split]):
            why = f": {'; '.join(notes)}" if notes else ""
            raise DataError(
                f"tasks.{task.name}: split {split} has no examples left{why}",
                "Give the split examples that no other one has, or raise data.holdout where it is held out of train.",
            )


def _with_unlabelled(
    task: Task,
    data: DataConfig,
    columns: Mapping[str, str],
    splits: Mapping[Split, Examples],
    notes: list[str],
) -> Examples:
    """Train, followed by the examples of `data.unlabelled` that are in no other split."""
    more = data.unlabelled
    assert more is not None
    roles = task.kind.content(data.columns)
    mapping = {role: more.columns.get(role, columns[role]) for role in roles}
    where = f"tasks.{task.name}.data.unlabelled"
    tables, _ = load_splits(Source(where, source_of(more), list(mapping.values())))
    table = tables["train"]
    table = with_fields(table, mapping.values())
    _check_columns(task.name, "unlabelled", table, mapping, "data.unlabelled.columns")
    if task.kind.audio:
        read, more_notes = with_recordings(
            task.name, source_of(more), {"unlabelled": table}, mapping[roles[0]]
        )
        table, notes[:] = read["unlabelled"], [*notes, *more_notes]
    extra = read_examples(task, "unlabelled", _columns(table, mapping, roles))
    _, first = np.unique(extra.keys, return_index=True)
    seen = np.concatenate([examples.keys for examples in splits.values()])
    fresh = np.sort(first[~np.isin(extra.keys[first], seen)])
    if len(fresh) < len(extra):
        notes.append(f"{len(extra) - len(fresh)} unlabelled examples dropped: they stand elsewhere as well")
    extra = limited(extra.take(fresh), more.limit)
    return join(splits["train"], extra)


def join(a: Examples, b: Examples) -> Examples:
    """`a`'s examples, then `b`'s, of one task."""
    inputs = {name: joined((column, b.inputs[name])) for name, column in a.inputs.items()}
    return Examples(a.task, np.concatenate((a.keys, b.keys)), inputs, Ragged.join((a.labels, b.labels)))


# ---------------------------------------------------------------- columns


def _check_columns(
    name: str, split: str, table: Any, columns: Mapping[str, str], section: str = "data.columns"
) -> None:
    for role, column in columns.items():
        if column not in table.column_names:
            names = [one for known in table.column_names for one in (fields_of(table, known) or [known])]
            shown = f"{', '.join(names[:SHOWN_COLUMNS])}{' …' if len(names) > SHOWN_COLUMNS else ''}"
            raise DataError(
                f"tasks.{name}: split {split} has no column {column!r}; it has {shown}",
                _column_remedy(column, names, f"{section}.{role}", role),
            )


def _column_remedy(column: str, names: Sequence[str], key: str, role: str) -> str:
    """The remedy where a table lacks a column: a similar name, another delimiter, or another format."""
    near = difflib.get_close_matches(column, names, n=1)
    if near:
        return f"Did you mean {near[0]!r}? Set {key} to the column that holds the {role}."
    if names[0].startswith("{"):
        return "The file looks like JSON: set data.path to json."
    delimiter = next((mark for mark in "\t;|" if mark in names[0]), None) if len(names) == 1 else None
    if delimiter is not None:
        return f"Its fields look separated by {delimiter!r}: set data.options: {{delimiter: {json.dumps(delimiter)}}}."
    return f"Set {key} to the column that holds the {role}; of a csv file without a header, set data.options.names."


def _columns(table: Any, columns: Mapping[str, str], texts: Sequence[str]) -> dict[str, Column]:
    """The table's columns by role, those of the roles `texts` in Arrow where all are texts; roles without a column are omitted."""
    return {
        role: Column(_values(table, column, role in texts), names_of(table.features[column]))
        for role, column in columns.items()
        if column in table.column_names
    }


def _values(table: Any, column: str, text: bool) -> Sequence[Any]:
    """The entries of a column. text: whether texts stay in Arrow; of others, which are labels, equal ones share a string."""
    if getattr(table.features[column], "dtype", None) in ("string", "large_string"):
        arrow = table.select_columns([column]).with_format("arrow")[:][column]
        if text and not arrow.null_count:
            return Strings(arrow)
        coded = arrow.dictionary_encode().unify_dictionaries().combine_chunks()
        names = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
        shared: list[Any] = names[coded.indices.fill_null(len(names) - 1).to_numpy()].tolist()
        return shared
    values: list[Any] = table[column][:]
    return values


def read_examples(task: Task, split: str, columns: Mapping[str, Column]) -> Examples:
    """Columns by role as the task's `Examples`, keyed by their content; `split` names them in errors."""
    inputs, labels = task.reading.read(columns, split)
    content = content_of({role: inputs[role] for role in task.reading.fields}, task.kind.audio)
    return Examples(task.name, content_keys(task.kind.name, content), inputs, labels)


# ---------------------------------------------------------------- splits


def _mixed(keys: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """(n,) uint64 hashes of the keys and `salt`, so that holding out and limiting draw independently."""
    return keys * np.uint64(0x9E3779B97F4A7C15 + 2 * salt) ^ (keys >> np.uint64(29))


def _hold_out(
    task: Task, splits: dict[Split, Examples], share: float, notes: list[str]
) -> dict[Split, Examples]:
    """Moves the labelled examples of train with the smallest hashes to the splits that are missing."""
    missing: tuple[Split, ...] = ("validation", "test")
    for salt, split in enumerate(missing):
        if split in splits:
            continue
        train = splits["train"]
        chosen = (_mixed(train.keys, salt) < np.uint64(int(share * 2**64))) & task.reading.labelled(
            train.labels
        )
        splits = {
            **splits,
            split: train.take(np.flatnonzero(chosen)),
            "train": train.take(np.flatnonzero(~chosen)),
        }
        notes.append(f"no {split} split: {int(chosen.sum())} examples of train held out for it")
    return splits


def _separate(splits: dict[Split, Examples], notes: list[str]) -> dict[Split, Examples]:
    """Drops from train the examples that are in validation or test, and from validation those that are in test."""
    seen = splits["test"].keys
    separated: dict[Split, Examples] = {"test": splits["test"]}
    earlier: tuple[Split, ...] = ("validation", "train")
    for split in earlier:
        examples = splits[split]
        fresh = ~np.isin(examples.keys, seen)
        if not fresh.all():
            notes.append(
                f"{int((~fresh).sum())} examples of {split} dropped: they stand in a later split as well"
            )
        separated[split] = examples.take(np.flatnonzero(fresh))
        seen = np.concatenate((seen, examples.keys))
    return {split: separated[split] for split in SPLITS}


def limited(examples: Examples, limit: int | None) -> Examples:
    """The `limit` examples with the smallest hashes, in their original order."""
    if limit is None or len(examples) <= limit:
        return examples
    return examples.take(_smallest(examples.keys, limit))


def _smallest(keys: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """(count,) the positions of the keys with the smallest hashes, ascending."""
    return np.sort(np.argsort(_mixed(keys, 2), kind="stable")[:count])
