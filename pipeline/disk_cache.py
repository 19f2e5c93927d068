"""Values that took long to make, kept on this machine's disk. Read again, their arrays and texts are memory-mapped: reading copies nothing,
and the processes of the machine share one copy.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from filelock import FileLock

from pipeline.errors import ExhaustedError
from pipeline.files import written_whole
from pipeline.urls import cache_base

T = TypeVar("T")

WORTH = 1.0
"""Seconds of making from which a value is kept."""
UNUSED_DAYS = 30
"""Days after which a value that nobody has read is removed."""
LIBRARIES = ("datasets", "numpy", "pandas", "pyarrow", "tokenizers", "transformers")
MAKERS = frozenset(
    {
        *(("builtins", name) for name in ("set", "frozenset")),
        *(("numpy", name) for name in ("dtype", "ndarray")),
        ("numpy._core.numeric", "_frombuffer"),
        *(("numpy._core.multiarray", name) for name in ("scalar", "_reconstruct")),
        *(
            ("pyarrow.lib", name)
            for name in ("chunked_array", "_restore_array", "type_for_alias", "py_buffer")
        ),
        *(("pyarrow.lib", name) for name in ("large_string", "Buffer")),
    }
)
"""What makes arrays and columns in a pickle: module and name."""
BYTES = pa.schema([("bytes", pa.uint8())])


def cached(name: str, facts: Any, make: Callable[[], T], *, worth: float = WORTH) -> T:
    """What `make` gives, from disk where it was kept; nobody may change it. Of processes that ask at once, one makes it.

    name: what it is, for people who look into the folder · facts: all that it depends on but for Tutelage's code and the libraries, as JSON · worth:
    seconds that making it takes, from which it is kept. Where there is no room for it, or the folder may not be written, it is made each time.
    """
    file = _file(name, facts)
    if (kept := _read(file)) is not None:
        return kept.value  # type: ignore[no-any-return]
    with _alone(file):
        if (kept := _read(file)) is not None:  # another process has made it meanwhile
            return kept.value  # type: ignore[no-any-return]
        start = time.perf_counter()
        value = make()
        if time.perf_counter() - start < worth or not _write(file, value):
            return value
        kept = _read(file)  # so that this process has it in memory that it shares
        return value if kept is None else kept.value


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Lets one process of the machine at a time make the value; where locks do not work, all of them."""
    lock = FileLock(file.with_suffix(".lock"))
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is unpickled must be one's own
            stack.enter_context(lock)
            stack.callback(Path(lock.lock_file).unlink, missing_ok=True)
        yield


def is_cached(name: str, facts: Any) -> bool:
    """Whether the value is on disk; a damaged one counts."""
    return _file(name, facts).is_file()


def _file(name: str, facts: Any) -> Path:
    content = json.dumps([facts, _software()], sort_keys=True, default=str).encode()
    return cache_base() / "kept" / f"{name}-{blake2b(content, digest_size=16).hexdigest()}.arrow"


@cache
def _software() -> Sequence[str]:
    """A hash of this package's code, and the versions of what it reads data with."""
    code, root = blake2b(digest_size=16), Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        code.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return (code.hexdigest(), *(f"{library} {version(library)}" for library in LIBRARIES))


@dataclass(frozen=True)
class _Kept:
    """A value that was read; None is one as well."""

    value: Any


def _write(file: Path, value: Any) -> bool:
    """Writes an Arrow file of bytes, in batches: the pickled value, then the buffers of its arrays and texts, whose checksums are
    in the schema. False where it cannot."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [pa.py_buffer(pickled), *(pa.py_buffer(one.raw()) for one in buffers)]
    schema = BYTES.with_metadata({"checksums": json.dumps([zlib.crc32(part) for part in parts])})
    try:
        with written_whole(file) as stream, pa.ipc.new_file(stream, schema) as writer:
            for part in parts:
                column = pa.Array.from_buffers(pa.uint8(), part.size, [None, part])
                writer.write_batch(pa.record_batch([column], schema=schema))
    except (OSError, ExhaustedError):
        return False
    _remove_unused(file.parent)
    return True


def _read(file: Path) -> _Kept | None:
    """What `_write` wrote, memory-mapped; None where there is none, it is damaged, or someone else's."""
    try:
        if file.stat().st_uid != os.getuid():
            return None
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        parts = [reader.get_batch(i).column(0).buffers()[1] for i in range(reader.num_record_batches)]
        if json.loads(reader.schema.metadata[b"checksums"]) != [zlib.crc32(part) for part in parts]:
            return None
        os.utime(file)
        return _Kept(_Unpickler(pa.BufferReader(parts[0]), buffers=parts[1:]).load())
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException, pickle.UnpicklingError):
        return None  # a damaged schema may lack anything


class _Unpickler(pickle.Unpickler):
    """Makes arrays, columns of Arrow, and objects of this package's classes, and calls nothing else: a file that someone else put there runs
    no code of theirs."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names. Raises `pickle.UnpicklingError` for all that is not listed."""
        known = super().find_class(module, name) if module.startswith("pipeline.") else None
        if isinstance(known, type) and known.__module__ == module:
            return known
        if (module, name) in MAKERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not of a kept value")


def _remove_unused(folder: Path) -> None:
    """Removes the values that nobody has read for `UNUSED_DAYS`."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in folder.iterdir():
        with suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()
