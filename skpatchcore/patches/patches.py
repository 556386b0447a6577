"""Patches: the patch features of several images as one matrix, with the grid size and the view of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor, describe_beyond, first_beyond
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View

# Number of images per batch, for patches in memory and for extractors without a batch size.
N_IMAGES = 16
_NOTHING = "there are no patch features. Pass at least one image with at least one patch."


class PatchLayout:
    """Layout of the patches of several images as the rows of one matrix.

    The images follow each other. The patches of each image are in row-major order. Patches outside the region of
    interest have no row.

    Parameters
    ----------
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None)
        Region of the image that each grid covers; None if it is unknown.
    cells : sequence of (array of int or None) or None, default=None
        For each image, the row-major positions in its grid of the patches that have a row, ascending. None for an image
        with a row for each patch. None instead of a sequence means that this holds for all images.
    """

    def __init__(
        self, sizes: np.ndarray, views: Sequence[View | None], cells: Sequence[np.ndarray | None] | None = None
    ):
        self.sizes, self.views = sizes, views
        self.cells = [None] * len(sizes) if cells is None else cells
        self._has_region = cells is not None and any(own is not None for own in cells)
        counts = sizes.prod(axis=1)
        if cells is not None:
            counts = np.array([n if own is None else len(own) for n, own in zip(counts, cells, strict=True)], int)
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def joined(cls, layouts: Sequence[PatchLayout]) -> PatchLayout:
        """Return the layout of the images of several layouts."""
        views = [view for layout in layouts for view in layout.views]
        return PatchLayout(np.concatenate([layout.sizes for layout in layouts]), views, _joined_cells(layouts))

    def layout(self) -> PatchLayout:
        """Return the layout without the features."""
        return PatchLayout(self.sizes, self.views, self.cells if self.has_region() else None)

    def has_region(self) -> bool:
        """Return whether patches of any image have no row, because they lie outside the region of interest."""
        return self._has_region

    def same_as(self, other: PatchLayout) -> bool:
        """Return whether another layout has the same grids with the same cells."""
        return np.array_equal(self.sizes, other.sizes) and all(
            (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))
            for a, b in zip(self.cells, other.cells, strict=True)
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def image_of(self, rows: Any) -> Any:
        """Return the index of the image for each of `rows`."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the grid positions of patches: row and column in the image's grid, array of shape (n_rows, 2)."""
        images = self.image_of(rows)
        places = rows - self.starts[images]
        for image in np.unique(images) if self.has_region() else ():
            if (own := self.cells[image]) is not None:
                here = images == image
                places[here] = own[places[here]]
        return np.stack(np.divmod(places, self.sizes[images, 1]), axis=1)

    def original_positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the grid positions of patches as `positions_of`, for turned images in the grid that is turned back."""
        images, positions = self.image_of(rows), self.positions_of(rows)
        for image in np.unique(images):
            if (view := self.views[image]) is not None and view.turn is not None:
                here = images == image
                cells = np.hstack([positions[here], np.ones_like(positions[here])])
                n_rows, n_columns = self.sizes[image]
                positions[here] = view.turn.original_boxes(cells, (int(n_rows), int(n_columns)))[:, :2]
        return positions

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
        """Return an array with one value per row as a list of grids, each of shape (grid_height, grid_width).

        Patches without a row are NaN.
        """
        grids = []
        for part, size, own in zip(np.split(values, self.starts[1:-1]), self.sizes, self.cells, strict=True):
            grid = part if own is None else np.full(size.prod(), np.nan)
            if own is not None:
                grid[own] = part
            grids.append(grid.reshape(size))
        return grids


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
    cells : sequence of (array of int or None) or None, default=None
        Positions of the patches that have a row, as for :class:`PatchLayout`.
    masks : sequence of (PixelMask or None) or None, default=None
        Pixels of each image in the region of interest; None for all pixels. None instead of a sequence means that this
        holds for all images.
    """

    def __init__(
        self,
        rows: np.ndarray,
        sizes: np.ndarray,
        views: Sequence[View | None] | None = None,
        cells: Sequence[np.ndarray | None] | None = None,
        masks: Sequence[PixelMask | None] | None = None,
    ):
        super().__init__(sizes, [None] * len(sizes) if views is None else views, cells)
        self.rows, self.masks = rows, [None] * len(sizes) if masks is None else masks

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

    def within(
        self,
        cells: Sequence[np.ndarray | None],
        masks: Sequence[PixelMask | None],
        views: Sequence[View | None],
    ) -> Patches:
        """Return the patches in the region of interest.

        Parameters
        ----------
        cells : sequence of (array of int or None)
            For each image, the row-major positions in its grid, ascending; None for all positions. All patches must
            have a row.
        masks : sequence of (PixelMask or None)
            Pixels of each image in the region; None for all pixels.
        views : sequence of (View or None)
            New views of the images.
        """
        if all(own is None for own in cells):
            return Patches(self.rows, self.sizes, views, None, masks)
        parts = [
            self.rows[start:stop] if own is None else self.rows[start:stop][own]
            for (start, stop), own in zip(pairwise(self.starts), cells, strict=True)
        ]
        return Patches(np.concatenate(parts), self.sizes, views, cells, masks)

    def limited_to(self, cells: Sequence[np.ndarray | None]) -> Patches:
        """Return only the patches in some cells.

        Parameters
        ----------
        cells : sequence of (array of int or None)
            For each image, row-major positions in its grid, ascending; None for all positions. Unlike in `within`,
            patches may have no row before, and an image may lose all of its rows.
        """
        if all(some is None for some in cells):
            return self
        rows, kept = [], []
        for (start, stop), own, some in zip(pairwise(self.starts), self.cells, cells, strict=True):
            part = self.rows[start:stop]
            if some is not None and own is not None:
                is_kept = np.isin(own, some)
                part, own = part[is_kept], own[is_kept]
            elif some is not None:
                part, own = part[some], some
            rows.append(part)
            kept.append(own)
        return Patches(np.concatenate(rows), self.sizes, self.views, kept, self.masks)

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
        rows, filled = np.empty((0, 0), np.float32), 0
        layouts: list[PatchLayout] = []
        masks: list[PixelMask | None] = []
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
            layouts.append(batch.layout())
            masks.extend(batch.masks)
        joined = PatchLayout.joined(layouts)
        return cls(rows[:filled], joined.sizes, joined.views, joined.cells if joined.has_region() else None, masks)

    def __iter__(self) -> Iterator[Patches]:
        for start in range(0, len(self), N_IMAGES):
            yield self.between(start, min(start + N_IMAGES, len(self)))

    def with_rows(self, rows: np.ndarray) -> Patches:
        """Return patches with the same layout and other features."""
        return Patches(rows, self.sizes, self.views, self.cells if self.has_region() else None, self.masks)

    def subset(self, images: np.ndarray) -> Patches:
        """Return the patches of the images with the given indices; the rows are copied if there are several images."""
        parts = [self.rows[self.starts[i] : self.starts[i + 1]] for i in images]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        cells = [self.cells[i] for i in images] if self.has_region() else None
        views, masks = [self.views[i] for i in images], [self.masks[i] for i in images]
        return Patches(rows, self.sizes[images], views, cells, masks)

    def between(self, start: int, stop: int) -> Patches:
        """Return the patches of the images from `start` to `stop` - 1, without a copy."""
        rows = self.rows[self.starts[start] : self.starts[stop]]
        cells = self.cells[start:stop] if self.has_region() else None
        return Patches(rows, self.sizes[start:stop], self.views[start:stop], cells, self.masks[start:stop])


def _joined_cells(layouts: Sequence[PatchLayout]) -> list[np.ndarray | None] | None:
    """Return the cells of all images of several layouts; None if each patch has a row."""
    if not any(layout.has_region() for layout in layouts):
        return None
    return [own for layout in layouts for own in layout.cells]


def _as_float(features: np.ndarray) -> np.ndarray:
    """Return float32 and float64 features unchanged, and other features as float32."""
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)
