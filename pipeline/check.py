"""What `tutelage check` does before torch is imported, and its summary of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.kinds import DEFAULT_PROBLEM
from pipeline.config.schema import RunConfig
from pipeline.config.view import notes
from pipeline.data.files import check_files, is_local, source_of
from pipeline.errors import Errors
from pipeline.models import resolve
from pipeline.report.group import seed_notes

if TYPE_CHECKING:
    from pipeline.prepare import Inputs

LONGEST_LABELS = 60
"""Characters of a task's labels that the summary shows."""


def check_local_files(config: RunConfig, errors: Errors) -> None:
    """Everything about local files and folders that can be known in a second; `prepare` checks the rest."""
    for name, task in config.tasks.items():
        with errors:
            check_files(f"tasks.{name}.data", task.data)
        if task.data.unlabelled is not None:
            with errors:
                check_files(f"tasks.{name}.data.unlabelled", source_of(task.data.unlabelled))
    models = [(f"teachers.{name}", teacher.model) for name, teacher in config.teachers.items()]
    models += [
        (f"students.{name}", student.model) for name, student in config.students.items() if student.model
    ]
    for where, model in models:
        if Path(model).is_dir() or is_local(model):
            with errors:
                resolve(model, None, where)


def summary(config: RunConfig, inputs: Inputs) -> list[str]:
    """Tasks, teachers and students, one a line, then notes."""
    numbers = (
        (len(config.tasks), "task"),
        (len(config.teachers), "teacher"),
        (len(config.students), "student"),
    )
    counted = ", ".join(f"{number} {noun}{'s' if number > 1 else ''}" for number, noun in numbers)
    tasks = []
    for name, data in inputs.data.items():
        own, labels = config.tasks[name], data.task.reading.labels
        kind = own.kind if own.problem == DEFAULT_PROBLEM else f"{own.kind} ({own.problem})"
        sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in data.splits.items())
        shown = textwrap.shorten(", ".join(labels), LONGEST_LABELS, placeholder=" …")
        tasks.append(("task", name, kind, sizes, f"{len(labels)} labels: {shown}" if labels else ""))
    waiting = set(inputs.to_fine_tune())
    teachers = [
        (
            "teacher",
            name,
            f"of {teacher.task}",
            teacher.model,
            "to be fine-tuned" if name in waiting else "ready",
        )
        for name, teacher in config.teachers.items()
    ]
    students = [
        ("student", name, f"from {student.init_from or student.model}", _layers(student.layers))
        for name, student in config.students.items()
    ]
    lines = [f"run {config.name}: {counted}"]
    for rows in (tasks, teachers, students):
        lines += aligned(rows)
    lines += [f"note: {note}" for data in inputs.data.values() for note in data.notes]
    return lines + [f"note: {note}" for note in [*seed_notes(config), *notes(config)]]


def _layers(layers: int | Sequence[int] | None) -> str:
    if layers is None:
        return ""
    return (
        f"{layers} layer{'s' if layers > 1 else ''}"
        if isinstance(layers, int)
        else f"layers {', '.join(map(str, layers))}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells one below the other, two blanks between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
