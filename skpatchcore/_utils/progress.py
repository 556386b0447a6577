"""Progress bars, tasks for scikit-learn's callbacks, and measured times of long computations.

All code of the package reports its progress through :func:`progress_bar` and its time through :func:`phase`. The bars
are drawn by tqdm. Without this package, there are no bars.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from skpatchcore._utils.console import TolerantStream

T = TypeVar("T")

# Maximum number of steps per task that are reported to callbacks. Each report costs time.
_N_STEPS = 100


@dataclass
class _Fit:
    """The fit of an estimator that has callbacks. `is_busy` is True while one of its tasks is running."""

    estimator: Any
    context: Any
    is_busy: bool = False


_reported: ContextVar[_Fit | None] = ContextVar("skpatchcore_reported", default=None)
_follower: ContextVar[Callable[[str, int], Any] | None] = ContextVar("skpatchcore_follower", default=None)
_seconds: ContextVar[dict[str, float] | None] = ContextVar("skpatchcore_seconds", default=None)


class Progress:
    """Context manager that reports the progress of a computation.

    Progress is shown as a bar on standard error if `verbose` is not 0 and tqdm is installed. If the estimator that is
    being fitted has callbacks, progress is also reported to these callbacks as a task.

    Parameters
    ----------
    total : int or None
        Number of units of work. None means that the number is unknown.
    description : str
        Title of the bar and name of the task.
    unit : str
        Name of one unit of work, such as ``"image"``.
    verbose : int
        Whether to show the bar. 0 shows no bar.
    """

    def __init__(self, total: int | None, description: str, unit: str, verbose: int | bool):
        self._stream = TolerantStream(sys.stderr)
        self._bar = _bar_of(total, description, unit, self._stream) if verbose else None
        self.n, self.total, self._n_told = 0, total or 0, 0
        self._title = description
        self._description, self._follower = description, _follower.get()
        self._n_steps = min(self.total, _N_STEPS)
        self._fit = _reported.get()
        self._task = None
        if self._fit is not None and not self._fit.is_busy:  # work within a running task is not a separate task
            self._fit.is_busy = True
            self._task = self._fit.context.subcontext(task_name=description, max_subtasks=self._n_steps)
            self._task.call_on_fit_task_begin(estimator=self._fit.estimator)

    def update(self, n: int = 1) -> None:
        """Report that `n` more units are done."""
        self.n += n
        if self._bar is not None:
            self._bar.update(n)
        if self._follower is not None:
            self._follower(self._description, n)
        n_steps = self._n_steps * min(self.n, self.total) // max(self.total, 1)
        while self._fit is not None and self._task is not None and self._n_told < n_steps:
            step = self._task.subcontext(task_name="step").call_on_fit_task_begin(estimator=self._fit.estimator)
            step.call_on_fit_task_end(estimator=self._fit.estimator)
            self._n_told += 1

    def describe(self, description: str) -> None:
        """Change the title of the bar."""
        if description != self._title:  # each change is written at once
            self._title = description
            if self._bar is not None:
                self._bar.set_description(description)

    def write(self, text: str) -> None:
        """Write a line to standard error without disturbing the bar."""
        write_line(text, self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._fit is not None and self._task is not None:
            self._fit.is_busy = False
            if error[0] is None:
                self._task.call_on_fit_task_end(estimator=self._fit.estimator)


def _bar_of(total: int | None, description: str, unit: str, stream: Any) -> Any:
    """Return a bar of tqdm; None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=description, unit=unit, dynamic_ncols=True, file=stream)


def write_line(text: str, stream: Any) -> None:
    """Write a line to a stream without disturbing the bars that are shown.

    Parameters
    ----------
    text : str
        The line, without its end.
    stream : text stream
        The stream.
    """
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # a bar can be shown only if tqdm has been imported
    if tqdm is None:
        print(text, file=stream)
    else:
        tqdm.write(text, file=stream)


def progress_bar(total: int | None, description: str, unit: str, verbose: int | bool) -> Progress:
    """Return a :class:`Progress` with these parameters, to be used as a context manager."""
    return Progress(total, description, unit, verbose)


@contextmanager
def report_tasks(estimator: Any, X: Any, y: Any) -> Iterator[None]:
    """Report the tasks of the block to an estimator's callbacks. Used within `fit`.

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    X, y
        The data on which the estimator is fitted. Callbacks receive the data.
    """
    from skpatchcore._utils.sklearn import root_context

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
def follow_progress(follower: Callable[[str, int], Any]) -> Iterator[None]:
    """Report the progress of all work in the block to a function, e.g. to show one bar for several fits.

    Parameters
    ----------
    follower : callable
        Called with the description of the work and the number of units that were done since its last call.
    """
    token = _follower.set(follower)
    try:
        yield
    finally:
        _follower.reset(token)


@contextmanager
def record_seconds() -> Iterator[dict[str, float]]:
    """Measure the time of each phase that runs in the block. Used by benchmarks and reports.

    Yields
    ------
    dict of str to float
        Seconds by name of the phase. The dict is filled while the block runs.
    """
    token = _seconds.set({})
    try:
        yield _seconds.get()  # type: ignore[misc]
    finally:
        _seconds.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the time of the block to phase `name`, if the code runs within :func:`record_seconds`.

    The time of a phase does not include the time of other phases within the block.
    """
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
    """Yield `items`. The time to compute the items is added to phase `name`, the time to use them is not."""
    iterator, end = iter(items), object()
    while True:
        with phase(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
