"""Output that never ends the work: consoles of any encoding, closed ones, and none at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class TolerantStream:
    """A text stream that raises nothing when it is written to.

    Characters that the stream's encoding lacks are written as escapes. If the stream is closed, or its reader is gone,
    the text is lost.

    Parameters
    ----------
    stream : text stream or None
        Where the text goes. None, as ``sys.stderr`` is in programs without a console, writes nothing.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, and return its length."""
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
        """Flush the stream."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` tolerant in the block, for a program that owns them.

    If the reader of one of them is gone at the end, it is connected to nothing: otherwise the interpreter fails when it
    flushes the stream at its exit.
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
    try:
        if stream is not None:
            stream.flush()
    except ValueError:  # it is closed
        return
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
