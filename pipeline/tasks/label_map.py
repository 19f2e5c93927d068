"""A teacher's label space → the task's: by name, never by index, and by a declared mapping where names differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.batch import ABSENT
from pipeline.errors import TeacherError

Groups = tuple[tuple[int, ...], ...]
"""For each of the task's labels the teacher's columns that mean it; () for a label that the teacher lacks."""


def label_groups(
    theirs: Mapping[int, str],
    ours: Sequence[str],
    declared: Mapping[str, str | None] | None,
    task: str,
    where: str,
) -> Groups:
    """Which of a teacher's columns stand for each of the task's labels.

    theirs: the teacher's `id2label` · declared: the teacher's label → the task's, or None for one that the task
    does not know; every label of the teacher's that the task does not have must stand there. Without
    `declared` both spaces must be the same; case is set aside where names do not match as they stand.

    Raises `TeacherError`, naming `where` and both spaces, for anything that is neither equal nor declared.
    """
    names = list(theirs.values())
    remedy = (
        f"Declare what each of its labels means in {where}.labels, or give its config.json the task's names."
    )
    differ = f"{where}: its labels {names} are not those of task {task}: {list(ours)}"
    if len(set(names)) != len(names):
        raise TeacherError(f"{where}: a label stands twice in {names}", remedy)
    if declared is None:
        for spelt in (str, str.casefold):
            columns = {spelt(name): column for column, name in theirs.items()}
            wanted = [spelt(label) for label in ours]
            if len(columns) == len(names) == len(wanted) and set(columns) == set(wanted):
                return tuple((columns[label],) for label in wanted)
        raise TeacherError(differ, remedy)
    strange = [name for name in declared if name not in names]
    strange += [label for label in declared.values() if label is not None and label not in ours]
    silent = [name for name in names if name not in declared and name not in ours]
    if strange or silent:
        what = (
            f"labels names {strange[0]!r}, which neither has" if strange else f"{silent[0]!r} is not declared"
        )
        raise TeacherError(f"{differ}; {what}", remedy)
    groups: dict[str, list[int]] = {label: [] for label in ours}
    for column, name in theirs.items():
        label = declared.get(name, name) if name in declared else name
        if label is not None:
            groups[label].append(column)
    if not any(groups.values()):
        raise TeacherError(f"{differ}; none of them is mapped", remedy)
    return tuple(tuple(groups[label]) for label in ours)


def marginalise(logits: Tensor, groups: Groups, independent: bool = False) -> Tensor:
    """(…, C') logits of a teacher's columns → (…, C) of the task's labels.

    Of a group's labels the probabilities are summed (logsumexp); `independent` labels, which are no
    distribution, take the group's largest. A group of one is that column, bit for bit; an empty one is `ABSENT`.
    """
    if all(len(group) == 1 for group in groups):
        return logits[..., [group[0] for group in groups]]
    parts = []
    for group in groups:
        some = logits[..., list(group)]
        if not group:
            parts.append(logits.new_full(logits.shape[:-1], ABSENT))
        elif len(group) == 1:
            parts.append(some[..., 0])
        else:
            parts.append(some.amax(dim=-1) if independent else torch.logsumexp(some, dim=-1))
    return torch.stack(parts, dim=-1)
