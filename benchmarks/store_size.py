"""Bytes of the store ÷ raw fp16 logits at 10,000 examples, and the cost of reading a batch, by number of labels.

    python -m benchmarks.store_size

Goal: at most 1.25. A row is C half floats and an 8-byte content key, so tasks of few labels cannot reach it: see
benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import numpy as np

from benchmarks.common import machine
from pipeline.batch import Ragged
from pipeline.soft import Dense, SoftTargets
from teachers.store import Store

EXAMPLES, BATCH = 10_000, 160


def main() -> None:
    print(f"{machine()}; {EXAMPLES} examples in 2 shards; reading {BATCH} rows")
    rng = np.random.default_rng(0)
    for labels in (2, 3, 8, 20, 52, 150):
        with tempfile.TemporaryDirectory() as scratch:
            store, names = Store(scratch), tuple(f"label-{i}" for i in range(labels))
            keys = rng.integers(0, 2**64, size=EXAMPLES, dtype=np.uint64)
            logits = rng.normal(size=(EXAMPLES, labels)).astype(np.float32)
            for half in (slice(0, EXAMPLES // 2), slice(EXAMPLES // 2, None)):
                store.append("aa", SoftTargets(keys[half], Dense(Ragged.single(logits[half]), names)))
            view = store.view("aa", keys, names)
            batches = [keys[rng.integers(0, EXAMPLES, size=BATCH)] for _ in range(500)]
            times = []
            for batch in batches:
                started = time.perf_counter()
                view.gather(batch)
                times.append(1e6 * (time.perf_counter() - started))
            ratio = store.size("aa") / (EXAMPLES * labels * 2)
            print(
                f"{labels:4} labels: {ratio:.3f} × raw; {statistics.median(times):.0f} µs a batch ({min(times):.0f}-{max(times):.0f})"
            )


if __name__ == "__main__":
    main()
