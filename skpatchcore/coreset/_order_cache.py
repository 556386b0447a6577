"""OrderCache and SelectionCache: selections on disk, which smaller selections reuse and larger selections continue.

:class:`OrderCache` identifies rows by their projected values. :class:`SelectionCache` identifies rows by a digest that
the caller knows. A selection from known rows is then read from the cache without reading and projecting the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from skpatchcore._utils.digests import digest_of
from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore._utils.folders import prune, touch
from skpatchcore._utils.warning import warn_user
from skpatchcore.coreset.reserve import ReserveRequest

_FORMAT = 1  # version of the content of the files
# Maximum size in bytes of the projected rows on disk. The least recently used files are deleted.
_MOST_BYTES = 2_000_000_000


class OrderCache:
    """Cache of the selection order for given rows and a given start.

    A smaller selection is a prefix of the cached order. A larger selection continues from the cached order.

    Parameters
    ----------
    path : path or None
        The cache file. None disables the cache.
    """

    def __init__(self, path: Path | None):
        self.path = path

    @classmethod
    def of_rows(cls, memory: Any, rows: torch.Tensor, start: int) -> OrderCache:
        """Return the cache for rows that are identified by their values.

        Parameters
        ----------
        memory : str, joblib.Memory or None
            Location of the cache, as in scikit-learn's `memory` parameters. None disables the cache.
        rows : tensor of shape (n_samples, n_features)
            Rows to select from, on any device. Their values are part of the name of the cache file.
        start : int
            Index of the first pick. It is part of the name of the cache file.
        """
        folder = cache_folder(memory, "skpatchcore-orders")
        if folder is None:
            return cls(None)
        return cls(folder / f"{joblib.hash((rows.cpu().numpy(), start), hash_name='sha1')}.npz")

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the cached order and radii, or None if the file does not exist or is damaged."""
        found = None if self.path is None else read_arrays(self.path)
        # If this method returns None, the caller selects the rows again and overwrites the file.
        return (found["order"], found["radii"]) if found is not None and {"order", "radii"} <= set(found) else None

    def read_first(self, n_selected: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the first `n_selected` rows of the cached order and their radii; None if there are fewer."""
        found = self.read()
        return None if found is None or len(found[0]) < n_selected else (found[0][:n_selected], found[1][:n_selected])

    def write(self, order: np.ndarray, radii: np.ndarray) -> None:
        """Write the order and the radii to the cache. Warn if the file cannot be written."""
        _write(self.path, order=order, radii=radii)


class SelectionCache:
    """Cache of all that is selected from rows with a known digest: order, reserve, and the orders of folds.

    Parameters
    ----------
    folder : path
        Location of the cache.
    digest : bytes
        Digest of the rows, in their order.
    settings : iterable
        All settings that determine the order, apart from the number of selected rows.
    """

    def __init__(self, folder: Path, digest: bytes, settings: Iterable[Any]):
        self._folder, self._key = folder, digest_of([_FORMAT, digest, *settings])
        self.order = OrderCache(self._path_of("order"))

    @classmethod
    def at(cls, memory: Any, digest: bytes | None, settings: Iterable[Any]) -> SelectionCache | None:
        """Return the cache in the location `memory`; None without a location or without a digest."""
        folder = None if digest is None else cache_folder(memory, "skpatchcore-orders")
        return None if folder is None or digest is None else cls(folder, digest, settings)

    def without(self, left_out: np.ndarray, n_wanted: int, n_pooled: int | None) -> OrderCache:
        """Return the cache of the selection of `n_wanted` rows without some rows.

        If a pool is used where possible, `n_pooled` is the number of rows that are selected from all rows, on which the
        pool depends. The order is then no part of a larger selection. Otherwise, `n_pooled` is None.
        """
        settings = () if n_pooled is None else (n_pooled, n_wanted)
        return OrderCache(self._path_of("fold", np.sort(left_out), *settings))

    def read_reserve(self, request: ReserveRequest, n_selected: int) -> bool:
        """Fill in the reserve for `n_selected` rows from the cache. Return False if it is not there."""
        found = read_arrays(self._path_of("reserve", n_selected, *_images_of(request)))
        if found is None or set(found) != {"rows", "row_images", "supports"}:
            return False
        request.rows, request.row_images, request.supports = found["rows"], found["row_images"], found["supports"]
        return True

    def write_reserve(self, request: ReserveRequest, n_selected: int) -> None:
        """Store the reserve for `n_selected` rows."""
        if request.rows is not None:
            path = self._path_of("reserve", n_selected, *_images_of(request))
            _write(path, rows=request.rows, row_images=request.row_images, supports=request.supports)

    def read_rows(self) -> np.ndarray | None:
        """Return the projected rows; None if they are not in the cache."""
        path = self._path_of_rows()
        found = read_arrays(path)
        if found is None or set(found) != {"rows"}:
            return None
        touch(path)
        return found["rows"]

    def write_rows(self, rows: np.ndarray) -> None:
        """Store the projected rows, unless the folder cannot be written."""
        if rows.nbytes > _MOST_BYTES:
            return
        path = self._path_of_rows()
        try:
            prune(path.parent.parent, _MOST_BYTES - rows.nbytes)
            write_arrays(path, rows=rows)
        except OSError:  # the order is written to the same place, and warns
            return

    def _path_of_rows(self) -> Path:
        name = self._path_of("rows").name
        return self._folder.parent / "skpatchcore-rows" / name[:2] / name

    def _path_of(self, *parts: Any) -> Path:
        contents = [part.tobytes() if isinstance(part, np.ndarray) else part for part in parts]
        return self._folder / f"{digest_of([self._key, *contents]).hex()}.npz"


def _images_of(request: ReserveRequest) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of the known and of the new rows of a request, which are then kept as arrays."""
    images = np.concatenate(list(request.images)).astype(np.int64)
    request.images = [images]
    return request.known, images


def _write(path: Path | None, **arrays: np.ndarray) -> None:
    """Write arrays to a file, and warn if the file cannot be written. None writes nothing."""
    if path is None:
        return
    try:
        write_arrays(path, **arrays)
    except OSError as error:  # a full or read-only disk must not stop the fit
        warn_user(
            f"memory: the selection order cannot be written to {str(path.parent)!r} ({error}); "
            "the next fit will select the rows again."
        )
