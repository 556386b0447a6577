"""CountedCells: find the cells of patch grids that lie in the region of interest."""

from __future__ import annotations

import numpy as np

from skpatchcore.images.inside import PixelMask
from skpatchcore.images.roi import cells_inside

# Maximum number of results that are kept, each for one mask and one grid.
_N_KEPT = 16


class CountedCells:
    """Finds the cells of an image's patch grid that lie in a mask. The results for the last masks are kept."""

    def __init__(self) -> None:
        self._known: list[tuple[PixelMask, tuple[object, ...], np.ndarray]] = []

    def of(self, mask: PixelMask, box: tuple[float, float, float, float], grid: tuple[int, int]) -> np.ndarray:
        """Return the cells that are inspected.

        Parameters
        ----------
        mask : PixelMask
            Pixels of the image that are inspected.
        box : (float, float, float, float)
            Top, left, height and width, in pixels, of the part of the image that the grid covers.
        grid : (int, int)
            Height and width of the grid.

        Returns
        -------
        array of int
            Row-major positions in the grid, ascending. The result for the same mask, box and grid is the same array.
        """
        for known, geometry, cells in self._known:
            if known is mask and geometry == (box, grid):
                return cells
        cells = np.flatnonzero(cells_inside(mask.as_array(), box, grid))
        self._known = [*self._known[-_N_KEPT + 1 :], (mask, (box, grid), cells)]
        return cells
