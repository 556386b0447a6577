"""What is expensive to derive from fitted arrays, kept for the life of the process and never pickled."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np


class ForkSafeLock:
    """A re-entrant lock that is free in a forked child, whichever of its parent's threads held it."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class DerivedCache:
    """Process-wide store of things computed from an estimator's fitted array: copies on a device, search graphs.

    Fitted estimators hold numpy arrays and nothing else, so that they pickle to plain files. What is expensive to
    derive from such an array is kept here, and dropped when the estimator is, or is fitted anew. Not when the array
    is: what is derived may share its memory, and so keep it for ever. A new process starts with an empty cache and
    derives again on first use. Building happens behind a lock: threads that ask for the same thing build it once.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[np.ndarray, dict[Hashable, Any]]] = {}
        self._lock = ForkSafeLock()

    def get(self, owner: Any, array: np.ndarray, key: Hashable, build: Callable[[np.ndarray], Any]) -> Any:
        """Return ``build(array)``, from the first time that its owner came with this array (the object) and `key`."""
        with self._lock:
            known = self._entries.get(id(owner))
            if known is None:
                weakref.finalize(owner, self._entries.pop, id(owner), None)
            if known is None or known[0] is not array:
                self._entries[id(owner)] = known = array, {}
            _, derived = known
            if key not in derived:
                derived[key] = build(array)
            return derived[key]
