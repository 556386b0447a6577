"""Reading of image files. Errors state the index and the path of the image."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from skpatchcore.images.errors import ImageError

# Maximum size of a file in bytes, because the content is held in memory. Cameras write smaller files.
_MAX_BYTES = 2**31
# Errors of the operating system that do not depend on the file: too many open files, or no memory left.
_SYSTEM_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_content(path: str, index: int) -> bytes:
    """Return the content of an image file.

    Parameters
    ----------
    path : str
        Path of the file.
    index : int
        Position of the image in `X`, for error messages.

    Returns
    -------
    bytes

    Raises
    ------
    ImageError
        If the file does not exist, cannot be read, is larger than 2 GiB, or is not a regular file. Pipes are refused,
        because reading them might never end.
    OSError
        If the operating system has no file handles or memory left.
    """
    with opened(path, index) as file:
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise ImageError(f"has {size} bytes, expected at most 2 GiB.", index, path)
        return file.read()


@contextmanager
def opened(path: str, index: int) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes. Errors of opening and reading are raised as ImageError.

    Raises
    ------
    ImageError
        If the file does not exist, cannot be read, or is not a regular file.
    OSError
        If the operating system has no file handles or memory left. Such an error does not depend on the file.
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
    """Turn errors about the file into an ImageError with index and path."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError("no such file.", index, path) from error
    except OSError as error:  # e.g. circular links or no permission
        if error.errno is None or error.errno in _SYSTEM_ERRORS:
            raise
        raise ImageError(f"cannot be read: {os.strerror(error.errno)}.", index, path) from error


def _require_plain_file(path: str, index: int) -> None:
    """Raise an ImageError if a path is not that of a regular file."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte in the path
        raise ImageError(f"cannot be read: {error}.", index, path) from error
    if stat.S_ISDIR(mode):
        raise ImageError("is a directory; skpatchcore.list_images(directory) lists its images.", index, path)
    if not stat.S_ISREG(mode):
        raise ImageError("is not a regular file.", index, path)
