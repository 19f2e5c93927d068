"""Labelling: starts replicas, sends them examples, limits the calls in flight, replaces replicas, fills the store.

Ray Data's actor pool does much of this, as fast (see benchmarks/README.md). It lacks a time-out for a hanging call,
an error that names the teacher that cannot be served, and soft targets that are on disk within a minute.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from pipeline.batch import Examples
from pipeline.errors import BadTargetsError, ExhaustedError, TutelageError
from pipeline.places import PATIENCE, POLL_S, Patience, Place, Wait
from pipeline.soft import Soft, SoftTargets, join_soft
from pipeline.strings import Strings, joined
from pipeline.tasks.recording import seconds
from teachers.actor import start
from teachers.spec import TeacherSpec, requested
from teachers.store import Store

CHUNK = 512  # examples a call: 1 ms of overhead to more than a second of work
HIDDEN_CHUNK = 64  # the same where hidden targets come back with it: hundreds of kilobytes an example
AUDIO_CHUNK = 32  # recordings: a CPU writes down a window in about a second
SHARD = 8192  # examples a shard of the store, or
SHARD_VALUES = 8_000_000  # numbers, if that is sooner: 16 MB
FLUSH_S = 60.0  # labelled examples are on disk after at most this long
Chunk = Mapping[str, Sequence[Any]]
"""Examples of one call: by field, a text (or words) of each."""
Labelled = tuple[Soft, Soft | None, int]
"""Soft targets of a chunk, its hidden targets if any, and how many of its examples were truncated: see
`Predictor.label`."""


@dataclass(eq=False)
class _Replica:
    """One actor in its place. actor: None until the place is reserved · ready: the start that is waited for, None before and once it
    has started · calls: position of the chunk by call · last_result: `time.monotonic` of its latest result or, before any, of its
    start or first waiting call."""

    place: Place
    actor: ActorHandle[Any] | None = None
    ready: ray.ObjectRef[int] | None = None
    calls: dict[ray.ObjectRef[Any], int] = field(default_factory=dict)
    last_result: float = field(default_factory=time.monotonic)

    @property
    def is_ready(self) -> bool:
        """Whether it takes calls."""
        return self.actor is not None and self.ready is None

    def end(self) -> None:
        """Ends the actor and frees its place."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.place.release()


class TeacherPool:
    """The replicas of one teacher, open for one `map`, or from `open` to `close` for any number of `run`s.

    Each replica starts when the cluster has a place for it, and the ready ones work meanwhile. A replica that dies, raises an error, or returns nothing for
    `timeout_s`, is replaced and its calls are made again. A chunk that raises twice raises `BadTargetsError`, which names its first example. After more than `restarts` replacements, when none of those with a
    place starts within `timeout_s`, or when no node could hold one for as long as `patience` has it, `ExhaustedError` names the teacher.
    """

    def __init__(self, spec: TeacherSpec, replicas: int, patience: Patience = PATIENCE) -> None:
        self.spec, self.restarts = spec, 0
        self._wanted, self._patience = replicas, patience
        self._replicas: list[_Replica] = []
        self._raised: set[int] = set()
        """Positions of the chunks that have raised an error."""

    def map(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        """(position, what is labelled) of each chunk, in the order in which they are done."""
        try:
            self.open(min(self._wanted, len(chunks)))
            yield from self.run(chunks)
        finally:
            self.close()

    def open(self, replicas: int) -> None:
        """Asks for places of replicas; does not wait for them."""
        self._wait = Wait(f"teacher {self.spec.name}", requested(self.spec.serving), replicas, self._patience)
        self._replicas = [self._new() for _ in range(replicas)]

    def close(self) -> None:
        """Ends the replicas."""
        for replica in self._replicas:
            replica.end()
        self._replicas = []

    def run(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        """As `map`, on open replicas, which stay open."""
        waiting = deque(range(len(chunks)))
        done = 0
        while done < len(chunks):
            self._start_placed()
            self._submit(waiting, chunks)
            for position, result in self._collect(waiting, chunks):
                done += 1
                yield position, result
            self._check_time(waiting)

    def _new(self) -> _Replica:
        return _Replica(Place(requested(self.spec.serving)))

    def _start_placed(self) -> None:
        """Starts the replicas that have got their places."""
        for replica in self._replicas:
            if replica.actor is None and replica.place.reserved:
                actor: Any = start(self.spec, replica.place)  # Ray types its methods as if none returned
                replica.actor, replica.ready = actor, actor.ready.remote()
                replica.last_result = time.monotonic()

    def _submit(self, waiting: deque[int], chunks: Sequence[Chunk]) -> None:
        """Gives every ready replica up to `in_flight` calls."""
        for depth in range(self.spec.serving.in_flight):
            for replica in self._replicas:
                if replica.is_ready and len(replica.calls) <= depth and waiting:
                    assert replica.actor is not None, "ready"
                    if not replica.calls:
                        replica.last_result = time.monotonic()
                    position = waiting.popleft()
                    replica.calls[replica.actor.label.remote(chunks[position])] = position

    def _collect(self, waiting: deque[int], chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        """Waits up to a second for results and yields them; replaces replicas that died."""
        owners = {ref: replica for replica in self._replicas for ref in replica.calls}
        owners |= {replica.ready: replica for replica in self._replicas if replica.ready is not None}
        if not owners:  # all wait for their places
            time.sleep(POLL_S)
            return
        finished, _ = ray.wait(list(owners), num_returns=1, timeout=1.0)
        for ref in finished:
            replica = owners[ref]
            if replica not in self._replicas:  # replaced while an earlier result was handled
                continue
            try:
                result = ray.get(ref, timeout=self.spec.serving.timeout_s)
            except (RayActorError, GetTimeoutError) as error:
                self._replace(replica, waiting, _last_line(error))
                continue
            except RayTaskError as error:
                position = replica.calls.get(ref)
                if position is None or isinstance(error.cause, TutelageError) or position in self._raised:
                    raise self._explain(error, None if position is None else chunks[position]) from None
                self._raised.add(
                    position
                )  # it may be the replica: a device may be lost, and every call fails
                self._replace(replica, waiting, _last_line(error))
                continue
            replica.last_result = time.monotonic()
            if ref == replica.ready:
                replica.ready = None
            else:
                yield replica.calls.pop(ref), result

    def _check_time(self, waiting: deque[int]) -> None:
        limit, now = self.spec.serving.timeout_s, time.monotonic()
        for replica in [r for r in self._replicas if r.calls and now - r.last_result > limit]:
            self._replace(replica, waiting, f"no answer for {limit:g} s")
        if waiting_ones := sum(replica.actor is None for replica in self._replicas):
            self._wait.check(waiting_ones)
        starting = [replica.last_result for replica in self._replicas if replica.ready is not None]
        ready = any(replica.is_ready for replica in self._replicas)
        if starting and not ready and now - max(starting) > limit:
            raise ExhaustedError(
                f"teacher {self.spec.name}: no replica started within {limit:g} s on the resources that it asked for",
                f"See the nodes' load and memory, or raise teachers.{self.spec.name}.serving.timeout_s; what is labelled is kept.",
            )

    def _replace(self, replica: _Replica, waiting: deque[int], reason: str) -> None:
        self.restarts += 1
        if self.restarts > self.spec.serving.restarts:
            raise ExhaustedError(
                f"teacher {self.spec.name}: replica lost for the {self.restarts}. time: {reason}",
                f"See the node's memory, or raise teachers.{self.spec.name}.serving.restarts; what is labelled is kept.",
            )
        replica.end()
        waiting.extendleft(sorted(replica.calls.values(), reverse=True))
        self._replicas[self._replicas.index(replica)] = self._new()

    def _explain(self, error: RayTaskError, chunk: Chunk | None) -> TutelageError:
        """The error to raise for one of a replica's start, or for one of a call that has `chunk` as its argument."""
        cause = error.cause
        if isinstance(cause, TutelageError):
            return cause
        if chunk is not None:
            fields = list(chunk.values())
            return BadTargetsError(
                f"teacher {self.spec.name} failed twice on the same {len(fields[0])} examples, "
                f'the first "{_excerpt([column[0] for column in fields])}": {_last_line(error)}',
                "Mend or remove what is wrong with them; what is labelled is kept.",
            )
        return ExhaustedError(
            f"teacher {self.spec.name} failed: {_last_line(error)}",
            "Run again with --debug for the whole traceback.",
        )


@dataclass
class Labelling:
    """What labelling did for one teacher in this run."""

    forwards: int = 0
    """Examples that went through the teacher."""
    truncated: int = 0
    """How many of them lost tokens to max_length."""
    restarts: int = 0
    """Replicas that had to be replaced."""

    def __add__(self, other: Labelling) -> Labelling:
        """What both did together."""
        return Labelling(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def fill_store(
    specs: Sequence[TeacherSpec],
    examples: Mapping[str, Sequence[Examples]],
    store: Store,
    on_progress: Callable[[str, int, int], None] = lambda teacher, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    hidden: Mapping[str, Sequence[Examples]] = MappingProxyType({}),
    patience: Patience = PATIENCE,
) -> dict[str, Labelling]:
    """Computes the soft targets that the store lacks, of each teacher for its task's `examples`; returns what it did,
    by teacher. All pools are open at the same time; their replicas start as the cluster has places for them.

    hidden: those of the examples, by task, of which hidden targets are wanted as well, from teachers that have any. An
    example that lacks one or both goes through the teacher once.

    `on_progress` gets (teacher, examples labelled, examples to label) from several threads. Once `should_stop`
    returns true, the soft targets computed so far are stored and no more are computed. Raises the first error of any
    teacher, after the other teachers have stored theirs.
    """
    failed = threading.Event()

    def fill(spec: TeacherSpec) -> Labelling:
        if should_stop() or failed.is_set():
            return Labelling()
        try:
            return _fill_for_teacher(
                spec,
                examples[spec.task.name],
                hidden[spec.task.name] if spec.hidden else (),
                store=store,
                patience=patience,
                on_progress=on_progress,
                should_stop=lambda: should_stop() or failed.is_set(),
            )
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max_workers=len(specs)) as threads:
        futures = {spec.name: threads.submit(fill, spec) for spec in specs}
    return {name: future.result() for name, future in futures.items()}


def _fill_for_teacher(
    spec: TeacherSpec,
    splits: Sequence[Examples],
    hidden: Sequence[Examples],
    *,
    store: Store,
    patience: Patience,
    on_progress: Callable[[str, int, int], None],
    should_stop: Callable[[], bool],
) -> Labelling:
    texts = {name: joined([split.inputs[name] for split in splits]) for name in spec.fields}
    keys = np.concatenate([split.keys for split in splits])
    wanted = {spec.key: np.ones(len(keys), dtype=np.bool_)}
    if spec.hidden is not None:
        wanted[spec.hidden.key] = np.isin(keys, np.concatenate([some.keys for some in hidden]))
    lacking = {key: np.zeros(len(keys), dtype=np.bool_) for key in wanted}
    for key, some in wanted.items():
        lacking[key][np.flatnonzero(some)[store.missing(key, keys[some])]] = True
    rows = np.flatnonzero(np.logical_or.reduce(list(lacking.values())))
    on_progress(spec.name, 0, len(rows))
    if not len(rows):
        return Labelling()
    audio = spec.task.kind.audio
    size = CHUNK if spec.hidden is None else min(CHUNK, HIDDEN_CHUNK)
    chunks = length_sorted_chunks(texts, rows, min(size, AUDIO_CHUNK) if audio else size, audio=audio)
    labelling = Labelling()
    shards = {key: _ShardWriter(store, key, spec.name, keys, texts) for key in lacking}
    pool = TeacherPool(spec, min(spec.serving.replicas, len(chunks)), patience)
    results = pool.map(_Chunks(texts, chunks))
    try:
        for position, (targets, vectors, truncated) in results:
            chunk = chunks[position]
            for key, part in zip(lacking, (targets, vectors), strict=False):
                lacks = np.flatnonzero(lacking[key][chunk])
                if part is not None and len(lacks):
                    shards[key].add(chunk[lacks], part if len(lacks) == len(chunk) else part.take(lacks))
            labelling.forwards += len(targets)
            labelling.truncated += truncated
            on_progress(spec.name, labelling.forwards, len(rows))
            if should_stop():
                break
    finally:
        results.close()  # type: ignore[attr-defined]
        for writer in shards.values():
            writer.flush()
        labelling.restarts = pool.restarts
    return labelling


@dataclass(frozen=True)
class _Chunks(Sequence[Chunk]):
    """The fields of chunks of rows, each made when it is asked for: all at once are a copy of all texts."""

    texts: Mapping[str, Sequence[Any]]
    rows: Sequence[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return {name: [column[i] for i in self.rows[place]] for name, column in self.texts.items()}


def length_sorted_chunks(
    texts: Mapping[str, Sequence[Any]], rows: NDArray[np.int64], size: int, *, audio: bool = False
) -> list[NDArray[np.int64]]:
    """`rows` (n,) by descending text length, cut into chunks of `size`: a chunk's texts are of similar length, and
    the longest come first, so that the last calls are short. texts: by field, of all rows · audio: whether they are recordings, whose
    lengths are seconds."""
    if audio:
        lengths = seconds([texts["source"][row] for row in rows])
    else:
        lengths = np.sum([_characters(column, rows) for column in texts.values()], axis=0)
    ordered = rows[np.argsort(-lengths, kind="stable")]
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _characters(column: Sequence[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m,) lengths of a column's fields at `rows` (m,): of a text in characters, of words with one more each."""
    if isinstance(column, Strings):
        return column.characters[rows]
    fields = (column[i] for i in rows)
    lengths = [len(one) if isinstance(one, str) else sum(map(len, one)) + len(one) for one in fields]
    return np.array(lengths, dtype=np.int64)


class _ShardWriter:
    """Gathers chunks of one teacher's soft or hidden targets into shards of the store."""

    def __init__(
        self,
        store: Store,
        key: str,
        teacher: str,
        keys: NDArray[np.uint64],
        texts: Mapping[str, Sequence[Any]],
    ) -> None:
        self._store, self._key, self._teacher, self._keys, self._texts = store, key, teacher, keys, texts
        self._rows: list[NDArray[np.int64]] = []
        self._targets: list[Soft] = []
        self._since = time.monotonic()

    def add(self, rows: NDArray[np.int64], targets: Soft) -> None:
        """Adds the soft targets of `rows` (n,). Raises `BadTargetsError` for NaN or Inf, after the earlier chunks are on
        disk."""
        finite = np.isfinite(targets.numbers).all()
        if not finite:
            self.flush()
        self._rows.append(rows)
        self._targets.append(targets)
        full = (
            sum(map(len, self._rows)) >= SHARD or sum(t.numbers.size for t in self._targets) >= SHARD_VALUES
        )
        if full or not finite or time.monotonic() - self._since > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes the gathered soft targets as one shard."""
        self._since = time.monotonic()
        if not self._rows:
            return
        rows, soft = np.concatenate(self._rows), join_soft(self._targets)
        self._rows, self._targets = [], []

        def describe(row: int) -> str:
            return _excerpt([column[rows[row]] for column in self._texts.values()])

        self._store.append(self._key, SoftTargets(self._keys[rows], soft), describe, self._teacher)


def _excerpt(fields: Sequence[str | Sequence[str]]) -> str:
    """The beginning of each field of an example, for an error."""
    return " | ".join((field if isinstance(field, str) else " ".join(field))[:80] for field in fields)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
