"""as_partitioned: turn a Dask bag or array into a sequence of images whose partitions are the shards."""

from __future__ import annotations

from itertools import chain
from typing import Any

import dask.array
import dask.bag
from dask.base import is_dask_collection
from distributed import Client

from skpatchcore.dask._extraction import count_images
from skpatchcore.dask._group import DaskGroup
from skpatchcore.dask._shards import PartitionedImages


def as_partitioned(X: Any, client: Client) -> tuple[Any, list[str] | None]:
    """Return a Dask bag or array as :class:`PartitionedImages`, and other objects unchanged.

    Also return the absolute paths of the images on the workers; None if `X` is not a bag of paths.

    Raises
    ------
    TypeError
        If `X` is another collection of Dask, or a list of Dask objects.
    ValueError
        If the collection holds no images, or if an array has a wrong number of dimensions.
    """
    if isinstance(X, dask.array.Array):
        return _of_array(X, client), None
    if not isinstance(X, dask.bag.Bag):
        if is_dask_collection(X):
            raise TypeError(f"X is a {type(X).__name__} of dask: pass a list of images, a dask Bag or a dask Array.")
        if isinstance(X, list | tuple) and any(map(is_dask_collection, X)):
            raise TypeError("X is a list of Dask objects: pass dask.bag.from_delayed(X) or dask.array.concatenate(X).")
        return X, None
    partitions = X.to_delayed()
    with DaskGroup(client) as group:
        found = group.gather(group.map("skpatchcore-count", count_images, group.compute(partitions)))
    lengths = [n_images for n_images, _ in found]
    if not sum(lengths):
        raise ValueError("X holds no images: pass at least one image.")
    paths = [some for n_images, some in found if n_images]
    are_paths = all(some is not None for some in paths)
    return PartitionedImages(partitions, lengths), list(chain(*paths)) if are_paths else None


def _of_array(X: Any, client: Client) -> PartitionedImages:
    """Return the blocks of an array along its first axis."""
    if X.ndim not in (2, 4):
        raise ValueError(
            f"X is a Dask array of shape {X.shape}: expected (n_images, height, width, n_channels), or features of "
            "shape (n_images, grid_height, grid_width, n_channels) or (n_images, n_channels)."
        )
    X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    if any(length != length for length in X.chunks[0]):  # NaN: unknown lengths
        with client.as_current():  # on the workers
            X = X.compute_chunk_sizes()
    if not X.shape[0]:
        raise ValueError("X holds no images: pass at least one image.")
    return PartitionedImages(list(X.to_delayed().ravel()), X.chunks[0], n_columns=X.shape[1] if X.ndim == 2 else None)
