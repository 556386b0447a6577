"""Shards are parts of the training images. One worker extracts the patches of a shard.

:class:`PartitionedImages` stands for the images of a Dask bag or array. :func:`cut_points` divides a sequence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed

from skpatchcore.images.containers import ImagesWithRegions

if TYPE_CHECKING:
    from skpatchcore.dask._group import DaskGroup


@dataclass
class Shard:
    """Consecutive images that are extracted together.

    Attributes
    ----------
    numbers : array of int
        Index of each image in the `X` of `fit`.
    first : int
        Index of the first image among the images of all shards.
    regions : list or None
        Region of interest of each image. None if no image has its own.
    positions : array of int or None
        Positions of the images in the partition of a Dask collection. None means all images of the source.
    n_source : int
        Number of images in the partition, or in the part of the sequence.
    n_rows : int or None, default=None
        Number of patches of all images; None before the extraction.
    """

    numbers: np.ndarray
    first: int
    regions: list[Any] | None
    positions: np.ndarray | None
    n_source: int
    n_rows: int | None = None

    def __len__(self) -> int:
        return len(self.numbers)


class PartitionedImages(Sequence[Any]):
    """Sequence that stands for the images of a Dask collection. The images themselves stay on the workers.

    Parameters
    ----------
    partitions : list of Delayed
        The partitions of the collection.
    lengths : list of int
        Number of images in each partition.
    indices : array of int or None, default=None
        Indices of the images, ascending, among all images of the partitions. None means all images.
    n_columns : int or None, default=None
        Number of columns if the collection is a 2-D array of precomputed features.
    """

    def __init__(
        self,
        partitions: list[Any],
        lengths: Sequence[int],
        indices: np.ndarray | None = None,
        n_columns: int | None = None,
    ):
        self.partitions, self.lengths, self.n_columns = partitions, list(lengths), n_columns
        self.indices = np.arange(sum(lengths)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("the images of a Dask collection are on the workers: they cannot be read here.")

    def taken(self, indices: Any) -> PartitionedImages:
        """Return the images at `indices`, which must be ascending, without reading them."""
        return PartitionedImages(self.partitions, self.lengths, self.indices[np.asarray(indices)], self.n_columns)

    def parts(self) -> list[tuple[int, np.ndarray | None, int]]:
        """Return per partition with images its number, the positions of the images in it, and their number."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        found: list[tuple[int, np.ndarray | None, int]] = []
        for i, n_images in enumerate(self.lengths):
            inside = self.indices[(self.indices >= starts[i]) & (self.indices < starts[i + 1])] - starts[i]
            if len(inside):
                found.append((i, None if len(inside) == n_images else inside, len(inside)))
        return found


def absolute_paths(images: Any) -> list[str] | None:
    """Return the absolute paths of images on this machine; None if they are not all given as paths."""
    if not isinstance(images, list | tuple) or not all(isinstance(image, str | os.PathLike) for image in images):
        return None
    return [os.path.abspath(os.fsdecode(image)) for image in images]


def without_regions(X: Any) -> tuple[Any, list[Any] | None]:
    """Return images, or patch features, without their regions of interest, and the list of these regions or None."""
    return (X.images, list(X.regions)) if isinstance(X, ImagesWithRegions) else (X, None)


def cut_points(n_images: int, n_shards: int, batch_size: int, sizes: np.ndarray | None = None) -> list[int]:
    """Return the first image of each shard and, at the end, the number of images.

    The shards have about the same number of images. They start with a batch of the extractor, because the network's
    results may differ in the last bit in other batches.

    Parameters
    ----------
    n_images : int
        Number of images.
    n_shards : int
        Maximum number of shards.
    batch_size : int
        Maximum number of images per batch.
    sizes : array of shape (n_images, 2) or None
        Sizes of the network's input. All images of a batch have the same size. None if all sizes are equal.
    """
    places = np.arange(n_images)
    if sizes is not None:
        is_new = np.concatenate([[True], (sizes[1:] != sizes[:-1]).any(axis=1)])
        places = places - np.maximum.accumulate(np.where(is_new, places, 0))
    allowed = np.append(np.flatnonzero(places % batch_size == 0), n_images)
    wanted = np.arange(1, n_shards) * n_images / n_shards
    after = np.searchsorted(allowed, wanted)
    before = np.maximum(after - 1, 0)
    cuts = np.where(wanted - allowed[before] < allowed[after] - wanted, allowed[before], allowed[after])
    return [0, *np.unique(cuts[(cuts > 0) & (cuts < n_images)]).tolist(), n_images]


class Sources:
    """The images of each shard, in a form that tasks can use.

    Parameters
    ----------
    group : DaskGroup
        Group that runs the tasks.
    parts : list
        The images of each shard: a part of a sequence, or a partition of a Dask collection (Delayed).
    """

    def __init__(self, group: DaskGroup, parts: list[Any]):
        self._group, self._parts = group, parts
        self._is_partitioned = isinstance(parts[0], Delayed)
        if not self._is_partitioned and absolute_paths(parts[0]) is None:
            # Images in memory are sent to the cluster once. Paths are short, and are a part of each task.
            self._parts = group.map("skpatchcore-images", _same, parts)

    def handles(self, wanted: Sequence[bool] | None = None) -> list[Any]:
        """Return a handle per shard; None for shards that are not wanted. The handles should be released after use."""
        wanted = [True] * len(self._parts) if wanted is None else wanted
        if not self._is_partitioned:
            return [part if want else None for part, want in zip(self._parts, wanted, strict=True)]
        # A partition is computed again if it is needed again, so that workers need not hold images.
        computed = iter(self._group.compute([part for part, want in zip(self._parts, wanted, strict=True) if want]))
        return [next(computed) if want else None for want in wanted]


def _same(value: Any) -> Any:
    return value
