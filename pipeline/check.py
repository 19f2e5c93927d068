"""What `tutelage check` does before torch is imported, and its summary of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.adapters import LoraConfig
from pipeline.config.kinds import DEFAULT_PROBLEM
from pipeline.config.recipe import Reasons, Recipe, TaskLoss
from pipeline.config.resolved import Resolved, StudentStage, student_train
from pipeline.config.schema import RunConfig, StackLayersConfig
from pipeline.config.view import notes
from pipeline.data.files import check_files, is_local, source_of
from pipeline.data.identity import is_read
from pipeline.errors import Errors
from pipeline.models import resolve
from pipeline.report.group import seed_notes
from pipeline.report.rounds import round_notes
from pipeline.shown import counted
from pipeline.urls import open_url

if TYPE_CHECKING:
    from pipeline.prepare import Inputs

LONGEST_LABELS = 60
"""Characters of a task's labels that the summary shows."""


def check_local_files(config: RunConfig, errors: Errors) -> None:
    """Everything about local files and folders that can be known in a second; `prepare` checks the rest."""
    for name, task in config.tasks.items():
        if is_read(name, task):
            continue
        with errors:
            check_files(f"tasks.{name}.data", task.data)
        if task.data.unlabelled is not None:
            with errors:
                check_files(f"tasks.{name}.data.unlabelled", source_of(task.data.unlabelled))
    if config.runs_url is not None:
        with errors:
            open_url(config.runs_url, "runs_dir")
    models = [(f"teachers.{name}", teacher.model) for name, teacher in config.teachers.items()]
    models += [
        (f"tasks.{name}.augment.masked", task.augment.masked.model)
        for name, task in config.tasks.items()
        if task.augment is not None and task.augment.masked is not None
    ]
    models += [
        (f"students.{name}", student.model) for name, student in config.students.items() if student.model
    ]
    for where, model in models:
        if Path(model).is_dir() or is_local(model):
            with errors:
                resolve(model, None, where)


def summary(config: RunConfig, inputs: Inputs) -> list[str]:
    """Tasks, teachers and students, one a line, then what is derived for them, and notes."""
    numbers = (
        (len(config.tasks), "task"),
        (len(config.teachers), "teacher"),
        (len(config.students), "student"),
    )
    size = ", ".join(counted(number, noun) for number, noun in numbers)
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
            _parts(
                "to be fine-tuned" if name in waiting else "ready",
                _adapters(teacher.fine_tune.lora if teacher.fine_tune else None),
            ),
        )
        for name, teacher in config.teachers.items()
    ]
    students = [
        (
            "student",
            name,
            f"from {student.init_from or student.model}",
            _parts(_layers(student.layers), _adapters(student_train(config, name).lora)),
            "" if student.tasks is None else f"of {', '.join(config.tasks_of(name))}",
        )
        for name, student in config.students.items()
    ]
    lines = [f"run {config.name}: {size}"]
    tables: list[Sequence[Sequence[str]]] = [tasks, teachers, students, *_derived(inputs.resolved)]
    for rows in tables:
        lines += aligned(rows)
    lines += [f"note: {note}" for data in inputs.data.values() for note in data.notes]
    lines += [f"note: {note}" for note in _expected_variants(config, inputs)]
    lines += [f"note: {note}" for note in _weaknesses(config, inputs)]
    return lines + [
        f"note: {note}" for note in [*seed_notes(config), *round_notes(config), *notes(inputs.resolved)]
    ]


def _derived(resolved: Resolved) -> tuple[Sequence[Sequence[str]], ...]:
    """Rows on fine-tunings, trainings and losses of which at least one value is derived, with the reasons, and on stages."""
    students = resolved.students
    fine_tunings = [
        ("fine-tune", name, *_training(one.recipe, one.reasons))
        for name, one in resolved.fine_tunings.items()
        if one.reasons
    ]
    trainings = [
        ("train", name, *_training(one.train, one.reasons)) for name, one in students.items() if one.reasons
    ]
    stages = [
        ("stage", f"{number} of {name}", *_stage(stage))
        for name, one in students.items()
        for number, stage in enumerate(one.stages, 1)
    ]
    losses: dict[tuple[str, ...], list[str]] = {}
    for name, one in students.items():
        for task, reasons in one.loss_reasons.items():
            if reasons:
                losses.setdefault(_loss(task, one.loss.tasks[task], reasons), []).append(name)
    rows = [
        ("loss", task if len(names) == len(students) else f"{task} of {', '.join(names)}", *cells)
        for (task, *cells), names in losses.items()
    ]
    return fine_tunings, trainings, stages, rows, _co_training(resolved)


def _co_training(resolved: Resolved) -> Sequence[Sequence[str]]:
    """A row for each teacher that is trained on."""
    together = resolved.co_training
    if together is None:
        return []
    how = "synchronous" if together.max_age == 0 else f"targets at most {together.max_age} steps old"
    return [
        (
            "co-train",
            name,
            f"beside {together.student}",
            how,
            recipe.optimizer,
            f"learning_rate {recipe.learning_rate:g}"
            + "".join(f": {why}" for why in together.reasons[name].values()),
        )
        for name, recipe in together.recipes.items()
    ]


def _training(recipe: Recipe, reasons: Reasons) -> list[str]:
    """The values of a recipe that may be derived, each with its reason if it is."""
    values: dict[str, float | None] = {
        "epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "head_learning_rate": recipe.head_learning_rate,
        "early_stopping.patience": None if recipe.early_stopping is None else recipe.early_stopping.patience,
    }
    return [
        f"{key} {'none' if value is None else f'{value:g}'}{f': {reasons[key]}' if key in reasons else ''}"
        for key, value in values.items()
    ]


def _stage(stage: StudentStage) -> list[str]:
    """A stage's length, learning rates and loss weights; those of tasks that differ one after the other."""
    why = f": {stage.reasons['epochs']}" if "epochs" in stage.reasons else ""
    weights: dict[str, list[str]] = {}
    for task, loss in stage.loss.tasks.items():
        terms = {"hard": loss.hard, "soft": loss.soft, "hidden": loss.hidden}
        shown = " + ".join(f"{value:.3g} {term}" for term, value in terms.items() if value)
        shown += f", beta {loss.beta:.3g}" if loss.beta else ""
        shown += f", text {loss.text:.3g}" if loss.text else ""
        weights.setdefault(shown, []).append(task)
    losses = [
        shown if len(weights) == 1 else f"{shown} ({', '.join(tasks)})" for shown, tasks in weights.items()
    ]
    return [
        f"epochs {stage.epochs}{why}",
        f"learning_rate {stage.learning_rate:g}",
        f"head_learning_rate {stage.head_learning_rate:g}",
        f"loss {'; '.join(losses)}",
        *([] if stage.unfreeze is None else [f"unfreeze {stage.unfreeze}"]),
    ]


def _loss(task: str, loss: TaskLoss, reasons: Reasons) -> tuple[str, ...]:
    """A task's temperature and weights, and the reason for those that are derived."""
    why = dict.fromkeys(reasons.values())
    cells = [f"{key} {getattr(loss, key):.3g}" for key in ("temperature", "hard", "soft")]
    for key in ("hidden", "text"):
        if value := getattr(loss, key):
            cells[-1] += f", {key} {value:.3g}"
    return task, *cells, f"{', '.join(reasons)}: {'; '.join(why)}"


def _expected_variants(config: RunConfig, inputs: Inputs) -> Iterator[str]:
    """Notes on the variants that are still to be made."""
    from pipeline.augment.make import expected_note

    for name, data in inputs.data.items():
        if (augment := config.tasks[name].augment) is not None:
            yield expected_note(name, augment, data)


def _weaknesses(config: RunConfig, inputs: Inputs) -> Iterator[str]:
    """Notes on data that will make results weak, and on texts that models truncate."""
    from pipeline.data.quality import data_notes, truncation_notes
    from pipeline.models import open_tokenizer

    tokenizers = {
        folder: open_tokenizer(folder) for folder in {*inputs.bases.values(), *inputs.starts.values()}
    }
    for name, data in inputs.data.items():
        if not any(name in config.tasks_of(student) for student in config.students):
            yield f"{name}: no student learns it"
        yield from data_notes(data)
        default = data.task.head.max_length
        lengths = {
            f"teacher {teacher}": (
                tokenizers[inputs.bases[teacher]],
                config.teachers[teacher].max_length or default,
            )
            for teacher in config.teachers_of(name)
        }
        lengths |= {
            f"student {student}": (tokenizers[inputs.starts[student]], own.max_length.get(name, default))
            for student, own in config.students.items()
            if name in config.tasks_of(student)
        }
        yield from truncation_notes(data, lengths)


def _adapters(lora: LoraConfig | None) -> str:
    return "" if lora is None else f"by adapters of rank {lora.rank}"


def _parts(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _layers(layers: int | Sequence[int] | StackLayersConfig | None) -> str:
    if layers is None:
        return ""
    if isinstance(layers, StackLayersConfig):
        parts = {"encoder": layers.encoder, "decoder": layers.decoder}
        return ", ".join(f"{name} {_layers(own) or 'whole'}" for name, own in parts.items())
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
