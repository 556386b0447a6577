"""Discovery: keeps the arrivals of a folder up to date, by events and by searches."""

from __future__ import annotations

import os
import time
from collections import deque

from skpatchcore.watching.arrivals import CAPACITY, Arrivals
from skpatchcore.watching.candidates import Place, Search
from skpatchcore.watching.notices import Notices
from skpatchcore.watching.wakeups import Listener, Wakeups

# Seconds between two searches without events, if the user gives none.
_POLL = 2.0
# A search takes at most this fraction of the time.
_LOAD = 0.1
# Seconds of a slice of a search, with and without files that wait to be judged.
_SLICE, _FREE_SLICE = 0.02, 0.05
# Seconds between two tries to find a folder that has vanished: the first and the longest.
_FIRST_TRY, _LONGEST_TRY = 1.0, 30.0
# What the library of events writes in place of bytes that are not valid in a name.
_REPLACED = "\ufffd"


class Discovery:
    """Find new files in a folder.

    Parameters
    ----------
    place : Place
        The folder.
    arrivals : Arrivals
        Gets the files.
    wakeups : Wakeups
        Events of the folder.
    poll : float or None
        Seconds between two searches, without events. None uses events, if the package watchfiles is installed.
    rescan : float
        Seconds between two searches with events, in case that an event is lost.
    notices : Notices
        Where problems are said.

    Attributes
    ----------
    is_missing : bool
        Whether the folder cannot be read.
    n_ignored, n_unmarked : int
        Numbers of files that are no images, and of images without their done-marker, at the last search.
    n_found : int or None
        Number of files that the last complete search found; None before the first one.
    """

    def __init__(
        self,
        place: Place,
        arrivals: Arrivals,
        wakeups: Wakeups,
        *,
        poll: float | None,
        rescan: float,
        notices: Notices,
    ):
        self._place, self._arrivals, self._wakeups, self._notices = place, arrivals, wakeups, notices
        self._poll, self._rescan = poll, rescan
        self._listener: Listener | None = None
        self._searches: deque[Search] = deque()
        self._full: Search | None = None
        self._full_start = 0.0
        self._next_search = self._next_try = 0.0
        self._pause = _FIRST_TRY
        self._identity: tuple[int, int] | None = None
        self.is_missing, self.n_ignored, self.n_unmarked = False, 0, 0
        self.n_found: int | None = None

    def start(self) -> None:
        """Start to listen, and say how new files are found."""
        if self._poll is None and not Listener.is_available():
            self._poll = _POLL
            self._notices.say(
                f"watching by a search every {_POLL:g} s, because the package watchfiles is not installed: "
                "pip install watchfiles."
            )
        elif self._poll is None:
            self._notices.say("watching by events of the file system.")
        else:
            self._notices.say(f"watching by a search every {self._poll:g} s.")

    def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def search_again(self) -> None:
        """Search the folder as soon as possible."""
        self._next_search = 0.0

    def search_anew(self) -> None:
        """Search the folder as soon as possible. `n_found` is None until then."""
        self._searches.clear()
        self._full, self.n_found = None, None
        self.search_again()

    @property
    def is_busy(self) -> bool:
        """Whether a search goes on."""
        return bool(self._searches)

    def next_time(self) -> float:
        """Return when there is something to do."""
        if self.is_missing:
            return self._next_try
        return 0.0 if self._searches else self._next_search

    def turn(self, now: float) -> None:
        """Take notice of events, and search for a short time.

        Parameters
        ----------
        now : float
            The time, in seconds of the monotonic clock.
        """
        if self.is_missing and now < self._next_try:
            return
        try:
            self._check_folder()
            self._listen()
            self._take_events(now)
            self._search(now)
        except OSError as error:
            self._lose(error, now)
            return
        if self.is_missing:
            self.is_missing, self._pause = False, _FIRST_TRY
            self._notices.forget("folder")
            self._notices.say(f"the folder {self._place.folder!r} is there again.")

    def _check_folder(self) -> None:
        found = os.stat(self._place.folder)
        identity = found.st_dev, found.st_ino
        if self._identity is not None and identity != self._identity:  # e.g. a network drive was mounted
            self._notices.say(
                f"the folder {self._place.folder!r} is another one than before, e.g. because a drive was connected or "
                "disconnected. It is searched again."
            )
            self.stop()
            self.search_again()
            self._place.real = os.path.realpath(self._place.folder)
        self._identity = identity

    def _listen(self) -> None:
        if self._wakeups.failure and self._poll is None:
            self._poll = _POLL
            self.stop()
            self.search_again()
            self._notices.say(
                f"events of the file system failed: {self._wakeups.failure} Watching by a search every {_POLL:g} s."
            )
        if self._poll is None and self._listener is None:
            self._listener = Listener(self._place.real, self._wakeups)

    def _take_events(self, now: float) -> None:
        paths, is_all = self._wakeups.take()
        if is_all:
            self.search_again()
        for real in paths:
            path = self._place.relative(real)
            if not path:
                continue
            if _REPLACED in path:  # its name is unknown
                self.search_again()
            elif os.path.isdir(real) and not os.path.islink(real):  # files may have come before it was watched
                if self._place.is_searched(path):
                    self._searches.append(Search(self._place, self._arrivals.is_new, self._arrivals.room, path))
            else:
                self._arrivals.look(path, now)

    def _search(self, now: float) -> None:
        arrivals = self._arrivals
        if arrivals.is_cut and arrivals.room >= CAPACITY // 2:
            self.search_again()
        if self._full is None and now >= self._next_search and arrivals.room:
            arrivals.is_cut = False
            self._full = Search(self._place, arrivals.is_new, arrivals.room)
            self._full_start = now
            self._searches.append(self._full)
            self._next_search = float("inf")
        if not self._searches:
            return
        due = arrivals.next_due()
        search = self._searches[0]
        if not search.step(_SLICE if due is not None and due <= now else _FREE_SLICE):
            return
        self._searches.popleft()
        end = time.monotonic()
        arrivals.offer(search.found, end)
        arrivals.is_cut |= search.is_cut
        if search.problem:
            self._notices.say_once(search.problem)
        if search is self._full:
            self._full, self.n_found = None, len(search.found)
            self.n_ignored, self.n_unmarked = search.n_ignored, search.n_unmarked
            if search.link:
                self._notices.say_once(
                    f"symbolic links are not followed, e.g. {self._place.full(search.link)!r}.", "link"
                )
            interval = self._rescan if self._poll is None else self._poll
            self._next_search = min(self._next_search, end + max(interval, (end - self._full_start) / _LOAD))

    def _lose(self, error: OSError, now: float) -> None:
        """Forget what waits: the folder cannot be read."""
        self.stop()
        self._arrivals.clear()
        self._searches.clear()
        self._full, self._identity = None, None
        self.search_again()
        self._notices.say_once(
            f"the folder {self._place.folder!r} cannot be read: {error.strerror or error}. It is tried again.", "folder"
        )
        self.is_missing, self._next_try = True, now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_TRY)
