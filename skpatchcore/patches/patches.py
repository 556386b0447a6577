"""Grids of patch features of any sizes, held as one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor, first_not_finite
from skpatchcore.images.views import View

_NOTHING = "there are no patch features: at least one image with one patch is needed."


class GridLayout:
    """Where the patches of several images lie, if each is a row: image after image, each in row-major order.

    Parameters
    ----------
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    """

    def __init__(self, sizes: np.ndarray):
        self.sizes = sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])

    def __len__(self) -> int:
        return len(self.sizes)

    def image_of(self, rows: Any) -> Any:
        """Return the image that each of `rows` belongs to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return where in its image's grid each of `rows` lies: array of shape (n_rows, 2), row and column."""
        images = self.image_of(rows)
        return np.stack(np.divmod(rows - self.starts[images], self.sizes[images, 1]), axis=1)


class PatchGrids(GridLayout):
    """Patch features of several images, one row a patch.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        All patch features.
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    """

    def __init__(self, rows: np.ndarray, sizes: np.ndarray):
        super().__init__(sizes)
        self.rows = rows

    @classmethod
    def from_features(cls, features: Any, numbers: np.ndarray | None = None) -> PatchGrids:
        """Take what an extractor's ``transform`` gives.

        Parameters
        ----------
        features : array of shape (n_images, grid_height, grid_width, n_channels), or list
            Grids of one size, or a list of arrays of shape (grid_height, grid_width, n_channels); an array of shape
            (n_images, n_channels) is one patch an image.
        numbers : array of shape (n_images,) or None, default=None
            What the images are called in errors; None counts from 0.

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
                    name = i if numbers is None else numbers[i]
                    raise ValueError(
                        f"patch features of image {name} have shape {grid.shape}: expected (grid_height, grid_width, "
                        "n_channels), with the same channels in all images."
                    )
            sizes = np.array([grid.shape[:2] for grid in grids]).reshape(-1, 2)
            rows = np.concatenate([grid.reshape(-1, grid.shape[2]) for grid in grids])
        if not len(sizes) or not rows.size:
            raise ValueError(_NOTHING)
        grids_ = cls(rows, sizes)
        if (row := first_not_finite(rows)) is not None:
            image = grids_.image_of(row)
            raise ValueError(
                f"patch features of image {image if numbers is None else numbers[image]} hold NaN or infinity."
            )
        return grids_

    @classmethod
    def from_batches(cls, batches: Iterable[PatchGrids], n_patches: int) -> PatchGrids:
        """Gather grids that come in batches; each is written to its place in one matrix, so that all are held once.

        Parameters
        ----------
        batches : iterable of PatchGrids
            With the same channels.
        n_patches : int
            How many patches are expected. Memory is taken as they come: fewer cost nothing, more a copy.
        """
        rows, sizes, filled = np.empty((0, 0), np.float32), [], 0
        for batch in batches:
            needed = filled + len(batch.rows)
            if needed > len(rows):
                n_rows = max(needed, n_patches if not filled else len(rows) * 9 // 8)
                grown = np.empty((n_rows, batch.rows.shape[1]), batch.rows.dtype)
                if filled:
                    grown[:filled] = rows[:filled]
                rows = grown
            # by torch, whose threads share the work of touching new memory
            torch.from_numpy(rows[filled:needed]).copy_(as_tensor(batch.rows, torch.device("cpu")))
            filled = needed
            sizes.append(batch.sizes)
        return cls(rows[:filled], np.concatenate(sizes))

    def take(self, images: np.ndarray) -> PatchGrids:
        """Return the grids of some of the images."""
        parts = [self.rows[self.starts[i] : self.starts[i + 1]] for i in images]
        return PatchGrids(parts[0] if len(parts) == 1 else np.concatenate(parts), self.sizes[images])

    def between(self, start: int, stop: int) -> PatchGrids:
        """Return the grids of the images from `start` up to `stop`, without a copy."""
        return PatchGrids(self.rows[self.starts[start] : self.starts[stop]], self.sizes[start:stop])


def _as_float(features: np.ndarray) -> np.ndarray:
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)


# Images, and patches of precomputed grids, that make a batch where the extractor does not say.
_N_IMAGES = 16


class HeldPatches:
    """Patch features that are held in memory, as a stream.

    Parameters
    ----------
    grids : PatchGrids
        Of all images.
    views : list of (View or None)
        What the network saw of each.
    """

    def __init__(self, grids: PatchGrids, views: list[View | None]):
        self.grids, self.views = grids, views

    @classmethod
    def gather(cls, batches: Iterable[tuple[PatchGrids, list[View | None]]], n_patches: int) -> HeldPatches:
        """Hold what a stream yields; `n_patches` are expected."""
        views: list[View | None] = []

        def grids() -> Iterator[PatchGrids]:
            for some, seen in batches:
                views.extend(seen)
                yield some

        return cls(PatchGrids.from_batches(grids(), n_patches), views)

    def __len__(self) -> int:
        return len(self.grids)

    def subset(self, images: np.ndarray) -> HeldPatches:
        """Return a copy of some of the images' features."""
        return HeldPatches(self.grids.take(images), [self.views[i] for i in images])

    def __iter__(self) -> Iterator[tuple[PatchGrids, list[View | None]]]:
        for start in range(0, len(self), _N_IMAGES):
            stop = min(start + _N_IMAGES, len(self))
            yield self.grids.between(start, stop), self.views[start:stop]


def boxes_in_images(
    layout: GridLayout, views: list[View | None], images: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Return where in their images patches lie.

    Parameters
    ----------
    layout : GridLayout
        Of the images' grids.
    views : list of (View or None)
        What the grids cover of them.
    images : array of shape (n_patches,)
        Which image each patch belongs to.
    positions : array of shape (n_patches, 2)
        Where in its grid.

    Returns
    -------
    array of shape (n_patches, 4), float64
        Top, left, height and width in the image's own pixels; NaN where nothing is known of the image.
    """
    boxes = np.full((len(images), 4), np.nan)
    for image in np.unique(images):
        if (view := views[image]) is not None:
            here = images == image
            boxes[here] = view.boxes_of(positions[here], layout.sizes[image])
    return boxes
