"""The tasks that a student learns: encoded examples with the targets that its teachers have stored, or give step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.config.resolved import (
    TaskAggregation,
)
from pipeline.config.schema import Strategy, needs_labels
from pipeline.data.splits import TaskData
from pipeline.models import vocabulary
from pipeline.soft import TargetSource
from pipeline.tasks.ctc import FrameHead
from pipeline.tasks.skill import relative_losses, skill
from pipeline.training.feed import TaskSet
from pipeline.training.hidden import HiddenMatch
from pipeline.training.kept import Kept
from pipeline.training.live import LiveTeachers
from pipeline.training.own import OWN, with_own_teacher, with_own_texts
from pipeline.training.plan import Plan
from pipeline.training.step import Aggregation
from pipeline.training.tokenizer import trained_tokenizer
from pipeline.training.written import written_texts
from teachers.ensemble import ensemble_values, stored_predictions
from teachers.store import Store


def task_sets(
    plan: Plan,
    folder: Path,
    student: str,
    store: Store | None,
    kept: Kept | None = None,
    live: LiveTeachers | None = None,
) -> list[TaskSet]:
    """Every task that the student learns, encoded by the tokenizer in `folder`; with a store also its soft targets and unlabelled examples.

    kept: what earlier calls encoded is taken from it · live: teachers whose targets are not stored; a task has all or none of its teachers among
    them.
    """
    settings, kept, own = plan.students[student], kept or Kept(), plan.before.get(student)
    tasks = [plan.data[name].task for name in settings.lengths]
    tokenizer = kept.get(("tokenizer", folder, *settings.lengths), lambda: trained_tokenizer(folder, tasks))
    sets = []
    for name, length in settings.lengths.items():
        data = plan.data[name]
        if store is None:
            sets.append(TaskSet.of(data, tokenizer, length, kept=kept))
            continue
        train, resolved = data.splits["train"], plan.aggregations[name]
        if data.task.kind.writes:
            keys = {teacher: plan.teacher_keys[teacher] for teacher in resolved.weights}
            written = written_texts(data, keys, resolved, settings.loss.tasks[name].text, store)
            if own is not None and name in own.keys:
                written = with_own_texts(written, data, own.keys[name], own.share, store)
            soft = name in settings.soft
            one = TaskSet.of(data, tokenizer, length, kept=kept, written=written, keyed=soft)
            sets.append(with_tokens(one, plan, store) if soft else one)
            continue
        counts, sources = data.task.reading.counts(train.inputs), list[TargetSource]()
        together = resolved
        if live is not None and name in live.tasks:
            sources += [live.sources[teacher] for teacher in resolved.weights]
        else:
            keys = dict(plan.teacher_keys)
            if own is not None and name in own.keys:
                together, keys[OWN] = with_own_teacher(resolved, own.share), own.keys[name]
            sources += [
                store.view(keys[teacher], train.keys, data.task.head.columns, counts)
                for teacher in together.weights
            ]
        aggregation = Aggregation(together.strategy, torch.tensor(list(together.weights.values())))
        hidden = settings.hidden
        one = TaskSet.of(data, tokenizer, length, sources, aggregation, words=hidden, kept=kept)
        if settings.train.task_focus is not None:
            keys = {teacher: plan.teacher_keys[teacher] for teacher in resolved.weights}
            one = replace(one, ensemble_skill=ensemble_skill(data, keys, resolved, store))
        sets.append(with_hidden(one, plan, store) if hidden else one)
    return sets


def with_tokens(task_set: TaskSet, plan: Plan, store: Store) -> TaskSet:
    """The task with the token targets of its teachers along the texts that it may draw."""
    texts = task_set.texts
    assert texts is not None, "of a kind that writes"
    assert texts.keys is not None, "made with keys"
    resolved, there = plan.aggregations[task_set.task.name], texts.tokens.counts > 0
    space, counts, head = vocabulary(task_set.tokenizer), texts.tokens.counts, task_set.task.head
    if isinstance(head, FrameHead):
        rate = head.listener(task_set.tokenizer).rate
        counts = np.resize(head.frames(task_set.examples.inputs["source"], rate), len(counts))
    sources = [
        store.view(plan.tokens[teacher].key, texts.keys[there], space, counts[there])
        for teacher in resolved.weights
    ]
    # of distributions there is no consensus; of an own text no teacher could be the best, and a frame has no label
    unfit = (
        resolved.strategy == "consensus"
        or texts.own
        or (isinstance(head, FrameHead) and needs_labels(resolved.strategy))
    )
    strategy: Strategy = "mean" if unfit else resolved.strategy
    weights = torch.tensor(list(resolved.weights.values()))
    return replace(task_set, sources=sources, aggregation=Aggregation(strategy, weights))


def ensemble_skill(data: TaskData, keys: Mapping[str, str], together: TaskAggregation, store: Store) -> float:
    """The skill of a task's teachers together on validation. keys: name in the store by teacher."""
    task, examples = data.task, data.splits["validation"]
    teachers = list(stored_predictions(task, examples, keys, store).values())
    counts = task.reading.counts(examples.inputs)
    values = ensemble_values(task, teachers, counts, together.strategy, together.weights)
    return skill(relative_losses(task, values, examples))


def with_hidden(task_set: TaskSet, plan: Plan, store: Store) -> TaskSet:
    """The task with the hidden targets of its teachers for train and validation."""
    train, validation = task_set.train.words, task_set.validation.words
    assert train is not None, "encoded with words"
    assert validation is not None, "encoded with words"
    keys = np.concatenate([task_set.examples.keys, task_set.gold.keys])
    counts = np.concatenate([train.counts, validation.counts])
    weights = plan.aggregations[task_set.task.name].weights
    targets = [plan.hidden[teacher] for teacher in weights]
    sources = [store.view(one.key, keys, one.layer, counts) for one in targets]
    match = HiddenMatch.over(sources, list(weights.values()), task_set.train, task_set.examples)
    return replace(task_set, hidden=match)
