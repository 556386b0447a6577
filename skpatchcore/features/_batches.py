"""The next batch is made ready while the network is busy with this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each made in another thread while the one before it is used.

    Parameters
    ----------
    items : iterator
        Asked for one item at a time, in order.

    Yields
    ------
    object
        The items. What is raised in making one is raised when its turn comes.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="skpatchcore-prefetch") as executor:
        coming = executor.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, items, end)
            yield item  # type: ignore[misc]
