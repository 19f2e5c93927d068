"""Upkeep of the store: what it holds and for which runs, verification, compaction, and removal of what no run needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.display.wide_table import Field, WideTable
from pipeline.errors import LockedError
from pipeline.run_folder import CONFIG, locked
from pipeline.soft import Candidates, Layer, Space, Vocabulary
from teachers.store import Holding, Store


def holdings(store: Store) -> list[Holding]:
    """What the store has, by name of task and teacher; no shard is read."""
    every = [store.holding(teacher) for teacher in store.teachers()]
    return sorted(
        every, key=lambda one: (*(str(one.facts.get(name, "")) for name in ("task", "teacher")), one.teacher)
    )


def runs_of(holding: Holding) -> list[Path]:
    """The run folders that read the teacher's targets and are there."""
    folders = [Path(run_dir) for run_dir, _ in holding.users]
    return sorted(folder for folder in folders if (folder / CONFIG).is_file())


def is_needless(holding: Holding) -> bool:
    """Whether no run needs the teacher's targets: runs have read them, all on this machine, and none of them is there any more.

    Targets that no run is known to have read may be those of a run of an earlier version.
    """
    here = all(machine == platform.node() for _, machine in holding.users)
    return bool(holding.users) and here and not runs_of(holding)


def urls_of(holding: Holding) -> list[str]:
    """The URLs of the runs behind URLs that have read the teacher's targets. They count as there: access to them may be missing here."""
    return sorted(run_dir for run_dir, machine in holding.users if not machine)


@contextmanager
def unread(held: Sequence[Holding], sure: bool = False) -> Iterator[None]:
    """Locks the folders of all runs that read the targets. Raises `LockedError` where one of them is running, or
    is behind a URL and the user is not `sure` that it is not."""
    urls = sorted({url for one in held for url in urls_of(one)})
    if urls and not sure:
        raise LockedError(
            f"{urls[0]} reads these targets, and may be under way on another machine",
            "Make sure that it is not, then pass --yes.",
        )
    with ExitStack() as stack:
        for folder in sorted({folder for one in held for folder in runs_of(one)}):
            stack.enter_context(locked(folder))
        yield


def table(held: Sequence[Holding]) -> WideTable:
    """What the store has, for a terminal."""

    def fact(name: str) -> list[str]:
        return [str(one.facts.get(name, "")) for one in held]

    return WideTable(
        [
            Field("fingerprint", [one.teacher for one in held], words=True, key=True),
            Field("task", fact("task"), words=True),
            Field("teacher", fact("teacher"), words=True),
            Field("targets", [_shown(one.space) for one in held], words=True),
            Field("examples", [f"{one.examples:,}" for one in held]),
            Field("shards", [f"{one.shards:,}" for one in held]),
            Field("MB", [f"{one.size / 1e6:,.1f}" for one in held]),
            Field("runs", [_users(one) for one in held], words=True),
        ]
    )


def _shown(space: Space | None) -> str:
    match space:
        case None:
            return "none yet"
        case Layer():
            return f"hidden states, layer {space.index}"
        case Vocabulary():
            return "tokens"
        case Candidates():
            return f"texts, {space.count} a source"
        case _:
            return f"logits, {len(space)} columns"


def _users(holding: Holding) -> str:
    names = ", ".join(
        [*(folder.name for folder in runs_of(holding)), *(url.rsplit("/", 1)[-1] for url in urls_of(holding))]
    )
    if names:
        return names
    return "none" if is_needless(holding) else "not known"
