"""Students of several runs side by side, out of the runs' report.json; nothing is computed anew."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.errors import DataError
from pipeline.report import NOTHING, percent, points, signed

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class Row:
    """One student of one run. Shares, not points; None where the report has none."""

    run: str
    student: str
    score: float
    """Macro: the mean over the run's tasks."""
    supervised: float | None
    retention: float | None
    gap_recovered: float | None
    tasks: dict[str, float]
    """Score by ``<task>/<metric>``."""
    parameters: int | None
    latency_ms: float | None
    """Milliseconds an example."""

    @property
    def delta(self) -> float | None:
        """score − supervised."""
        return None if self.supervised is None else self.score - self.supervised


def load(paths: Sequence[Path] = (), runs_dir: Path = RUNS_DIR) -> list[Row]:
    """Every student of the runs at `paths` (run folders or their report.json), best macro score first.

    Without paths: every run under `runs_dir` that has a report. Raises `DataError` where a report is missing or
    cannot be read, or there is no run at all.
    """
    files = [path / "report.json" if path.is_dir() else path for path in paths]
    if not paths:
        files = sorted(runs_dir.glob("*/report.json"))
        if not files:
            raise DataError(
                f"no finished run under {runs_dir}", "Run `tutelage train RUN.yaml`, or name run folders."
            )
    rows = [row for file in dict.fromkeys(files) for row in _rows(file)]
    return sorted(rows, key=lambda row: (-row.score, row.run, row.student))


def _rows(file: Path) -> list[Row]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Give a run's folder (`runs/<name>`) whose `tutelage train` has finished."
        raise DataError(f"{file}: there is no report", remedy) from None
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}", "Give a run folder that you may read."
        ) from None
    except ValueError as error:  # not JSON, not UTF-8
        raise _corrupt(file, str(error)) from None
    try:
        return [_row(file.absolute().parent.name, name, report) for name in report["macro"]["students"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _corrupt(file, f"{type(error).__name__} {error}") from None


def _row(run: str, student: str, report: dict[str, Any]) -> Row:
    macro = report["macro"]["students"][student]
    size, latency = report["size"].get("students", {}), report["latency_ms"].get("students", {})
    return Row(
        run=run,
        student=student,
        score=float(macro["score"]),
        supervised=_number(macro["supervised"]),
        retention=_number(macro["retention"]),
        gap_recovered=_number(macro["gap_recovered"]),
        tasks={
            f"{name}/{task['metric']}": float(task["students"][student]["score"])
            for name, task in report["tasks"].items()
        },
        parameters=int(size[student]["parameters"]) if student in size else None,
        latency_ms=_number(latency.get(student)),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _corrupt(file: Path, why: str) -> DataError:
    cause = " ".join(why.split())
    return DataError(
        f"{file} is not a report: {cause}", "Leave it out, or delete it and run `tutelage train` again."
    )


# ---------------------------------------------------------------- showing


def table(rows: Sequence[Row]) -> Table:
    """For a terminal. A caption warns where runs differ in tasks, since their macro scores then do not compare."""
    head, body = _cells(rows)
    caption = (
        None if _comparable(rows) else "Runs differ in tasks or metrics: compare task by task, not by macro."
    )
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for index, name in enumerate(head):
        title = Text(name.replace("/", "\n").replace(" ", "\n"), overflow="fold")
        shown.add_column(title, justify="left" if index < 2 else "right", vertical="bottom")
    for line in body:  # Text: names are no markup; a number is cut visibly or not at all
        names = [Text(cell, overflow="fold") for cell in line[:2]]
        shown.add_row(*names, *(Text(cell, no_wrap=True, overflow="ellipsis") for cell in line[2:]))
    return shown


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table, in points and percent."""
    head, body = _cells(rows)
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return text if _comparable(rows) else text + "\nRuns differ in tasks or metrics: compare task by task.\n"


def to_csv(rows: Sequence[Row]) -> str:
    """CSV with every digit; scores as shares, empty where there is none."""
    tasks = _tasks(rows)
    macros = ("score", "supervised", "delta", "retention", "gap_recovered")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "student", *(f"macro/{name}" for name in macros), *tasks, "parameters", "latency_ms"]
    )
    for row in rows:
        macro = [getattr(row, name) for name in macros]
        scores = [row.tasks.get(task) for task in tasks]
        writer.writerow([row.run, row.student, *macro, *scores, row.parameters, row.latency_ms])
    return text.getvalue()


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines as people read them."""
    tasks = _tasks(rows)
    head = ["run", "student", "macro", "supervised", "Δ points", "retention", "gap recovered", *tasks]
    body = []
    for row in rows:
        line = [row.run, row.student, points(row.score)]
        line.append(NOTHING if row.supervised is None else points(row.supervised))
        line.append(NOTHING if row.delta is None else signed(row.delta))
        line += [percent(row.retention), percent(row.gap_recovered)]
        line += [points(row.tasks[task]) if task in row.tasks else NOTHING for task in tasks]
        line.append(NOTHING if row.parameters is None else f"{row.parameters / 1e6:.1f}M")
        line.append(NOTHING if row.latency_ms is None else f"{row.latency_ms:.2f}")
        body.append(line)
    return [*head, "parameters", "ms an example"], body


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(task for row in rows for task in row.tasks))


def _comparable(rows: Sequence[Row]) -> bool:
    return len({frozenset(row.tasks) for row in rows}) < 2
