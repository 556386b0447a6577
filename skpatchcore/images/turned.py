"""TurnedImages: images followed by their rotated and mirrored views, which are computed when they are accessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore.images.containers import ImagesWithRegions, item_of, n_images_of
from skpatchcore.images.reading import PixelFormat, as_stored, load_image
from skpatchcore.images.turns import Turn


class TurnedImages(Sequence[Any]):
    """Sequence of images and of their turned views. A view is computed when it is accessed.

    Parameters
    ----------
    images : sequence of images
        The original images.
    pixel_format : PixelFormat
        Form in which the extractor reads arrays.
    max_pixels : int or None
        Maximum number of pixels of an image.
    sources : array of int
        For each item, the index of its original image.
    turns : sequence of (Turn or None)
        For each item, how the image is turned. None is the original image itself.
    """

    def __init__(
        self,
        images: Any,
        pixel_format: PixelFormat,
        max_pixels: int | None,
        sources: np.ndarray,
        turns: Sequence[Turn | None],
    ):
        self.images, self.pixel_format, self.max_pixels = images, pixel_format, max_pixels
        self.sources, self.turns = sources, turns

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.taken(np.arange(len(self))[index])
        image, turn = self.original(index), self.turns[index]
        if turn is None:
            return image
        pixels = load_image(image, index, self.max_pixels, pixel_format=self.pixel_format)
        return as_stored(turn.of(pixels), self.pixel_format)

    def original(self, index: int) -> Any:
        """Return the original image of an item."""
        return item_of(self.images, int(self.sources[index]))

    def taken(self, indices: Any) -> TurnedImages:
        """Return the items at `indices`, without reading them."""
        indices = np.arange(len(self))[np.asarray(indices)]
        turns = [self.turns[i] for i in indices]
        return TurnedImages(self.images, self.pixel_format, self.max_pixels, self.sources[indices], turns)

    def sizes_from(self, sizes: np.ndarray | None) -> np.ndarray | None:
        """Return the size of the network's input for each item, from those of the original images."""
        if sizes is None:
            return None
        turned = zip(sizes[self.sources], self.turns, strict=True)
        return np.array([size if turn is None else turn.size_of(size) for size, turn in turned])


def with_turned_views(X: Any, turns: Sequence[Turn], pixel_format: PixelFormat, max_pixels: int | None) -> Any:
    """Return the images followed by their turned views: all images with the first turn, then with the second, ...

    Parameters
    ----------
    X : sequence of images
        The original images. If they have a region of interest each, the region turns with the image.
    turns : sequence of Turn
        The views of each image.
    pixel_format, max_pixels
        As for :class:`TurnedImages`.

    Returns
    -------
    TurnedImages or ImagesWithRegions
        ``(len(turns) + 1) * n_images`` images.
    """
    n_images = n_images_of(X)
    images = X.images if isinstance(X, ImagesWithRegions) else X
    sources = np.tile(np.arange(n_images), 1 + len(turns))
    of_each = [turn for turn in (None, *turns) for _ in range(n_images)]
    found = TurnedImages(images, pixel_format, max_pixels, sources, of_each)
    return ImagesWithRegions(found, list(X.regions) * (1 + len(turns))) if isinstance(X, ImagesWithRegions) else found


def turn_of(images: Any, index: int) -> Turn | None:
    """Return how an item of a sequence of images is turned; None for an original image."""
    return images.turns[index] if isinstance(images, TurnedImages) else None


def original_of(images: Any, index: int) -> Any:
    """Return an item of a sequence of images; the original image if the item is a turned view."""
    return images.original(index) if isinstance(images, TurnedImages) else item_of(images, index)
