"""CountedCells and InsideImages: the cells and the pixels of images that lie in the region of interest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from skpatchcore.images.containers import item_of
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, as_stored, load_image, path_of
from skpatchcore.images.roi import Region, as_region, cells_inside
from skpatchcore.images.views import View

# Without a view, a grid counts as an image with this number of pixels along each side of a cell.
_N_PIXELS = 8
# Maximum number of geometries of which the cells are kept.
_N_KEPT = 16


class CountedCells:
    """Finds the cells of an image's patch grid that lie in the region of interest.

    Parameters
    ----------
    region : Region or None
        Region of all images. None means the whole image.
    pixel_format : PixelFormat
        Meaning of the stored values of images, for a region that is a function of the image.
    """

    def __init__(self, region: Region | None, pixel_format: PixelFormat):
        self.region, self.pixel_format = region, pixel_format
        self._known: dict[tuple[Any, ...], np.ndarray] = {}
        self._last_mask: np.ndarray | None = None

    def of(
        self, image: Callable[[], Any] | None, roi: Any, size: np.ndarray, view: View | None, index: int
    ) -> np.ndarray | None:
        """Return the cells of one image that are inspected.

        Parameters
        ----------
        image : callable or None
            Function that returns the image. It is called only if needed. None if there are only patch features.
        roi : region in any form, or None
            Region of this image. None means the whole image.
        size : array of shape (2,)
            Height and width of the patch grid.
        view : View or None
            Region of the image that the grid covers. None counts the grid as the image.
        index : int
            Index of the image, for errors.

        Returns
        -------
        array of int or None
            Row-major positions in the grid, ascending. None if all cells are inspected.

        Raises
        ------
        ImageError
            If no cell is inspected, or a region does not fit the image.
        """
        grid = (int(size[0]), int(size[1]))

        def path() -> str | None:
            return None if image is None else path_of(image())

        def load() -> np.ndarray:
            if image is None:
                raise ValueError("roi is a function of an image, but there are only patch features: pass a mask.")
            return load_image(image(), index, pixel_format=self.pixel_format)

        counted = np.ones(grid, bool)
        with _as_image_error(index, path):
            for region in self._regions(roi):
                counted &= self._cells_of(region, load, grid, view)
        if not counted.any():
            raise ImageError(
                "no patch of this image lies in the region of interest by at least half. Check roi, or use a larger "
                "image_size for a region that is narrower than a patch.",
                index,
                path(),
            )
        return None if counted.all() else np.flatnonzero(counted)

    def pixels(self, image: np.ndarray, roi: Any, index: int, path: str | None) -> np.ndarray:
        """Return the pixels of an image that lie in the region of interest.

        Parameters
        ----------
        image : array of shape (height, width, 1 or 3), float in [0, 1]
            The image.
        roi : region in any form, or None
            Region of this image. None means the whole image.
        index, path
            Index and path of the image, for errors.

        Returns
        -------
        array of shape (height, width), bool

        Raises
        ------
        ImageError
            If a region does not fit the image.
        """
        size = (image.shape[0], image.shape[1])
        inside = np.ones(size, bool)
        with _as_image_error(index, lambda: path):
            for region in self._regions(roi):
                inside &= self._mask_of(region, size, lambda: image)
        return inside

    def _regions(self, roi: Any) -> list[Region]:
        """Return the regions in which a patch must lie."""
        return [as_region(region) for region in (self.region, roi) if region is not None]

    def _mask_of(self, region: Region, size: tuple[int, int], load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the mask of a region; the last mask of the region of all images is kept."""
        if region is not self.region or region.function is not None:
            return region.mask_of(size, load)
        known = self._last_mask  # one reference, because another thread may replace it
        if known is None or known.shape != size:
            self._last_mask = known = region.mask_of(size, load)
        return known

    def _cells_of(
        self, region: Region, load: Callable[[], np.ndarray], grid: tuple[int, int], view: View | None
    ) -> np.ndarray:
        """Return whether each cell lies in a region; the cells of the region of all images are kept."""
        if view is None and any(not relative for relative in region.in_shares):
            raise ValueError("roi is given in pixels, but the size of the image is unknown. Use fractions like 0.1.")
        image_size = (grid[0] * _N_PIXELS, grid[1] * _N_PIXELS) if view is None else view.image_size
        box = (0.0, 0.0, float(image_size[0]), float(image_size[1])) if view is None else view.box
        key = (image_size, box, grid)
        is_fixed = region is self.region and region.function is None
        if is_fixed and key in self._known:
            return self._known[key]
        found = cells_inside(self._mask_of(region, image_size, load), box, grid)
        if is_fixed:
            while len(self._known) >= _N_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return found


@contextmanager
def _as_image_error(index: int, path: Callable[[], str | None]) -> Iterator[None]:
    """Raise an error about a region as an ImageError with the index and the path of the image."""
    try:
        yield
    except ImageError:
        raise
    except (ValueError, OSError) as error:
        raise ImageError(str(error), index, path()) from error


class InsideImages(Sequence[Any]):
    """Sequence of images in which all pixels outside the region of interest have one colour.

    The colour is the mean of the pixels in the region. Pixels outside therefore have no effect on patch features near
    the edge of the region, which the network computes from its surroundings too. An image is read when it is accessed.

    Parameters
    ----------
    images : sequence of images
        The images.
    counted : CountedCells
        The region of all images.
    regions : sequence
        Region of each image; None means the whole image.
    pixel_format : PixelFormat
        Form in which the extractor reads arrays.
    max_pixels : int or None
        Maximum number of pixels of an image.
    """

    def __init__(
        self,
        images: Any,
        counted: CountedCells,
        regions: Sequence[Any],
        pixel_format: PixelFormat,
        max_pixels: int | None,
    ):
        self.images, self.counted, self.regions = images, counted, regions
        self.pixel_format, self.max_pixels = pixel_format, max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image = item_of(self.images, index)
        pixels = load_image(image, index, self.max_pixels, pixel_format=self.pixel_format)
        inside = self.counted.pixels(pixels, self.regions[index], index, path_of(image))
        return as_stored(filled_outside(pixels, inside), self.pixel_format)


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
