"""What models that write must have in common with their teachers, and with the texts of their tasks: vocabularies, windows, letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.explain import overlay
from pipeline.config.resolved import Resolved
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.errors import ConfigError, Errors, TeacherError
from pipeline.models import vocabulary
from pipeline.tasks import Task
from pipeline.tasks.ctc import FrameHead, spelled
from pipeline.tasks.hearing import speech_head
from pipeline.tasks.listening import listener_of
from pipeline.tasks.writing import writing_head


def teacher_task(config: RunConfig, name: str, task: Task) -> Task:
    """The task as one teacher has it: where the kind writes, with the teacher's own prefix and settings. Raises `ConfigError`."""
    if not task.kind.writes:
        return task
    teacher = config.teachers[name]
    generation = overlay(
        config.tasks[task.name].generation, teacher.generation, ("teachers", name, "generation")
    )
    return replace(task, head=writing_head(task).of_model(teacher.prefix, generation))


def check_vocabularies(
    config: RunConfig,
    resolved: Resolved,
    data: Mapping[str, TaskData],
    *,
    bases: Mapping[str, Path],
    starts: Mapping[str, Path],
    tokenizers: Mapping[Path, Any],
    errors: Errors,
) -> None:
    """Adds an error where a student has a soft loss, or rounds, on texts of a teacher with another vocabulary, or labels frames."""
    in_rounds = config.rounds is not None and config.rounds.share > 0
    for name, student in resolved.students.items():
        for task in student.lengths if in_rounds else sorted(student.soft):
            if task not in data or not data[task].task.kind.writes:
                continue
            own = vocabulary(tokenizers[starts[name]])
            if data[task].task.kind.audio:
                with errors:
                    _check_windows(config, name, data[task].task, tokenizers[starts[name]], tokenizers, bases)
            others = [one for one in config.teachers_of(task) if vocabulary(tokenizers[bases[one]]) != own]
            with errors:
                if others:
                    what = "a soft loss" if task in student.soft else "rounds"
                    drop = "Drop rounds, or give the task a student of the teachers' vocabulary (init_from)."
                    raise ConfigError(
                        f"students.{name}: its vocabulary is not that of {', '.join(others)}: {what} on {task} needs one vocabulary",
                        f"Set students.{name}.loss: {{hard: 1, soft: 0}}: its texts teach it whatever the vocabulary (loss.text)."
                        if task in student.soft
                        else drop,
                    )


def check_spelling(tokenizer: Any, data: TaskData, where: str) -> None:
    """Raises `TeacherError` where a model that labels frames can learn no reference of train: its vocabulary lacks letters of each."""
    if not isinstance(data.task.head, FrameHead):
        return
    texts = [text for text in data.splits["train"].inputs["target"] if text]
    if texts and spelled(tokenizer, texts)[1].all():
        raise TeacherError(
            f"{where}: the vocabulary of {tokenizer.name_or_path} lacks letters or digits of every text of {data.task.name}, such as {texts[0]!r:.60}",
            "Write the texts in its letters, numbers as words, or take another model.",
        )


def check_smoothing(student: str, smoothing: float) -> None:
    """Raises `ConfigError` where the loss of a model that labels frames is to be smoothed."""
    if smoothing:
        raise ConfigError(
            f"students.{student}: a CTC model's loss is of whole texts, which have no label_smoothing",
            f"Set students.{student}.loss.label_smoothing: 0.",
        )


def _check_windows(
    config: RunConfig,
    student: str,
    task: Task,
    tokenizer: Any,
    tokenizers: Mapping[Path, Any],
    bases: Mapping[str, Path],
) -> None:
    """Raises `ConfigError` where a student with a soft loss has a longer window than one of its teachers, or one of the two labels frames, or other frames."""
    own = listener_of(str(tokenizer.name_or_path), speech_head(task).generation.language)
    if own.is_ctc and config.rounds is not None:
        raise ConfigError(
            f"students.{student}: a CTC model labels frames: it writes one text of {task.name}, and draws none for rounds",
            "Drop rounds, or give the task a student of Whisper's architecture.",
        )
    for teacher in config.teachers_of(task.name):
        theirs = speech_head(teacher_task(config, teacher, task)).listener(tokenizers[bases[teacher]])
        what = None
        if theirs.is_ctc != own.is_ctc:
            what = "labels frames" if theirs.is_ctc else "writes by a decoder"
        elif (theirs.rate, theirs.convolutions) != (own.rate, own.convolutions) and own.is_ctc:
            what = "makes other frames of a recording"
        elif theirs.window < own.window:
            what = f"hears {theirs.window:g} s, the student {own.window:g} s"
        if what is not None:
            raise ConfigError(
                f"students.{student}: {teacher} {what}: a soft loss on {task.name} is along the same tokens, or frames, of the same recordings",
                f"Set students.{student}.loss: {{hard: 1, soft: 0}}: its texts teach it whatever its architecture (loss.text).",
            )
