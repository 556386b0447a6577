"""prepared_batches and joined_grids: batches of prepared images for the network, and the features of all batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.ahead import mapped_ahead
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.features._cache import Entry, LayerCache
from skpatchcore.features._grid_cache import StoredGrid
from skpatchcore.images.files import read_content
from skpatchcore.images.kept import keep_content, kept_content
from skpatchcore.images.reading import PixelFormat, load_image, path_of
from skpatchcore.images.resizing import resize_and_crop
from skpatchcore.images.views import Size, View


@dataclass
class Prepared:
    """Input of the network for one image, or the patch features or layer maps of the image if they are cached.

    Attributes
    ----------
    view : View
        Region of the image that the network sees.
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image file; None if the image is not a file.
    pixels : tensor of shape (3, height, width), float32 in [0, 1], or None
        Resized and cropped image; None if `maps` or `grid` come from the cache.
    maps : list of tensors of shape (height, width, n_channels), or None
        Outputs of the layers from the cache; None if the network has to compute them.
    entry : tuple of path, or None
        Files of the cache entry, one per layer, of the layer maps; None without a cache.
    grid : StoredGrid or None
        Patch features from the cache; None if they have to be computed.
    """

    view: View
    index: int
    path: str | None
    pixels: torch.Tensor | None = None
    maps: list[torch.Tensor] | None = None
    entry: Entry | None = None
    grid: StoredGrid | None = None


def prepared_batches(
    images: Sequence[Any],
    batch_size: int,
    image_size: Size,
    crop_size: Size,
    max_pixels: int | None,
    cache: LayerCache | None,
    pixel_format: PixelFormat,
    rounded_to: int,
    tile_size: Any = None,
    plan_of: Callable[[tuple[int, int]], Any] = lambda size: None,
    n_readers: int = 1,
) -> Iterator[list[Prepared]]:
    """Yield batches of consecutive images that have the same size after resizing and cropping.

    Parameters
    ----------
    images : sequence of images
        Images to prepare. Each image is read when its batch is prepared.
    batch_size : int
        Maximum number of images per batch.
    image_size, crop_size, max_pixels
        Parameters of :class:`~skpatchcore.TorchFeatureExtractor`.
    cache : LayerCache or None
        Cache in which patch features and layer maps are looked up; None disables the lookup.
    pixel_format : PixelFormat
        Meaning of the stored values of images: order of the channels, values of black and white.
    rounded_to : int
        As for :func:`~skpatchcore.images.resizing.resize_and_crop`.
    tile_size : int, (int, int), "auto" or None
        Parameter of the extractor, which identifies layer maps that are computed from tiles in the cache.
    plan_of : callable
        Function that returns the tiles of an image from its height and width, or None for an image that goes through
        the network as a whole. An image that is cut into tiles is the only image of its batch.
    n_readers : int, default=1
        Number of threads that read image files. Images that are not given by paths are read one at a time, because
        the data set of a user may not allow several threads.

    Yields
    ------
    list of Prepared
        The images of one batch, in order.

    Raises
    ------
    ImageError
        If an image cannot be read, or cannot be resized and cropped.
    """

    @default_modes()  # the threads of `mapped_ahead` have modes of their own
    def prepare(index: int) -> Prepared:
        image = images[index]
        path = path_of(image)
        # The file is read once. The same bytes are hashed and decoded, even if the file changes meanwhile.
        content = None
        if cache is not None and path is not None:
            kept = kept_content(image)
            content = read_content(path, index) if kept is None else kept
        entries = [] if cache is None else cache.entries_of(image, index, content, max_pixels, pixel_format, tile_size)
        for is_of_tiles, entry in enumerate(entries):
            assert cache is not None  # otherwise, there are no entries
            grid = None if cache.grids is None else cache.grids.read(cache.grids.path_of(entry))
            if grid is not None and (plan_of(grid.view.input_size) is not None) == bool(is_of_tiles):
                cache.mark_used(entry)
                keep_content(image, content)
                return Prepared(grid.view, index, path, entry=entry, grid=grid)
        for is_of_tiles, entry in enumerate(entries):
            assert cache is not None
            known = cache.read(entry)
            if known is not None and (plan_of(known[1].input_size) is not None) == bool(is_of_tiles):
                keep_content(image, content)
                return Prepared(known[1], index, path, maps=known[0], entry=entry)
        loaded = load_image(image, index, max_pixels, content, pixel_format)
        with one_thread(np.size(loaded) < SMALL_PASS):  # the network often runs at the same time
            pixels, view = resize_and_crop(loaded, image_size, crop_size, index, path, max_pixels, rounded_to)
        # A grey image is resized as one channel, which is then repeated three times.
        new = entries[int(plan_of(view.input_size) is not None)] if entries else None
        return Prepared(view, index, path, pixels=pixels.expand(3, -1, -1), entry=new)

    # By index: an IndexError of a data set must not end the iteration.
    are_paths = isinstance(images, list | tuple) and all(isinstance(image, str | os.PathLike) for image in images)
    prepared = mapped_ahead(prepare, range(len(images)), n_readers if are_paths else 1)
    for size, run in groupby(prepared, key=lambda item: item.view.input_size):
        n_images = batch_size if plan_of(size) is None else 1
        while batch := list(islice(run, n_images)):
            yield batch


def joined_grids(batches: Iterable[np.ndarray], n_images: int) -> np.ndarray | list[np.ndarray]:
    """Return the patch features of all batches: one array if all grids have the same size, otherwise a list.

    Parameters
    ----------
    batches : iterable of arrays of shape (n_batch, grid_height, grid_width, n_channels)
        Patch features. They are copied, because batches may share the buffer of a GPU transfer.
    n_images : int
        Number of images of all batches.
    """
    grids: np.ndarray | list[np.ndarray] = []
    done = 0
    for features in batches:
        shape = features[0].shape
        if done == 0:
            grids = np.empty((n_images, *shape), np.float32)
        if isinstance(grids, np.ndarray) and shape != grids.shape[1:]:
            grids = list(grids[:done].copy())
        if isinstance(grids, np.ndarray):
            grids[done : done + len(features)] = features
        else:
            grids.extend(np.array(grid) for grid in features)
        done += len(features)
    return grids
