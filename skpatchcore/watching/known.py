"""KnownVersions: which versions of files were judged, in 8 bytes each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from skpatchcore.watching.candidates import Version

# Number of recent versions that are held in a set, before they are merged into the sorted array.
_N_RECENT = 16_384


class KnownVersions:
    """A set of versions that holds 64-bit hashes only.

    Among 100,000 versions, the probability that any two have the same hash is below 1e-9. The hashes differ between
    processes, so a restart finds a file that was left out for this reason.

    Parameters
    ----------
    versions : iterable of Version
        The first members.
    """

    def __init__(self, versions: Iterable[Version] = ()):
        self._sorted = np.sort(np.fromiter(map(hash, versions), np.int64))
        self._recent: set[int] = set()

    def __contains__(self, version: Version) -> bool:
        key = hash(version)
        if key in self._recent:
            return True
        at = int(self._sorted.searchsorted(key))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, version: Version) -> None:
        """Include a version."""
        self._recent.add(hash(version))
        if len(self._recent) >= _N_RECENT:
            self._sorted = np.sort(np.concatenate([self._sorted, np.fromiter(self._recent, np.int64)]))
            self._recent = set()

    def discard(self, version: Version) -> None:
        """Remove a version."""
        key = hash(version)
        if key in self._recent:
            self._recent.discard(key)
        elif version in self:
            self._sorted = np.delete(self._sorted, self._sorted.searchsorted(key))
