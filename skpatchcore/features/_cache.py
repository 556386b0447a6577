"""Layer maps of single images on disk: the network sees an image once, whatever is tried with its features.

An entry is found by what the maps depend on: the image's content, the network and its weights, the layers, sizes,
normalisation and precision. It doesn't depend on how features are made of the maps (patch size, stride, channels), nor
on the device and the batch. Entries are files of their own, written in one step, so processes may share a folder; a
damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore.images.appearance import Appearance
from skpatchcore.images.files import read_content
from skpatchcore.images.reading import DEFAULT_FORMAT, PixelFormat, content_of, from_tensor, load_image, path_of
from skpatchcore.images.views import View

_FORMAT = 3  # changes with what entries hold
# How much may be written, in shares of the limit, before it is seen to again.
_SLACK = 1 / 32


def hash_content(
    image: Any,
    index: int,
    content: bytes | None = None,
    max_pixels: int | None = None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
) -> str:
    """Return a hash of what an image is: of a file's bytes, of an array's or a PIL image's pixels.

    Parameters
    ----------
    image : path, PIL image or array
        As :func:`~skpatchcore.images.reading.load_image` takes it.
    index : int
        Position in `X`, for the error.
    content : bytes or None, default=None
        Of the file, where it has been read.
    max_pixels : int or None, default=None
        PIL images of more are refused.
    pixel_format : PixelFormat
        As for :func:`~skpatchcore.images.reading.load_image`.

    Returns
    -------
    str

    Raises
    ------
    ImageError
        If it can't be read.
    """
    path = path_of(image)
    if content is None:
        content = content_of(image, index) if path is None else read_content(path, index)
    if content is not None:
        return "file-" + hashlib.blake2b(content, digest_size=20).hexdigest()
    is_decoded = not isinstance(image, torch.Tensor | np.ndarray)
    if isinstance(image, torch.Tensor):
        image = from_tensor(image)
    elif not isinstance(image, np.ndarray):
        image = load_image(image, index, max_pixels, pixel_format=pixel_format)
    elif isinstance(image, np.ma.MaskedArray):
        load_image(image, index)  # refuses what is masked, which the bytes don't tell
    pixels = np.ascontiguousarray(image)
    if pixels.dtype == object:
        load_image(image, index)
    sha = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=20)
    sha.update(pixels.view(np.uint8).data if pixels.size else b"")
    # the pixels of a PIL image have been decoded; an array of the same values may mean something else
    return f"{'image' if is_decoded else 'array'}-{sha.hexdigest()}"


class LayerCache:
    """Layer maps of images, for one way to compute them.

    Parameters
    ----------
    memory : str, path or joblib.Memory
        Where they are kept.
    settings : dict
        What the maps depend on beside the image: anything that JSON can hold.
    dtype : {"float32", "float16"}
        How they are stored.
    limit : int or None
        Bytes that all entries in the folder may take; those that were used least lately make way. None: no limit.
    """

    def __init__(self, memory: Any, settings: dict[str, Any], dtype: str, limit: int | None):
        folder = cache_folder(memory, "skpatchcore-layers")
        if folder is None:
            raise ValueError("memory: a joblib.Memory without a location keeps nothing.")
        self.folder, self.limit, self.dtype = folder, limit, np.dtype(dtype)
        text = json.dumps({**settings, "dtype": dtype, "format": _FORMAT}, sort_keys=True)
        self._settings = hashlib.blake2b(text.encode(), digest_size=20)
        self._written = 0
        self._lock = threading.Lock()

    def entry_of(
        self,
        image: Any,
        index: int,
        content: bytes | None = None,
        max_pixels: int | None = None,
        pixel_format: PixelFormat = DEFAULT_FORMAT,
    ) -> Path:
        """Return the path of the image's cache entry; it may not exist."""
        key = self._settings.copy()
        key.update(hash_content(image, index, content, max_pixels, pixel_format).encode())
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    def read(self, path: Path) -> tuple[list[torch.Tensor], View] | None:
        """Return the maps, each of shape (height, width, n_channels), float32, and what the network saw; or None."""
        found = read_arrays(path)
        try:
            maps = [torch.from_numpy(found[f"layer{i}"]).float() for i in range(len(found) - 1)]  # type: ignore[index, arg-type]
            view = _as_view(found["view"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            return None
        if self.limit is not None:
            _touch(path)
        return maps, view

    def keep(self, path: Path, maps: Sequence[torch.Tensor], view: View) -> list[torch.Tensor]:
        """Store maps, each of shape (height, width, n_channels), and return them as they will be read.

        So a run that fills the cache gives the features that the next one gives.
        """
        with np.errstate(over="ignore"):
            arrays = {f"layer{i}": m.cpu().numpy().astype(self.dtype) for i, m in enumerate(maps)}
        if not all(np.isfinite(array).all() for array in arrays.values()):  # beyond float16: kept by nobody
            return [m.cpu() for m in maps]
        try:
            write_arrays(path, **arrays, view=_as_array(view))
        except OSError as error:  # a full or a read-only disk is no reason to stop the work
            warnings.warn(
                f"memory: layer maps can't be kept in {str(self.folder)!r} ({error}); the network "
                "will have to run again.",
                UserWarning,
                stacklevel=2,
            )
        else:
            self._see_to_limit(sum(array.nbytes for array in arrays.values()))
        return [torch.from_numpy(array).float() for array in arrays.values()]

    def _see_to_limit(self, n_bytes: int) -> None:
        if self.limit is None:
            return
        with self._lock:
            first = self._written == 0
            self._written += n_bytes
            if not first and self._written < self.limit * _SLACK:
                return
            self._written = 1
        # room for what comes before the next look
        prune(self.folder, int(self.limit * (1 - _SLACK)))


def prune(folder: Path, limit: int) -> None:
    """Delete the entries used least lately until the rest takes at most `limit` bytes.

    Parameters
    ----------
    folder : path
        Where the entries are, in folders below it.
    limit : int
        Bytes.
    """
    entries = []
    for path in folder.glob("*/*.npz"):
        try:
            stat = path.stat()
        except OSError:  # another process was faster
            continue
        entries.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        try:
            path.unlink(missing_ok=True)
        except OSError:  # another user's
            continue
        total -= size


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # deleted, or not ours: it was read all the same
        return


def _as_array(view: View) -> np.ndarray:
    assert view.appearance is not None
    return np.array([*view.image_size, *view.box, *view.input_size, *view.scale, *view.appearance], np.float64)


def _as_view(numbers: np.ndarray) -> View:
    height, width, top, left, tall, wide, input_height, input_width, down, across, *appearance = numbers.tolist()
    size, input_size = (int(height), int(width)), (int(input_height), int(input_width))
    return View(size, (top, left, tall, wide), input_size, (down, across), Appearance(*appearance))
