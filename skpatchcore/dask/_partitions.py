"""Partitions: the images of a lazy computation and the fitted detector, as arguments of Dask's tasks.

The detector is the result of a task. Each worker therefore receives it once per computation, and the scheduler can
compute it again if a worker is lost. Errors and warnings of a partition are renumbered: the index of an image is its
index in all of `X`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import numpy as np
from dask.base import get_scheduler, is_dask_collection, tokenize
from dask.highlevelgraph import HighLevelGraph
from distributed import get_worker, warn

from skpatchcore._utils.loaded import is_column, is_table, is_tensor
from skpatchcore._utils.warning import collected_warnings, warn_user
from skpatchcore.images.containers import (
    ImagesWithRegions,
    as_image_sequence,
    items_between,
    listed,
    n_images_of,
    with_regions,
)
from skpatchcore.images.errors import ImageError, ImageWarning
from skpatchcore.patches.patches import N_IMAGES
from skpatchcore.protocols import batch_size_of

# Function of a detector, the images of a partition, and their regions of interest (None without regions).
OfImages = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Given:
    """Value that is stored in the graph as it is: Dask does not look for other tasks in it."""

    value: Any


class Partitions:
    """The partitions of `X` and the detector, as arguments of tasks.

    Parameters
    ----------
    detector, X, roi, chunk, client
        As for :func:`score_samples`.

    Attributes
    ----------
    lengths : tuple of int or NaN
        Number of images of each partition; NaN if it is unknown.
    """

    def __init__(self, detector: Any, X: Any, roi: Any, chunk: int, client: Any):
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: expected at least 1.")
        self.detector = _sent(detector, client)
        self.collections: list[Any] = [self.detector]
        self.images: list[Any]  # keys of tasks, or Given
        self.regions: list[Any]
        self.lengths: tuple[float, ...]
        if isinstance(X, db.Bag):
            self._of_bag(X, roi)
        elif isinstance(X, da.Array):
            self._of_array(X, roi)
        elif is_dask_collection(X):
            raise TypeError(f"X is a {type(X).__name__} of dask: pass a list of images, a dask Bag or a dask Array.")
        else:
            self._of_sequence(detector, X, roi, chunk)
        self.first = self._numbered()

    def mapped(self, function: OfImages, name: str) -> tuple[HighLevelGraph, str]:
        """Return the graph of one call of a function per partition, and the full name of its tasks."""
        name = f"{name}-{tokenize(function, self.detector.key, self.images, self.regions, self.lengths)}"
        layer = {
            (name, i): (_on_images, function, self.detector.key, *arguments)
            for i, arguments in enumerate(zip(self.images, self.regions, self.first, strict=True))
        }
        return HighLevelGraph.from_collections(name, layer, dependencies=self.collections), name

    def _of_sequence(self, detector: Any, X: Any, roi: Any, chunk: int) -> None:
        X = listed(X)
        if not (isinstance(X, np.ndarray) or is_tensor(X) or is_table(X) or is_column(X)):  # these have slices
            X = as_image_sequence(X)
        X = with_regions(X, roi)
        n_images, chunk = n_images_of(X), _whole_batches(detector, chunk)
        starts = range(0, n_images, chunk)
        parts = [items_between(X, start, min(start + chunk, n_images)) for start in starts]
        has_regions = isinstance(X, ImagesWithRegions)
        self.images = [Given(part.images if has_regions else part) for part in parts]
        self.regions = [Given(part.regions if has_regions else None) for part in parts]
        self.lengths = tuple(min(chunk, n_images - start) for start in starts)

    def _of_bag(self, X: db.Bag, roi: Any) -> None:
        self.collections.append(X)
        self.images = X.__dask_keys__()
        self.lengths = (np.nan,) * X.npartitions
        self.regions = [Given(None)] * X.npartitions
        if roi is not None:
            if not isinstance(roi, db.Bag) or roi.npartitions != X.npartitions:
                raise TypeError(f"X is a dask Bag: pass roi as a Bag with the same {X.npartitions} partitions.")
            self.collections.append(roi)
            self.regions = roi.__dask_keys__()

    def _of_array(self, X: da.Array, roi: Any) -> None:
        X = X.rechunk({axis: -1 for axis in range(1, X.ndim)})
        self.collections.append(X)
        self.images = [(X.name, i, *(0,) * (X.ndim - 1)) for i in range(len(X.chunks[0]))]
        self.lengths = X.chunks[0]
        self.regions = [Given(None)] * len(self.images)
        if roi is not None:
            if np.isnan(X.shape[0]):
                raise ValueError("roi needs the number of images in each chunk of X: call X.compute_chunk_sizes().")
            regions = with_regions(range(X.shape[0]), roi).regions
            ends = list(accumulate(self.lengths))
            self.regions = [Given(regions[end - n : end]) for n, end in zip(self.lengths, ends, strict=True)]

    def _numbered(self) -> list[Any]:
        """Return the index in `X` of the first image of each partition: a number, or the key of a task."""
        if not np.isnan(sum(self.lengths)):
            return [0, *accumulate(self.lengths)][:-1]
        name = f"skpatchcore-count-{tokenize(self.images)}"
        keys = [(name, i) for i in range(1, len(self.images))]
        first = [0, *keys]
        layer = {key: (_counted, first[i], self.images[i]) for i, key in enumerate(keys)}
        graph = HighLevelGraph.from_collections(name, layer, dependencies=self.collections[1:])
        self.collections.append(db.Bag(graph, name, len(keys)))
        return first


def _sent(detector: Any, client: Any) -> Any:
    """Return a Delayed of the detector: a task of the client, or a literal in the graph if there is no client."""
    if client is None:
        client = getattr(get_scheduler(), "__self__", None)  # `client.get` if there is a current client
    # The result of a task can be computed again if a worker is lost. Scattered data could not.
    literal = dask.delayed(_identity, pure=False)(detector, dask_key_name=f"skpatchcore-model-{_digest_of(detector)}")
    if client is None:
        return literal
    with large_graphs():  # the detector is sent only once
        return client.persist(literal)


def large_graphs() -> Any:
    """Return a context manager in which Dask does not warn of tasks with large literal values."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PiB"})


def _digest_of(detector: Any) -> str:
    """Return a digest of a detector's content: lazy results of the same detector share one task."""
    # Dask's `tokenize` would pickle the detector several times, and unpickle it.
    buffers: list[pickle.PickleBuffer] = []
    digest = hashlib.blake2b(cloudpickle.dumps(detector, 5, buffers.append), digest_size=16)
    for buffer in buffers:
        digest.update(buffer.raw())
    return digest.hexdigest()


def _whole_batches(detector: Any, chunk: int) -> int:
    """Return the largest multiple of the extractor's batch size that is at most `chunk`, or `chunk` if it is smaller.

    The batches of the network are then the same as in the local method, if all images have the same size.
    """
    batch_size = batch_size_of(getattr(detector, "extractor_", None), N_IMAGES)  # type: ignore[arg-type]
    return chunk // batch_size * batch_size or chunk


# The following functions run on the workers.


def _identity(value: Any) -> Any:
    return value


def _counted(n_before: int, images: Any) -> int:
    return n_before + n_images_of(_value(images))


def _value(part: Any) -> Any:
    """Return the images of a partition as a list or an array."""
    if isinstance(part, Given):
        return part.value
    return part if isinstance(part, np.ndarray) else list(part)


def _on_images(function: OfImages, detector: Any, part: Any, regions: Any, first: int) -> Any:
    """Call a function on the images of a partition. Errors and warnings state the index of an image in all of `X`."""
    try:
        with warnings_on_client(first):
            return function(detector, _value(part), _value(regions))
    except ImageError as error:
        raise located(_shifted(error, first)) from error


@contextmanager
def warnings_on_client(first: int = 0) -> Iterator[None]:
    """Issue the warnings of the block on the client. Without a client, issue them here, at the end of the block.

    Parameters
    ----------
    first : int, default=0
        Index in `X` of the first image of the block. It is added to the indices in an ImageWarning.
    """
    issued: list[Warning] = []
    try:
        with collected_warnings() as issued:
            yield
    finally:
        for warning in issued:
            if isinstance(warning, ImageWarning):
                warning = ImageWarning([_shifted(error, first) for error in warning.failures])
            try:
                get_worker()
            except ValueError:  # not on a worker
                warn_user(warning)
            else:
                warn(warning)


def located(error: ImageError) -> ImageError:
    """Return the error of an image with the address of the worker, and with its folder if the path is relative.

    Without a worker, the error is returned unchanged.
    """
    try:
        place = f"on the Dask worker {get_worker().address}"
    except ValueError:
        return error
    if error.path is not None and not os.path.isabs(error.path):
        place += f", in the folder {os.getcwd()}"
    return ImageError(f"{error.message} ({place})", error.index, error.path)


def _shifted(error: ImageError, first: int) -> ImageError:
    return ImageError(error.message, first + error.index, error.path)
