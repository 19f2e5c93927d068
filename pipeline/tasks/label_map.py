"""A teacher's label space → the task's. Labels match by name, never by index; a declared mapping covers other names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.batch import ABSENT
from pipeline.errors import TeacherError

Groups = tuple[tuple[int, ...], ...]
"""For each of the task's labels, the indices of the teacher's columns that mean it; () where the teacher lacks it."""


def match_label(name: str, names: Iterable[str]) -> str | None:
    """`name` if it is in `names`, else the only one of `names` that differs from it just by case, else None."""
    names = list(names)
    alike = [other for other in names if other.casefold() == name.casefold()]
    return name if name in names else alike[0] if len(alike) == 1 else None


def match_declared(
    declared: Mapping[str, str | None], theirs: Iterable[str], ours: Iterable[str], where: str
) -> dict[str, str | None]:
    """A declared mapping with each name in the spelling of the teacher or the task; an unknown name stays as it is.

    Raises `TeacherError` where two keys are the same label of the teacher.
    """
    theirs, ours = list(theirs), list(ours)
    matched: dict[str, str | None] = {}
    for name, label in declared.items():
        their = match_label(name, theirs) or name
        if their in matched:
            raise TeacherError(
                f"{where}.labels names {their!r} twice, once as {name!r}", "Name each label once."
            )
        matched[their] = None if label is None else match_label(label, ours) or label
    return matched


def label_groups(
    theirs: Mapping[int, str],
    ours: Sequence[str],
    declared: Mapping[str, str | None] | None,
    task: str,
    where: str,
) -> Groups:
    """For each of the task's labels, the indices of the teacher's columns that mean it.

    theirs: the teacher's `id2label` · declared: the teacher's label → the task's, or None for a label that the task
    does not have; it must contain every label of the teacher that the task lacks. Without `declared` both label
    spaces must be equal. Names match exactly, or without case where exactly one name matches.

    Raises `TeacherError`, with `where` and both spaces, for a label that is neither equal nor declared.
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
    meanings = match_declared(declared, names, ours, where)
    unknown = [name for name in meanings if name not in names]
    unknown += [label for label in meanings.values() if label is not None and label not in ours]
    own = {name: _own_meaning(name, names, ours) for name in names if name not in meanings}
    undeclared = [name for name, label in own.items() if label is None]
    if unknown or undeclared:
        what = (
            f"labels names {unknown[0]!r}, which neither has"
            if unknown
            else f"{undeclared[0]!r} is not declared"
        )
        raise TeacherError(f"{differ}; {what}", remedy)
    meanings |= own
    groups: dict[str, list[int]] = {label: [] for label in ours}
    for column, name in theirs.items():
        label = meanings[name]
        if label is not None:
            groups[label].append(column)
    if not any(groups.values()):
        raise TeacherError(f"{differ}; none of them is mapped", remedy)
    return tuple(tuple(groups[label]) for label in ours)


def _own_meaning(name: str, names: Sequence[str], ours: Sequence[str]) -> str | None:
    """The task's label of the same name; ignores case only where the teacher has just one such name."""
    if name in ours:
        return name
    return match_label(name, ours) if sum(n.casefold() == name.casefold() for n in names) == 1 else None


def marginalise(logits: Tensor, groups: Groups, independent: bool = False) -> Tensor:
    """(…, C') logits of a teacher's columns → (…, C) of the task's labels.

    The probabilities of a group's columns are summed (logsumexp). `independent` labels are no distribution: there the
    largest logit of the group counts. A group of one column is that column, bit for bit; an empty group is `ABSENT`.
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
