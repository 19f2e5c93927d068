"""Whether a trained student writes without repeating itself.

A student of few examples or layers falls into loops in a few texts, and writes the same words until `target_length`. Models that are published for
summaries and speech have `no_repeat_ngram_size` in their generation_config.json for that reason. But a limit also forbids what a text rightly
repeats. So validation decides. A loop is rare: one may stand in test alone. So the limit is kept where validation does not score lower with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from pipeline.files import read_object
from pipeline.shown import points
from pipeline.tasks.ctc import FrameHead
from pipeline.tasks.task import Task
from pipeline.tasks.writing import writing_head
from pipeline.training.feed import TaskSet
from pipeline.training.step import Workers, predict
from students.student import MultiTaskStudent

GENERATION = "generation_config.json"
NGRAM = 4
"""The limit that is tried, in tokens."""


class RepeatLimit(TypedDict):
    """What validation showed of a task. ngram: the limit, 0 where it scores lower · without, limited: scores."""

    ngram: int
    without: float
    limited: float


def chosen_by_validation(task: Task) -> bool:
    """Whether the config leaves open whether the task's students may repeat themselves: not where texts are drawn at random, or frames are labelled."""
    if not task.kind.writes or isinstance(task.head, FrameHead):
        return False
    generation = writing_head(task).generation
    return generation.no_repeat_ngram is None and generation.temperature is None


def repeat_limits(
    student: MultiTaskStudent,
    sets: Sequence[TaskSet],
    written: Mapping[str, NDArray[Any]],
    tokens: int,
    workers: Workers,
) -> dict[str, RepeatLimit]:
    """Of the tasks that leave it open, whether the student keeps a limit, by task.

    written: (n, 1) what the student writes for the validation splits without a limit, by task. To be called on all workers.
    """
    limits: dict[str, RepeatLimit] = {}
    for one in sets:
        name = one.task.name
        if not chosen_by_validation(one.task):
            continue
        again = predict(
            student, limited(one.task, NGRAM), one.validation, tokens, workers, tokenizer=one.tokenizer
        )
        metric = one.task.scoring.metric
        without, held = (one.task.scoring.scores(texts, one.gold)[metric] for texts in (written[name], again))
        ngram = NGRAM if held >= without else 0
        limits[name] = {"ngram": ngram, "without": without, "limited": held}
    return limits


def limited(task: Task, ngram: int) -> Task:
    """The task as a student writes that repeats no sequence of so many tokens."""
    head = writing_head(task)
    generation = head.generation.model_copy(update={"no_repeat_ngram": ngram})
    return replace(task, head=head.of_model(None, generation))


def as_saved(task: Task, folder: Path) -> Task:
    """The task as the student saved in `folder` writes: with the limit that validation chose for it, where there is one."""
    file = folder / GENERATION
    if not chosen_by_validation(task) or not file.is_file():
        return task
    saved = read_object(file, "Train the student again, or restore its folder.")
    return limited(task, saved.get("no_repeat_ngram_size") or 0)


def repeats_note(job: str, task: str, limit: RepeatLimit) -> str:
    """One line for the report."""
    scores = f"validation {points(limit['limited'])} with this limit, {points(limit['without'])} without"
    kept = "on test and in its folder" if limit["ngram"] else "not kept"
    return f"{job}: no {NGRAM} tokens twice in a text of {task}, {kept}: {scores} (tasks.{task}.generation.no_repeat_ngram)"
