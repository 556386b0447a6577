"""ModelFile: a model file that is loaded again after it was replaced."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_N_BYTES = 2**20
# Number of hexadecimal digits of the digest that tables contain.
N_DIGITS = 12


class LoadedModel(NamedTuple):
    """A detector, and the first 12 hexadecimal digits of the SHA-256 of its file."""

    detector: Any
    digest: str


class ModelFile:
    """A model file.

    Parameters
    ----------
    path : str
        The file.
    load : callable
        Function of the path that returns a fitted detector.
    settle : float
        Seconds without a change, after which a replaced file is complete.
    """

    def __init__(self, path: str, load: Callable[[str], Any], settle: float):
        self.path, self._load, self._settle = path, load, settle
        self._seen: tuple[int, ...] | None = None
        self._changed: tuple[tuple[int, ...], float] | None = None

    def load(self) -> LoadedModel:
        """Load the file.

        Raises
        ------
        Exception
            If the file is missing or no model, or if it changes meanwhile.
        """
        self._seen, self._changed = self._stamp(), None
        digest = digest_of(self.path)
        detector = self._load(self.path)
        if self._stamp() != self._seen:
            raise OSError(f"{self.path!r} has changed while it was read.")
        return LoadedModel(detector, digest)

    def is_replaced(self) -> bool:
        """Return whether the file differs from the one that :meth:`load` read, and is complete."""
        stamp, now = self._stamp(), time.monotonic()
        if stamp is None or stamp == self._seen:
            self._changed = None
            return False
        if self._changed is None or self._changed[0] != stamp:
            self._changed = stamp, now
        return now - self._changed[1] >= self._settle

    def is_missing(self) -> bool:
        """Return whether the file does not exist, or cannot be reached."""
        return self._stamp() is None

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def digest_of(path: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_N_BYTES):
            digest.update(block)
    return digest.hexdigest()[:N_DIGITS]
