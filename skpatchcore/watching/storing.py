"""Storing: repeat a write until it succeeds, e.g. until there is room on the disk. `flush` waits for the disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from skpatchcore.watching.heartbeat import Heartbeat
from skpatchcore.watching.notices import Notices

T = TypeVar("T")
# Errors of a full disk. Other errors, e.g. of a lost network drive, are repeated in the same way.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE_FULL = 13
# Seconds before the first and before the last tries.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class Stopped(Exception):
    """The process ends before a write succeeded. The next process judges the file again."""


class Storing:
    """Repeat writes.

    Parameters
    ----------
    heartbeat : Heartbeat
        States that nothing can be written.
    notices : Notices
        Where this is said once.
    wait : callable
        Function of seconds that waits, and returns True if the process ends.
    first_pause : float, default=1.0
        Seconds after the first failure. The pause doubles up to 60 seconds.
    """

    def __init__(
        self, heartbeat: Heartbeat, notices: Notices, wait: Callable[[float], bool], first_pause: float = _FIRST_PAUSE
    ):
        self._heartbeat, self._notices, self._wait, self._first_pause = heartbeat, notices, wait, first_pause

    def insist(self, write: Callable[[], T]) -> T:
        """Call a function until it raises no error of the disk. Return its result.

        Parameters
        ----------
        write : callable
            A function that can be called again after it raised an OSError or an error of SQLite.

        Raises
        ------
        Stopped
            If the process ends before the function succeeded.
        """
        pause, state = self._first_pause, ""
        while True:
            try:
                result = write()
            except (OSError, sqlite3.OperationalError) as error:
                if not state:
                    state = self._heartbeat.state
                    self._notices.say(f"{_text_of(error)} No file is judged until this is possible.")
                self._heartbeat.enter("disk full" if _is_full(error) else "cannot write")
                if self._wait(pause):
                    raise Stopped from error
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if state:
                    self._notices.say("writing works again.")
                    self._heartbeat.enter(state)
                return result


def flush(path: str | os.PathLike[str]) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    is_folder = os.path.isdir(path)
    if is_folder and os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return getattr(error, "sqlite_errorcode", None) == _SQLITE_FULL


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f" {error.filename!r}" if error.filename else ""
        return f"cannot write{place}: {error.strerror or error}."
    return f"cannot write the journal: {error}."
