"""Plain files that images are read from; errors name the image."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from skpatchcore.images.errors import ImageError

# More than any camera writes: the content is held in memory.
_MAX_BYTES = 2**31
# Errors that the next file would meet too: they are not about the image.
_SYSTEM_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_content(path: str, index: int) -> bytes:
    """Return a file's bytes.

    Parameters
    ----------
    path : str
        The file.
    index : int
        Position of the image in `X`, for the error.

    Raises
    ------
    ImageError
        If there is no such file, it can't be read, or it is not a plain file: a pipe might never end.
    """
    with opened(path, index) as file:
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise ImageError(f"has {size} bytes, more than any image.", index, path)
        return file.read()


@contextmanager
def opened(path: str, index: int) -> Iterator[BinaryIO]:
    """Open a plain file to read bytes. Errors of opening and reading name the image.

    Raises
    ------
    ImageError
        If the file is missing, can't be read, or is not a plain file.
    OSError
        If the operating system has no file handles or memory left, which is not the file's fault.
    """
    with _named(path, index):
        _require_plain_file(path, index)
        file = open(path, "rb")
    with file:
        try:
            yield file
        except OSError as error:
            with _named(path, index):
                raise error


@contextmanager
def _named(path: str, index: int) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError("no such file.", index, path) from error
    except OSError as error:  # links in a circle, no permission
        if error.errno is None or error.errno in _SYSTEM_ERRORS:
            raise
        raise ImageError(f"can't be read: {os.strerror(error.errno)}.", index, path) from error


def _require_plain_file(path: str, index: int) -> None:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte in the path
        raise ImageError(f"can't be read: {error}.", index, path) from error
    if stat.S_ISDIR(mode):
        raise ImageError("is a directory; skpatchcore.list_images(directory) lists its images.", index, path)
    if not stat.S_ISREG(mode):
        raise ImageError("is no plain file.", index, path)
