"""places_of: the training images that a caller names by index or path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from skpatchcore.images.containers import listed


def places_of(images: Any, held: Iterable[tuple[int, str | None]], n_seen: int) -> np.ndarray:
    """Return the indices of training images that are given as indices or paths, ascending.

    Parameters
    ----------
    images : int, path, or sequence of int or of paths
        The images. A path stands for all training images with this path.
    held : iterable of (int, str or None)
        Index and path of each training image that the detector holds.
    n_seen : int
        Number of images that the detector has seen. It only changes the text of an error.

    Raises
    ------
    ValueError
        If an item is neither an index nor a path, or is no training image, or if there are no images.
    """
    if isinstance(images, str | os.PathLike | Integral):
        images = [images]
    elif not hasattr(images, "__len__") and not hasattr(images, "__iter__"):
        raise ValueError(f"forget: {images!r} is neither the index nor the path of a training image.")
    by_path: dict[str, list[int]] = {}
    indices = set()
    for index, path in held:
        indices.add(index)
        if path is not None:
            by_path.setdefault(path, []).append(index)
    found: set[int] = set()
    for image in listed(images):
        found.update(_of_one(image, indices, by_path, n_seen))
    if not found:
        raise ValueError("forget: images is empty. Pass the index or the path of at least one training image.")
    return np.array(sorted(found), np.int64)


def _of_one(image: Any, indices: set[int], by_path: Mapping[str, list[int]], n_seen: int) -> list[int]:
    if isinstance(image, str | os.PathLike):
        own = by_path.get(os.path.abspath(os.fsdecode(image)), [])
        reason = "is unknown or has been forgotten"
    elif isinstance(image, Integral) and not isinstance(image, bool | np.bool_):
        own = [int(image)] if int(image) in indices else []
        reason = "has been forgotten or was left out by y" if 0 <= int(image) < n_seen else "is unknown"
    else:
        raise ValueError(f"forget: {image!r} is neither the index nor the path of a training image.")
    if not own:
        raise ValueError(f"forget: {image!r} is not a training image of the detector: it {reason}.")
    return own
