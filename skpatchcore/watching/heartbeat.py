"""Heartbeat: a file that says what a watched folder does, for a supervisor. It is replaced every few seconds."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from skpatchcore._utils.files import partial_path

# Seconds between two heartbeats.
_PERIOD = 5.0


class Heartbeat:
    """Write a file every 5 seconds in a thread, and when the state changes.

    A heartbeat that cannot be written is left out, because the state is not worth an end of the work.

    Parameters
    ----------
    file : path
        The file. It is replaced in one step.
    facts : callable
        Function that returns further values of the file. Other threads call it.

    Attributes
    ----------
    state : str
        What the process does, e.g. ``"waiting"``.
    """

    def __init__(self, file: Path, facts: Callable[[], dict[str, Any]]):
        self._file, self._facts = file, facts
        self.state = "starting"
        self._since = self._turn = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="skpatchcore-heartbeat", daemon=True)

    def start(self) -> None:
        """Write the first heartbeat, and start the thread."""
        self.write()
        self._thread.start()

    def turn(self) -> None:
        """Note that the judging thread works. The file states the seconds since then."""
        self._turn = time.monotonic()

    def enter(self, state: str, now: bool = True) -> None:
        """Change the state, and write it now or with the next heartbeat."""
        self.turn()
        if state != self.state:
            self.state, self._since = state, time.monotonic()
            if now:
                self.write()

    def stop(self, state: str) -> None:
        """Write the last state, and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PERIOD)
        self.state, self._since = state, time.monotonic()
        self.write()

    def write(self) -> None:
        """Replace the file, if this is possible."""
        with self._lock, suppress(OSError):
            now = time.monotonic()
            content = {
                "time": utc(time.time()),
                "pid": os.getpid(),
                "state": self.state,
                "seconds_in_state": round(now - self._since, 1),
                "seconds_since_turn": round(now - self._turn, 1),
                **self._facts(),
            }
            partial = partial_path(self._file)
            try:
                partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                os.replace(partial, self._file)
            finally:
                partial.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.write()


def utc(seconds: float) -> str:
    """Return a time in seconds since 1970 as ISO 8601 in UTC, with milliseconds."""
    whole = int(seconds // 1)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1000):03d}Z"
