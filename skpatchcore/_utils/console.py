"""Console output that never raises: `TolerantStream` and `tolerant_output`.

Writing to a console can fail if the console has another encoding, is closed, or does not exist. A failed write must not
stop a long computation.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class TolerantStream:
    """Wrapper of a text stream. Writing to the wrapper never raises.

    Characters that the stream's encoding cannot represent are written as backslash escapes. If the stream is closed or
    its pipe is broken, the text is discarded.

    Parameters
    ----------
    stream : text stream or None
        The stream to write to. If None, nothing is written. ``sys.stderr`` is None in programs without a console.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` and return its length, even if the text could not be written."""
        if self._stream is None:
            return len(text)
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream. Errors are ignored."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Wrap ``sys.stdout`` and ``sys.stderr`` in :class:`TolerantStream` within the block.

    Use this context manager only in a program that owns these streams, such as a command line tool. If a stream's pipe
    is broken at the end of the block, the stream is redirected to the null device. Otherwise the interpreter would
    raise when it flushes the stream at exit.
    """
    streams = sys.stdout, sys.stderr
    try:
        with (
            contextlib.redirect_stdout(TolerantStream(sys.stdout)),
            contextlib.redirect_stderr(TolerantStream(sys.stderr)),
        ):
            yield
    finally:
        for stream in streams:
            _let_go_if_broken(stream)


def _let_go_if_broken(stream: Any) -> None:
    """Redirect a stream to the null device if flushing the stream fails."""
    try:
        if stream is not None:
            stream.flush()
    except ValueError:  # the stream is closed
        return
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
