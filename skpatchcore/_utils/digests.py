"""`checksum_of`, `DigestedArray`, ...: identify arrays by their values, faster than with a cryptographic hash.

Results on disk are shared between fits if they were computed from the same values. A search compares the patch features
of the same images many times. A cryptographic hash of these features would take longer than reading them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import MethodType
from typing import Any

import numpy as np

# Number of 8-byte words that are summed with weights. The sums of all blocks are then hashed.
_N_WORDS = 4096
# Functions that `digested_by` has marked, and the functions that yield the same arrays with digests.
_sources: dict[Any, Callable[..., Any]] = {}


class DigestedArray(np.ndarray):
    """Read-only array with a digest of its values, and with their largest absolute value.

    The digest is that of the values at any time, because the array cannot be changed in place: an attempt raises a
    ValueError. Arrays that are computed from this array have no digest: slices and other views, copies, results of
    arithmetic, and arrays after a pickle. Whoever calls `of` must not change the values by another array that shares
    the memory. Patch features with digests are mapped read-only from files of the cache, and only the package itself
    receives them, see `digested_by`.

    Attributes
    ----------
    digest : bytes or None
        Digest of the values, and of how they were computed.
    peak : float
        Largest absolute value; infinite if it is unknown.
    """

    digest: bytes | None
    peak: float

    def __array_finalize__(self, obj: Any) -> None:
        self.digest, self.peak = None, float("inf")

    @classmethod
    def of(cls, values: np.ndarray, digest: bytes, peak: float) -> DigestedArray:
        """Return a read-only view of an array that has a digest."""
        found = values.view(cls)
        found.digest, found.peak = digest, peak
        found.flags.writeable = False
        return found


def digested_by(source: Callable[..., Any]) -> Callable[[Any], Any]:
    """Mark a method of a class: `source` yields the same arrays as it, but as arrays with digests.

    A method that changes the arrays of the marked method, in a subclass or in a class that contains an object of the
    class, is another function. It is not marked, and its arrays have no digests.

    Parameters
    ----------
    source : function
        Function with the same parameters.

    Returns
    -------
    callable
        Decorator, which returns the method unchanged.
    """

    def mark(method: Any) -> Any:
        _sources[method] = source
        return method

    return mark


def with_digests(method: Any) -> Any:
    """Return the source of the arrays with digests for a bound method that is marked; any other method unchanged."""
    source = _sources.get(getattr(method, "__func__", None))
    return method if source is None else MethodType(source, method.__self__)


def checksum_of(values: np.ndarray) -> bytes:
    """Return a checksum of the bytes of a C-contiguous array.

    The bytes are divided into blocks of 8-byte words. Each block is replaced by the sum of its words times fixed odd
    weights, modulo 2**64, and the sums are hashed with BLAKE2b. Each change of a single word changes the checksum, and
    so does a different order of words. This checksum recognises damaged and different data. It does not protect
    against values that were chosen in order to have the same checksum.

    Parameters
    ----------
    values : array
        The array. Its shape and its dtype are not part of the checksum.

    Returns
    -------
    bytes of length 20
    """
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    n_words = len(content) // 8
    words, weights = content[: 8 * n_words].view(np.uint64), _weights()
    n_whole = n_words // _N_WORDS * _N_WORDS
    sums = np.einsum("ij,j->i", words[:n_whole].reshape(-1, _N_WORDS), weights)
    rest = np.einsum("j,j->", words[n_whole:], weights[: n_words - n_whole])
    found = hashlib.blake2b(str(len(content)).encode(), digest_size=20)
    for part in (sums, np.asarray(rest), content[8 * n_words :]):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.digest()


def digest_of(parts: Iterable[bytes | str | int | float | None]) -> bytes:
    """Return a BLAKE2b digest of several values. The types and the order of the values are part of the digest."""
    found = hashlib.blake2b(digest_size=20)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        found.update(f"{type(part).__name__} {len(content)} ".encode() + content)
    return found.digest()


@lru_cache(maxsize=1)
def _weights() -> np.ndarray:
    """Return the odd weights of the words of a block."""
    drawn = np.random.RandomState(0).randint(0, 1 << 62, _N_WORDS, np.int64).astype(np.uint64)
    weights: np.ndarray = (drawn << np.uint64(1)) | np.uint64(1)
    return weights
