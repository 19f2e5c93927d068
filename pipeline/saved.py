"""Saved students: scoring, export."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config.fields import Split
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.data.splits import load_task
from pipeline.display.wide_table import Field, WideTable
from pipeline.errors import ConfigError
from pipeline.predictor import Predictor
from pipeline.run_folder import STUDENTS
from pipeline.training.jobs import check_saved, is_finished
from pipeline.training.repeats import as_saved
from students.export import export_onnx


def score_student(student: Path, config: RunConfig, split: Split) -> dict[str, dict[str, float]]:
    """By task of the student's folder: the number of ``examples`` of `split`, and every metric on them, as shares."""
    scores: dict[str, dict[str, float]] = {}
    for name in config.tasks_of(student.name) if student.name in config.students else config.tasks:
        folder = _task_folder(student, config, name)
        data = load_task(name, config.tasks[name])
        examples = data.splits[split]
        lengths = config.students[student.name].max_length if student.name in config.students else {}
        own = as_saved(data.task, folder)
        predictions, _ = Predictor(folder, own, max_length=lengths.get(name)).predict(examples.inputs)
        scores[name] = {
            "examples": len(examples),
            **data.task.scoring.scores(predictions.values, examples),
        }
    return scores


def score_table(student: str, split: Split, scores: dict[str, dict[str, float]]) -> WideTable:
    """`score_student`'s result for a terminal. Kinds differ in their metrics, so each metric has a line."""
    names = list(dict.fromkeys(name for values in scores.values() for name in values))

    def shown(name: str, value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if name == "examples" else f"{value:.4f}"

    fields = [Field("metric", names, words=True, key=True)]
    fields += [
        Field(task, [shown(name, values.get(name)) for name in names]) for task, values in scores.items()
    ]
    return WideTable(fields, f"{student} on {split}")


def export_task(student: Path, config: RunConfig, task: str, target: Path, onnx: bool) -> float | None:
    """Copies one task's folder to `target`; with `onnx` returns the ONNX model's largest difference in logits."""
    folder = _task_folder(student, config, task)
    run_dir, job = student.absolute().parent.parent, Job(student.name, "distilled")
    if is_finished(run_dir, job):  # a folder that was moved away from its run is taken as it is
        check_saved(run_dir, job, task)
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
        raise ConfigError(f"no student in {folder}", student_remedy(student))
    return folder


def student_remedy(path: Path) -> str:
    """What to give in place of a path that is not a student's folder: students near it, where there are some."""
    near = [*path.glob(f"{STUDENTS}/*"), *path.glob("*"), *path.parent.glob("*"), path.parent]
    students = [one for one in near if one.parent.name == STUDENTS and one.is_dir()]
    shown = " or ".join(map(str, sorted(set(students))[:3])) or "a folder like runs/NAME/students/STUDENT"
    return f"Give {shown}, of a finished run."
