"""Place and Search: which files of a watched folder can be images, and the search for new ones in slices of time."""

from __future__ import annotations

import heapq
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from skpatchcore.images.formats import has_image_suffix

# Endings of files that are still written, by programs for downloads and by this package.
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
# Entries of a folder between two looks at the clock.
_N_ENTRIES = 64


class Version(NamedTuple):
    """One version of a file. A file whose size or time changes is a new version.

    Attributes
    ----------
    path : str
        Path relative to the watched folder.
    size : int
        Size in bytes.
    mtime_ns : int
        Time of the last change, in nanoseconds, as the file system states it.
    """

    path: str
    size: int
    mtime_ns: int


class Place:
    """A watched folder.

    Parameters
    ----------
    folder : str
        The folder.
    excluded : sequence of str
        Folders that are not searched, e.g. the folder of results.
    marker : str, default=""
        Ending of the file that says that the image of the same name is complete. Empty if there are no such files.
    """

    def __init__(self, folder: str, excluded: Sequence[str] = (), marker: str = ""):
        self.folder, self.marker = folder, marker
        self.real = os.path.realpath(folder)
        self._excluded = {inside for path in excluded if (inside := self.relative(os.path.realpath(path))) is not None}

    def full(self, path: str) -> str:
        """Return the path of a file, starting with the folder as it was given."""
        return os.path.join(self.folder, path)

    def relative(self, real: str) -> str | None:
        """Return an absolute path relative to the folder; None for a path outside of it."""
        start = self.real if self.real.endswith(os.sep) else self.real + os.sep
        return real[len(start) :] if real.startswith(start) else None

    def is_searched(self, path: str) -> bool:
        """Return whether a folder is searched: neither it nor a parent is hidden or excluded."""
        parts = path.split(os.sep) if path else []
        if any(part.startswith(".") for part in parts):
            return False
        return not any(os.sep.join(parts[: n + 1]) in self._excluded for n in range(len(parts)))

    def is_candidate(self, path: str) -> bool:
        """Return whether a path can be that of a complete image, by its name and its folder."""
        return is_image_name(os.path.basename(path)) and self.is_searched(os.path.dirname(path))

    def is_marker(self, name: str) -> bool:
        """Return whether a file name is that of a done-marker."""
        return bool(self.marker) and name.endswith(self.marker) and len(name) > len(self.marker)

    def is_marked(self, path: str) -> bool:
        """Return whether the done-marker of an image exists; True if there are no done-markers."""
        return not self.marker or os.path.lexists(self.full(path) + self.marker)

    def version_of(self, path: str) -> Version | None:
        """Return the present version of a file; None if it is no regular file, e.g. missing or a link.

        Raises
        ------
        OSError
            If the file system does not answer, e.g. because a network drive is not connected.
        """
        try:
            found = os.lstat(self.full(path))
        except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
            return None
        return version_from(path, found) if stat.S_ISREG(found.st_mode) else None


def version_from(path: str, found: os.stat_result) -> Version:
    """Return the version of a file from its status."""
    return Version(path, found.st_size, found.st_mtime_ns)


def is_image_name(name: str) -> bool:
    """Return whether a file name is that of an image that can be complete: neither hidden nor still written."""
    return not name.startswith(".") and not name.endswith(UNFINISHED) and has_image_suffix(name)


def by_time(version: Version) -> tuple[int, str]:
    """Return the key by which files are sorted that are found at the same time."""
    return version.mtime_ns, version.path


class Search:
    """A search for new files in a folder and its subfolders. It holds at most twice `limit` files in memory.

    Parameters
    ----------
    place : Place
        The watched folder.
    is_new : callable
        Function of a version: whether it was neither judged nor found before.
    limit : int
        Maximum number of files that are found: the ones that were changed first.
    start : str, default=""
        Subfolder to search, relative to the folder.

    Attributes
    ----------
    found : list of Version
        The new files.
    is_cut : bool
        Whether there are more new files than `limit`.
    n_ignored : int
        Number of files that are neither images nor unfinished.
    n_unmarked : int
        Number of images without their done-marker.
    link : str
        A symbolic link, which is not followed; empty if there is none.
    problem : str
        Why a subfolder could not be read; empty if all could be read.
    """

    def __init__(self, place: Place, is_new: Callable[[Version], bool], limit: int, start: str = ""):
        self._place, self._is_new, self._limit = place, is_new, max(1, limit)
        self.found: list[Version] = []
        self.is_cut, self.link, self.problem = False, "", ""
        self.n_ignored = self.n_unmarked = 0
        self._walk = self._entries(start)

    def step(self, seconds: float = float("inf")) -> bool:
        """Go on searching for some time. Return whether the search is complete.

        Raises
        ------
        OSError
            If the watched folder itself cannot be read.
        """
        end = time.monotonic() + seconds
        for n, _ in enumerate(self._walk, 1):
            if n % _N_ENTRIES == 0 and time.monotonic() >= end:
                return False
        self._cut()
        self.found.sort(key=by_time)
        return True

    def _cut(self) -> None:
        if len(self.found) > self._limit:
            self.is_cut = True
            self.found = heapq.nsmallest(self._limit, self.found, key=by_time)

    def _entries(self, start: str) -> Iterator[None]:
        folders = [start] if self._place.is_searched(start) else []
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._place.full(folder) if folder else self._place.folder) as entries:
                    for entry in entries:
                        path = os.path.join(folder, entry.name)
                        if self._take(entry, path):
                            folders.append(path)
                        yield
            except OSError as error:
                if not folder:
                    raise
                if not isinstance(error, FileNotFoundError | NotADirectoryError):
                    self.problem = f"the folder {self._place.full(folder)!r} cannot be read: {error.strerror}"

    def _take(self, entry: os.DirEntry[str], path: str) -> bool:
        """Include a file, or return True for a folder to be searched."""
        name = entry.name
        if name.startswith("."):
            return False
        if entry.is_symlink():
            self.link = path
            self.n_ignored += 1
            return False
        if entry.is_dir(follow_symlinks=False):
            return self._place.is_searched(path)
        if self._place.is_marker(name):
            path = path.removesuffix(self._place.marker)
            if is_image_name(os.path.basename(path)) and (version := self._place.version_of(path)) is not None:
                self._offer(version)
        elif is_image_name(name):
            if not self._place.marker:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    return False
                if stat.S_ISREG(found.st_mode):
                    self._offer(version_from(path, found))
            elif not self._place.is_marked(path):
                self.n_unmarked += 1
        elif not name.endswith(UNFINISHED):
            self.n_ignored += 1
        return False

    def _offer(self, version: Version) -> None:
        if self._is_new(version):
            self.found.append(version)
            if len(self.found) >= 2 * self._limit:
                self._cut()
