"""`one_thread`: run small computations on the calling thread only.

OpenMP threads wait for each other at the end of each operation, and use CPU time while they wait. If another program
occupies the core of one thread, all other threads wait until this thread can continue. An operation of microseconds
then takes milliseconds. Therefore, work that takes a few milliseconds on one core is not divided among threads. The
limit applies to the calling thread only. Other threads, and ``torch.get_num_threads()`` in them, are not affected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController

# Number of multiplications that take about 5 ms on one core.
SMALL_PRODUCT = 2e8
# Number of array elements that are read once in less than a millisecond.
SMALL_PASS = 1 << 20


@contextmanager
def one_thread(is_small: bool) -> Iterator[None]:
    """Run torch's operations in the block on the calling thread only, if the work is small.

    Parameters
    ----------
    is_small : bool
        Whether the work is small. In networks, rounding depends on the number of threads. There, this value must not
        depend on the batch size, because results must be the same for every batch size.
    """
    # get_num_threads must be called before the limit: the first call in a new thread sets the thread's number
    if not is_small or torch.get_num_threads() == 1:
        yield
        return
    with _openmp().limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _openmp() -> ThreadpoolController:
    """Return the controller of the OpenMP threads. Call only after torch is imported, which loads its own OpenMP."""
    return ThreadpoolController().select(user_api="openmp")
