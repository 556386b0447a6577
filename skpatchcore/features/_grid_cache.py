"""GridCache: keeps the patch features of each image on disk, next to the layer maps from which they were computed.

A search over settings reads the patch features of the same images many times: once per fold and setting. They are
mapped into memory, so that processes share them, and features that are not needed are not read. The key of a file is a
hash of the files of the layer maps (see :mod:`skpatchcore.features._cache`) and of the parameters that determine the
features. A file that is damaged is treated as missing. The features are then computed from the layer maps again.

Patch features take more space than layer maps, and are computed in less time. Therefore, they are the first entries
that are deleted if the cache becomes too large. A new entry only replaces entries whose last use was recorded before
the pass over the images began. A use within a minute after the recorded one is not recorded. New layer maps replace any
patch features. Without a limit, patch features take at most 8 GB, and at most a quarter of the space that the disk has
for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.digests import DigestedArray, checksum_of, digest_of
from skpatchcore._utils.files import written_whole
from skpatchcore._utils.folders import prune, size_of, touch
from skpatchcore.images.appearance import Appearance
from skpatchcore.images.views import View

FOLDER, _PATTERN = "skpatchcore-grids", "*/*.grid"
_FORMAT = 1  # version of the content of files
# Length of a file's header in bytes. The features begin at a page of the memory.
_HEADER = 4096
# Maximum size of the features of an image that are stored, in bytes. Larger features are computed from the layer maps.
_MOST_BYTES = 1 << 26
# Without a limit: maximum size of all patch features in bytes, and their fraction of the space that they and the free
# space take together.
_MOST_STORED, _SHARE = 8_000_000_000, 0.25
# Fraction of the allowed size that may be written before the size of the folder is measured again.
_SLACK = 1 / 32
# Files whose content was verified by this process: device, inode, size and time of the last change.
_verified: dict[Path, tuple[int, ...]] = {}
_MOST_VERIFIED = 100_000
_are_kept: ContextVar[bool] = ContextVar("are_kept", default=True)


@contextmanager
def layer_maps_only() -> Iterator[None]:
    """Within the block, store no patch features: the caller fills the cache with layer maps for other settings."""
    token = _are_kept.set(False)
    try:
        yield
    finally:
        _are_kept.reset(token)


@dataclass(frozen=True)
class StoredGrid:
    """Patch features of an image from the cache.

    Attributes
    ----------
    features : DigestedArray of shape (grid_height, grid_width, n_channels), float32
        The patch features, mapped into memory. The array is read-only.
    view : View
        Region of the image that the network sees.
    first_grid : (int, int)
        Height and width of the first layer's map.
    """

    features: DigestedArray
    view: View
    first_grid: tuple[int, int]


class GridCache:
    """Cache on disk for the patch features of images, for one way to compute features from layer maps.

    Parameters
    ----------
    layers : path
        Folder of the layer maps. The folder of the patch features is beside it.
    settings : dict
        Settings that determine the patch features, apart from those of the layer maps. JSON serialisable.
    limit : int or None
        Maximum size in bytes of the layer maps and the patch features together. None limits the patch features only.
    """

    def __init__(self, layers: Path, settings: dict[str, Any], limit: int | None):
        self.folder, self._layers, self.limit = layers.parent / FOLDER, layers, limit
        self._settings = json.dumps({**settings, "format": _FORMAT}, sort_keys=True)
        self._begun = time.time()
        self._room = -1  # bytes that may be written before the size of the folder is measured again
        self._is_full = False  # measuring the size of the folder for each image would take too long
        self._lock = threading.Lock()

    def path_of(self, entry: Iterable[Path]) -> Path:
        """Return the file of the patch features that are computed from the layer maps of a cache entry."""
        name = digest_of([self._settings, *(path.stem for path in entry)]).hex()
        return self.folder / name[:2] / f"{name}.grid"

    def read(self, path: Path) -> StoredGrid | None:
        """Return the patch features in a file; None if the file is missing or damaged."""
        try:
            with path.open("rb") as file:
                # Another process may replace the file at this path. Its state is therefore read from the open file.
                stat = os.fstat(file.fileno())
                header = _header_of(file.read(_HEADER))
                values = np.memmap(file, np.float32, "r", _HEADER, tuple(header["shape"]))
                if stat.st_size != _HEADER + values.nbytes:
                    return None
                if _verified.get(path) != _state_of(stat) and checksum_of(values).hex() != header["checksum"]:
                    return None
                touch(path, stat.st_mtime)  # changes the time, which is a part of the state
                _remember(path, _state_of(os.fstat(file.fileno())))
            view, first = as_view(np.array(header["view"])), (int(header["grid"][0]), int(header["grid"][1]))
            digest = _identity(path, header["shape"], header["checksum"])
            return StoredGrid(DigestedArray.of(values, digest, float(header["peak"])), view, first)
        except Exception:  # damaged bytes can raise any exception; the caller computes the features again
            return None

    def keep(self, path: Path, features: np.ndarray, view: View, first_grid: tuple[int, int]) -> DigestedArray | None:
        """Store the patch features of an image, of shape (grid_height, grid_width, n_channels).

        Return the features with their digest, mapped from the file; None if they are not stored. If there is no space,
        or if the folder is not writable, nothing is stored and no error is raised: a missing entry costs little time.
        """
        is_wanted = _are_kept.get() and features.nbytes <= _MOST_BYTES and features.dtype == np.float32
        if not is_wanted or not self._has_room(_HEADER + features.nbytes):
            return None
        features = np.ascontiguousarray(features)
        header = {
            "shape": list(features.shape),
            "grid": list(first_grid),
            "view": as_numbers(view).tolist(),
            "peak": max(float(features.max()), -float(features.min())),
            "checksum": checksum_of(features).hex(),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as partial, partial.open("wb") as file:
                file.write(_as_header(header))
                file.write(features.data)
                file.flush()
                state = _state_of(os.fstat(file.fileno()))
        except OSError:
            return None
        _remember(path, state)
        found = self.read(path)
        return None if found is None else found.features

    def _has_room(self, n_bytes: int) -> bool:
        """Return whether `n_bytes` may be written, and count them. Delete entries if their space is needed.

        Only entries whose last use was recorded before this pass are deleted. If there is no room once, nothing more is
        stored in this pass over images.
        """
        with self._lock:
            if self._is_full:
                return False
            if self._room >= n_bytes:
                self._room -= n_bytes
                return True
            try:
                total = size_of(self.folder, _PATTERN)
                if self.limit is None:
                    existing = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
                    allowed = min(_MOST_STORED, int(_SHARE * (shutil.disk_usage(existing).free + total)))
                else:
                    allowed = self.limit - size_of(self._layers)
                if total + n_bytes > allowed:
                    wanted = max(0, allowed - max(n_bytes, int(allowed * _SLACK)))
                    total = prune(self.folder, wanted, _PATTERN, self._begun)
            except OSError:
                self._is_full = True
                return False
            self._room = min(allowed - total, max(n_bytes, int(allowed * _SLACK))) - n_bytes
            self._is_full = self._room < 0
            return not self._is_full


def prune_grids(layers: Path, limit: int) -> None:
    """Delete the least recently used patch features until they take at most `limit` bytes.

    Parameters
    ----------
    layers : path
        Folder of the layer maps.
    limit : int
        Maximum size in bytes.
    """
    prune(layers.parent / FOLDER, max(0, limit), _PATTERN)


def as_numbers(view: View) -> np.ndarray:
    """Return the numbers of a view as one array, in the order that `as_view` reads."""
    assert view.appearance is not None
    return np.array([*view.image_size, *view.box, *view.input_size, *view.scale, *view.appearance], np.float64)


def as_view(numbers: np.ndarray) -> View:
    """Return the view for an array that `as_numbers` returned."""
    height, width, top, left, tall, wide, input_height, input_width, down, across, *appearance = numbers.tolist()
    size, input_size = (int(height), int(width)), (int(input_height), int(input_width))
    return View(size, (top, left, tall, wide), input_size, (down, across), Appearance(*appearance))


def _identity(path: Path, shape: list[int], checksum: str) -> bytes:
    """Return the digest of patch features: of the image and the settings, which name the file, and of the values."""
    return digest_of([path.stem, *(int(side) for side in shape), checksum])


def _as_header(header: dict[str, Any]) -> bytes:
    """Return a header as bytes, preceded by its checksum. JSON keeps all digits of a float."""
    text = json.dumps(header).encode()
    return f"{hashlib.blake2b(text, digest_size=20).hexdigest()} ".encode().ljust(64) + text.ljust(_HEADER - 64)


def _header_of(content: bytes) -> dict[str, Any]:
    """Return the header of a file. Raise a ValueError if the header is damaged."""
    text = content[64:].rstrip()
    if len(content) != _HEADER or content[:64].rstrip().decode() != hashlib.blake2b(text, digest_size=20).hexdigest():
        raise ValueError("the header is damaged.")
    header: dict[str, Any] = json.loads(text)
    return header


def _state_of(stat: os.stat_result) -> tuple[int, ...]:
    """Return the state of a file, which changes with its content."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _remember(path: Path, state: tuple[int, ...]) -> None:
    """Remember that the content of a file was verified."""
    if len(_verified) >= _MOST_VERIFIED and path not in _verified:
        _verified.clear()
    _verified[path] = state
