"""JSON files that are one object: columns, rows under a key, and SQuAD's nested form (v1.1 and v2.0)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

LINES = (".jsonl", ".ndjson")
"""Endings of files that have one row a line, whatever their contents."""


def read_document(where: str, file: str, options: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """The columns of a local file that is one JSON object, by name. None for any other file, which `datasets` reads.

    ``field`` of `options` names the key with the rows. Raises `DataError` for an object without recognisable rows.
    """
    document = _object(file, options.get("encoding"))
    if document is None:
        return None
    key = options.get("field")
    if key is not None and key not in document:
        near = difflib.get_close_matches(str(key), document, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(document)}."
        raise DataError(f"{where}.options.field: {file} has no key {key!r}", hint)
    rows = document.get("data") if key is None else document[key]
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "paragraphs" in row for row in rows):
        return _squad(file, rows)
    if isinstance(rows, list) and key is not None:
        return _columns_of_rows(file, str(key), rows)
    columns = _columns(document if key is None else rows)
    if columns is not None or key is not None:
        return columns
    keys = [name for name, value in document.items() if _are_rows(value)]
    if keys:
        cause = f"{where}: {file} is one object with the keys {', '.join(document)}, its rows are under {keys[0]!r}"
        raise DataError(cause, f"Set data.options: {{field: {keys[0]}}}.")
    return None


def _object(file: str, encoding: str | None) -> dict[str, Any] | None:
    """The file's object; None where the file is a list, has one row a line, or is compressed, remote or broken."""
    path = Path(file)
    if not path.is_file() or path.suffix.lower() in LINES:
        return None
    try:
        with path.open(encoding=encoding or "utf-8-sig") as stream:
            first = stream.readline()
            while first and not first.strip():
                first = stream.readline()
            if not first.lstrip().startswith("{"):
                return None
            rest = stream.read()
        if rest.strip() and _is_json(first):  # one row a line
            return None
        document = json.loads(first + rest)
    except (ValueError, LookupError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _columns(document: Any) -> dict[str, list[Any]] | None:
    """Columns of ``{text: [a, b], label: [x, y]}`` or, as pandas writes it, ``{text: {0: a, 1: b}, …}``; else None."""
    if not isinstance(document, dict) or not document:
        return None
    values = list(document.values())
    if all(isinstance(value, dict) for value in values) and all(v.keys() == values[0].keys() for v in values):
        values = [list(value.values()) for value in values]
    if not all(isinstance(value, list) for value in values) or len({len(value) for value in values}) != 1:
        return None
    return dict(zip(document, values, strict=True))


def _columns_of_rows(file: str, key: str, rows: list[Any]) -> dict[str, list[Any]]:
    """Rows as columns, by name; the value is None where a row lacks the column. Raises `DataError` for a row that is no
    object."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}: {key}[{i}] is {row!r:.80}, not an object", "Correct that row.")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _squad(file: str, articles: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """SQuAD's articles → a row a question: id, title, question, context, answers (as on the hub).

    A question with `is_impossible` has no answers. A question with neither `is_impossible` nor `answers` has no label.
    Source: Rajpurkar et al. 2018, the files of https://rajpurkar.github.io/SQuAD-explorer.
    """
    rows: list[dict[str, Any]] = []
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(_list(file, article, "paragraphs", f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            context = _get(file, paragraph, "context", place)
            for k, question in enumerate(_list(file, paragraph, "qas", place)):
                here = f"{place}.qas[{k}]"
                rows.append(
                    {
                        "id": str(question.get("id")) if isinstance(question, dict) else None,
                        "title": article.get("title"),
                        "question": _get(file, question, "question", here),
                        "context": context,
                        "answers": _answers(file, question, here),
                    }
                )
    return _columns_of_rows(file, "data", rows)


def _answers(file: str, question: dict[str, Any], place: str) -> dict[str, list[Any]] | None:
    """``{text: […], answer_start: […]}``; None for a question without a label."""
    if question.get("is_impossible"):
        return {"text": [], "answer_start": []}
    if "answers" not in question:
        return None
    answers = _list(file, question, "answers", place)
    both = [
        (
            _get(file, one, "text", f"{place}.answers[{n}]"),
            _get(file, one, "answer_start", f"{place}.answers[{n}]"),
        )
        for n, one in enumerate(answers)
    ]
    return {"text": [text for text, _ in both], "answer_start": [start for _, start in both]}


def _get(file: str, node: Any, key: str, place: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        raise DataError(f"{file}: {place} has no {key!r}", "Correct that place: it is not SQuAD's form.")
    return node[key]


def _list(file: str, node: Any, key: str, place: str) -> list[Any]:
    value = _get(file, node, key, place)
    if not isinstance(value, list):
        raise DataError(f"{file}: {place}.{key} is no list", "Correct that place: it is not SQuAD's form.")
    return value
