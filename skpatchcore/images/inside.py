"""RegionMasks and InsideImages: the pixels of images in their regions of interest, and images without the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skpatchcore.images.appearance import Appearance, appearance_of
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, as_stored, load_image, path_of
from skpatchcore.images.roi import Region, as_region
from skpatchcore.images.turned import original_of, turn_of
from skpatchcore.images.turns import Turn

# Maximum number of image sizes for which the mask of the region of all images is kept.
_N_KEPT = 16


@dataclass(frozen=True)
class PixelMask:
    """Mask of an image in compact form.

    Attributes
    ----------
    shape : (int, int)
        Height and width in pixels.
    bits : array of uint8
        The mask, eight pixels per byte.
    """

    shape: tuple[int, int]
    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> PixelMask:
        """Return the compact form of a mask of shape (height, width)."""
        return cls((mask.shape[0], mask.shape[1]), np.packbits(mask))

    def as_array(self) -> np.ndarray:
        """Return the mask as an array of shape (height, width), bool."""
        n_pixels = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=n_pixels).astype(bool).reshape(self.shape)

    def turned(self, turn: Turn | None) -> PixelMask:
        """Return the mask of the turned image; the mask itself for None."""
        return self if turn is None else PixelMask.of(turn.of(self.as_array()))


class RegionMasks:
    """Masks of the pixels that are inspected, for images with one region for all and with a region for each.

    Parameters
    ----------
    region : Region or None
        Region of all images. None means the whole image.
    """

    def __init__(self, region: Region | None):
        self.region = region
        self._known: dict[tuple[int, int], PixelMask | None] = {}
        self._lock = threading.Lock()  # images are also read in another thread

    def of(
        self, size: tuple[int, int], roi: Any, load: Callable[[], np.ndarray], index: int, path: str | None
    ) -> PixelMask | None:
        """Return the pixels of an image that are inspected; None if all of them are.

        Parameters
        ----------
        size : (int, int)
            Height and width of the image in pixels.
        roi : region in any form, or None
            Region of this image. None means the whole image.
        load : callable
            Function that returns the image as an array of shape (height, width, 1 or 3). It is called only if a region
            is a function.
        index, path
            Index and path of the image, for errors.

        Returns
        -------
        PixelMask or None
            The intersection of both regions. The result for a region of all images that is not a function is the same
            object for all images of one size.

        Raises
        ------
        ImageError
            If a region does not fit the image, cannot be read, or is a function that fails.
        """
        is_fixed = roi is None and self.region is not None and self.region.function is None
        with self._lock:
            if is_fixed and size in self._known:
                return self._known[size]
        inside = np.ones(size, bool)
        try:
            for region in (self.region, roi):
                if region is not None:
                    inside &= as_region(region).mask_of(size, load)
        except ImageError:
            raise
        except (ValueError, OSError) as error:
            raise ImageError(str(error), index, path) from error
        found = None if inside.all() else PixelMask.of(inside)
        if is_fixed:
            with self._lock:
                while len(self._known) >= _N_KEPT:
                    del self._known[next(iter(self._known))]
                self._known[size] = found
        return found


class InsideImages(Sequence[Any]):
    """Sequence of images in which all pixels outside the region of interest have one colour.

    The colour is the mean of the pixels in the region. Pixels outside therefore have no effect on patch features near
    the edge of the region, which the network computes from its surroundings too. An image is read when it is accessed.

    Parameters
    ----------
    images : sequence of images
        The images. The region of a turned view is the turned region of its original image.
    masks : RegionMasks
        The region of all images.
    regions : sequence
        Region of each image; None means the whole image.
    pixel_format : PixelFormat
        Form in which the extractor reads arrays.
    max_pixels : int or None
        Maximum number of pixels of an image.

    Attributes
    ----------
    seen : dict of int to (PixelMask or None, Appearance)
        Mask of each image that was read, and the appearance of its pixels in the region. The user of the sequence
        removes the items.
    """

    def __init__(
        self,
        images: Any,
        masks: RegionMasks,
        regions: Sequence[Any],
        pixel_format: PixelFormat,
        max_pixels: int | None,
    ):
        self.images, self.masks, self.regions = images, masks, regions
        self.pixel_format, self.max_pixels = pixel_format, max_pixels
        self.seen: dict[int, tuple[PixelMask | None, Appearance]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image, turn = original_of(self.images, index), turn_of(self.images, index)
        pixels = load_image(image, index, self.max_pixels, pixel_format=self.pixel_format)
        size = (pixels.shape[0], pixels.shape[1])
        mask = self.masks.of(size, self.regions[index], lambda: pixels, index, path_of(image))
        inside = np.ones(size, bool) if mask is None else mask.as_array()
        filled = filled_outside(pixels, inside)
        self.seen[index] = None if mask is None else mask.turned(turn), appearance_inside(pixels, inside)
        return as_stored(filled if turn is None else turn.of(filled), self.pixel_format)


def filled_outside(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return an image in which all pixels outside a mask have the mean colour of the pixels inside.

    Parameters
    ----------
    pixels : array of shape (height, width, n_channels), float32
        The image.
    inside : array of shape (height, width), bool
        True for pixels that keep their values. If there are none, the image is returned as it is.

    Returns
    -------
    array of shape (height, width, n_channels), float32
    """
    if inside.all() or not inside.any():
        return pixels
    mean = pixels.mean(axis=(0, 1), where=inside[..., None], dtype=np.float64).astype(pixels.dtype)
    return np.where(inside[..., None], pixels, mean)


def appearance_inside(pixels: np.ndarray, inside: np.ndarray) -> Appearance:
    """Return the appearance of the pixels in a mask; of all pixels if the mask is empty.

    Parameters
    ----------
    pixels : array of shape (height, width, 1 or 3), float32 in [0, 1]
        The image.
    inside : array of shape (height, width), bool
        True for the pixels that count.
    """
    some = pixels[inside] if inside.any() else pixels.reshape(-1, pixels.shape[2])
    # The pixels are passed as one column. appearance_of then uses every fourth pixel.
    return appearance_of(np.ascontiguousarray(some.T)[:, :, None])
