"""Patches: the patch features of several images as one matrix, with the grid and the view of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor, describe_beyond, first_beyond
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.images.views import View

# Images in a batch of patches that are held in memory.
N_IMAGES = 16
_NOTHING = "there are no patch features: at least one image with one patch is needed."


class PatchLayout:
    """Where the patches of several images lie if each is one row: image after image, each in row-major order.

    Parameters
    ----------
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None)
        What each grid covers of its image; None where that is unknown.
    """

    def __init__(self, sizes: np.ndarray, views: Sequence[View | None]):
        self.sizes, self.views = sizes, views
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])

    def __len__(self) -> int:
        return len(self.sizes)

    def image_of(self, rows: Any) -> Any:
        """Return the image that each of `rows` belongs to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the position of each of `rows` in its image's grid: array of shape (n_rows, 2), row and column."""
        images = self.image_of(rows)
        return np.stack(np.divmod(rows - self.starts[images], self.sizes[images, 1]), axis=1)

    def boxes_of(self, rows: np.ndarray) -> np.ndarray:
        """Return where in their images patches lie.

        Parameters
        ----------
        rows : array of shape (n_rows,)
            The patches.

        Returns
        -------
        array of shape (n_rows, 4), float64
            Top, left, height and width in the image's own pixels; NaN where the view is unknown.
        """
        boxes = np.full((len(rows), 4), np.nan)
        images, positions = self.image_of(rows), self.positions_of(rows)
        for image in np.unique(images):
            if (view := self.views[image]) is not None:
                here = images == image
                boxes[here] = view.boxes_of(positions[here], self.sizes[image])
        return boxes

    def as_grids(self, values: np.ndarray) -> list[np.ndarray]:
        """Return values, one per patch, as one array of shape (grid_height, grid_width) per image."""
        parts = np.split(values, self.starts[1:-1])
        return [part.reshape(size) for part, size in zip(parts, self.sizes, strict=True)]


class Patches(PatchLayout):
    """Patch features of several images: a batch of a stream, or all of a stream held in memory.

    Iterating yields batches of some images, without copies.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        All patch features, one row per patch.
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None) or None, default=None
        What each grid covers of its image; None if that is unknown for all.
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
        """Return the output of an extractor's ``transform`` as patches.

        Parameters
        ----------
        features : array of shape (n_images, grid_height, grid_width, n_channels), or list
            Grids of one size, or a list of arrays of shape (grid_height, grid_width, n_channels); an array of shape
            (n_images, n_channels) is one patch per image.
        views : sequence of (View or None) or None, default=None
            What each grid covers of its image.
        numbers : array of shape (n_images,) or None, default=None
            Numbers of the images in error messages; None counts from 0.
        limit : float or None, default=None
            Largest absolute value; None takes any finite value.

        Returns
        -------
        Patches

        Raises
        ------
        ValueError
            If the features have another shape, differ in their channels, or hold NaN, infinity or values beyond
            `limit`; the error names the image, the channel and the value.
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
        """Hold the batches of a stream in one matrix. Each batch is written to its place: there is no second copy.

        Parameters
        ----------
        batches : iterable of Patches
            With the same channels.
        n_patches : int
            Expected number of patches. Memory is taken as batches arrive: fewer patches cost nothing, more cost a copy.

        Returns
        -------
        Patches
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
            # torch's threads share the work of touching new memory
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
        """Return the patches of some images; a copy if there are several."""
        parts = [self.rows[self.starts[i] : self.starts[i + 1]] for i in images]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Patches(rows, self.sizes[images], [self.views[i] for i in images])

    def between(self, start: int, stop: int) -> Patches:
        """Return the patches of the images from `start` up to `stop`, without a copy."""
        rows = self.rows[self.starts[start] : self.starts[stop]]
        return Patches(rows, self.sizes[start:stop], self.views[start:stop])


def _as_float(features: np.ndarray) -> np.ndarray:
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)
