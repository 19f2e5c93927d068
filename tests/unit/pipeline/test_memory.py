"""Batches that do not fit are cut; freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ExhaustedError
from pipeline.memory import _glibc, freed_memory_kept, run_batches, trim_memory

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


def test_freed_tensors_are_kept_until_the_block_ends() -> None:
    size, glibc = 256 << 20, platform.libc_ver()[0] == "glibc"
    before = resident()
    with freed_memory_kept():
        torch.ones(size, dtype=torch.uint8)
        if glibc:
            assert resident() - before > size // 2
    assert resident() - before < size // 2
    torch.ones(size, dtype=torch.uint8)
    assert resident() - before < size // 2, "given back at once, as before the block"


def test_another_c_library_is_left_alone() -> None:
    assert (_glibc() is not None) == (platform.libc_ver()[0] == "glibc")
    trim_memory()


def test_a_batch_that_does_not_fit_is_computed_in_parts() -> None:
    done: list[list[int]] = []

    def work(rows: NDArray[np.int64]) -> None:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.append(rows.tolist())

    run_batches([np.arange(7), np.array([9, 8])], work)
    assert done == [[0, 1], [2, 3], [4, 5], [6], [9, 8]]


def test_one_row_that_does_not_fit_is_an_error_of_two_lines() -> None:
    def work(rows: NDArray[np.int64]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ExhaustedError, match="out of the device's memory with an example") as caught:
        run_batches([np.arange(2)], work)
    assert caught.value.exit_code == 4
