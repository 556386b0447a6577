"""`prune` and `touch`: bound the size of the folders of caches on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

# A file that was used within this time, in seconds, is not marked as used again.
_RECENT = 60.0


def size_of(folder: Path, pattern: str = "*/*.npz") -> int:
    """Return the size in bytes of all entries of a cache folder; 0 if the folder does not exist."""
    return sum(size for _, size, _ in _entries(folder, pattern))


def prune(folder: Path, limit: int, pattern: str = "*/*.npz", before: float | None = None) -> int:
    """Delete the least recently used entries until the other entries take at most `limit` bytes.

    Parameters
    ----------
    folder : path
        Folder of the cache. The entries lie in its subfolders.
    limit : int
        Maximum size of all entries in bytes.
    pattern : str, default="*/*.npz"
        Pattern of the entries within the folder.
    before : float or None, default=None
        Only entries that were last used before this time are deleted, in seconds since the epoch. None deletes any.

    Returns
    -------
    int
        Size in bytes of the entries that are left.
    """
    entries = _entries(folder, pattern)
    total = sum(size for _, size, _ in entries)
    for used, size, path in sorted(entries):
        if total <= limit or (before is not None and used >= before * 1e9):
            break
        try:
            path.unlink(missing_ok=True)
        except OSError:  # the entry belongs to another user, or another process has mapped it (Windows)
            continue
        total -= size
    return total


def touch(path: Path, used: float | None = None) -> None:
    """Set the modification time of an entry, which is the time of its last use, to now.

    Parameters
    ----------
    path : path
        The entry.
    used : float or None, default=None
        Known time of the last use, in seconds since the epoch. A recent time is kept. None always sets the time.
    """
    if used is not None and abs(time.time() - used) < _RECENT:
        return
    try:
        os.utime(path)
    except OSError:  # deleted meanwhile, or owned by another user: the entry has been read, so ignore the error
        return


def _entries(folder: Path, pattern: str) -> list[tuple[int, int, Path]]:
    """Return the time of the last use in nanoseconds, the size in bytes and the path of each entry."""
    entries = []
    for path in folder.glob(pattern):
        try:
            stat = path.stat()
        except OSError:  # another process has deleted the entry
            continue
        entries.append((stat.st_mtime_ns, stat.st_size, path))
    return entries
