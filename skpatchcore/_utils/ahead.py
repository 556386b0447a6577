"""Work in other threads, in order: :func:`prefetched`, :func:`mapped_ahead` and :class:`Beside`.

Reading, decoding and writing of images runs while the network computes, because these operations release the GIL.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def n_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator; another thread computes the next item while the caller uses the current item.

    Parameters
    ----------
    items : iterator
        Iterator to consume, one item at a time and in order.

    Yields
    ------
    object
        The items in order. An error raised by an item is raised in the position of that item.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="skpatchcore-prefetch") as executor:
        coming = executor.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, items, end)
            yield item  # type: ignore[misc]


def mapped_ahead(work: Callable[[S], T], items: Iterable[S], n_threads: int) -> Iterator[T]:
    """Yield ``work(item)`` of each item in order; several threads compute the next results.

    Parameters
    ----------
    work : callable
        Function of one item. It must be thread-safe if `n_threads` is larger than 1.
    items : iterable
        The items, which are consumed in the calling thread.
    n_threads : int
        Number of threads, and maximum number of results that are computed but not yet used. With 1, the results are
        computed in the calling thread, one at a time.

    Yields
    ------
    object
        The results in order. An error is raised in the position of its item.
    """
    if n_threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(n_threads, thread_name_prefix="skpatchcore-ahead") as executor:
        coming: deque[Future[T]] = deque()
        try:
            for item in items:
                coming.append(executor.submit(work, item))
                if len(coming) >= n_threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


class Beside(Generic[T]):
    """Runs tasks in other threads while the caller continues, and returns their results in order.

    Use it as a context manager. At its end, it waits until all tasks are finished and all results are used, also if the
    block raises.

    Parameters
    ----------
    n_threads : int
        Number of threads.
    max_bytes : int
        Maximum size of the data of all tasks that are not finished. One task is always accepted.
    use : callable
        Called with each result, in order, in one more thread. Python interrupts only the main thread, so an
        interruption of the caller, e.g. by Ctrl-C, leaves no result unused.

    Notes
    -----
    An error of a task or of `use` is raised by :meth:`finished` or :meth:`rest` in the position of the task. The
    results of the other tasks are still used.
    """

    def __init__(self, n_threads: int, max_bytes: int, use: Callable[[T], Any]):
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="skpatchcore-beside")
        self._in_order = ThreadPoolExecutor(1, thread_name_prefix="skpatchcore-in-order")
        self._max_bytes, self._use = max_bytes, use
        self._pending: deque[tuple[Future[T], int]] = deque()
        self._n_bytes = 0

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._in_order.shutdown()  # waits for all tasks, because the thread waits for each task
        finally:
            self._executor.shutdown()

    def submit(self, task: Callable[[], T], n_bytes: int) -> None:
        """Start a task with data of `n_bytes`."""
        result = self._executor.submit(task)
        self._pending.append((self._in_order.submit(self._used, result), n_bytes))
        self._n_bytes += n_bytes

    def finished(self) -> Iterator[T]:
        """Yield the results of the first tasks that are finished. Wait for tasks if the pending data are too large."""
        while self._pending and (self._pending[0][0].done() or self._n_bytes > self._max_bytes):
            yield self._next()

    def rest(self) -> Iterator[T]:
        """Yield the results of all remaining tasks, in order."""
        while self._pending:
            yield self._next()

    def _used(self, coming: Future[T]) -> T:
        result = coming.result()
        self._use(result)
        return result

    def _next(self) -> T:
        used, n_bytes = self._pending.popleft()
        self._n_bytes -= n_bytes
        return used.result()
