"""Patches: the patch features of several images as one matrix, with the grid size and the view of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor, describe_beyond, first_beyond
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.images.views import View

# Number of images per batch, for patches in memory and for extractors without a batch size.
N_IMAGES = 16
_NOTHING = "there are no patch features. Pass at least one image with at least one patch."


class PatchLayout:
    """Layout of the patches of several images as the rows of one matrix.

    The images follow each other. The patches of each image are in row-major order.

    Parameters
    ----------
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None)
        Region of the image that each grid covers; None if it is unknown.
    """

    def __init__(self, sizes: np.ndarray, views: Sequence[View | None]):
        self.sizes, self.views = sizes, views
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])

    def __len__(self) -> int:
        return len(self.sizes)

    def image_of(self, rows: Any) -> Any:
        """Return the index of the image for each of `rows`."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the grid positions of patches: row and column in the image's grid, array of shape (n_rows, 2)."""
        images = self.image_of(rows)
        return np.stack(np.divmod(rows - self.starts[images], self.sizes[images, 1]), axis=1)

    def boxes_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the boxes of patches in their images.

        Parameters
        ----------
        rows : array of shape (n_rows,)
            Row numbers of the patches.

        Returns
        -------
        array of shape (n_rows, 4), float64
            Top, left, height and width in pixels of the original image; NaN if the view is unknown.
        """
        boxes = np.full((len(rows), 4), np.nan)
        images, positions = self.image_of(rows), self.positions_of(rows)
        for image in np.unique(images):
            if (view := self.views[image]) is not None:
                here = images == image
                boxes[here] = view.boxes_of(positions[here], self.sizes[image])
        return boxes

    def as_grids(self, values: np.ndarray) -> list[np.ndarray]:
        """Return an array with one value per patch as a list of grids, each of shape (grid_height, grid_width)."""
        parts = np.split(values, self.starts[1:-1])
        return [part.reshape(size) for part, size in zip(parts, self.sizes, strict=True)]


class Patches(PatchLayout):
    """Patch features of several images in memory: one batch of a stream, or all images of a stream.

    Iteration yields batches of 16 images, without copies.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features of all images, one row per patch.
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None) or None, default=None
        Region of the image that each grid covers. None if the regions of all images are unknown.
    """

    def __init__(self, rows: np.ndarray, sizes: np.ndarray, views: Sequence[View | None] | None = None):
        super().__init__(sizes, [None] * len(sizes) if views is None else views)
        self.rows = rows

    @classmethod
    def from_features(
        cls,
        features: Any,
        views: Sequence[View | None] | None = None,
        numbers: np.ndarray | None = None,
        limit: float | None = None,
    ) -> Patches:
        """Convert the output of an extractor's ``transform`` to patches.

        Parameters
        ----------
        features : array of shape (n_images, grid_height, grid_width, n_channels), or list
            Patch features. Grids of different sizes are a list of arrays of shape (grid_height, grid_width,
            n_channels). An array of shape (n_images, n_channels) has one patch per image.
        views : sequence of (View or None) or None, default=None
            Region of the image that each grid covers; None if the regions are unknown.
        numbers : array of shape (n_images,) or None, default=None
            Numbers of the images in error messages. None counts the images from 0.
        limit : float or None, default=None
            Largest absolute value that is accepted. None accepts every finite value.

        Returns
        -------
        Patches
            The same features, one row per patch.

        Raises
        ------
        ValueError
            If the features have another shape, if the number of channels differs between images, or if a value is NaN,
            infinite or beyond `limit`. The error names the image, and for a value also the channel and the value.
        """
        if isinstance(features, np.ndarray) and features.dtype != object:
            if features.ndim not in (2, 4):
                raise ValueError(
                    f"patch features have shape {features.shape}: expected (n_images, grid_height, grid_width, "
                    "n_channels), (n_images, n_channels) or a list of arrays (grid_height, grid_width, n_channels)."
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
                        "n_channels), with the same number of channels in all images."
                    )
            sizes = np.array([grid.shape[:2] for grid in grids]).reshape(-1, 2)
            rows = np.concatenate([grid.reshape(-1, grid.shape[2]) for grid in grids])
        if not len(sizes) or not rows.size:
            raise ValueError(_NOTHING)
        patches = cls(rows, sizes, views)
        limit = float(np.finfo(rows.dtype).max) if limit is None else limit
        if (found := first_beyond(rows, limit)) is not None:
            row, channel, value = found
            image = patches.image_of(row)
            raise ValueError(
                f"patch features of image {image if numbers is None else numbers[image]} hold "
                f"{describe_beyond(value, f'channel {channel}', limit)}"
            )
        return patches

    @classmethod
    def gather(cls, batches: Iterable[Patches], n_patches: int) -> Patches:
        """Collect the batches of a stream in one matrix.

        Each batch is copied directly to its place in the matrix. The batches are not held in memory at the same time.

        Parameters
        ----------
        batches : iterable of Patches
            Batches with the same number of channels.
        n_patches : int
            Expected number of patches. The matrix is allocated for this number, and the system provides memory as
            batches are written. Fewer patches take no extra memory. More patches need a larger matrix and a copy.

        Returns
        -------
        Patches
            The patches of all batches, in order.
        """
        rows, sizes, filled = np.empty((0, 0), np.float32), [], 0
        views: list[View | None] = []
        for batch in batches:
            needed = filled + len(batch.rows)
            if needed > len(rows):
                n_rows = max(needed, n_patches if not filled else len(rows) * 9 // 8)
                grown = np.empty((n_rows, batch.rows.shape[1]), batch.rows.dtype)
                if filled:
                    grown[:filled] = rows[:filled]
                rows = grown
            # The copy uses torch, because its threads share the cost of the first access to new memory.
            with default_modes(), one_thread(batch.rows.size < SMALL_PASS):
                torch.from_numpy(rows[filled:needed]).copy_(as_tensor(batch.rows, torch.device("cpu")))
            filled = needed
            sizes.append(batch.sizes)
            views.extend(batch.views)
        return cls(rows[:filled], np.concatenate(sizes), views)

    def __iter__(self) -> Iterator[Patches]:
        for start in range(0, len(self), N_IMAGES):
            yield self.between(start, min(start + N_IMAGES, len(self)))

    def subset(self, images: np.ndarray) -> Patches:
        """Return the patches of the images with the given indices; the rows are copied if there are several images."""
        parts = [self.rows[self.starts[i] : self.starts[i + 1]] for i in images]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Patches(rows, self.sizes[images], [self.views[i] for i in images])

    def between(self, start: int, stop: int) -> Patches:
        """Return the patches of the images from `start` to `stop` - 1, without a copy."""
        rows = self.rows[self.starts[start] : self.starts[stop]]
        return Patches(rows, self.sizes[start:stop], self.views[start:stop])


def _as_float(features: np.ndarray) -> np.ndarray:
    """Return float32 and float64 features unchanged, and other features as float32."""
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)
