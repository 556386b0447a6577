"""one_thread: small work runs on the calling thread alone.

Threads of OpenMP wait for each other at the end of each operation, and burn time while they wait. If another program
holds the core of one of them, all wait until the system lets it run again: milliseconds for an operation of
microseconds. What takes a few milliseconds on one core is therefore not divided. The limit holds for the calling thread
only; what other threads do, and ``torch.get_num_threads()`` there, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController

# Multiplications that take about 5 ms on one core.
SMALL_PRODUCT = 2e8
# Numbers in an array that is passed over once in less than a millisecond.
SMALL_PASS = 1 << 20


@contextmanager
def one_thread(is_small: bool) -> Iterator[None]:
    """Run torch's operations on the calling thread, if the work is small.

    Parameters
    ----------
    is_small : bool
        Whether the work is small. For the same result whatever the batches, this must not depend on the batch where
        rounding depends on the number of threads, as it does in networks.
    """
    # torch sets a new thread's number when it is first asked for: not after it was limited
    if not is_small or torch.get_num_threads() == 1:
        yield
        return
    with _openmp().limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _openmp() -> ThreadpoolController:
    """Return what sets the number of OpenMP threads; torch, which brings its own, is loaded by now."""
    return ThreadpoolController().select(user_api="openmp")
