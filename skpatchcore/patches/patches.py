"""Patches: the patch features of several images as one matrix, with the grid size and the view of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_tensor, describe_beyond, first_beyond, read_only
from skpatchcore._utils.digests import DigestedArray, digest_of
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PASS, one_thread
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View

# Number of images per batch, for patches in memory and for extractors without a batch size.
N_IMAGES = 16
# Maximum number of images whose features stay mapped from files. Systems limit the number of mapped files.
_MOST_MAPPED = 16384
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
    rows : array of shape (n_patches, n_channels), or list of arrays
        Patch features of all images, one row per patch. Patch features that are mapped from files are a list with one
        array per image. They are joined when `rows` is read first, and are not read before.
    sizes : array of shape (n_images, 2)
        Height and width of each image's grid.
    views : sequence of (View or None) or None, default=None
        Region of the image that each grid covers. None if the regions of all images are unknown.
    cells : sequence of (array of int or None) or None, default=None
        Positions of the patches that have a row, as for :class:`PatchLayout`.
    masks : sequence of (PixelMask or None) or None, default=None
        Pixels of each image in the region of interest; None for all pixels. None instead of a sequence means that this
        holds for all images.
    digests : sequence of (bytes or None) or None, default=None
        Digest of the rows of each image, which is equal for equal rows; None if it is unknown. If any is known, `rows`
        is read-only.
    """

    def __init__(
        self,
        rows: np.ndarray | list[np.ndarray],
        sizes: np.ndarray,
        views: Sequence[View | None] | None = None,
        cells: Sequence[np.ndarray | None] | None = None,
        masks: Sequence[PixelMask | None] | None = None,
        digests: Sequence[bytes | None] | None = None,
    ):
        super().__init__(sizes, [None] * len(sizes) if views is None else views, cells)
        self.masks = [None] * len(sizes) if masks is None else masks
        self.digests = [None] * len(sizes) if digests is None else digests
        if any(digest is not None for digest in self.digests):
            rows = [read_only(part) for part in rows] if isinstance(rows, list) else read_only(rows)
        self._rows = rows

    @property
    def rows(self) -> np.ndarray:
        """Patch features of all images, of shape (n_patches, n_channels)."""
        if isinstance(self._rows, list):
            joined = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
            self._rows = joined if self._rows[0].flags.writeable else read_only(joined)
        return self._rows

    @property
    def n_rows(self) -> int:
        """Number of rows of all images."""
        return int(self.starts[-1])

    @property
    def n_channels(self) -> int:
        """Number of channels of a patch feature."""
        return int(self._first_part().shape[1])

    @property
    def itemsize(self) -> int:
        """Size of a value in bytes."""
        return self._first_part().itemsize

    def _first_part(self) -> np.ndarray:
        return self._rows[0] if isinstance(self._rows, list) else self._rows

    def is_mapped(self) -> bool:
        """Return whether the rows are parts that have not been joined yet."""
        return isinstance(self._rows, list)

    def part(self, image: int) -> np.ndarray:
        """Return the rows of the image with the given index, without a copy."""
        if isinstance(self._rows, list):
            own: np.ndarray = self._rows[image]
            return own
        return self._rows[self.starts[image] : self.starts[image + 1]]

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the rows of all images in consecutive parts, without a copy."""
        yield from self._rows if isinstance(self._rows, list) else [self._rows]

    def taken(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows with the given row numbers, in this order."""
        found: np.ndarray
        if not isinstance(self._rows, list):
            found = self._rows[numbers]
            return found
        images = self.image_of(numbers)
        found = np.empty((len(numbers), self.n_channels), self._first_part().dtype)
        order = np.argsort(images, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(images[order])) + 1) if len(order) else ():
            image = int(images[here[0]])
            found[here] = self._rows[image][numbers[here] - self.starts[image]]
        return found

    def digest(self) -> bytes | None:
        """Return a digest of the rows of all images and of their numbers of rows; None if it is unknown."""
        if any(digest is None for digest in self.digests):
            return None
        return digest_of([*self.digests, *np.diff(self.starts).tolist()])

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
            if grids and all(isinstance(grid, DigestedArray) and grid.ndim == 3 for grid in features):
                return cls._from_stored(features, grids, views, numbers, limit)
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
        return cls(rows, sizes, views)._checked(numbers, limit)

    @classmethod
    def _from_stored(
        cls,
        stored: Sequence[DigestedArray],
        grids: Sequence[np.ndarray],
        views: Sequence[View | None] | None,
        numbers: np.ndarray | None,
        limit: float | None,
    ) -> Patches:
        """Return patches of grids with digests. Their values are not read if the largest of them are known."""
        rows = [grid.reshape(-1, grid.shape[2]) for grid in grids]
        sizes = np.array([grid.shape[:2] for grid in grids])
        patches = cls(rows, sizes, views, digests=[grid.digest for grid in stored])
        accepted = float(np.finfo(np.float32).max) if limit is None else limit
        is_known = len({part.shape[1] for part in rows}) == 1 and all(len(part) for part in rows)
        if is_known and all(grid.peak <= accepted for grid in stored):
            return patches
        return cls.from_features(list(grids), views, numbers, limit)  # raises the error, or reads the values

    def _checked(self, numbers: np.ndarray | None, limit: float | None) -> Patches:
        """Return these patches. Raise a ValueError if a value is NaN, infinite or beyond the limit."""
        rows, patches = self.rows, self
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
            return Patches(self._rows, self.sizes, views, None, masks, self.digests)
        parts = [self.part(i) if own is None else self.part(i)[own] for i, own in enumerate(cells)]
        digests = [_of_cells(digest, own) for digest, own in zip(self.digests, cells, strict=True)]
        rows = parts if isinstance(self._rows, list) else np.concatenate(parts)
        return Patches(rows, self.sizes, views, cells, masks, digests)

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
        for i, (own, some) in enumerate(zip(self.cells, cells, strict=True)):
            part = self.part(i)
            if some is not None and own is not None:
                is_kept = np.isin(own, some)
                part, own = part[is_kept], own[is_kept]
            elif some is not None:
                part, own = part[some], some
            rows.append(part)
            kept.append(own)
        digests = [_of_cells(digest, some) for digest, some in zip(self.digests, cells, strict=True)]
        return Patches(np.concatenate(rows), self.sizes, self.views, kept, self.masks, digests)

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
        layouts: list[PatchLayout] = []
        masks: list[PixelMask | None] = []
        digests: list[bytes | None] = []
        mapped: list[np.ndarray] = []  # parts that are mapped from files are not copied
        joined: _Matrix | None = None
        for batch in batches:
            layouts.append(batch.layout())
            masks.extend(batch.masks)
            digests.extend(batch.digests)
            if joined is None and batch.is_mapped() and len(mapped) < _MOST_MAPPED:
                mapped.extend(batch.parts())
                continue
            if joined is None:
                joined = _Matrix(n_patches)
            for part in (*mapped, *batch.parts()):
                joined.append(part)
            mapped = []
        layout = PatchLayout.joined(layouts)
        cells = layout.cells if layout.has_region() else None
        rows = mapped if joined is None else joined.rows()
        return cls(rows, layout.sizes, layout.views, cells, masks, digests)

    def __iter__(self) -> Iterator[Patches]:
        for start in range(0, len(self), N_IMAGES):
            yield self.between(start, min(start + N_IMAGES, len(self)))

    def with_rows(self, rows: np.ndarray) -> Patches:
        """Return patches with the same layout and other features."""
        return Patches(rows, self.sizes, self.views, self.cells if self.has_region() else None, self.masks)

    def subset(self, images: np.ndarray) -> Patches:
        """Return the patches of the images with the given indices; the rows are copied if there are several images."""
        parts = [self.part(i) for i in images]
        rows = parts if self.is_mapped() else parts[0] if len(parts) == 1 else np.concatenate(parts)
        cells = [self.cells[i] for i in images] if self.has_region() else None
        views, masks, digests = ([some[i] for i in images] for some in (self.views, self.masks, self.digests))
        return Patches(rows, self.sizes[images], views, cells, masks, digests)

    def between(self, start: int, stop: int) -> Patches:
        """Return the patches of the images from `start` to `stop` - 1, without a copy."""
        part = slice(start, stop)
        rows = self._rows[part] if isinstance(self._rows, list) else self._rows[self.starts[start] : self.starts[stop]]
        cells = self.cells[part] if self.has_region() else None
        return Patches(rows, self.sizes[part], self.views[part], cells, self.masks[part], self.digests[part])


def _joined_cells(layouts: Sequence[PatchLayout]) -> list[np.ndarray | None] | None:
    """Return the cells of all images of several layouts; None if each patch has a row."""
    if not any(layout.has_region() for layout in layouts):
        return None
    return [own for layout in layouts for own in layout.cells]


def _as_float(features: np.ndarray) -> np.ndarray:
    """Return float32 and float64 features unchanged, and other features as float32."""
    return features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)


def _of_cells(digest: bytes | None, cells: np.ndarray | None) -> bytes | None:
    """Return the digest of the rows in some cells of an image with a digest; `cells` is None for all rows."""
    return digest if digest is None or cells is None else digest_of([digest, cells.astype(np.int64).tobytes()])


class _Matrix:
    """Matrix to which rows are appended. Memory for `n_rows` rows is allocated first, then more if needed."""

    def __init__(self, n_rows: int):
        self._n_rows, self._filled = n_rows, 0
        self._rows = np.empty((0, 0), np.float32)

    def append(self, part: np.ndarray) -> None:
        """Append the rows of an array."""
        needed = self._filled + len(part)
        if needed > len(self._rows):
            n_rows = max(needed, len(self._rows) * 9 // 8 if self._filled else self._n_rows)
            grown = np.empty((n_rows, part.shape[1]), part.dtype)
            if self._filled:
                grown[: self._filled] = self._rows[: self._filled]
            self._rows = grown
        # The copy uses torch, because its threads share the cost of the first access to new memory.
        with default_modes(), one_thread(part.size < SMALL_PASS):
            torch.from_numpy(self._rows[self._filled : needed]).copy_(as_tensor(part, torch.device("cpu")))
        self._filled = needed

    def rows(self) -> np.ndarray:
        """Return the rows without a copy."""
        return self._rows[: self._filled]
