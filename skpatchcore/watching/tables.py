"""Table: a file to which whole lines are appended, each once, even if the process is killed or the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from skpatchcore.watching.journal import Line
from skpatchcore.watching.storing import flush

_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Table:
    """A table of a watched folder.

    The file may be renamed, removed or emptied at any time, e.g. by a program that rotates logs. The next line is then
    the first one of a new file.

    Parameters
    ----------
    path : path
        The file.
    header : bytes
        First line of the file; empty for none.
    durable : bool
        Whether each line is on the disk when :meth:`append` returns.
    on_aside : callable
        Called with the new name of a file with another header.
    """

    def __init__(
        self, path: Path, header: bytes, durable: bool = False, on_aside: Callable[[Path], object] = lambda path: None
    ):
        self.path, self._header, self._durable, self.on_aside = path, header, durable, on_aside
        self._descriptor: int | None = None

    def end(self) -> tuple[int, str]:
        """Open the file if needed, and return the position of the next line and the identity of the file.

        A file with another header is renamed, e.g. ``scores.csv`` to ``scores-1.csv``.

        Raises
        ------
        OSError
            If the file cannot be opened or written.
        """
        descriptor = self._opened()
        size = os.fstat(descriptor).st_size
        if size and _read(descriptor, size - 1, 1) != b"\n":  # a line that someone else wrote has no end
            size += self._write(b"\n")
        return size, _identity(os.fstat(descriptor))

    def append(self, line: Line) -> None:
        """Append a line, unless it is in the file already. A part of the line at its place is removed first.

        Raises
        ------
        OSError
            If the line cannot be written. Then the file contains no part of it.
        """
        descriptor = self._opened()
        # The identity is not compared: the numbers of devices can be others after the computer was started again.
        if _is_settled(descriptor, line):
            return
        if _identity(os.fstat(descriptor)) != line.file and self._is_in_earlier_file(line):
            return
        self.end()
        self._write(line.content)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _opened(self) -> int:
        """Return the descriptor of the file that has the name of the table now, with its header."""
        if self._descriptor is not None:
            try:
                is_same = os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
            except FileNotFoundError:
                is_same = False
            if not is_same:
                self.close()
        if self._descriptor is None:
            is_new = not os.path.lexists(self.path)
            self._descriptor = os.open(self.path, _FLAGS | os.O_CREAT, 0o666)
            if is_new and self._durable:
                flush(self.path.parent)
            if self._header and not self._has_header():
                self.close()
                self.on_aside(_put_aside(self.path))
                return self._opened()
        if not os.fstat(self._descriptor).st_size and self._header:
            self._write(self._header)
        return self._descriptor

    def _has_header(self) -> bool:
        """Return whether the file starts with the header or is empty; a part of the header is removed."""
        assert self._descriptor is not None
        content = _read(self._descriptor, 0, len(self._header))
        if len(content) < len(self._header) and self._header.startswith(content):
            os.ftruncate(self._descriptor, 0)
            return True
        return content == self._header

    def _write(self, content: bytes) -> int:
        """Write bytes with one call at the end of the file, completely or not at all. Return their number."""
        assert self._descriptor is not None
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, content)
        if written < len(content):  # the disk became full
            os.ftruncate(self._descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if self._durable:
            os.fsync(self._descriptor)
        return written

    def _is_in_earlier_file(self, line: Line) -> bool:
        """Return whether a line is in the file that was the table before, if this file is in the same folder."""
        with os.scandir(self.path.parent) as entries:
            files = {entry.inode(): entry.path for entry in entries if entry.is_file(follow_symlinks=False)}
        for inode, path in files.items():
            if str(inode) == line.file.partition("-")[2]:
                descriptor = os.open(path, _FLAGS)
                try:
                    return _is_settled(descriptor, line)
                finally:
                    os.close(descriptor)
        return False


def _is_settled(descriptor: int, line: Line) -> bool:
    """Return whether a line is at its place. If only a part of it is there, at the end of the file, remove the part."""
    found = _read(descriptor, line.at, len(line.content) + 1)
    if found.startswith(line.content):
        return True
    if found and line.content.startswith(found):
        os.ftruncate(descriptor, line.at)
    return False


def _read(descriptor: int, at: int, n_bytes: int) -> bytes:
    os.lseek(descriptor, at, os.SEEK_SET)  # writing is not affected: the file is open for appending
    parts, n_left = [], n_bytes
    while n_left and (part := os.read(descriptor, n_left)):
        parts.append(part)
        n_left -= len(part)
    return b"".join(parts)


def _identity(found: os.stat_result) -> str:
    return f"{found.st_dev}-{found.st_ino}"


def _put_aside(path: Path) -> Path:
    """Give a file with other columns another name, and return it."""
    for i in count(1):
        target = path.with_name(f"{path.stem}-{i}{path.suffix}")
        if not os.path.lexists(target):
            os.rename(path, target)
            return target
    raise AssertionError
