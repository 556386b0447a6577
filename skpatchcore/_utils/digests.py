"""`checksum_of` and `DigestedArray`: identify arrays by their values, faster than with a cryptographic hash.

Results on disk are shared between fits if they were computed from the same values. A search compares the patch features
of the same images many times. A cryptographic hash of these features would take longer than reading them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

# Number of 8-byte words that are summed with weights. The sums of all blocks are then hashed.
_N_WORDS = 4096


class DigestedArray(np.ndarray):
    """Array with a digest of its values, and with their largest absolute value.

    Arrays that are computed from this array, e.g. slices, have no digest.

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
        """Return a view of an array that has a digest."""
        found = values.view(cls)
        found.digest, found.peak = digest, peak
        return found


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
