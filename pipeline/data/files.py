"""A data set's local files: their paths, their format, and what is wrong with them, by file and line.

Needs neither `datasets` nor torch, so that a wrong path or a broken row is reported at once. `datasets` checks files
behind URLs and data sets of the hub.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig, UnlabelledConfig
from pipeline.errors import DataError

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File ending → the format that reads it."""
TEXT_FORMATS = ("csv", "json", "text")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
PLAIN_CSV = {
    *("sep", "delimiter", "quoting", "quotechar", "escapechar", "doublequote", "skipinitialspace"),
    *("encoding", "encoding_errors", "keep_default_na", "na_values", "na_filter", "decimal", "thousands"),
}
"""Options of csv with which rows are checked here; with any other (`skiprows`, `names` …) only pandas reads the file."""
ASSETS = (".cache", "assets")
"""The folder of the examples' data and models, which `make demo` fetches, as parts of its path."""
EMPTY = "Point data.splits or data_files at examples."

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def missing_remedy(file: Path) -> str:
    """The remedy for a local file or folder that does not exist."""
    if any(pair == ASSETS for pair in zip(file.parts, file.parts[1:], strict=False)):
        return "`make demo RUN=examples/NAME.yaml` fetches the data and models of that example."
    near: list[str] = []
    with suppress(OSError):
        near = difflib.get_close_matches(file.name, [one.name for one in file.parent.iterdir()], 1, 0.75)
    hint = f"Did you mean {file.parent / near[0]}? " if near else ""
    return f"{hint}Relative paths start from the working directory, {Path.cwd()}."


def source_of(unlabelled: UnlabelledConfig) -> DataConfig:
    """`data.unlabelled` as a data set that has a train split alone."""
    files = unlabelled.data_files
    split = re.split(r"[\[+]", unlabelled.split)[0]
    return DataConfig(
        path=unlabelled.path,
        name=unlabelled.name,
        revision=unlabelled.revision,
        data_files=None if files is None else {split: files},
        options=unlabelled.options,
        splits={"train": unlabelled.split},
    )


def files_of(where: str, data: DataConfig) -> dict[str, list[str]]:
    """The files of each entry of `data_files`, with patterns expanded. Raises `DataError` where a file does not exist.

    where: the data set's key in the config, for errors.
    """
    _check_path(where, data)
    folder = Path(data.path) if Path(data.path).is_dir() else None
    local = folder is not None or data.path in FORMATS.values()
    files: dict[str, list[str]] = {}
    for split, given in (data.data_files or {}).items():
        files[split] = []
        for entry in (given,) if isinstance(given, str) else given:
            if "://" in entry or not local:  # a URL, or a file of a hub data set
                files[split].append(entry)
                continue
            file = folder / entry if folder is not None else Path(entry)
            if file.is_dir():
                raise DataError(f"{where}.data_files: {file} is a folder", f"Name its files: {file}/*.csv.")
            matches = [str(file)] if file.is_file() else sorted(filter(os.path.isfile, glob(str(file))))  # noqa: PTH207
            if not matches:  # a pattern may start at the root, which Path.glob does not take
                raise DataError(f"{where}.data_files: no file {file}", missing_remedy(file))
            files[split] += matches
    return files


def _check_path(where: str, data: DataConfig) -> None:
    """Raises `DataError` unless `path` is a format with files, a folder, or possibly a data set of the hub."""
    path = Path(data.path)
    formats = dict.fromkeys(FORMATS.values())
    if data.path in formats:
        if not data.data_files:  # `datasets` would take every file below the working directory
            raise DataError(f"{where}: {data.path} without data_files", "Name the files in data_files.")
        return
    if path.is_file():
        name = FORMATS.get(ending(data.path))
        keys = f"path: {name or 'csv'} and data_files: {{train: {data.path}}}"
        raise DataError(f"{where}.path: {data.path} is a file", f"Write {keys}.")
    name = FORMATS.get(f".{data.path.lower()}")
    if name is not None and not path.is_dir():
        remedy = f"Write path: {name}; the ending of each file determines its delimiter."
        raise DataError(f"{where}.path: there is no format {data.path!r}", remedy)
    if is_local(data.path) and not path.is_dir():
        raise DataError(f"{where}.path: no folder {data.path}", missing_remedy(path))


def is_local(name: str) -> bool:
    """Whether a name is a path and cannot be an id of the hub, which has one slash at most."""
    return "://" not in name and (
        Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    )


def ending(file: str) -> str:
    """A file's ending in lower case, without the ending of a compression: ``.csv`` of ``a.csv.gz``; empty without one."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")


def format_of(data: DataConfig, files: Mapping[str, list[str]]) -> str | None:
    """The format of the files; None where `datasets` must determine it."""
    if data.path in FORMATS.values():
        return data.path
    formats = {FORMATS.get(ending(file)) for entry in files.values() for file in entry}
    return formats.pop() if Path(data.path).is_dir() and len(formats) == 1 else None


def delimiter_of(file: str, options: Mapping[str, Any]) -> str:
    """The delimiter of a csv file's fields: that of `options`, else a tab in .tsv, else a comma."""
    given = options.get("delimiter") or options.get("sep")
    return str(given) if given else "\t" if ending(file) == ".tsv" else ","


def header_of(file: str, options: Mapping[str, Any]) -> list[str]:
    """The names in the first row of a csv file, where it is the header and can be read here; else none."""
    if not options.keys() <= PLAIN_CSV or Path(file).suffix.lower() in COMPRESSED or not Path(file).is_file():
        return []
    delimiter = delimiter_of(file, options)
    if len(delimiter) != 1:
        return []
    encoding = options.get("encoding") or "utf-8-sig"
    with Path(file).open(encoding=encoding, errors="replace", newline="") as stream:
        try:
            return next(csv.reader(stream, delimiter=delimiter, **_form(options)), [])
        except (csv.Error, LookupError, TypeError):
            return []


def _form(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of csv that Python's reader has under the same names."""
    names = ("quoting", "quotechar", "escapechar", "doublequote", "skipinitialspace")
    return {name: options[name] for name in names if name in options}


# ---------------------------------------------------------------- checks


def check_files(where: str, data: DataConfig) -> None:
    """Raises `DataError`, with file and line, where a local file is missing, has no rows or is malformed.

    Only what can be checked without loading the data is.
    """
    files = files_of(where, data)
    name = format_of(data, files)
    _check_encoding(where, data.options.get("encoding"))
    for file in (Path(file) for entry in files.values() for file in entry if "://" not in file):
        if name is None or not file.is_file():
            continue
        if file.stat().st_size == 0:
            raise DataError(f"{where}: {file} is empty", EMPTY)
        if file.suffix.lower() == ".zip":
            _check_zip(where, file)
        if name in TEXT_FORMATS and file.suffix.lower() not in COMPRESSED:
            rows = _count_lines(file, data.options.get("encoding"))
            if rows <= (name == "csv" and not data.options.keys() & {"names", "column_names", "header"}):
                raise DataError(f"{where}: {file} has no rows", EMPTY)
            if name == "csv" and data.options.keys() <= PLAIN_CSV:
                _check_csv(file, data.options)
        elif name == "parquet":
            _check_parquet(where, file)
    for state in (Path(data.path, "state.json"), *Path(data.path).glob("*/state.json")):
        if state.is_file() and not _state(state).get("_data_files", True):
            raise DataError(f"{where}: {state.parent} is empty", EMPTY)


def _check_zip(where: str, file: Path) -> None:
    """Raises `DataError` for an archive that has the files of several splits: they would be read as one."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
        stems = {Path(name).stem.lower() for name in names}
        if len(names) > 1 and stems & {"train", "test", "validation", "valid", "val", "dev"}:
            shown = ", ".join(names[:5])
            raise DataError(
                f"{where}: {file} has several files: {shown}", "Unpack it, and name each split's file."
            )


def _state(file: Path) -> dict[str, Any]:
    """The contents of a state.json of `save_to_disk`. Raises `DataError` for a damaged file."""
    with suppress(ValueError):
        state = json.loads(file.read_bytes())
        if isinstance(state, dict):
            return state
    raise DataError(f"{file}: damaged, it should be what save_to_disk writes", "Save the data set again.")


def _check_encoding(where: str, encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except (LookupError, TypeError):
        remedy = "Python's names are utf-8, utf-16, latin-1, cp1252, gb18030 and others."
        raise DataError(f"{where}.options.encoding: there is no {encoding!r}", remedy) from None


def _count_lines(file: Path, encoding: str | None) -> int:
    """The number of lines that are not blank. encoding: None for UTF-8; then raises `DataError` at the first line that
    is not UTF-8."""
    count = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                count += bool((line.decode() if encoding is None else line).strip())
            except UnicodeDecodeError:
                raise DataError(f"{file}:{number}: not UTF-8", _decoding_remedy(file)) from None
    return count


def _decoding_remedy(file: Path) -> str:
    """The remedy for a file that is not UTF-8, by its first bytes."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        return "It is a zip archive or a spreadsheet: export it as csv."
    if start == b"PAR1":
        return "It is parquet: set data.path to parquet."
    if start.startswith(b"\x1f\x8b"):
        return f"It is compressed: give it the name {file.name}.gz."
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
    return (
        f"Convert the file, for instance with iconv -t UTF-8, or set data.options: {{encoding: {encoding}}}."
    )


def _check_csv(file: Path, options: Mapping[str, Any]) -> None:
    """Raises `DataError` where two columns have one name, or a row has not as many fields as the header."""
    form = _form(options)
    delimiter = delimiter_of(str(file), options)
    if len(delimiter) != 1:  # a regular expression
        return
    with file.open(encoding=options.get("encoding") or "utf-8-sig", errors="replace", newline="") as stream:
        try:
            reader = csv.reader(stream, delimiter=delimiter, **form)
            rows = _numbered(reader)
            _, header = next(rows)
            twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
            if twice is not None:
                raise DataError(
                    f"{file}:1: the column name {twice!r} stands twice", "Rename one of the two columns."
                )
            for line, row in rows:
                if len(row) != len(header):
                    raise _wrong_width(
                        file, row, header, first_line=line, last_line=reader.line_num, delimiter=delimiter
                    )
        except (csv.Error, LookupError, TypeError, StopIteration):
            return  # pandas takes such options otherwise than the csv module: loading the data reports the error


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line."""
    start = 1
    for row in reader:
        if len(row) > 1 or (row and row[0].strip()):
            yield start, row
        start = reader.line_num + 1


def _wrong_width(
    file: Path, row: list[str], header: list[str], *, first_line: int, last_line: int, delimiter: str
) -> DataError:
    """The error for a csv row with too few or too many fields."""
    shown = {"\t": "tab", ",": "comma"}.get(delimiter, repr(delimiter))
    cause = f"{file}:{first_line}: {len(row)} fields, the header has {len(header)}: {', '.join(header)}"
    with file.open("rb") as stream:
        raw = next(islice(stream, first_line - 1, None), b"")
    if last_line > first_line or raw.count(b'"') % 2:
        return DataError(
            f"{cause}; the row goes on to line {last_line}" if last_line > first_line else cause,
            f'A quote (") is left open in line {first_line}: close it, or set data.options: {{quoting: 3}} where '
            "quotes are part of the text.",
        )
    if len(row) > len(header):
        remedy = f'Put a field that holds a {shown} into quotes ("…"), or set data.options.delimiter.'
        return DataError(cause, remedy)
    remedy = f"Complete that row, or set data.options.delimiter if a {shown} is not what separates fields."
    return DataError(cause, remedy)


def _check_parquet(where: str, file: Path) -> None:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_metadata(file).num_rows
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{where}: {file} is not parquet: {line_of(error)}", "Write the file again."
        ) from None
    if rows == 0:
        raise DataError(f"{where}: {file} has no rows", EMPTY)


# ---------------------------------------------------------------- json


def broken_json(file: str) -> str | None:
    """The first error of a JSON file, with line and column; None where it is well-formed, compressed or no local file."""
    if not Path(file).is_file() or Path(file).suffix.lower() in COMPRESSED:
        return None
    text = Path(file).read_text(encoding="utf-8-sig", errors="replace")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) < 2 or _syntax(lines[0][1]) is not None:  # one document
        lines = [(1, text)]
    for number, line in lines:
        error = _syntax(line)
        if error is not None:
            return f"{file}:{number + error.lineno - 1}:{error.colno}: {error.msg}"
        if len(lines) > 1 and not line.lstrip().startswith("{"):
            return f"{file}:{number}: {line.strip():.80}: not an object, as the other lines are"
    return None


def _syntax(text: str) -> json.JSONDecodeError | None:
    """The error of `text` where it is not JSON, else None."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", text, 0)
    return None


def line_of(error: BaseException) -> str:
    """An error's message on one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300]
