"""Memory: batches that do not fit into a device's, and what a training has freed and the C library keeps."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ExhaustedError

logger = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT_BYTES = 2_000_000_000  # near the largest number that mallopt takes


def run_batches(batches: Iterable[NDArray[np.int64]], work: Callable[[NDArray[np.int64]], None]) -> None:
    """Calls `work` with each batch of rows. One that does not fit into the device's memory is cut in two, as often as that helps.

    Raises `ExhaustedError` where one row does not fit.
    """
    for rows in batches:
        if _fits(rows, work):
            continue
        if len(rows) == 1:
            raise too_large("an example")
        _warn()
        run_batches(np.array_split(rows, 2), work)


def _fits(rows: NDArray[np.int64], work: Callable[[NDArray[np.int64]], None]) -> bool:
    """Whether `work` had enough memory. The caller goes on after the handler has ended: the exception's frames keep tensors."""
    try:
        work(rows)
    except torch.OutOfMemoryError:
        return False
    return True


def too_large(what: str) -> ExhaustedError:
    """The error for a forward pass that cannot be made smaller. what: alone in it."""
    return ExhaustedError(
        f"out of the device's memory with {what} in a forward pass",
        "Lower data.max_length, take a smaller model or a device with more memory; what is done is kept.",
    )


@cache  # one warning a process is enough
def _warn() -> None:
    logger.warning(
        "a batch does not fit into the device's memory and is computed in parts; a lower tokens_per_forward is faster"
    )


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc; elsewhere nothing happens.

    Every step has tensors of other sizes, whose holes glibc fills with others: without this a student of 4 million weights
    held 1.7 GB after 400 steps, and more with each step, instead of 1.2 GB.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Lets the C library keep what is freed in the block, for the next step, and give it back at the block's end; other than glibc, nothing happens.

    glibc otherwise returns each large tensor to the system as soon as it is freed, and the system clears its pages anew in the next step.
    The settings are the process's: a thread beside the block keeps memory, too.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65_536)  # glibc's default
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)  # the highest to which glibc raises it by itself
        trim_memory()


@cache
def _glibc() -> ctypes.CDLL | None:
    """glibc, None in a process of another C library."""
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim, libc.mallopt  # noqa: B018  # an attribute that is lacking is an error
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return None
    return libc
