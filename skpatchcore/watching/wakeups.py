"""Wakeups: paths that may have changed, from a thread that listens to the file system, for the judging thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

# Maximum number of paths that are held. With more, the whole folder is searched.
_N_PATHS = 10_000
# Milliseconds: time between two looks at the events, time over which events are joined, time after which a listener
# that hears nothing looks whether it should end.
_STEP, _JOINED, _TIMEOUT = 10, 50, 500
# After so many errors in a row, there are no events.
_N_FAILURES = 3


class Wakeups:
    """Paths that may have changed. Any thread and any signal handler may wake the judging thread.

    Attributes
    ----------
    failure : str
        Why the listener ended; empty while it works.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()  # the only queue that a signal handler may use
        self._lock = threading.Lock()
        self._paths: set[str] = set()
        self._is_all = False
        self.failure = ""

    def add(self, paths: Iterable[str]) -> None:
        """Add paths, if there are any."""
        with self._lock:
            n_before = len(self._paths)
            self._paths.update(paths)
            if len(self._paths) == n_before:
                return
            if len(self._paths) > _N_PATHS:
                self._paths, self._is_all = set(), True
        self.wake()

    def add_all(self) -> None:
        """Let the whole folder be searched."""
        with self._lock:
            self._is_all = True
        self.wake()

    def wake(self) -> None:
        """Wake the judging thread."""
        if self._queue.empty():
            self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until the thread is woken, or the time is over."""
        try:
            self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            pass

    def take(self) -> tuple[set[str], bool]:
        """Return the paths, and whether the whole folder has to be searched."""
        with self._lock:
            paths, is_all = self._paths, self._is_all
            self._paths, self._is_all = set(), False
        return paths, is_all


class Listener:
    """A thread that listens to the events of a folder with the package watchfiles.

    Parameters
    ----------
    folder : str
        Absolute path of the folder, without links.
    wakeups : Wakeups
        Gets the paths.
    """

    def __init__(self, folder: str, wakeups: Wakeups):
        self._folder, self._wakeups = folder, wakeups
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="skpatchcore-events", daemon=True)
        self._thread.start()

    @staticmethod
    def is_available() -> bool:
        """Return whether watchfiles is installed."""
        try:
            import watchfiles  # noqa: F401
        except ImportError:
            return False
        return True

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(2 * _TIMEOUT / 1000)

    def _run(self) -> None:
        """Listen, and start again after an error: the library raises one if a name is not valid in UTF-8."""
        n_failures = 0
        while not self._stop.is_set():
            try:
                for changes in self._changes():
                    if changes is None:  # files may have come before the thread listened
                        self._wakeups.add_all()
                    else:
                        n_failures = 0
                        self._wakeups.add(path for _, path in changes)
            except Exception as error:
                n_failures += 1
                if n_failures >= _N_FAILURES:  # e.g. the system allows no more folders to be watched
                    self._wakeups.failure = " ".join(str(error).split()) or type(error).__name__
                self._wakeups.add_all()
                if self._wakeups.failure:
                    return
                self._stop.wait(_TIMEOUT / 1000)

    def _changes(self) -> Iterator[set[tuple[Any, str]] | None]:
        """Yield None as soon as events are reported, and then sets of changes, which may be empty."""
        from watchfiles import watch

        is_first = True
        for changes in watch(
            self._folder,
            watch_filter=None,
            debounce=_JOINED,
            step=_STEP,
            stop_event=self._stop,
            rust_timeout=_TIMEOUT,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            if is_first:
                is_first = False
                yield None
            yield changes
