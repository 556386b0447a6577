"""Files that are there whole or not at all: what models are saved in, and caches on disk are made of."""

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
from sklearn.utils.validation import check_memory


def cache_folder(memory: Any, name: str) -> Path | None:
    """Return the folder `name` where a `memory` parameter says that results are kept; None if nothing is.

    Parameters
    ----------
    memory : str, path, joblib.Memory or None
        As scikit-learn's estimators have it.
    name : str
        Of the folder.
    """
    location = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory).location
    return None if location is None else Path(location) / name


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return what :func:`write_arrays` wrote; None if there is no such file or it is damaged.

    The format is numpy's ``.npz``. Each member is read to its end before it is looked into, for only then is its
    checksum verified.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                content = BytesIO(archive.read(member))
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1):
                    return None
    except Exception:  # damaged bytes raise anything, and a cache can do without any of them
        return None
    return arrays


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays in one step: a reader finds the whole file or none, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def written_whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the place of another one in one step when it is done.

    The write is atomic: an existing file is replaced only after the new one is complete. A symbolic link stays, and the
    file that it leads to is replaced. The new file has the permissions of the old one, and its group if the user may
    set it; a file that is new has those that the process gives to new files. Other hard links to the old file keep the
    old content.

    Parameters
    ----------
    path : path
        What is to be written.
    durable : bool, default=False
        Wait until the disk has it, so that this holds for a loss of power too.

    Yields
    ------
    Path
        In the same folder as the file. Removed if the block raises.

    Raises
    ------
    OSError
        Before the block, if `path` is a directory, a device or a pipe, or a file that the user may not write to.
    """
    target = Path(os.path.realpath(path))  # of a link that leads nowhere, too
    before = _replaceable(target)
    partial = target.with_name(f".{_short(target.name)}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        if before is not None:  # nobody reads it meanwhile who may not read the old file
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
        yield partial
        if before is not None:
            _take_over(partial, before)
        if durable:
            _flush(partial)
        os.replace(partial, target)
        if durable and os.name == "posix":  # elsewhere a folder can't be opened
            with contextlib.suppress(OSError):  # some network shares can't; the new file is in its place by now
                _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise an OSError if a file can't be written: before the work, not after it.

    Parameters
    ----------
    path : path
        A file, which may be there or not, in a folder that is there.
    """
    target = Path(os.path.realpath(path))
    _replaceable(target)
    _require_room_in(target.parent)


def require_writable_folder(folder: Path) -> None:
    """Raise an OSError if no files can be written in a folder, or it can't be made.

    Parameters
    ----------
    folder : path
        It may be missing, and so may folders above it. Nothing is made.
    """
    place = Path(os.path.realpath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    _require_room_in(place)


def _require_room_in(folder: Path) -> None:
    """Raise an OSError if no file can be made in a folder, by making a nameless one."""
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:  # tempfile names a file that nobody asked for
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _replaceable(target: Path) -> os.stat_result | None:
    """Return the status of a file that will be replaced; None if it does not exist. Refuse a file that can't be."""
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
    """Give a file the group and the permissions of another one, as far as the user may."""
    if hasattr(os, "chown") and os.stat(partial).st_gid != before.st_gid:
        with contextlib.suppress(OSError):
            os.chown(partial, -1, before.st_gid)
    with contextlib.suppress(OSError):  # some file systems have no permissions
        os.chmod(partial, stat.S_IMODE(before.st_mode))


def _short(name: str) -> str:
    """Return the start of a name, short enough for a longer one to be made of it."""
    return os.fsencode(name)[:100].decode(sys.getfilesystemencoding(), "ignore")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
