"""`DerivedCache`: keep objects that are expensive to build from fitted arrays in RAM, without pickling them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np


class ForkSafeLock:
    """A re-entrant lock that is replaced in a forked child process.

    In the child, the lock is always free, even if a thread of the parent held it during the fork.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        """Create a new lock, which no thread holds."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class DerivedCache:
    """Process-wide cache of objects that are built from an estimator's fitted array.

    Examples of such objects are copies of the array on a device and search graphs. Fitted estimators hold numpy arrays
    only, because plain arrays can be pickled. Objects that are expensive to build from a fitted array are kept in this
    cache instead.

    The objects of an estimator are dropped when the estimator is deleted, or at the first use after another fit, which
    replaces its array. The lifetime of the array is not used: a derived object may share the array's memory, and would
    then keep the array in memory permanently. A new process starts with an empty cache and builds each object on first
    use. A lock ensures that several threads build each object only once.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[np.ndarray, dict[Hashable, Any]]] = {}
        self._lock = ForkSafeLock()

    def get(self, owner: Any, array: np.ndarray, key: Hashable, build: Callable[[np.ndarray], Any]) -> Any:
        """Return ``build(array)``, built once per owner, array and key.

        Parameters
        ----------
        owner : object
            The estimator that holds the array. The objects of an estimator are dropped when the estimator is deleted.
        array : array
            The fitted array. Arrays are compared by identity. If the owner had another array before, the objects that
            were built from that array are dropped.
        key : hashable
            Name of the derived object.
        build : callable
            Function that builds the derived object from the array.

        Returns
        -------
        object
            The derived object. Later calls return the same object.
        """
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
