"""The one seam through which long work tells how far it is and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_seconds: ContextVar[dict[str, float] | None] = ContextVar("skpatchcore_seconds", default=None)


def progress_bar(total: int | None, description: str, unit: str, verbose: int | bool) -> Any:
    """Return a tqdm bar on standard error, silent unless `verbose`; use it as a context manager.

    Parameters
    ----------
    total : int or None
        Number of units of work, None where it is not known.
    description : str
        What the user waits for.
    unit : str
        What is counted, such as ``"image"``.
    verbose : int
        0 shows nothing at all.

    Returns
    -------
    tqdm
        Call its ``update(n)`` as work is done.
    """
    return tqdm(total=total, desc=description, unit=unit, disable=not verbose, dynamic_ncols=True)


@contextmanager
def record_seconds() -> Iterator[dict[str, float]]:
    """Collect how long each stage takes in the block, by name: for benchmarks and reports."""
    token = _seconds.set({})
    try:
        yield _seconds.get()  # type: ignore[misc]
    finally:
        _seconds.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block's time as stage `name`, if anybody records; time of stages within counts for these alone."""
    seconds = _seconds.get()
    if seconds is None:
        yield
        return
    start, before = time.perf_counter(), sum(seconds.values())
    try:
        yield
    finally:
        within = sum(seconds.values()) - before
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start - within


def iterate_as_stage(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, counting the time that making them takes as stage `name`, and not what is done with them."""
    iterator, end = iter(items), object()
    while True:
        with stage(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
