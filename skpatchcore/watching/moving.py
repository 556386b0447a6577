"""Moving of judged files into folders by verdict, so that a file is never lost and never replaces another one."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from skpatchcore._utils.files import partial_path
from skpatchcore.watching.candidates import Place, Version, version_from
from skpatchcore.watching.storing import flush


def target_of(folder: str, verdict: str, path: str) -> str:
    """Return where a judged file belongs: a free name in a folder, with the subfolders of the file.

    Parameters
    ----------
    folder : str
        The folder of judged files.
    verdict : {"normal", "anomalous", "unreadable", "undecided"}
        Subfolder.
    path : str
        Path of the file relative to the watched folder.

    Returns
    -------
    str
        Absolute path. If the name is taken, ``-2``, ``-3``, ... is added to the stem.
    """
    return _free(os.path.join(os.path.abspath(folder), verdict, path))


def _free(path: str) -> str:
    """Return a path, with a number if a file has this name. Few names are looked at, also if many exist."""
    if not os.path.lexists(path):
        return path
    stem, suffix = os.path.splitext(path)
    taken, free = 1, 2
    while os.path.lexists(f"{stem}-{free}{suffix}"):
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        if os.path.lexists(f"{stem}-{middle}{suffix}"):
            taken = middle
        else:
            free = middle
    return f"{stem}-{free}{suffix}"


def move(place: Place, version: Version, target: str, durable: bool = False) -> str | None:
    """Move a judged file, and remove its done-marker before. Go on with a move that was interrupted.

    Parameters
    ----------
    place : Place
        The watched folder.
    version : Version
        The file. If it has another size or time meanwhile, it is not moved: this version was not judged.
    target : str
        Absolute path of the new place.
    durable : bool, default=False
        Whether the moved file is on the disk before the old one is removed. A copy to another file system always is.

    Returns
    -------
    str or None
        The new path; another one than `target` if a file of another process has this name. None if the file was not
        moved, because it has changed or is not there.

    Raises
    ------
    OSError
        If the file cannot be moved, or the folder has vanished.
    """
    source = place.full(version.path)
    found = place.version_of(version.path)
    if found != version:
        if found is None and os.path.lexists(target) and _is_like(version, target):  # was moved before a kill
            return target
        os.stat(place.folder)  # raises if the folder has vanished: the file may come back with it
        return None
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target) and not _is_copy(source, version, target):
        target = _free(target)
    if place.marker:
        with suppress(FileNotFoundError):
            os.unlink(source + place.marker)
    if os.path.lexists(target):  # complete copy of an earlier try
        os.unlink(source)
        return target
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, Path(target))
        if place.version_of(version.path) != version:
            os.unlink(target)
            return None
        os.unlink(source)
        return target
    if version_from(version.path, os.lstat(target)) != version:  # a new version came between the check and the move
        os.rename(target, _free(source))
        return None
    if durable:
        flush(os.path.dirname(target))
    return target


def _copy(source: str, target: Path) -> None:
    partial = partial_path(target)
    try:
        shutil.copyfile(source, partial)
        shutil.copystat(source, partial)
        flush(partial)
        os.rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _is_like(version: Version, target: str) -> bool:
    """Return whether a file has the size and about the time of a version. File systems round times differently."""
    found = os.lstat(target)
    is_near = abs(found.st_mtime_ns - version.mtime_ns) < 2_000_000_000
    return stat.S_ISREG(found.st_mode) and found.st_size == version.size and is_near


def _is_copy(source: str, version: Version, target: str) -> bool:
    """Return whether a file is a copy of a version. Cameras can write files of the same size and time, so read both."""
    return _is_like(version, target) and filecmp.cmp(source, target, shallow=False)
