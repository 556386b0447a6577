"""CountedCells: find the cells of patch grids that lie in the region of interest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import PixelFormat, load_image, path_of
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

        try:
            own = None if roi is None else as_region(roi)
            counted = np.ones(grid, bool)
            for region in (self.region, own):
                if region is not None:
                    counted &= self._cells_of(region, image, index, grid, view)
        except (ValueError, OSError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(str(error), index, path()) from error
        if not counted.any():
            raise ImageError(
                "no patch of this image lies in the region of interest by at least half. Check roi, or use a larger "
                "image_size for a region that is narrower than a patch.",
                index,
                path(),
            )
        return None if counted.all() else np.flatnonzero(counted)

    def _cells_of(
        self,
        region: Region,
        image: Callable[[], Any] | None,
        index: int,
        grid: tuple[int, int],
        view: View | None,
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

        def load() -> np.ndarray:
            if image is None:
                raise ValueError("roi is a function of an image, but there are only patch features: pass a mask.")
            return load_image(image(), index, pixel_format=self.pixel_format)

        found = cells_inside(region.mask_of(image_size, load), box, grid)
        if is_fixed:
            while len(self._known) >= _N_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return found
