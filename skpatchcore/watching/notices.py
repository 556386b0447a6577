"""Notices: what a watched folder says on standard error, each cause once, in bounded memory."""

from __future__ import annotations

import sys
import threading

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.progress import write_line

# Maximum number of causes that are remembered. Then all are forgotten, and may be said again.
_N_CAUSES = 1000


class Notices:
    """Single lines on standard error. Any thread may call the methods."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            write_line(f"skpatchcore: {shown_name(' '.join(text.split()))}", sys.stderr)

    def say_once(self, text: str, cause: str = "") -> None:
        """Print a line if none was printed for the same cause, which is the text by default."""
        cause = cause or text
        with self._lock:
            if cause in self._said:
                return
            if len(self._said) >= _N_CAUSES:
                self._said.clear()
            self._said.add(cause)
        self.say(text)

    def forget(self, cause: str) -> None:
        """Let :meth:`say_once` speak of a cause again, because the cause ended."""
        with self._lock:
            self._said.discard(cause)
