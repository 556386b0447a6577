"""Images as batches that the network can take: read, resized or found in the cache, one batch ahead of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.features._cache import LayerCache
from skpatchcore.images.files import read_content
from skpatchcore.images.reading import PixelFormat, load_image, path_of
from skpatchcore.images.views import Size, View, resize_and_crop

T = TypeVar("T")


@dataclass
class Prepared:
    """An image as the network takes it, or its layer maps if they are cached.

    Attributes
    ----------
    view : View
        What the network sees of the image.
    index : int
        Position of the image in `X`.
    path : str or None
        Its file.
    pixels : tensor of shape (3, height, width), float32 in [0, 1], or None
        Resized and cropped; None if `maps` are known.
    maps : list of tensors of shape (height, width, n_channels), or None
        Outputs of the layers, if they are known.
    entry : path or None
        The cache entry in which its maps are to be stored.
    """

    view: View
    index: int
    path: str | None
    pixels: torch.Tensor | None = None
    maps: list[torch.Tensor] | None = None
    entry: Path | None = None


def prepared_batches(
    images: Sequence[Any],
    batch_size: int,
    image_size: Size,
    crop_size: Size,
    max_pixels: int | None,
    cache: LayerCache | None,
    pixel_format: PixelFormat,
) -> Iterator[list[Prepared]]:
    """Yield batches of neighbouring images that have one size after resizing.

    Parameters
    ----------
    images : sequence of images
        Each is read when its batch is due.
    batch_size : int
        Maximum number of images in a batch.
    image_size, crop_size, max_pixels
        As of :class:`~skpatchcore.TorchFeatureExtractor`.
    cache : LayerCache or None
        Where layer maps are looked up.
    pixel_format : PixelFormat
        How the values of images are to be understood.

    Yields
    ------
    list of Prepared

    Raises
    ------
    ImageError
        If an image can't be read.
    """

    def prepare(image: Any, index: int) -> Prepared:
        path = path_of(image)
        # what is hashed is what is decoded, whoever writes to the file meanwhile
        content = None if cache is None or path is None else read_content(path, index)
        entry = None if cache is None else cache.entry_of(image, index, content, max_pixels, pixel_format)
        known = None if cache is None or entry is None else cache.read(entry)
        if known is not None:
            return Prepared(known[1], index, path, maps=known[0])
        loaded = load_image(image, index, max_pixels, content, pixel_format)
        with one_thread(np.size(loaded) < SMALL_PASS):  # it often runs beside the network
            pixels, view = resize_and_crop(loaded, image_size, crop_size, index, path, max_pixels)
        # grey images are resized once, then seen three times
        return Prepared(view, index, path, pixels=pixels.expand(3, -1, -1), entry=entry)

    prepared = (prepare(image, index) for index, image in enumerate(images))
    for _, run in groupby(prepared, key=lambda item: item.view.input_size):
        while batch := list(islice(run, batch_size)):
            yield batch


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each made in another thread while the one before it is used.

    Parameters
    ----------
    items : iterator
        Asked for one item at a time, in order.

    Yields
    ------
    object
        The items. An error in making one is raised when its turn comes.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="skpatchcore-prefetch") as executor:
        coming = executor.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, items, end)
            yield item  # type: ignore[misc]
