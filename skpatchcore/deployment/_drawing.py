"""MapRules: draw anomaly maps at the size of the images from the patch scores of an exported graph, with numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skpatchcore.images.views import View
from skpatchcore.maps import axis_matrices, mark_uninspected

# OpenBLAS, which numpy uses, computes products of at most 2**18 multiplications on the calling thread.
_N_ROWS, _N_MULTIPLICATIONS = 16, 2**17


@dataclass(frozen=True)
class MapRules:
    """Rules by which anomaly maps are drawn.

    Attributes
    ----------
    stride : int
        Distance between two patches, in cells of the complete grid.
    smoothing : float
        Standard deviation of the Gaussian in pixels of the network's input.
    fill : array of shape (grid_height, grid_width), int64, or None
        Flat index of the patch whose score each patch takes before the map is drawn. None if all patches are inspected.
    inspected : array of shape (height, width), bool, or None
        Pixels of the images that are inspected. None if there is no region of interest.
    """

    stride: int
    smoothing: float
    fill: np.ndarray | None = None
    inspected: np.ndarray | None = None

    @classmethod
    def of(cls, manifest: dict[str, Any], region: dict[str, np.ndarray] | None) -> MapRules:
        """Return the rules of an exported file."""
        patches = manifest["patches"]
        if region is None:
            return cls(patches["stride"], patches["smoothing"])
        height, width = manifest["input"]["image_size"]
        inspected = np.unpackbits(region["inspected"], count=height * width).astype(bool).reshape(height, width)
        return cls(patches["stride"], patches["smoothing"], region["fill"], inspected)

    def are_usable(self, patch_scores: np.ndarray) -> bool:
        """Return whether the scores of all inspected patches are finite."""
        is_counted = np.ones(patch_scores.shape, bool)
        if self.fill is not None:
            is_counted = self.fill == np.arange(self.fill.size).reshape(self.fill.shape)
        return bool(np.isfinite(patch_scores[is_counted]).all())

    def draw(self, patch_scores: np.ndarray, grid: tuple[int, int], view: View) -> np.ndarray:
        """Return the anomaly map of one image at its original size; bigger = more anomalous.

        Parameters
        ----------
        patch_scores : array of shape (grid_height, grid_width)
            One score per patch. NaN for patches that are not inspected.
        grid : (int, int)
            Height and width of the complete grid, before the stride is applied.
        view : View
            Region of the image that the network sees.

        Returns
        -------
        array of shape (height, width), float32
            NaN for pixels that are not inspected.
        """
        view = view.of_patches(grid, self.stride)
        down, across = view.scale
        scores = patch_scores.astype(np.float64)
        if self.fill is not None:
            scores = scores.ravel()[self.fill]
        sigmas = (self.smoothing * down, self.smoothing * across)
        rows, columns = axis_matrices((scores.shape[0], scores.shape[1]), view.image_size, view.box, sigmas)
        drawn: np.ndarray = small_products(small_products(rows, scores), columns.T).astype(np.float32)
        mark_uninspected(drawn, ~np.isnan(patch_scores), view, self.inspected)
        return drawn


def small_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the product of two matrices, computed in blocks that are too small for several threads.

    The threads of numpy's BLAS keep spinning after a product. This would slow down the network on the next image.

    Parameters
    ----------
    left : array of shape (n_rows, n_inner), float64
    right : array of shape (n_inner, n_columns), float64

    Returns
    -------
    array of shape (n_rows, n_columns), float64
    """
    n_rows, n_columns = left.shape[0], right.shape[1]
    step = max(1, _N_MULTIPLICATIONS // (_N_ROWS * left.shape[1]))
    product = np.empty((n_rows, n_columns))
    for i in range(0, n_rows, _N_ROWS):
        for j in range(0, n_columns, step):
            product[i : i + _N_ROWS, j : j + step] = left[i : i + _N_ROWS] @ right[:, j : j + step]
    return product
