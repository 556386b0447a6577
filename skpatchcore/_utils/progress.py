"""The one seam through which long work tells how far it is and how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from skpatchcore._utils.console import TolerantStream
from skpatchcore._utils.sklearn import root_context

T = TypeVar("T")

# A task's steps that callbacks are told of: telling costs time, and nobody sees finer ones.
_N_STEPS = 100


@dataclass
class _Fit:
    """An estimator's fit that callbacks follow, and whether a task of it is going on."""

    estimator: Any
    context: Any
    is_busy: bool = False


_reported: ContextVar[_Fit | None] = ContextVar("skpatchcore_reported", default=None)
_seconds: ContextVar[dict[str, float] | None] = ContextVar("skpatchcore_seconds", default=None)


class Progress:
    """Work that is going on: a bar on standard error, a task for callbacks, both or neither. A context manager.

    Parameters
    ----------
    total : int or None
        Number of units of work, None where it is not known.
    description : str
        What the user waits for.
    unit : str
        What is counted, such as ``"image"``.
    verbose : int
        0 shows no bar.
    """

    def __init__(self, total: int | None, description: str, unit: str, verbose: int | bool):
        self._stream = TolerantStream(sys.stderr)
        self._bar = tqdm(
            total=total, desc=description, unit=unit, disable=not verbose, dynamic_ncols=True, file=self._stream
        )
        self.n, self._total, self._n_told = 0, total or 0, 0
        self._n_steps = min(self._total, _N_STEPS)
        self._fit = _reported.get()
        self._task = None
        if self._fit is not None and not self._fit.is_busy:  # what is done as part of a task is none of its own
            self._fit.is_busy = True
            self._task = self._fit.context.subcontext(task_name=description, max_subtasks=self._n_steps)
            self._task.call_on_fit_task_begin(estimator=self._fit.estimator)

    def update(self, n: int = 1) -> None:
        """Say that `n` units are done."""
        self.n += n
        self._bar.update(n)
        n_steps = self._n_steps * min(self.n, self._total) // max(self._total, 1)
        while self._fit is not None and self._task is not None and self._n_told < n_steps:
            step = self._task.subcontext(task_name="step").call_on_fit_task_begin(estimator=self._fit.estimator)
            step.call_on_fit_task_end(estimator=self._fit.estimator)
            self._n_told += 1

    def write(self, text: str) -> None:
        """Write a line to standard error without disturbing the bar."""
        self._bar.write(text, file=self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        if self._fit is not None and self._task is not None:
            self._fit.is_busy = False
            if error[0] is None:
                self._task.call_on_fit_task_end(estimator=self._fit.estimator)


def progress_bar(total: int | None, description: str, unit: str, verbose: int | bool) -> Progress:
    """Return progress to report to, as :class:`Progress` has it; use it as a context manager."""
    return Progress(total, description, unit, verbose)


@contextmanager
def report_tasks(estimator: Any, X: Any, y: Any) -> Iterator[None]:
    """Let callbacks that are set on an estimator see, in its `fit`, what is done in the block.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted.
    X, y
        What it is fitted to.
    """
    context = root_context(estimator)
    if context is None:
        yield
        return
    context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)
    token = _reported.set(_Fit(estimator, context))
    try:
        yield
    finally:
        _reported.reset(token)
    context.call_on_fit_task_end(estimator=estimator, X=X, y=y)


@contextmanager
def record_seconds() -> Iterator[dict[str, float]]:
    """Collect the seconds of each phase in the block, by name, for benchmarks and reports."""
    token = _seconds.set({})
    try:
        yield _seconds.get()  # type: ignore[misc]
    finally:
        _seconds.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the time of the block as phase `name`, if somebody records; inner phases count for themselves only."""
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


def iterate_as_phase(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, counting the time that making them takes as phase `name`, not the time of their use."""
    iterator, end = iter(items), object()
    while True:
        with phase(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
