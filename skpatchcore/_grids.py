"""Grids of patch features of any sizes, held as one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from skpatchcore._finite import first_not_finite

_NOTHING = "there are no patch features: at least one image with one patch is needed."


class PatchGrids:
    """Patch features of several images: one row a patch, image after image, each in row-major order.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        All patch features.
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    """

    def __init__(self, rows: np.ndarray, sizes: np.ndarray):
        self.rows, self.sizes = rows, sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])

    @classmethod
    def from_features(cls, features: Any) -> PatchGrids:
        """Take what an extractor's ``transform`` gives.

        Parameters
        ----------
        features : array of shape (n_images, grid_height, grid_width, n_channels), or list
            Grids of one size, or a list of arrays of shape (grid_height, grid_width, n_channels); an array of shape
            (n_images, n_channels) is one patch an image.

        Returns
        -------
        PatchGrids

        Raises
        ------
        ValueError
            If the features have another shape, differ in their channels, or hold NaN or infinity; the error names
            the image.
        """
        if isinstance(features, np.ndarray) and features.dtype != object:
            if features.ndim not in (2, 4):
                raise ValueError(
                    f"patch features of shape {features.shape}: expected (n_images, grid_height, grid_width, "
                    "n_channels), (n_images, n_channels) or a list of (grid_height, grid_width, n_channels)."
                )
            height, width = features.shape[1:3] if features.ndim == 4 else (1, 1)
            sizes = np.tile([height, width], (len(features), 1))
            rows = _as_float(features).reshape(-1, features.shape[-1])
        else:
            grids = [_as_float(np.asarray(grid)) for grid in features]
            if not grids:
                raise ValueError(_NOTHING)
            for i, grid in enumerate(grids):
                if grid.ndim != 3 or grid.shape[2] != grids[0].shape[-1]:
                    raise ValueError(
                        f"patch features of image {i} have shape {grid.shape}: expected (grid_height, grid_width, "
                        "n_channels), with the same channels in all images."
                    )
            sizes = np.array([grid.shape[:2] for grid in grids]).reshape(-1, 2)
            rows = np.concatenate([grid.reshape(-1, grid.shape[2]) for grid in grids])
        if not len(sizes) or not rows.size:
            raise ValueError(_NOTHING)
        grids_ = cls(rows, sizes)
        if (row := first_not_finite(rows)) is not None:
            raise ValueError(f"patch features of image {grids_.image_of(row)} hold NaN or infinity.")
        return grids_

    @classmethod
    def from_batches(cls, batches: Iterable[PatchGrids], n_images: int) -> PatchGrids:
        """Gather the grids of `n_images` images, which come in batches.

        While all grids are of one size, each batch is written to its place in the final matrix, so that the features
        are held once.
        """
        rows = np.empty((0, 0), np.float32)
        sizes = np.empty((0, 2), np.int64)
        filled = 0
        for batch in batches:
            if not filled and len(batch) == n_images:
                return batch
            needed = filled + len(batch.rows)
            if needed > len(rows):
                left = (n_images - len(sizes)) * int(batch.sizes[0].prod())
                grown = np.empty(
                    (max(filled + left, needed, len(rows) * 5 // 4), batch.rows.shape[1]), batch.rows.dtype
                )
                if filled:
                    grown[:filled] = rows[:filled]
                rows = grown
            rows[filled:needed] = batch.rows
            filled = needed
            sizes = np.concatenate([sizes, batch.sizes])
        return cls(rows[:filled], sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each image's rows, of shape (n_patches_of_it, n_channels)."""
        for i in range(len(self)):
            yield self.rows[self.starts[i] : self.starts[i + 1]]

    def take(self, images: np.ndarray) -> PatchGrids:
        """Return the grids of some of the images."""
        parts = [self.rows[self.starts[i] : self.starts[i + 1]] for i in images]
        return PatchGrids(parts[0] if len(parts) == 1 else np.concatenate(parts), self.sizes[images])

    def image_of(self, rows: Any) -> Any:
        """Return the image that each of `rows` belongs to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return where in its image's grid each of `rows` lies: array of shape (n_rows, 2), row and column."""
        images = self.image_of(rows)
        return np.stack(np.divmod(rows - self.starts[images], self.sizes[images, 1]), axis=1)


def _as_float(features: np.ndarray) -> np.ndarray:
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)
