"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from pipeline.training.memory import _malloc_trim, trim_memory

BLOCK, COUNT = 64 * 1024, 2000  # 128 MB in blocks that the C library takes from its heap


def resident() -> int:
    """Bytes of this process's memory that are in no file; 0 where the system does not say."""
    file = Path("/proc/self/smaps_rollup")
    lines = file.read_text().splitlines() if file.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def test_freed_blocks_are_given_back() -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(COUNT)]
    last = blocks[-1]  # above the others in the heap, so that these are a hole
    del blocks
    before = resident()
    trim_memory()
    assert last.all()
    if platform.libc_ver()[0] == "glibc":
        assert before - resident() > BLOCK * COUNT // 2


def test_another_c_library_is_left_alone() -> None:
    assert (_malloc_trim() is not None) == (platform.libc_ver()[0] == "glibc")
    trim_memory()
