"""The store: each teacher's soft targets on disk, by the content keys of the examples.

::

    <store>/<teacher>/teacher.json         the facts behind the fingerprint, for people to read
    <store>/<teacher>/shard-<hash>.arrow   Arrow IPC: key uint64, ascending, and the columns of `pipeline.soft`:
                                           logits float16[C] (a list of float16 where examples have several
                                           items), or ids, log_probabilities and rest; the schema's metadata
                                           have the columns' names (``labels``), or the ``vocabulary``,
                                           or of hidden targets, a row a word, the ``layer``;
                                           or texts, scores and lengths, a list of ``candidates`` an example
    <store>/<teacher>/shard-<hash>.json    the shard's entry: rows, bytes, checksum, labels, vocabulary or layer, when
                                           written
    <store>/<teacher>/run-<hash>.json      a run folder that reads these targets, and its machine

`teacher` is a fingerprint: a hexadecimal hash of everything that changes the teacher's soft targets. A shard is
written whole, is named by the hash of its bytes and never changes. Its entry is written after it: a shard without an
entry does not exist. No two writers share a file, so any number of processes may append at once without locks. Only
`Store.compact` and `Store.remove` delete what has an entry; `teachers.upkeep` calls them while no run reads the store.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs, ipc

from pipeline.batch import Drawn, flat_index, offsets_of
from pipeline.errors import BadTargetsError, CorruptError
from pipeline.soft import (
    Soft,
    SoftTargets,
    Space,
    check_space,
    soft_from_arrow,
    space_fields,
    space_of,
)
from teachers.store_files import StoreFiles

logger = logging.getLogger(__name__)

LABEL_AGAIN = "Label again: only what is missing is computed."
ORPHAN_AGE_S = 24 * 3600
"""Seconds after which a shard without an entry, or a temporary file, belongs to a dead writer and is deleted."""

COMPACTED = 64_000_000
"""Bytes of a shard after `Store.compact`."""

_USER = re.compile(r"run-[0-9a-f]{16}\.json")
_ENTRY = re.compile(r"(shard-[0-9a-f]{32})\.json")
_UNFINISHED = re.compile(r"(shard-[0-9a-f]{32})\.arrow|.+\.tmp")


class Store:
    """Soft targets of any number of teachers, in a local folder or behind a file system URL.

    path: a folder, or a URL that `pyarrow.fs.FileSystem.from_uri` opens (``file:///``, ``s3://``, ``gs://``,
    ``fsspec+…://``) · cache: where shards of a store that is not local are copied, once, to be memory-mapped;
    by default a folder of its own under ``$XDG_CACHE_HOME/tutelage`` (``~/.cache/tutelage``) · filesystem: an
    open pyarrow file system, for what no URL can express; `path` is then a path on it.

    Raises `ConfigError` where pyarrow cannot open the URL. Nothing is read or written before the first call.
    """

    def __init__(self, path: str, cache: Path | None = None, filesystem: fs.FileSystem | None = None) -> None:
        self._files = StoreFiles(path, cache, filesystem)
        self._entries: dict[str, dict[str, _Entry]] = {}  # teacher → shard name → entry, of the last listing
        self._shards: dict[str, dict[str, _Shard]] = {}  # teacher → shard name → opened and verified
        self._indexes: dict[str, Stored] = {}

    def missing(self, teacher: str, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(m,) int64, ascending: the rows of `keys` (n,) without soft targets, the first one of equal keys.

        Includes what other processes have appended by now. Keys of a corrupt shard are missing.
        """
        distinct, first = np.unique(np.asarray(keys, dtype=np.uint64), return_index=True)
        missing = self._index(teacher).positions(distinct) < 0
        return np.sort(first[missing]).astype(np.int64)

    def append(
        self,
        teacher: str,
        targets: SoftTargets,
        excerpt: Callable[[int], str] | None = None,
        name: str | None = None,
    ) -> None:
        """Write `targets` as one shard: all of it or, on any error, none. Best with thousands of rows.

        Of equal keys the first is kept. `excerpt` (row of `targets` → the example's text) and `name` (of the
        teacher, in the config) are for the errors.

        Raises `BadTargetsError` on NaN, Inf or a number beyond float16; `TeacherError` where the stored shards
        have other columns, or another vocabulary; `ExhaustedError` when the disk is full.
        """
        storable = _storable(targets, excerpt, f"{name} ({teacher})" if name else teacher)
        entries, listing = self._refresh(teacher)
        for stored in entries.values():
            check_space(teacher, stored.space, targets.soft.space)
        if len(targets) == 0:
            return
        self._sweep(teacher, listing)
        data, entry = _encode(storable)
        if entry.shard not in entries or self._open(teacher, entries[entry.shard]) is None:
            self._write(teacher, data, entry)

    def view(
        self,
        teacher: str,
        keys: NDArray[np.uint64],
        space: Space | None,
        counts: NDArray[np.int64] | None = None,
    ) -> Stored:
        """All soft targets of the teacher, which include those of `keys` (n,), ready to be read by batch.

        `space`: the columns that the reader has, in its order, or its vocabulary; None for any · counts: (n,) items that each
        example has, 1 each where not given. Everything is checked here, once. Later appends do not change the result.

        Raises `CorruptError` if a key is missing, or has another number of items, and `TeacherError` if a
        shard's space is not `space`.
        """
        index = self._index(teacher)
        if space is not None:
            for shard in index.shards:
                check_space(teacher, shard.soft.space, space)
        positions = index.positions(keys)
        missing = int(np.count_nonzero(positions < 0))
        if missing:
            raise CorruptError(
                f"the store {self._files.shown} lacks {missing} of {len(keys)} targets of teacher {teacher}",
                LABEL_AGAIN,
            )
        expected = np.ones(len(keys), dtype=np.int64) if counts is None else counts
        wrong = int(np.count_nonzero(index.counts[positions] != expected))
        if wrong:
            raise CorruptError(
                f"{wrong} of {len(keys)} targets of teacher {teacher} in the store {self._files.shown} have another"
                " number of items than their examples",
                f"Remove {teacher} from the store and label again.",
            )
        return index

    def describe(self, teacher: str, metadata: Mapping[str, object]) -> None:
        """Write ``teacher.json``, unless it exists. metadata: the facts behind the fingerprint, in JSON types."""
        if "teacher.json" not in self._files.list(_folder(teacher)):
            text = json.dumps(dict(metadata), indent=2, ensure_ascii=False)
            self._files.put(f"{teacher}/teacher.json", text.encode() + b"\n")

    def use(self, teacher: str, run_dir: str, machine: str) -> None:
        """Records that the run in `run_dir` on `machine` reads the teacher's targets."""
        name = f"run-{blake2b(f'{machine}:{run_dir}'.encode(), digest_size=8).hexdigest()}.json"
        if name not in self._files.list(_folder(teacher)):
            text = json.dumps({"run_dir": run_dir, "machine": machine}, ensure_ascii=False)
            self._files.put(f"{teacher}/{name}", text.encode() + b"\n")

    def teachers(self) -> list[str]:
        """The fingerprints of all teachers that have a folder in the store, sorted."""
        return sorted(name for name in self._files.folders() if re.fullmatch(r"[0-9a-f]+", name))

    def holds(self, teacher: str) -> bool:
        """Whether the store has any targets of the teacher; no shard is read."""
        return bool(self._refresh(teacher)[0])

    def holding(self, teacher: str) -> Holding:
        """What the store has of the teacher, from its entries alone."""
        entries, listing = self._refresh(teacher)
        facts = self._files.read_object(f"{teacher}/teacher.json") if "teacher.json" in listing else {}
        users = [self._files.read_object(f"{teacher}/{file}") for file in listing if _USER.fullmatch(file)]
        return Holding(
            teacher,
            facts,
            space=next((entry.space for entry in entries.values()), None),
            examples=sum(entry.rows for entry in entries.values()),
            shards=len(entries),
            size=sum(int(info.size) for info in listing.values()),
            users=tuple((str(user.get("run_dir")), str(user.get("machine"))) for user in users),
        )

    def verify(self, teacher: str) -> int:
        """Reads every shard of the teacher; sets those aside that do not match their checksums, and returns how many."""
        entries, _ = self._refresh(teacher)
        return len(entries) - len(self._index(teacher).shards)

    def compact(self, teacher: str, size: int = COMPACTED) -> None:
        """Merges the teacher's shards into as few as have about `size` bytes; of equal keys the oldest is kept.

        Interrupted, it leaves targets twice, never less than once. No other process may read the teacher meanwhile: the shards
        that it has listed are deleted.
        """
        entries, _ = self._refresh(teacher)
        index = self._index(teacher)
        parts = max(1, -(-sum(entry.size for entry in entries.values()) // size))
        if parts >= len(entries) or not len(index.keys):
            return
        written = set[str]()
        for keys in np.array_split(index.keys, parts):
            data, entry = _encode(SoftTargets(keys, index.gather(keys)))
            written.add(entry.shard)
            if entry.shard not in entries:
                self._write(teacher, data, entry)
        for shard in entries.keys() - written:
            self._files.delete(f"{teacher}/{shard}.json")  # first: without it the shard does not exist
            self._files.delete(f"{teacher}/{shard}.arrow")

    def remove(self, teacher: str) -> None:
        """Deletes all that the store has of the teacher."""
        self._files.delete_folder(_folder(teacher))

    def size(self, teacher: str) -> int:
        """Bytes of all files in the teacher's folder."""
        return sum(int(info.size) for info in self._files.list(_folder(teacher)).values())

    def _write(self, teacher: str, data: pa.Buffer, entry: _Entry) -> None:
        self._files.put(f"{teacher}/{entry.shard}.arrow", data)
        self._files.put(f"{teacher}/{entry.shard}.json", entry.dump())  # only now does the shard exist

    def _index(self, teacher: str) -> Stored:
        """The index over every intact shard that the teacher has now."""
        entries, _ = self._refresh(teacher)
        ordered = sorted(entries.values(), key=lambda entry: (entry.written, entry.shard))
        shards = tuple(shard for entry in ordered if (shard := self._open(teacher, entry)) is not None)
        index = self._indexes.get(teacher)
        if index is None or index.shards != shards:
            index = self._indexes[teacher] = Stored.over(shards)
        return index

    def _refresh(self, teacher: str) -> tuple[dict[str, _Entry], dict[str, Any]]:
        """Lists the teacher's folder: shard name → entry, and file name → pyarrow `FileInfo`."""
        listing = self._files.list(_folder(teacher))
        names = [match[1] for file in listing if (match := _ENTRY.fullmatch(file))]
        loaded = self._entries.get(teacher, {})
        entries = {name: loaded.get(name) or self._load(teacher, name) for name in names}
        self._entries[teacher] = readable = {
            name: entry for name, entry in entries.items() if entry is not None
        }
        opened = self._shards.get(teacher, {})
        self._shards[teacher] = {name: shard for name, shard in opened.items() if name in readable}
        return readable, listing

    def _load(self, teacher: str, shard: str) -> _Entry | None:
        """A shard's entry; None if it is unreadable or was just deleted: its rows then count as missing."""
        file = f"{teacher}/{shard}.json"
        try:
            return _Entry.parse(shard, self._files.read(file))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            shown = f"{self._files.shown}/{file}"
            logger.warning("store entry %s is unreadable (%s): its rows count as missing", shown, error)
            return None

    def _open(self, teacher: str, entry: _Entry) -> _Shard | None:
        """The shard, memory-mapped and verified once in a process. A corrupt one is renamed to ``*.corrupt``: None."""
        opened = self._shards[teacher]
        if entry.shard in opened:
            return opened[entry.shard]
        file = f"{teacher}/{entry.shard}.arrow"
        fault = ""
        for again in (
            False,
            True,
        ):  # a cached copy may be torn; another process may have written the shard again
            try:
                data = self._files.map(file, again)
            except FileNotFoundError:
                fault = "it is gone"
                continue
            fault = entry.fault(data)
            if not fault:
                opened[entry.shard] = shard = _Shard.parse(data)
                return shard
        logger.warning(
            "store shard %s/%s is corrupt (%s), set aside as *.corrupt: %d rows will be recomputed",
            *(self._files.shown, file, fault, entry.rows),
        )
        self._files.set_aside(f"{teacher}/{entry.shard}.json")  # first: without it the shard does not exist
        self._files.set_aside(file)
        return None

    def _sweep(self, teacher: str, listing: dict[str, Any]) -> None:
        """Deletes what dead writers left: old temporary files, old shards without an entry."""
        oldest = time.time_ns() - ORPHAN_AGE_S * 10**9
        for file, info in listing.items():
            match = _UNFINISHED.fullmatch(file)
            if match and f"{match[1]}.json" not in listing and (info.mtime_ns or oldest) < oldest:
                self._files.delete(f"{teacher}/{file}")


@dataclass(frozen=True)
class Holding:
    """What the store has of one teacher.

    facts: of teacher.json, empty without · space: of its targets, None where it has none · examples: rows of all shards · size: bytes of all
    files · users: run folder and machine of each run that reads them.
    """

    teacher: str
    facts: Mapping[str, Any]
    space: Space | None
    examples: int
    shards: int
    size: int
    users: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """One teacher's soft targets by key, as the store has them at one moment; made by `Store.view`.

    keys: (N,) uint64, distinct, ascending · homes: (N,) int64, each key's shard, the oldest one that has it · starts,
    counts: (N,) int64, the key's first row in that shard, and its number of rows.
    """

    shards: tuple[_Shard, ...]
    keys: NDArray[np.uint64]
    homes: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def over(cls, shards: tuple[_Shard, ...]) -> Stored:
        """All soft targets of the shards, which are given from the oldest to the newest."""

        def concatenated(parts: Iterable[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
            return np.concatenate([np.empty(0, dtype=dtype), *parts])

        keys, first = np.unique(concatenated((shard.keys for shard in shards), np.uint64), return_index=True)
        homes = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
        starts = concatenated((shard.soft.offsets[:-1] for shard in shards), np.int64)
        counts = concatenated((shard.soft.counts for shard in shards), np.int64)
        return cls(shards, keys, homes=homes[first], starts=starts[first], counts=counts[first])

    def positions(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(m,) int64: the index of each of `keys` (m,) in `self.keys`, -1 for a missing one."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, dtype=np.int64)
        candidates = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[candidates] == keys, candidates, -1)

    def gather(self, keys: NDArray[np.uint64]) -> Soft:
        """The soft targets of `keys` (m,), in that order; keys may repeat. Each shard with any is copied from once.

        Raises `CorruptError` where a key is missing; none of the keys given to `Store.view` is.
        """
        at = self.positions(keys)
        missing = int((at < 0).sum())
        if missing:
            raise CorruptError(f"{missing} of {len(at)} soft targets are missing", LABEL_AGAIN)
        homes, starts, counts = self.homes[at], self.starts[at], self.counts[at]
        offsets, first = offsets_of(counts), self.shards[0].soft
        arrays = [np.empty((offsets[-1], *array.shape[1:]), array.dtype) for array in first.arrays]
        for home in np.unique(homes):
            here = np.flatnonzero(homes == home)
            source = flat_index(starts[here], counts[here])
            target = flat_index(offsets[here], counts[here])
            for array, stored in zip(arrays, self.shards[home].soft.arrays, strict=True):
                array[target] = stored[source]
        return first.with_rows(arrays, offsets)

    def targets(self, batch: Drawn) -> Soft:
        """The soft targets of the batch's examples, in their order, by their keys alone."""
        return self.gather(batch.keys)


@dataclass(frozen=True)
class _Entry:
    """The contents of ``shard-<hash>.json``. size: bytes of the shard · written: nanoseconds since 1970."""

    shard: str
    rows: int
    size: int
    checksum: str
    space: Space
    written: int

    def dump(self) -> bytes:
        fields = {"rows": self.rows, "bytes": self.size, "checksum": self.checksum}
        fields |= {**space_fields(self.space), "written": self.written}
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, shard: str, data: bytes) -> _Entry:
        """Raises ValueError, KeyError or TypeError when `data` is no entry."""
        fields = json.loads(data)
        rows, size, written = (int(fields[name]) for name in ("rows", "bytes", "written"))
        checksum, space = str(fields["checksum"]), space_of(fields)
        return cls(shard, rows=rows, size=size, checksum=checksum, space=space, written=written)

    def fault(self, data: pa.Buffer) -> str:
        """Why `data` is not the shard; empty if it is the shard."""
        if data.size != self.size:
            return f"{data.size} bytes where {self.size} were written"
        return "" if _checksum(data) == self.checksum else "its checksum does not match"


@dataclass(frozen=True, eq=False)
class _Shard:
    """An opened shard, memory-mapped: keys (n_s,) uint64 ascending, and their soft targets in float16."""

    keys: NDArray[np.uint64]
    soft: Soft

    @classmethod
    def parse(cls, data: pa.Buffer) -> _Shard:
        batch = ipc.open_file(data).get_batch(0)
        fields = {name.decode(): json.loads(value) for name, value in batch.schema.metadata.items()}
        return cls(batch.column("key").to_numpy(), soft_from_arrow(batch, space_of(fields)))


def _folder(teacher: str) -> str:
    """`teacher`, checked to be a fingerprint and therefore safe as the name of a folder. Raises ValueError."""
    if not re.fullmatch(r"[0-9a-f]+", teacher):
        raise ValueError(f"{teacher!r} is not a hexadecimal fingerprint")
    return teacher


def _encode(targets: SoftTargets) -> tuple[pa.Buffer, _Entry]:
    """A shard's bytes, with the examples sorted by key and without equal keys, and its entry."""
    keys, first = np.unique(np.asarray(targets.keys, dtype=np.uint64), return_index=True)
    soft = targets.soft.take(first)
    metadata = {k: json.dumps(v, ensure_ascii=False) for k, v in space_fields(soft.space).items()}
    batch = pa.record_batch({"key": pa.array(keys), **soft.to_arrow()}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    checksum = _checksum(data)
    entry = _Entry(
        shard=f"shard-{checksum}",
        rows=len(keys),
        size=data.size,
        checksum=checksum,
        space=soft.space,
        written=time.time_ns(),
    )
    return data, entry


def _checksum(data: pa.Buffer) -> str:
    """128-bit BLAKE2b, in hexadecimal."""
    return blake2b(data, digest_size=16).hexdigest()


def _storable(targets: SoftTargets, excerpt: Callable[[int], str] | None, teacher: str) -> SoftTargets:
    """The targets in float16; raises `BadTargetsError`, naming the first number that is not finite."""
    given, half = targets.soft, targets.soft.half()
    bad = ~np.isfinite(half.numbers)
    items = np.flatnonzero(bad.any(axis=1))
    if len(items) == 0:
        return SoftTargets(targets.keys, half)
    rows = np.unique(np.searchsorted(given.offsets, items, side="right") - 1)
    row, item = int(rows[0]), int(items[0])
    column = int(np.argmax(bad[item]))
    value = given.numbers[item, column]
    shown = f"{value:g}" + (", beyond float16," if np.isfinite(value) else "")
    example = f"row {row}" if excerpt is None else f'"{" ".join(excerpt(row).split())[:80]}"'
    first, end = given.offsets[row : row + 2].tolist()
    if end - first > 1:
        example += f", item {item - first}"
    raise BadTargetsError(
        f"teacher {teacher} gave {shown} for {given.event(item, column)} on example {example} (key"
        f" {int(targets.keys[row]):016x}); {len(rows)} of {len(targets)} examples are bad, none was stored",
        "Check the teacher's weights on that example; if it runs in half precision, run it in float32.",
    )
