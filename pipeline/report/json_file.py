"""The text of report.json, group.json and study.json: written from and read into `pipeline.report.schema`'s classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.report.schema import VERSION, Record

File = TypeVar("File", bound=Record)


def to_json(content: Record) -> str:
    """The text of the JSON file."""
    return content.model_dump_json(indent=2) + "\n"


def read(file: Path, layout: type[File]) -> File:
    """The content of a file that `to_json` made.

    Raises `DataError` where the file is missing, cannot be read, or has another version or another layout.
    """
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        if isinstance(content, dict) and (version := content.get("report_version")) != VERSION:
            raise DataError(
                f"{file} has report version {version or 'none'}, this tutelage reads version {VERSION}",
                "The command that made it writes it anew; what is trained already is not trained again.",
            )
        return layout.model_validate_json(text)
    except FileNotFoundError:
        remedy = "Give a run's folder (`runs/<name>`) whose `tutelage train` has finished."
        raise DataError(f"{file}: there is no report", remedy) from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", "Give a file that you may read.") from None
    except ValueError as error:  # not JSON, not UTF-8, not this layout
        raise DataError(
            f"{file} is not a report: {_first(error)}",
            "Leave it out, or delete it and run the command that made it.",
        ) from None


def _first(error: ValueError) -> str:
    """The error in one line; of several validation errors the first."""
    if isinstance(error, ValidationError):
        one, more = error.errors()[0], error.error_count() - 1
        where = ".".join(map(str, one["loc"])) or "the file"
        return f"{where}: {one['msg']}" + (f" (and {more} more)" if more else "")
    return " ".join(f"{type(error).__name__} {error}".split())
