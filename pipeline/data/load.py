"""`data` → the data set's tables, by split. `datasets` loads them; this module reads JSON that is one document."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS, Split
from pipeline.config.redact import redact
from pipeline.data.files import (
    broken_json,
    check_files,
    delimiter_of,
    files_of,
    format_of,
    header_of,
    line_of,
)
from pipeline.data.json_documents import read_document
from pipeline.errors import DataError

NUMBER_OPTIONS = {"decimal", "thousands", "true_values", "false_values", "na_values"}
"""Options of csv by which pandas is to read what stands in label columns."""
TYPES = (
    (r"^-?(0|[1-9][0-9]{0,17})$", "int64"),
    (r"^(True|False|true|false|TRUE|FALSE)$", "bool"),
    (r"^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$", "float64"),
)
"""What all texts of a label column of csv match → their type. 01 is a text."""
ALIASES: Mapping[Split, Sequence[str]] = {"validation": ("valid", "val", "dev", "development", "eval")}
"""What data sets call a split that others call by our name."""
NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "converters"}
"""Fields of a builder's config that are not options: other keys of `data` set them, or YAML cannot."""


@dataclass(frozen=True)
class Source:
    """A data set as declared in the config. where: its config key, for errors · texts, labels, others: names of its columns
    with text, with labels, and with what else is read · text_labels: whether labels are texts, also where all of them look like numbers."""

    where: str
    data: DataConfig
    texts: Sequence[str]
    labels: Sequence[str] = ()
    others: Sequence[str] = ()
    text_labels: bool = False


def load_splits(source: Source) -> tuple[dict[Split, Any], list[str]]:
    """The data set's tables, by our split names, and notes; missing splits are omitted. Raises `DataError`."""
    where, data = source.where, source.data
    check_files(where, data)
    whole = _load(source)
    free = set(whole).difference(*map(_names_in, data.splits.values()))
    wanted = {split: data.splits.get(split) or _usual_name(split, free) for split in SPLITS}
    try:
        sliced = {s: _slice(whole, e) for s, e in wanted.items() if "[" in e or "+" in e}
    except Exception as error:  # datasets raises several types, each about the expression
        remedy = (
            f"Write slices as `load_dataset` takes them, such as train[:80%]; there are {', '.join(whole)}."
        )
        raise DataError(f"{where}.splits: {line_of(error)}", remedy) from None
    for split, theirs in data.splits.items():
        if theirs not in whole and split not in sliced:
            key = f"{where}.split" if where.endswith(".unlabelled") else f"{where}.splits.{split}"
            raise DataError(f"{key}: no split {theirs!r}", f"There are {', '.join(whole)}.")
    tables = {
        s: sliced[s] if s in sliced else whole[e] for s, e in wanted.items() if s in sliced or e in whole
    }
    if "train" not in tables:
        raise DataError(
            f"{where}: no split 'train' among {', '.join(whole)}", "Name it in data.splits.train."
        )
    _refuse_unread(where, data, wanted.values())
    notes = [
        f"{split} is the split {wanted[split]!r} of the data set"
        for split in tables
        if wanted[split] not in (split, data.splits.get(split))
    ]
    return tables, notes


def _names_in(expression: str) -> list[str]:
    """The data set's splits that an expression such as ``train[:80%]+dev`` names."""
    return re.findall(r"[^\[\]+:%]+", expression)


def _usual_name(split: Split, names: Iterable[str]) -> str:
    """What a data set calls a split among `names`: validation may be dev, val or valid."""
    return next((name for name in (split, *ALIASES.get(split, ())) if name in names), split)


def with_fields(table: Any, columns: Iterable[str]) -> Any:
    """`table`, with a column for each of `columns` that names a field of a column of structs: ``translation.en``."""
    import datasets

    dotted = [one for one in columns if "." in one and one not in table.column_names]
    heads = sorted({one.split(".")[0] for one in dotted} & set(table.column_names))
    if not heads:
        return table
    flat = table.select_columns(heads).flatten()
    there = [one for one in dict.fromkeys(dotted) if one in flat.column_names]
    return datasets.concatenate_datasets([table, flat.select_columns(there)], axis=1) if there else table


def fields_of(table: Any, column: str) -> list[str]:
    """The fields of a column of structs, as names of columns; none of another column."""
    feature = table.features.get(column)
    inner = getattr(feature, "languages", None) or (list(feature) if isinstance(feature, dict) else [])
    return [f"{column}.{name}" for name in inner]


def _refuse_unread(where: str, data: DataConfig, wanted: Iterable[str]) -> None:
    """Raises `DataError` for files that no split reads."""
    read = {name for expression in wanted for name in _names_in(expression)}
    for name in data.data_files or {}:
        if name not in read:
            split = next((one for one in SPLITS if name.lower() == one), "validation")
            raise DataError(
                f"{where}.data_files.{name}: no split reads these files; splits are {', '.join(SPLITS)}",
                f"Write {split} in place of {name}, or set data.splits.{split} to {name}.",
            )


def _load(source: Source) -> Mapping[str, Any]:
    """The data set's tables, by the data set's split names. Raises `DataError`."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises as well
    where, data = source.where, source.data
    folder, files = Path(data.path), files_of(where, data)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    name = None if saved else format_of(data, files)
    if saved and data.options:
        raise DataError(f"{where}.options: {data.path} was written by save_to_disk", "Remove data.options.")
    if name is not None:
        _check_options(where, name, data.options)
    try:
        if saved:
            loaded = datasets.load_from_disk(data.path)
            return loaded if isinstance(loaded, dict) else {"train": loaded}
        if name is not None and files:  # one by one: splits may differ in columns that nobody reads
            return {split: _load_files(source, name, split, entry) for split, entry in files.items()}
        whole: Mapping[str, Any] = datasets.load_dataset(
            data.path, data.name, data_files=files or None, revision=data.revision, **data.options
        )
    except DataError:
        raise
    except Exception as error:  # datasets raises dozens of types, each about the user's data
        remedy = (
            "No folder here has that name, so it stands for a data set of the hub: check data.path, the network, "
            "and HF_TOKEN where the data set is private."
        )
        if folder.is_dir():
            remedy = "Name each split's files in data.data_files; they must all have the same columns."
        reason = redact("reason", line_of(error.__cause__ or error))
        raise DataError(f"{where}: cannot load {redact('path', data.path)}: {reason}", remedy) from None
    return whole


def _load_files(source: Source, name: str, split: str, files: Sequence[str]) -> Any:
    """One split's table from files of one format. Raises `DataError` with the name of the file where it is known."""
    import datasets

    where, options = source.where, source.data.options
    documents = [read_document(where, file, options) for file in files] if name == "json" else []
    columns = [document for document in documents if document is not None]
    if columns and len(columns) == len(files):
        return datasets.concatenate_datasets([datasets.Dataset.from_dict(one) for one in columns])
    try:
        table = datasets.load_dataset(
            name, data_files={split: list(files)}, split=split, **_settings(source, name, files)
        )
    except Exception as error:
        broken = next(filter(None, map(broken_json, files)), None) if name == "json" else None
        if broken is not None:
            remedy = "Correct that line: JSON has one object a line, or is one list of objects."
            raise DataError(f"{where}: {broken}", remedy) from None
        reason = redact("reason", line_of(error.__cause__ or error))
        given = f"Check data.options ({', '.join(options)})" if options else "Set data.options"
        remedy = f"{given}, or correct the file: it is read as {name}."
        raise DataError(f"{where}: cannot load {', '.join(map(str, files))}: {reason}", remedy) from None
    return _typed(table, source.labels, source.text_labels) if name == "csv" else table


def _typed(table: Any, columns: Sequence[str], as_texts: bool) -> Any:
    """`table` with the texts in `columns` as what all of them are: integers, truth values, other numbers, or (`as_texts`: always) texts; an
    empty one is null. pandas would decide it by parts of a file: of numbers with one text far below, or with an empty cell, it makes something else, and of
    01 it makes 1."""
    import datasets
    from pyarrow import compute, types

    for column in set(columns) & set(table.column_names):
        texts = table.data.column(column)
        if not (types.is_string(texts.type) or types.is_large_string(texts.type)):
            continue
        empty = compute.equal(texts, "")
        texts = compute.if_else(empty, None, texts)
        dtype = next(
            (
                name
                for pattern, name in TYPES
                if not as_texts and compute.all(compute.match_substring_regex(texts, pattern)).as_py()
            ),
            "string",
        )
        position = table.column_names.index(column)
        if compute.any(empty).as_py():
            changed = table.data.table.set_column(position, column, texts)
            table = datasets.Dataset(changed, info=table.info, split=table.split)
        if dtype != "string":
            table = table.cast_column(column, datasets.Value(dtype))
    return table


def _settings(source: Source, name: str, files: Sequence[str]) -> dict[str, Any]:
    """The arguments of `load_dataset` beside the files: texts stay as written; `data.options` override the rest."""
    settings: dict[str, Any] = {}
    as_numbers = bool(source.data.options.keys() & NUMBER_OPTIONS)
    if name == "csv":  # a text may be the word "null" or "NA", or 007; an empty cell is no label
        settings = {
            "keep_default_na": False,
            "na_values": {column: [""] for column in source.labels},
            "converters": dict.fromkeys((*source.texts, *([] if as_numbers else source.labels)), str),
            "sep": delimiter_of(files[0], source.data.options),
        }
        read = {*source.texts, *source.labels, *source.others}
        names = header_of(files[0], source.data.options)
        if {*source.texts, *source.labels} <= set(names):  # what nobody reads may be of any form
            settings["usecols"] = [name for name in names if name in read]
    if name == "json":  # else rows with `type` and `message` are taken for logs of chats
        settings = {"parse_agent_traces": False}
    return settings | source.data.options


def _check_options(where: str, name: str, options: Mapping[str, Any]) -> None:
    """Raises `DataError`, with the nearest name, for an option that the format's builder does not take."""
    if not options:
        return
    module = importlib.import_module(f"datasets.packaged_modules.{name}.{name}")
    builder = getattr(module, f"{name.title()}Config")
    known = [field.name for field in fields(builder) if field.name not in NOT_OPTIONS]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            remedy = f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(known)}."
            raise DataError(f"{where}.options: {name} has no option {option!r}", remedy)


def _slice(whole: Mapping[str, Any], expression: str) -> Any:
    """The rows that `load_dataset` selects for a split expression such as ``train[:80%]``."""
    import datasets

    sizes = {split: len(table) for split, table in whole.items()}
    parts = datasets.ReadInstruction.from_spec(expression).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [whole[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )
