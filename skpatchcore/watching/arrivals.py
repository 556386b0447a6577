"""Arrivals: the files that wait to be judged, and which of them are complete."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from skpatchcore.watching.candidates import Place, Version

# Maximum number of files that wait in memory. A later search finds the others.
CAPACITY = 10_000


class Arrival(NamedTuple):
    """A complete file.

    Attributes
    ----------
    version : Version
        The file.
    completed : float
        When the file was complete, in seconds of the clock.
    n_tries : int
        How often the file could not be read.
    """

    version: Version
    completed: float
    n_tries: int


@dataclass
class _Waiting:
    """A file that waits. `due` is the time at which it is complete if it does not change."""

    version: Version
    due: float
    wait: float
    n_tries: int = 0
    is_complete: bool = False


class Arrivals:
    """Files that wait. A file is complete if its size and time do not change for some seconds.

    The seconds are measured with the clock of this computer, because the times of a network drive may be wrong.

    Parameters
    ----------
    place : Place
        The watched folder. With done-markers, a file is complete as soon as its marker exists.
    is_judged : callable
        Function of a version: whether it was judged already.
    settle : float
        Seconds without a change, after which a file is complete.
    capacity : int
        Maximum number of files that wait in memory.

    Attributes
    ----------
    is_cut : bool
        Whether files were left out because of `capacity`. Then another search is needed.
    n_vanished : int
        Number of files that were removed before they were judged.
    """

    def __init__(self, place: Place, is_judged: Callable[[Version], bool], settle: float, capacity: int = CAPACITY):
        self._place, self._is_judged, self._capacity = place, is_judged, capacity
        self._settle = 0.0 if place.marker else settle
        self._waiting: dict[str, _Waiting] = {}
        self._due: list[tuple[float, str]] = []
        self._complete: list[tuple[float, int, str]] = []
        self.is_cut, self.n_vanished = False, 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """Number of files that can be added."""
        return max(0, self._capacity - len(self._waiting))

    def is_new(self, version: Version) -> bool:
        """Return whether a version neither waits nor was judged."""
        waiting = self._waiting.get(version.path)
        return (waiting is None or waiting.version != version) and not self._is_judged(version)

    def look(self, path: str, now: float) -> None:
        """Take notice of a file that may have changed.

        Parameters
        ----------
        path : str
            Path of the file or of its done-marker, relative to the folder.
        now : float
            The time, in seconds of the clock.
        """
        if self._place.is_marker(os.path.basename(path)):
            path = path.removesuffix(self._place.marker)
        if not self._place.is_candidate(path):
            return
        version = self._place.version_of(path)
        if version is None or not self._place.is_marked(path):
            self._leave(path)
        else:
            self.offer([version], now)

    def offer(self, versions: Iterable[Version], now: float) -> None:
        """Add files that were found at the same time.

        Parameters
        ----------
        versions : iterable of Version
            The files.
        now : float
            The time, in seconds of the clock.
        """
        for version in versions:
            if not self.is_new(version):
                continue
            waiting = self._waiting.get(version.path)
            if waiting is None and (self.is_cut or not self.room):  # older files come first
                self.is_cut = True
                continue
            wait, n_tries = (waiting.wait, waiting.n_tries) if waiting else (self._settle, 0)
            self._wait(version, now, wait, n_tries)

    def postpone(self, arrival: Arrival, now: float, patience: float) -> None:
        """Let a file that could not be read wait again, until it does not change for `patience` seconds."""
        version = self._place.version_of(arrival.version.path)
        if version is None:
            self._leave(arrival.version.path)
        elif self._is_judged(version):
            self.finish(version.path)
        else:
            self._wait(version, now, patience, arrival.n_tries + 1)

    def take(self, now: float, limit: int, n_bytes: int) -> list[Arrival]:
        """Return the next complete files: by completion, then by the time of the file, then by name.

        They wait until :meth:`finish` or :meth:`postpone` is called.

        Parameters
        ----------
        now : float
            The time, in seconds of the clock.
        limit : int
            Maximum number of files.
        n_bytes : int
            Maximum size of all files, except that one file is always returned.
        """
        self._complete_due(now)
        taken: list[Arrival] = []
        n_taken = 0
        while self._complete and len(taken) < limit:
            due, _, path = self._complete[0]
            waiting = self._waiting.get(path)
            if waiting is None or not waiting.is_complete or waiting.due != due:
                heapq.heappop(self._complete)
                continue
            n_taken += waiting.version.size
            if taken and n_taken > n_bytes:
                break
            heapq.heappop(self._complete)
            taken.append(Arrival(waiting.version, due, waiting.n_tries))
        return taken

    def put_back(self, arrivals: Iterable[Arrival]) -> None:
        """Return files that were taken and not judged."""
        for arrival in arrivals:
            heapq.heappush(self._complete, (arrival.completed, arrival.version.mtime_ns, arrival.version.path))

    def finish(self, path: str) -> None:
        """Forget a file that was judged."""
        self._waiting.pop(path, None)

    def next_due(self) -> float | None:
        """Return when the next file may be complete; None if no file waits."""
        if self._complete:
            return self._complete[0][0]
        return self._due[0][0] if self._due else None

    def clear(self) -> None:
        """Forget all files that wait, because the folder has vanished."""
        self._waiting.clear()
        self._due.clear()
        self._complete.clear()

    def _wait(self, version: Version, now: float, wait: float, n_tries: int) -> None:
        self._waiting[version.path] = _Waiting(version, now + wait, wait, n_tries)
        heapq.heappush(self._due, (now + wait, version.path))

    def _leave(self, path: str) -> None:
        if self._waiting.pop(path, None) is not None:
            self.n_vanished += 1

    def _complete_due(self, now: float) -> None:
        """Look at the files whose time has come: they are complete unless they have changed."""
        while self._due and self._due[0][0] <= now:
            due, path = self._due[0]
            waiting = self._waiting.get(path)
            if waiting is None or waiting.is_complete or waiting.due != due:
                heapq.heappop(self._due)
                continue
            version, is_marked = self._place.version_of(path), self._place.is_marked(path)
            heapq.heappop(self._due)  # not before: the file system may not answer, and the file must not be forgotten
            if version is None or not is_marked:
                self._leave(path)
            elif version != waiting.version:
                self._wait(version, now, waiting.wait, waiting.n_tries)
            else:
                waiting.is_complete = True
                heapq.heappush(self._complete, (due, version.mtime_ns, path))
