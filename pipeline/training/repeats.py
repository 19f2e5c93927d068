"""Whether a trained student writes better where it may not repeat itself.

A student of few examples or layers falls into loops in a few texts, and writes the same words until `target_length`. Models that are published for
summaries and speech have `no_repeat_ngram_size` in their generation_config.json for that reason; but a limit also forbids what a text rightly
repeats. Validation decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from pipeline.files import read_object
from pipeline.shown import counted, points
from pipeline.tasks.ctc import FrameHead
from pipeline.tasks.task import Task
from pipeline.tasks.text_faults import loops
from pipeline.tasks.writing import writing_head
from pipeline.training.feed import TaskSet
from pipeline.training.step import Workers, predict
from students.student import MultiTaskStudent

GENERATION = "generation_config.json"
NGRAM = 4
"""The limit that is tried, in tokens."""


class RepeatLimit(TypedDict):
    """What validation showed of a task. ngram: the limit, 0 where it is not better · looping: texts that loop without it · without, limited: scores."""

    ngram: int
    looping: int
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
    """Of the tasks that leave it open and of which a validation text loops, whether a limit scores better there, by task.

    written: (n, 1) what the student writes for the validation splits without a limit, by task. To be called on all workers.
    """
    limits: dict[str, RepeatLimit] = {}
    for one in sets:
        name = one.task.name
        if not chosen_by_validation(one.task):
            continue
        if not (looping := sum(map(loops, written[name].ravel().tolist()))):
            continue
        again = predict(
            student, limited(one.task, NGRAM), one.validation, tokens, workers, tokenizer=one.tokenizer
        )
        metric = one.task.scoring.metric
        without, better = (
            one.task.scoring.scores(texts, one.gold)[metric] for texts in (written[name], again)
        )
        ngram = NGRAM if better > without else 0
        limits[name] = {"ngram": ngram, "looping": looping, "without": without, "limited": better}
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
    tried = (
        f"{job}: {counted(limit['looping'], 'text')} of {task} on validation repeated the same few words; "
        f"where no sequence of {NGRAM} tokens may stand twice its score there is {points(limit['limited'])} instead of {points(limit['without'])}"
    )
    done = (
        "so it writes on test and in its folder"
        if limit["ngram"]
        else "no gain, so it writes without this limit"
    )
    return f"{tried}: {done} (tasks.{task}.generation.no_repeat_ngram)"
