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
from pipeline.errors import ExhaustedError, TutelageError
from pipeline.soft import Soft, SoftTargets, join_soft
from teachers.actor import start
from teachers.spec import TeacherSpec, requested
from teachers.store import Store

CHUNK = 512  # examples a call: 1 ms of overhead to more than a second of work
HIDDEN_CHUNK = 64  # the same where hidden targets come back with it: hundreds of kilobytes an example
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
    """One actor. ready: the start that is waited for, None once it has started · calls: position of the chunk by call ·
    last_result: `time.monotonic` of its latest result or, before any, of its start or first waiting call."""

    actor: ActorHandle[Any]
    ready: ray.ObjectRef[int] | None
    calls: dict[ray.ObjectRef[Any], int] = field(default_factory=dict)
    last_result: float = field(default_factory=time.monotonic)


class TeacherPool:
    """The replicas of one teacher, open for one `map`, or from `open` to `close` for any number of `run`s.

    A replica that dies, or returns nothing for `timeout_s`, is replaced and its calls are made again. After more than
    `restarts` replacements, or when no replica starts within `timeout_s`, `ExhaustedError` names the teacher.
    """

    def __init__(self, spec: TeacherSpec, replicas: int) -> None:
        self.spec, self.restarts = spec, 0
        self._wanted = replicas
        self._replicas: list[_Replica] = []

    def map(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        """(position, what is labelled) of each chunk, in the order in which they are done."""
        try:
            self.open(min(self._wanted, len(chunks)))
            yield from self.run(chunks)
        finally:
            self.close()

    def open(self, replicas: int) -> None:
        """Starts replicas; does not wait for them."""
        self._replicas = [self._start() for _ in range(replicas)]

    def close(self) -> None:
        """Ends the replicas."""
        for replica in self._replicas:
            ray.kill(replica.actor)
        self._replicas = []

    def run(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        """As `map`, on open replicas, which stay open."""
        waiting = deque(range(len(chunks)))
        done = 0
        while done < len(chunks):
            self._submit(waiting, chunks)
            for position, result in self._collect(waiting):
                done += 1
                yield position, result
            self._check_time(waiting)

    def _start(self) -> _Replica:
        actor = start(self.spec)
        return _Replica(actor, actor.ready.remote())

    def _submit(self, waiting: deque[int], chunks: Sequence[Chunk]) -> None:
        """Gives every ready replica up to `in_flight` calls."""
        for depth in range(self.spec.serving.in_flight):
            for replica in self._replicas:
                if replica.ready is None and len(replica.calls) <= depth and waiting:
                    if not replica.calls:
                        replica.last_result = time.monotonic()
                    position = waiting.popleft()
                    replica.calls[replica.actor.label.remote(chunks[position])] = position

    def _collect(self, waiting: deque[int]) -> Iterator[tuple[int, Labelled]]:
        """Waits up to a second for results and yields them; replaces replicas that died."""
        owners = {ref: replica for replica in self._replicas for ref in replica.calls}
        owners |= {replica.ready: replica for replica in self._replicas if replica.ready is not None}
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
                raise self._explain(error) from None
            replica.last_result = time.monotonic()
            if ref == replica.ready:
                replica.ready = None
            else:
                yield replica.calls.pop(ref), result

    def _check_time(self, waiting: deque[int]) -> None:
        limit, now = self.spec.serving.timeout_s, time.monotonic()
        for replica in [r for r in self._replicas if r.calls and now - r.last_result > limit]:
            self._replace(replica, waiting, f"no answer for {limit:g} s")
        starting = all(replica.ready is not None for replica in self._replicas)
        if starting and now - max(replica.last_result for replica in self._replicas) > limit:
            raise ExhaustedError(
                f"teacher {self.spec.name}: no replica started within {limit:g} s; one needs "
                f"{_shown(requested(self.spec.serving))}, the cluster has {_shown(ray.cluster_resources())}",
                f"Add nodes, or lower teachers.{self.spec.name}.serving; what is labelled is kept.",
            )

    def _replace(self, replica: _Replica, waiting: deque[int], reason: str) -> None:
        self.restarts += 1
        if self.restarts > self.spec.serving.restarts:
            raise ExhaustedError(
                f"teacher {self.spec.name}: replica lost for the {self.restarts}. time: {reason}",
                f"See the node's memory, or raise teachers.{self.spec.name}.serving.restarts; what is labelled is kept.",
            )
        ray.kill(replica.actor)
        waiting.extendleft(sorted(replica.calls.values(), reverse=True))
        self._replicas[self._replicas.index(replica)] = self._start()

    def _explain(self, error: RayTaskError) -> TutelageError:
        cause = error.cause
        if isinstance(cause, TutelageError):
            return cause
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


class Room:
    """The cluster's free resources. A pool enters only when its replicas fit, so that its time-outs do not include
    the wait for other pools."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._free = dict(resources)
        self._inside = 0
        self._changed = threading.Condition()

    def enter(self, request: Mapping[str, float], count: int) -> int:
        """Waits until one replica fits; returns how many of `count` replicas do.

        A replica that does not fit the empty cluster enters when no other pool is inside: an autoscaler may add
        nodes, or the pool's time-out names the missing resources.
        """
        with self._changed:
            while (fitting := self._fitting(request, count)) == 0 and self._inside:
                self._changed.wait()
            admitted = max(1, fitting) if fitting or not self._autoscaled(request) else count
            self._take(request, admitted, +1)
            return admitted

    def leave(self, request: Mapping[str, float], count: int) -> None:
        """Frees the resources of `count` replicas."""
        with self._changed:
            self._take(request, -count, -1)
            self._changed.notify_all()

    def _fitting(self, request: Mapping[str, float], count: int) -> int:
        rooms = [int((self._free.get(name, 0) + 1e-6) / amount) for name, amount in request.items() if amount]
        return max(0, min([count, *rooms]))

    def _autoscaled(self, request: Mapping[str, float]) -> bool:
        """Whether the cluster lacks a requested resource altogether: only an autoscaler can add it."""
        return any(amount and name not in self._free for name, amount in request.items())

    def _take(self, request: Mapping[str, float], count: int, pools: int) -> None:
        for name, amount in request.items():
            self._free[name] = self._free.get(name, 0) - amount * count
        self._inside += pools


def fill_store(
    specs: Sequence[TeacherSpec],
    examples: Mapping[str, Sequence[Examples]],
    store: Store,
    on_progress: Callable[[str, int, int], None] = lambda teacher, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    hidden: Mapping[str, Sequence[Examples]] = MappingProxyType({}),
) -> dict[str, Labelling]:
    """Computes the soft targets that the store lacks, of each teacher for its task's `examples`; returns what it did,
    by teacher. Pools run at the same time where they fit the cluster.

    hidden: those of the examples, by task, of which hidden targets are wanted as well, from teachers that have any. An
    example that lacks one or both goes through the teacher once.

    `on_progress` gets (teacher, examples labelled, examples to label) from several threads. Once `should_stop`
    returns true, the soft targets computed so far are stored and no more are computed. Raises the first error of any
    teacher, after the other teachers have stored theirs.
    """
    room = Room(ray.cluster_resources())
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
                room=room,
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
    room: Room,
    on_progress: Callable[[str, int, int], None],
    should_stop: Callable[[], bool],
) -> Labelling:
    texts = {name: [text for split in splits for text in split.inputs[name]] for name in spec.fields}
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
    chunks = length_sorted_chunks(texts, rows, CHUNK if spec.hidden is None else min(CHUNK, HIDDEN_CHUNK))
    inputs = [{name: [column[i] for i in chunk] for name, column in texts.items()} for chunk in chunks]
    request = requested(spec.serving)
    replicas = room.enter(request, min(spec.serving.replicas, len(chunks)))
    labelling = Labelling()
    shards = {key: _ShardWriter(store, key, spec.name, keys, texts) for key in lacking}
    pool = TeacherPool(spec, replicas)
    results = pool.map(inputs)
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
        room.leave(request, replicas)
        labelling.restarts = pool.restarts
    return labelling


def length_sorted_chunks(
    texts: Mapping[str, Sequence[Any]], rows: NDArray[np.int64], size: int
) -> list[NDArray[np.int64]]:
    """`rows` (n,) by descending text length, cut into chunks of `size`: a chunk's texts are of similar length, and
    the longest come first, so that the last calls are short. texts: by field, of all rows."""
    lengths = np.array([sum(_characters(column[i]) for column in texts.values()) for i in rows])
    ordered = rows[np.argsort(-lengths, kind="stable")]
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _characters(field: str | Sequence[str]) -> int:
    return len(field) if isinstance(field, str) else sum(map(len, field)) + len(field)


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
            fields = (column[rows[row]] for column in self._texts.values())
            return " | ".join((field if isinstance(field, str) else " ".join(field))[:80] for field in fields)

        self._store.append(self._key, SoftTargets(self._keys[rows], soft), describe, self._teacher)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _shown(resources: Mapping[str, float]) -> str:
    """`2 CPU, 1 GPU`: the resources that are not 0, without memory and Ray's own node markers."""
    amounts = [
        f"{amount:g} {name}"
        for name, amount in resources.items()
        if amount and ":" not in name and name not in ("memory", "object_store_memory")
    ]
    return ", ".join(amounts) or "nothing"
