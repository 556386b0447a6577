""":func:`search_images`: the search of the memory bank that the score of an image needs, from the cache if it is there.

The result of this search depends on the bank and on the patch features, but not on `n_neighbors`. Settings that differ
only in `n_neighbors` share it, and so do repeated fits. The cache identifies the bank by its values and the image by
the digest of its patch features. Only results of :class:`~skpatchcore.ExactIndex` are kept, because they are the same
for every batch of images on the CPU.

On another device, e.g. a GPU, :class:`~skpatchcore.ExactIndex` computes exact distances of candidates, whose number
depends on the number of neighbours. Rounding can change the candidates, also between batches. There, settings that
differ in `n_neighbors` do not share a search, and the results for a row whose distance is almost the same as that of
another row may depend on the images that are searched at the same time, with and without the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skpatchcore._utils.derived import DerivedCache
from skpatchcore._utils.device import available_device
from skpatchcore._utils.digests import checksum_of, digest_of
from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore._utils.folders import prune, touch
from skpatchcore.bank.answers import farthest_of, neighbors_of
from skpatchcore.index.exact import ExactIndex
from skpatchcore.patches.patches import Patches
from skpatchcore.protocols import Index

_FORMAT = 1  # version of the content of the files
# On the CPU: least number of neighbours of m* that are stored, so that settings with other values of n_neighbors find
# them.
_N_NEIGHBORS = 16
# Maximum size in bytes of the results on disk. It is enforced whenever _MOST_WRITTEN bytes have been written.
_MOST_BYTES, _MOST_WRITTEN = 1_000_000_000, 32_000_000
# Digests of the banks of indexes.
_digests = DerivedCache()


@dataclass
class Searched:
    """Result of the search for the images of a batch.

    Attributes
    ----------
    tops : array of shape (n_images,), int64
        Row number of the most anomalous patch of each image: the patch with the largest distance.
    distances : array of shape (n_images,), float64
        Distance of this patch from the nearest row of the bank, m*.
    nearest : array of shape (n_images,), int64
        m*, as a row of the bank.
    neighborhoods : array of shape (n_images, n_neighbors), int64
        Rows of the bank that are nearest to m*, the nearest first. On the CPU, they are the same for a larger
        `n_neighbors`.
    of_patches : list of arrays, float64
        Distance of each patch from the nearest row of the bank, one array per image. Empty if it is not requested.
    """

    tops: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    neighborhoods: np.ndarray
    of_patches: list[np.ndarray]


def search_images(
    index: Index,
    bank: np.ndarray,
    patches: Patches,
    n_neighbors: int,
    exclude: np.ndarray | None,
    with_patch_scores: bool,
    memory: Any = None,
) -> Searched:
    """Find the most anomalous patch of each image, its nearest row of the bank (m*), and the rows nearest to m*.

    Parameters
    ----------
    index : Index
        Fitted on `bank`.
    bank : array of shape (n_bank, n_channels)
        The memory bank.
    patches : Patches
        Patches of the images.
    n_neighbors : int
        Number of rows nearest to m*, at most the number of rows that are not excluded. 1 does not search for them.
    exclude : array of int or None
        Rows of the bank that are ignored. None ignores no row.
    with_patch_scores : bool
        Whether the distances of all patches are returned.
    memory : str, joblib.Memory or None, default=None
        Location of the cache. None uses no cache.

    Returns
    -------
    Searched
    """
    is_known = memory is not None and all(digest is not None for digest in patches.digests)
    folder = cache_folder(memory, "skpatchcore-searches") if is_known else None
    # A subclass of ExactIndex may search differently.
    if folder is None or not isinstance(index, ExactIndex) or type(index) is not ExactIndex:
        return _search(index, bank, patches, n_neighbors, exclude, with_patch_scores)
    n_rows = len(bank) - (0 if exclude is None else len(exclude))
    device = available_device(index.device).type
    n_kept = min(n_rows, max(n_neighbors, _N_NEIGHBORS)) if device == "cpu" else n_neighbors
    key = _key_of(index, bank, exclude, *(() if device == "cpu" else (device, n_neighbors)))
    cache = _SearchCache(folder, key, with_patch_scores)
    paths = [cache.path_of(patches, i) for i in range(len(patches))]
    found = [cache.read(path, n_neighbors) for path in paths]
    missing = np.array([i for i, one in enumerate(found) if one is None], np.int64)
    if len(missing):
        some = patches if len(missing) == len(patches) else patches.subset(missing)
        searched = _search(index, bank, some, n_kept, exclude, with_patch_scores)
        for i, one in zip(missing.tolist(), _each(searched, some), strict=True):
            cache.write(paths[i], one)
            found[i] = one
    return _joined([one for one in found if one is not None], patches.starts, n_neighbors)


def _search(
    index: Index,
    bank: np.ndarray,
    patches: Patches,
    n_neighbors: int,
    exclude: np.ndarray | None,
    with_patch_scores: bool,
) -> Searched:
    """Search for the images of a batch."""
    of_patches: list[np.ndarray] = []
    # Eq. 6: for each image, find the patch that is farthest from the bank (m^test,*) and its nearest row (m*).
    if not with_patch_scores and isinstance(index, ExactIndex):
        tops, scores, nearest = farthest_of(index, bank, patches.rows, patches.starts, exclude)
    else:
        distances, all_nearest = (found[:, 0] for found in neighbors_of(index, bank, patches.rows, 1, exclude))
        distances = distances.astype(np.float64)
        tops = np.array([start + distances[start:stop].argmax() for start, stop in pairwise(patches.starts)])
        scores, nearest = distances[tops], all_nearest[tops]
        if with_patch_scores:
            of_patches = np.split(distances, patches.starts[1:-1])
    neighborhoods = np.asarray(nearest)[:, None]
    if n_neighbors > 1:
        _, neighborhoods = neighbors_of(index, bank, bank[nearest], n_neighbors, exclude)
    return Searched(tops, scores, nearest, neighborhoods, of_patches)


def _key_of(index: ExactIndex, bank: np.ndarray, exclude: np.ndarray | None, *more: str | int) -> bytes:
    """Return a digest of everything that determines the result of a search, apart from the queries."""
    checksum = _digests.get(index, bank, "digest", checksum_of)
    excluded = None if exclude is None else np.sort(exclude).astype(np.int64).tobytes()
    return digest_of([_FORMAT, checksum, *bank.shape, str(bank.dtype), excluded, *more])


def _each(searched: Searched, patches: Patches) -> Iterator[Searched]:
    """Yield the result for each image. Its row number is counted within the image."""
    for i, start in enumerate(patches.starts[:-1]):
        one = slice(i, i + 1)
        yield Searched(
            searched.tops[one] - start,
            searched.distances[one],
            searched.nearest[one],
            searched.neighborhoods[one],
            searched.of_patches[one],
        )


def _joined(parts: Sequence[Searched], starts: np.ndarray, n_neighbors: int) -> Searched:
    """Return the result for a batch from the results for its images."""
    return Searched(
        np.concatenate([part.tops + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.nearest for part in parts]),
        np.concatenate([part.neighborhoods[:, :n_neighbors] for part in parts]),
        [distances for part in parts for distances in part.of_patches],
    )


class _SearchCache:
    """Results on disk of the searches of one bank, a file per image.

    Parameters
    ----------
    folder : path
        Folder of the cache.
    key : bytes
        Digest of everything that determines the results, apart from the images.
    with_patch_scores : bool
        Whether the files contain the distances of all patches.
    """

    _lock = threading.Lock()
    # Bytes that this process has written to each folder since its size was measured.
    _n_written: ClassVar[dict[Path, int]] = {}

    def __init__(self, folder: Path, key: bytes, with_patch_scores: bool):
        self.folder, self.key, self.with_patch_scores = folder, key, with_patch_scores

    def path_of(self, patches: Patches, image: int) -> Path:
        """Return the file of an image."""
        n_rows = int(patches.starts[image + 1] - patches.starts[image])
        name = digest_of([self.key, self.with_patch_scores, patches.digests[image], n_rows]).hex()
        return self.folder / name[:2] / f"{name}.npz"

    def read(self, path: Path, n_neighbors: int) -> Searched | None:
        """Return the result for an image; None if it is not there, or has too few neighbours."""
        found = read_arrays(path)
        try:
            if found is None or found["neighborhoods"].shape[1] < n_neighbors:
                return None
            touch(path, path.stat().st_mtime)
            of_patches = [found["of_patches"]] if self.with_patch_scores else []
            return Searched(found["tops"], found["distances"], found["nearest"], found["neighborhoods"], of_patches)
        except (KeyError, IndexError, OSError):
            return None

    def write(self, path: Path, one: Searched) -> None:
        """Store the result for an image, unless the folder cannot be written: the scores do not depend on it."""
        arrays = {name: getattr(one, name) for name in ("tops", "distances", "nearest", "neighborhoods")}
        if self.with_patch_scores:
            arrays["of_patches"] = one.of_patches[0]
        try:
            write_arrays(path, **arrays)
        except OSError:
            return
        with self._lock:
            first = self.folder not in self._n_written
            written = self._n_written.get(self.folder, 0) + sum(array.nbytes for array in arrays.values())
            is_due = first or written >= _MOST_WRITTEN
            self._n_written[self.folder] = 0 if is_due else written
        if not is_due:
            return
        prune(self.folder, _MOST_BYTES - _MOST_WRITTEN)
