"""Atomic writing of files (`written_whole`), checks before writing, and files of arrays for caches on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np


def cache_folder(memory: Any, name: str) -> Path | None:
    """Return the cache folder `name` within the location of a `memory` parameter; None without a cache.

    Parameters
    ----------
    memory : str, path, joblib.Memory or None
        Location of the cache, as for scikit-learn's estimators. None means no cache.
    name : str
        Name of the folder.

    Returns
    -------
    Path or None
        The folder, which may not exist yet.
    """
    from sklearn.utils.validation import check_memory

    location = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory).location
    return None if location is None else Path(location) / name


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays that :func:`write_arrays` wrote, by name; None if the file is missing or damaged.

    The format is numpy's ``.npz``. Each member is read to its end before its content is parsed, because zipfile
    verifies the checksum only at the end.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                content = BytesIO(archive.read(member))
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1):
                    return None
    except Exception:  # damaged bytes can raise any exception; the caller computes the result again
        return None
    return arrays


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to one file atomically, and create missing folders.

    A reader finds a complete file or no file, even if several processes write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def written_whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the block, the temporary file replaces `path`.

    The write is atomic: an existing file is replaced only after the new file is complete. If `path` is a symbolic link,
    the link stays and its target is replaced. The new file gets the permissions of the old file, and the group of the
    old file if the user may set the group. If there was no old file, the new file gets the default permissions of the
    process. Other hard links to the old file keep the old content.

    Parameters
    ----------
    path : path
        The file to write.
    durable : bool, default=False
        If True, wait until the file is on the disk. The write is then atomic even if the power fails.

    Yields
    ------
    Path
        A temporary path in the same folder as the file. The temporary file is removed if the block raises.

    Raises
    ------
    OSError
        If `path` is a directory, a device, a pipe, or a file that the user may not write. The error is raised before
        the block runs.
    """
    target = Path(os.path.realpath(path))  # also resolves a link to a missing file
    before = _replaceable(target)
    partial = partial_path(target)
    try:
        if before is not None:  # private at first, because the old file may not be readable by everyone
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
        yield partial
        if before is not None:
            _take_over(partial, before)
        if durable:
            _flush(partial)
        os.replace(partial, target)
        if durable and os.name == "posix":  # other systems cannot open a folder
            with contextlib.suppress(OSError):  # some network shares cannot either; the file is already replaced
                _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """Return the path of a temporary file beside a file. Each thread of each process has its own temporary file."""
    return target.with_name(f".{_short(target.name)}.{os.getpid()}-{threading.get_ident()}.partial")


def require_writable(path: Path) -> None:
    """Raise an OSError if a file cannot be written. Call this function before a long computation.

    Parameters
    ----------
    path : path
        The file, which may not exist yet. Its folder must exist.
    """
    target = Path(os.path.realpath(path))
    _replaceable(target)
    _require_room_in(target.parent)


def require_writable_folder(folder: Path) -> None:
    """Raise an OSError if a folder cannot be created, or if no files can be written in the folder.

    Parameters
    ----------
    folder : path
        The folder. The folder and its parents may not exist yet. This function does not create them.
    """
    place = Path(os.path.realpath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    _require_room_in(place)


def _require_room_in(folder: Path) -> None:
    """Raise an OSError if no file can be created in a folder, by creating an unnamed temporary file."""
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:  # the message of tempfile names its own temporary file: name the folder instead
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _replaceable(target: Path) -> os.stat_result | None:
    """Return the status of the file to replace; None if there is no file. Raise if the file cannot be replaced."""
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return found


def _take_over(partial: Path, before: os.stat_result) -> None:
    """Give a file the group and the permissions of the old file, if the user may set them."""
    if hasattr(os, "chown") and os.stat(partial).st_gid != before.st_gid:
        with contextlib.suppress(OSError):
            os.chown(partial, -1, before.st_gid)
    with contextlib.suppress(OSError):  # some file systems have no permissions
        os.chmod(partial, stat.S_IMODE(before.st_mode))


def _short(name: str) -> str:
    """Return the first 100 bytes of a name, which leave room for a prefix and a suffix in a file name."""
    return os.fsencode(name)[:100].decode(sys.getfilesystemencoding(), "ignore")


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
