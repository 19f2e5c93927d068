"""The queue between training and MLflow: points wait in files, and a ledger records which ones have been sent.

This module does not use MLflow; `pipeline.tracking.tracker` sends the points.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

from pipeline.errors import ExhaustedError
from pipeline.files import write_atomically

log = logging.getLogger(__name__)

Rename = Callable[[str], str]


class Point(NamedTuple):
    """One value of one metric at one step."""

    metric: str
    value: float
    step: int
    time_ms: int


@dataclass
class Record:
    """What has been sent to MLflow for one run."""

    run_id: str
    followed: dict[str, int] = field(default_factory=dict)
    """Last step sent from followed files, by metric."""
    direct: dict[str, float] = field(default_factory=dict)
    """Values logged directly, not from a file, by `metric@step`."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """Logged models by name: model id, digest of the folder, status."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of the data sets logged, by name."""


class ViewRecord(TypedDict):
    """A saved view of the experiment that was sent. digest: of its contents."""

    title: str
    charts: bool
    digest: str


class Ledger:
    """`mlflow.json`: what has been sent to MLflow from this run folder. Another store or experiment starts empty."""

    def __init__(self, file: Path, uri: str, experiment: str) -> None:
        self.file = file
        self.place = {"uri": uri, "experiment": experiment}
        self.mark = uuid.uuid4().hex
        self.experiment_id: str | None = None
        self.runs: dict[str, Record] = {}
        self.views: dict[str, ViewRecord] = {}
        """Saved views of the experiment, by key."""
        self._saved = ""
        try:
            data = json.loads(file.read_text("utf-8"))
            if {name: data[name] for name in self.place} == self.place:
                self.runs = {key: Record(**record) for key, record in data["runs"].items()}
                self.mark = str(data["mark"])
                self.experiment_id = data.get("experiment_id")
                self.views = dict(data.get("views", {}))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s); MLflow gets new runs.", file, error)

    def save(self) -> None:
        """Write the file atomically if anything changed."""
        runs = {key: asdict(record) for key, record in self.runs.items()}
        known = {
            **self.place,
            "experiment_id": self.experiment_id,
            "mark": self.mark,
            "views": self.views,
            "runs": runs,
        }
        text = json.dumps(known, indent=1)
        if text == self._saved:
            return
        self._saved = text
        try:
            write_atomically(self.file, text)
        except (OSError, ExhaustedError) as error:
            log.warning(
                "%s cannot be written (%s); a resumed command may get new MLflow runs.", self.file, error
            )


class Tail:
    """Reads a growing text file in pieces; starts again from the first line after the file was cut or rewritten.

    rename: the name in MLflow of a metric in the file.
    """

    def __init__(self, key: str, file: Path, rename: Rename = str) -> None:
        self.key, self.file, self.rename = key, file, rename
        self._offset, self._last = 0, b""

    def read(self) -> list[bytes]:
        """The next complete lines, at most about a megabyte; none where the file cannot be read now."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self._offset - len(self._last))
                if stream.read(len(self._last)) != self._last:
                    self._offset, self._last = 0, b""
                    stream.seek(0)
                lines = stream.readlines(1 << 20)
        except OSError:
            return []
        return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]

    def advance(self, lines: Sequence[bytes]) -> None:
        """Mark `lines`, as returned by `read`, as done."""
        self._offset, self._last = self._offset + sum(map(len, lines)), lines[-1]

    def read_all(self) -> Iterator[bytes]:
        """Every complete line that is not done."""
        while lines := self.read():
            yield from lines
            self.advance(lines)


def unsent(lines: Iterable[bytes], sent: Mapping[str, int], rename: Rename = str) -> tuple[list[Point], int]:
    """The points in `lines` after the last step `sent` of their metric, and the number of lines that are not metrics.

    sent: by name in MLflow, which `rename` gives.
    """
    last, points, broken = dict(sent), [], 0
    for line in lines:
        try:
            record = json.loads(line)
            step, time_ms = int(record["step"]), int(record["time"] * 1000)
            values = {rename(metric): float(value) for metric, value in record["metrics"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            broken += 1
            continue
        for metric, value in values.items():
            if step > last.get(metric, -1):
                points.append(Point(metric, value, step, time_ms))
                last[metric] = step
    return points, broken
