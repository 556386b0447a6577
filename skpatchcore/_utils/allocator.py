"""Freed memory: keep_freed_memory keeps it for the next image, FreedMemory gives it back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# Parameters of mallopt, from malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Up to this number of bytes, memory is taken from the heap, and free memory at the end of the heap is kept.
_N_BYTES = 1 << 30
# FreedMemory gives freed memory back after the resident memory has grown by this number of bytes.
_STEP = 256_000_000


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GB of freed memory in this process, instead of returning it to the system.

    The arrays of a network are allocated and freed for each image. By default, the GNU C library takes large arrays
    from the system and returns them at once. The system then clears each page again, and only one thread of a process
    at a time can obtain pages. Call this function in programs of this package only: it changes the whole process.

    Returns
    -------
    bool
        False if nothing was changed: the process does not use the GNU C library, or the user has set environment
        variables of its allocator.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = None if is_set else _function("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _N_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _N_BYTES))


class FreedMemory:
    """Give freed memory back to the system while batches of images are processed.

    The GNU C library reuses freed memory only if its place and alignment fit. With arrays of many sizes, as those of a
    network, the memory of a process can grow from batch to batch, although the program holds the same arrays.
    """

    def __init__(self) -> None:
        self._limit: int | None = None

    def after_batch(self) -> None:
        """Give freed memory back if the memory has grown much since the first batch after the last time.

        The first batch does not count: its arrays are allocated again for each batch.
        """
        now = resident_bytes()
        if now is None:
            return
        if self._limit is None:
            self._limit = now + _STEP
        elif now > self._limit and (trim := _function("malloc_trim")) is not None:
            trim(0)
            self._limit = None


def resident_bytes() -> int | None:
    """Return the memory of this process that is in RAM, in bytes; None if the system does not state it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _function(name: str) -> Any:
    """Return a function of the GNU C library; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
