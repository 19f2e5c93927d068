"""Saved students: scored, copied out."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich import box
from rich.table import Table

from pipeline.config import RunConfig, Split
from pipeline.data import load_task
from pipeline.errors import ConfigError
from pipeline.evaluate import scores, softmax
from pipeline.tasks import KINDS
from students.export import export_onnx
from teachers.teacher import Teacher


def score_student(student: Path, config: RunConfig, split: Split) -> dict[str, dict[str, float]]:
    """Every metric of every task that the student's folder holds, on `split`."""
    found: dict[str, dict[str, float]] = {}
    for name, task_config in config.tasks.items():
        folder = _task_folder(student, config, name)
        data = load_task(name, task_config)
        examples = data.splits[split]
        logits, _ = Teacher(folder, data.task).label(
            examples.inputs
        )  # a saved student answers like any teacher
        found[name] = {"examples": len(examples), **scores(softmax(logits), examples.labels)}
    return found


def score_table(student: str, split: Split, found: dict[str, dict[str, float]]) -> Table:
    """`score_student`'s answer for a terminal."""
    table = Table(title=f"{student} on {split}", box=box.SIMPLE_HEAD)
    table.add_column("task")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    for task, values in found.items():
        table.add_row(
            task, *(f"{v:,.0f}" if name == "examples" else f"{v:.4f}" for name, v in values.items())
        )
    return table


def export_task(student: Path, config: RunConfig, task: str, target: Path, onnx: bool) -> float | None:
    """Copies one task's folder to `target`; with `onnx` returns the ONNX model's largest difference in logits."""
    folder = _task_folder(student, config, task)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--to {target}: not empty", "Give a new folder.")
    shutil.copytree(folder, target, dirs_exist_ok=True)
    if not onnx:
        return None
    kind = KINDS[config.tasks[task].kind]
    return export_onnx(folder, kind.model_class(), target)


def _task_folder(student: Path, config: RunConfig, task: str) -> Path:
    if task not in config.tasks:
        raise ConfigError(f"there is no task {task!r}", f"The run has {', '.join(config.tasks)}.")
    folder = student / task
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"no student in {folder}", "Give a folder like runs/NAME/students/STUDENT, of a finished run."
        )
    return folder
