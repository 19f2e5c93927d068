"""Saved students: scored, copied out."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config.schema import RunConfig, Split
from pipeline.data import load_task
from pipeline.errors import ConfigError
from pipeline.wide_table import Field, WideTable
from students.export import export_onnx
from teachers.teacher import Teacher


def score_student(student: Path, config: RunConfig, split: Split) -> dict[str, dict[str, float]]:
    """Every metric of every task that the student's folder holds, on `split`."""
    found: dict[str, dict[str, float]] = {}
    for name, task_config in config.tasks.items():
        folder = _task_folder(student, config, name)
        data = load_task(name, task_config)
        examples = data.splits[split]
        lengths = config.students[student.name].max_length if student.name in config.students else {}
        answers = Teacher(folder, data.task, max_length=lengths.get(name))  # like any teacher's
        values, _ = answers.label(examples.inputs)
        found[name] = {"examples": len(examples), **data.task.scoring.scores(values.values, examples)}
    return found


def score_table(student: str, split: Split, found: dict[str, dict[str, float]]) -> WideTable:
    """`score_student`'s result for a terminal; kinds differ in their metrics, so it has a line a metric."""
    names = list(dict.fromkeys(name for values in found.values() for name in values))

    def shown(name: str, value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if name == "examples" else f"{value:.4f}"

    fields = [Field("metric", names, words=True, key=True)]
    fields += [
        Field(task, [shown(name, values.get(name)) for name in names]) for task, values in found.items()
    ]
    return WideTable(fields, f"{student} on {split}")


def export_task(student: Path, config: RunConfig, task: str, target: Path, onnx: bool) -> float | None:
    """Copies one task's folder to `target`; with `onnx` returns the ONNX model's largest difference in logits."""
    folder = _task_folder(student, config, task)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--to {target}: not empty", "Give a new folder.")
    shutil.copytree(folder, target, dirs_exist_ok=True)
    if not onnx:
        return None
    return export_onnx(folder, config.tasks[task].declared, target)


def _task_folder(student: Path, config: RunConfig, task: str) -> Path:
    if task not in config.tasks:
        raise ConfigError(f"there is no task {task!r}", f"The run has {', '.join(config.tasks)}.")
    folder = student / task
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"no student in {folder}", "Give a folder like runs/NAME/students/STUDENT, of a finished run."
        )
    return folder
