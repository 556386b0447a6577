"""keep_freed_memory: let the C library keep freed memory for the next image, which makes networks faster."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt, from malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Up to this number of bytes, memory is taken from the heap, and free memory at the end of the heap is kept.
_N_BYTES = 1 << 30


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
    if is_set or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _N_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _N_BYTES))
