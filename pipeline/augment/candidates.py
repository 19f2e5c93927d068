"""What masked language models answered, on disk by content: a model is asked about a word of a text once, ever.

::

    <runs_dir>/_variants/<model>/block-<hash>.arrow   Arrow IPC: key uint64, candidates int32[K]; the schema's metadata
                                                      has the seconds that it took to compute them

`model` is a hash of all that decides the answers but text and word. A block is written whole and is named by the hash of
its bytes. One that does not match its name is set aside, and what it had is asked again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from pipeline.batch import content_keys
from pipeline.files import write_atomically

logger = logging.getLogger(__name__)

_Block = tuple[NDArray[np.uint64], NDArray[np.int32], float]
"""Keys (n,), answers (n, width), and the seconds that they took in all."""


def word_keys(text: str, starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) keys of the words of a text that begin at characters `starts` (n,)."""
    return content_keys("", {"text": [text] * len(starts), "start": [str(start) for start in starts]})


class Candidates:
    """The answers of one model: for each word `width` token ids. Raises `ExhaustedError` where the disk is full."""

    def __init__(self, root: Path, facts: Sequence[str | int], width: int) -> None:
        """root: the folder of all models · facts: all that decides an answer but text and word."""
        self.folder = root / blake2b(json.dumps([*facts, width]).encode(), digest_size=16).hexdigest()
        self._keys, self._ids = np.empty(0, dtype=np.uint64), np.empty((0, width), dtype=np.int32)
        self._seconds = np.empty(0)
        written = {file: file.stat().st_mtime_ns for file in self.folder.glob("block-*.arrow")}
        self._merge(
            *(_read(file, width) for file in sorted(written, key=lambda one: (written[one], one.name)))
        )

    def missing(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(n,) which of `keys` (n,) have no answer."""
        places = np.searchsorted(self._keys, keys)
        missing: NDArray[np.bool_] = places == len(self._keys)
        missing[~missing] = self._keys[places[~missing]] != keys[~missing]
        return missing

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n, width) the answers for `keys` (n,), all of which must be there."""
        return np.asarray(self._ids[np.searchsorted(self._keys, keys)])

    def seconds(self, keys: NDArray[np.uint64]) -> float:
        """What the answers for the distinct `keys` took when they were computed, in whatever run."""
        return float(self._seconds[np.searchsorted(self._keys, np.unique(keys))].sum())

    def add(self, keys: NDArray[np.uint64], ids: NDArray[np.int32], seconds: float) -> None:
        """Keeps the answers `ids` (n, width) for `keys` (n,), which took `seconds` in all."""
        columns = [pa.array(keys), pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), ids.shape[1])]
        schema = pa.schema(
            [pa.field("key", pa.uint64()), pa.field("candidates", columns[1].type)],
            metadata={"seconds": f"{seconds:.6f}"},
        )
        sink = pa.BufferOutputStream()
        with ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        data = sink.getvalue().to_pybytes()
        write_atomically(self.folder / f"block-{_name(data)}.arrow", data)
        self._merge((keys, ids, seconds))

    def _merge(self, *blocks: _Block) -> None:
        """Adds the answers of blocks, in this order; of equal keys the first counts."""
        keys, ids, seconds = zip((self._keys, self._ids, 0.0), *blocks, strict=True)
        shares = [np.full(len(own), one / max(1, len(own))) for own, one in zip(keys, seconds, strict=True)]
        shares[0] = self._seconds
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._ids, self._seconds = np.concatenate(ids)[first], np.concatenate(shares)[first]


def _read(file: Path, width: int) -> _Block:
    """A block's answers; none, with a warning, where it does not match its name."""
    data = file.read_bytes()
    if file.stem != f"block-{_name(data)}":
        logger.warning("%s does not match its checksum: it is set aside, and its words are asked again", file)
        file.replace(file.with_suffix(".corrupt"))
        return np.empty(0, dtype=np.uint64), np.empty((0, width), dtype=np.int32), 0.0
    with ipc.open_file(pa.BufferReader(data)) as reader:
        table, seconds = reader.read_all(), float(reader.schema.metadata[b"seconds"])
    ids = table["candidates"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    return table["key"].to_numpy(), ids, seconds


def _name(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
