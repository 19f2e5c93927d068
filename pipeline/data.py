"""Data sets → checked splits of one task's examples. Loading is `datasets`' work; here are the checks a user needs."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged, content_keys
from pipeline.config.schema import SPLITS, DataConfig, RunConfig, Split, TaskConfig
from pipeline.errors import ConfigError, DataError
from pipeline.tasks import Task, kind_of
from pipeline.tasks.label_columns import Column, names_of

OPTIONAL = ("answer_starts",)
"""Roles that are read where the config names a column for them."""
TEXT_FORMATS = ("csv", "json", "text")
EMPTY = "Point data.splits or data_files at examples."
FILE_FORMATS = (*TEXT_FORMATS, "parquet", "arrow")


@dataclass(frozen=True)
class TaskData:
    """A task with its examples, ready: no text stands in two splits, every label is in the label space. Examples
    without labels stand in train only."""

    task: Task
    splits: Mapping[Split, Examples]
    notes: tuple[str, ...] = field(default=())

    def all_examples(self) -> list[Examples]:
        """Train, validation, test."""
        return [self.splits[split] for split in SPLITS]

    def labelled_train(self) -> Examples:
        """Train's examples that have labels."""
        train = self.splits["train"]
        labelled = self.task.labelled(train.labels)
        return train if labelled.all() else train.take(np.flatnonzero(labelled))

    def fingerprint(self) -> str:
        """Hash of every split's examples and labels, in their order."""
        digest = blake2b(digest_size=8)
        for examples in self.all_examples():
            digest.update(examples.keys.tobytes() + examples.labels.values.tobytes() + b"|")
            more = [column for role, column in examples.inputs.items() if role not in self.task.fields]
            digest.update(json.dumps(more).encode() if more else b"")  # what scores read beside labels
        return digest.hexdigest()

    def distinct(self) -> int:
        """Distinct examples over all splits: what each teacher has to label."""
        return len(np.unique(np.concatenate([examples.keys for examples in self.all_examples()])))


def load_tasks(config: RunConfig) -> dict[str, TaskData]:
    """Every task's data. Raises `DataError`."""
    return {name: load_task(name, task) for name, task in config.tasks.items()}


def load_task(name: str, config: TaskConfig) -> TaskData:
    """One task's data: loaded, checked, split, freed of texts that stand in two splits, limited."""
    kind = kind_of(config)
    _check_metric(name, config, kind.metrics)
    fields = kind.roles(config)
    columns = {role: config.data.columns.get(role, role) for role in (*fields, *kind.label_roles)}
    unknown = set(config.data.columns) - set(columns) - set(OPTIONAL)
    if unknown:
        raise DataError(
            f"tasks.{name}.data.columns: {config.kind} has no {min(unknown)!r}",
            f"It reads {', '.join(columns)}.",
        )
    columns |= {role: column for role, column in config.data.columns.items() if role in OPTIONAL}
    tables = _load_splits(f"tasks.{name}.data", config.data, [columns[role] for role in fields])
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"tasks.{name}: split {split} is empty", EMPTY)
        _check_columns(name, split, table, columns)
    read = {split: _columns(table, columns) for split, table in tables.items()}
    task = kind.make(name, config, read["train"])
    splits = {split: _examples(task, split, read[split]) for split in tables}
    notes: list[str] = []
    splits = _hold_out(task, splits, config.data.holdout, notes)
    splits = _separate(splits, notes)
    splits = {split: _limit(examples, config.data.limit.get(split)) for split, examples in splits.items()}
    _check_labelled(task, splits, config.data.limit)
    if config.data.unlabelled is not None:
        splits = {**splits, "train": _with_unlabelled(task, config.data, columns, splits, notes)}
    unlabelled = int((~task.labelled(splits["train"].labels)).sum())
    if unlabelled:
        notes.append(f"{unlabelled} examples of train have no label: they take the soft loss only")
    return TaskData(task, splits, tuple(f"{name}: {note}" for note in notes))


def _check_metric(name: str, config: TaskConfig, metrics: Sequence[str]) -> None:
    if config.metric is not None and config.metric not in metrics:
        raise ConfigError(
            f"tasks.{name}.metric: {config.kind} ({config.problem}) has no {config.metric!r}",
            f"It has {', '.join(metrics)}.",
        )


def _check_labelled(task: Task, splits: Mapping[Split, Examples], limit: Mapping[Split, int]) -> None:
    """Validation and test are labelled throughout, and train in part."""
    for split in SPLITS:
        examples = splits[split]
        if not len(examples):
            raise DataError(f"tasks.{task.name}: split {split} is empty", EMPTY)
        labelled = task.labelled(examples.labels)
        if not labelled.any() or (split != "train" and not labelled.all()):
            missing = int((~labelled).sum())
            raise DataError(
                f"tasks.{task.name}: {missing} of {len(examples)} examples of {split} have no label",
                "Validation and test need every label, train some; mend the rows or name other splits.",
            )


def _with_unlabelled(
    task: Task,
    data: DataConfig,
    columns: Mapping[str, str],
    splits: Mapping[Split, Examples],
    notes: list[str],
) -> Examples:
    """Train, and after it the examples of `data.unlabelled` that stand nowhere else."""
    more = data.unlabelled
    assert more is not None
    mapping = {role: more.columns.get(role, columns[role]) for role in task.fields}
    files = None if more.data_files is None else {re.split(r"[\[+]", more.split)[0]: more.data_files}
    source = DataConfig(
        path=more.path,
        name=more.name,
        revision=more.revision,
        data_files=files,
        splits={"train": more.split},
    )
    table = _load_splits(f"tasks.{task.name}.data.unlabelled", source, list(mapping.values()))["train"]
    _check_columns(task.name, "unlabelled", table, mapping, "data.unlabelled.columns")
    extra = _examples(task, "unlabelled", _columns(table, mapping))
    _, first = np.unique(extra.keys, return_index=True)
    seen = np.concatenate([examples.keys for examples in splits.values()])
    fresh = np.sort(first[~np.isin(extra.keys[first], seen)])
    if len(fresh) < len(extra):
        notes.append(f"{len(extra) - len(fresh)} unlabelled examples dropped: they stand elsewhere as well")
    extra = _limit(extra.take(fresh), more.limit)
    return join(splits["train"], extra)


def join(a: Examples, b: Examples) -> Examples:
    """`a`'s examples, then `b`'s, of one task."""
    inputs = {name: [*column, *b.inputs[name]] for name, column in a.inputs.items()}
    return Examples(a.task, np.concatenate((a.keys, b.keys)), inputs, Ragged.join((a.labels, b.labels)))


# ---------------------------------------------------------------- loading


def _load_splits(where: str, data: DataConfig, texts: Sequence[str]) -> dict[Split, Any]:
    """The data set's tables, by our split names; those it lacks are left out. `where`: the key in the config."""
    _check_files(where, data)
    try:
        whole = _load(data, texts)
        wanted = {split: data.splits.get(split, split) for split in SPLITS}
        sliced = {s: _slice(whole, e) for s, e in wanted.items() if "[" in e or "+" in e}
    except Exception as error:  # datasets raises dozens of types, each about the user's data
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(
            f"{where}: cannot load {data.path}: {reason}", "Check path, data_files and network."
        ) from None
    for split, theirs in data.splits.items():
        if theirs not in whole and split not in sliced:
            raise DataError(f"{where}.splits.{split}: no split {theirs!r}", f"There are {', '.join(whole)}.")
    tables = {
        s: sliced[s] if s in sliced else whole[e] for s, e in wanted.items() if s in sliced or e in whole
    }
    if "train" not in tables:
        raise DataError(
            f"{where}: no split 'train' among {', '.join(whole)}", "Name it in data.splits.train."
        )
    return tables


def _load(data: DataConfig, texts: Sequence[str]) -> Mapping[str, Any]:
    """The data set's tables, by its own split names. `texts`: the columns that hold text."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises as well
    folder = Path(data.path)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = datasets.load_from_disk(data.path)
        return loaded if isinstance(loaded, dict) else {"train": loaded}
    files = {k: list(v) if isinstance(v, tuple) else v for k, v in (data.data_files or {}).items()}
    options: dict[str, Any] = {"revision": data.revision}
    if data.path == "csv":  # a text may be the word "null" or "NA", or 007
        options |= {"keep_default_na": False, "converters": dict.fromkeys(texts, str)}
    if data.path in FILE_FORMATS and files:  # one by one: splits may differ in columns that nobody reads
        return {
            key: datasets.load_dataset(data.path, data.name, data_files={key: entry}, split=key, **options)
            for key, entry in files.items()
        }
    whole: Mapping[str, Any] = datasets.load_dataset(
        data.path, data.name, data_files=files or None, **options
    )
    return whole


def _slice(whole: Mapping[str, Any], expression: str) -> Any:
    """What `load_dataset` would take for a split expression such as ``train[:80%]``."""
    import datasets

    sizes = {split: len(table) for split, table in whole.items()}
    parts = datasets.ReadInstruction.from_spec(expression).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [whole[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )


def _check_files(where: str, data: DataConfig) -> None:
    """Local files exist, and text formats are UTF-8; said with file and line."""
    if data.path in FILE_FORMATS and not data.data_files:
        # `datasets` would take every file below the working directory
        raise DataError(f"{where}: {data.path} without data_files", "Name the files in data_files.")
    for files in (data.data_files or {}).values():
        for entry in (files,) if isinstance(files, str) else files:
            if "://" in entry or "*" in entry:
                continue
            file = Path(data.path, entry) if Path(data.path).is_dir() else Path(entry)
            if not file.is_file():
                raise DataError(
                    f"{where}.data_files: no file {file}", "`make demo` fetches the examples' data."
                )
            if file.stat().st_size == 0:
                raise DataError(f"{where}: {file} is empty", EMPTY)
            if _is_blank(data.path, file):
                raise DataError(f"{where}: {file} has no rows", EMPTY)
    for state in (Path(data.path, "state.json"), *Path(data.path).glob("*/state.json")):
        if state.is_file() and not json.loads(state.read_text()).get("_data_files", True):
            raise DataError(f"{where}: {state.parent} is empty", EMPTY)


def _is_blank(path: str, file: Path) -> bool:
    """Whether a file that is not empty has no rows all the same, as far as that is seen at a glance."""
    if path in TEXT_FORMATS and file.suffix not in (".gz", ".zst", ".bz2", ".xz"):
        return _count_lines(file) <= (path == "csv")
    if path == "parquet":
        from pyarrow import ArrowException, parquet

        with suppress(ArrowException):  # no parquet: `datasets` says so
            return bool(parquet.read_metadata(file).num_rows == 0)
    return False


def _count_lines(file: Path) -> int:
    """Lines with anything on them. Raises `DataError` at the first that is not UTF-8."""
    count = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                count += bool(line.decode().strip())
            except UnicodeDecodeError:
                raise DataError(
                    f"{file}:{number}: not UTF-8", "Convert the file, for instance with iconv -t UTF-8."
                ) from None
    return count


def _check_columns(
    name: str, split: str, table: Any, columns: Mapping[str, str], section: str = "data.columns"
) -> None:
    for role, column in columns.items():
        if column not in table.column_names:
            near = difflib.get_close_matches(column, table.column_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"tasks.{name}: split {split} has no column {column!r}; it has {', '.join(table.column_names)}",
                f"{hint}Set {section}.{role} to the column that holds the {role}.",
            )


def _columns(table: Any, columns: Mapping[str, str]) -> dict[str, Column]:
    """The table's columns by role, those that it has."""
    return {
        role: Column(table[:][column], names_of(table.features[column]))
        for role, column in columns.items()
        if column in table.column_names
    }


def _examples(task: Task, split: str, columns: Mapping[str, Column]) -> Examples:
    """A split as `Examples`, keyed by its content."""
    inputs, labels = task.read(columns, split)
    content = {role: inputs[role] for role in task.fields}
    return Examples(task.name, content_keys(task.kind, content), inputs, labels)


# ---------------------------------------------------------------- splits


def _mixed(keys: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """The keys shuffled among themselves, so that holding out and limiting draw independently."""
    return keys * np.uint64(0x9E3779B97F4A7C15 + 2 * salt) ^ (keys >> np.uint64(29))


def _hold_out(
    task: Task, splits: dict[Split, Examples], share: float, notes: list[str]
) -> dict[Split, Examples]:
    """Gives train's examples with the smallest hashes, those that have labels, to the splits that are missing."""
    missing: tuple[Split, ...] = ("validation", "test")
    for salt, split in enumerate(missing):
        if split in splits:
            continue
        train = splits["train"]
        chosen = (_mixed(train.keys, salt) < np.uint64(int(share * 2**64))) & task.labelled(train.labels)
        splits = {
            **splits,
            split: train.take(np.flatnonzero(chosen)),
            "train": train.take(np.flatnonzero(~chosen)),
        }
        notes.append(f"no {split} split: {int(chosen.sum())} examples of train held out for it")
    return splits


def _separate(splits: dict[Split, Examples], notes: list[str]) -> dict[Split, Examples]:
    """Drops from train what stands in validation or test, and from validation what stands in test."""
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


def _limit(examples: Examples, limit: int | None) -> Examples:
    """The `limit` examples with the smallest hashes, in their own order."""
    if limit is None or len(examples) <= limit:
        return examples
    return examples.take(np.sort(np.argsort(_mixed(examples.keys, 2), kind="stable")[:limit]))
