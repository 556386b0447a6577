"""`Reserve`: patches of each training image that are not in the memory bank, and can replace rows that are removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from skpatchcore.coreset.reserve import ReserveRequest
from skpatchcore.patches.patches import PatchLayout

# Rows are stored as float16 if the rounding moves no row by more than this fraction of the covering radius.
_ROUNDING = 0.002
# Number of rows that are rounded at once.
_BLOCK = 1024


@dataclass(frozen=True)
class Reserve:
    """Reserve of a memory bank; :mod:`skpatchcore.coreset.reserve` explains how it is selected.

    Attributes
    ----------
    rows : array of shape (n_reserve, n_channels), float16, float32 or float64
        The patch features.
    images : array of shape (n_reserve,), int64
        Image of each row.
    positions : array of shape (n_reserve, 2), int64
        Row and column of each patch in the patch grid of its image.
    boxes : array of shape (n_reserve, 4), float64
        Top, left, height and width of each patch in pixels of its original image; NaN if the view is unknown.
    indices : array of shape (n_reserve,), int64
        Number of each row among all patches that the sampler has seen.
    supports : array of shape (n_supports, 4), int32
        Number of a row of the reserve, followed by up to 3 images, filled up by -1. The row is needed in the bank if
        none of these images remains.
    """

    rows: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    indices: np.ndarray
    supports: np.ndarray

    @classmethod
    def of_request(
        cls,
        request: ReserveRequest | None,
        layout: PatchLayout,
        rows_of: Callable[[np.ndarray], np.ndarray],
        radius: float,
        n_before: int = 0,
    ) -> Reserve | None:
        """Return the reserve that a sampler has selected; None if it has selected none.

        Parameters
        ----------
        request : ReserveRequest or None
            The request with its result. Its images are those of the reserve.
        layout : PatchLayout
            Layout of the patches from which the reserve was selected.
        rows_of : callable
            ``rows_of(numbers)`` returns the features of the patches with these row numbers.
        radius : float
            Covering radius of the memory bank.
        n_before : int, default=0
            Number of patches that the sampler had seen before.
        """
        if request is None or request.rows is None:
            return None
        picked = request.rows
        positions, boxes = layout.original_positions_of(picked), layout.boxes_of(picked)
        rows = stored(rows_of(picked), radius)
        return cls(rows, request.row_images, positions, boxes, picked + n_before, request.supports)

    def with_images(self, image_of: Callable[[np.ndarray], np.ndarray]) -> Reserve:
        """Return the reserve with other numbers of the images: ``image_of(images)``."""
        supports = self.supports.copy()
        is_image = supports[:, 1:] >= 0
        supports[:, 1:][is_image] = image_of(supports[:, 1:][is_image])
        return replace(self, images=image_of(self.images), supports=supports)

    def joined(self, other: Reserve) -> Reserve:
        """Return the reserve with the rows of another reserve after its own."""
        shifted = other.supports.copy()
        shifted[:, 0] += len(self.rows)
        both = replace(other, supports=shifted)
        parts = {field.name: (getattr(self, field.name), getattr(both, field.name)) for field in fields(self)}
        return Reserve(**{name: np.concatenate(pair) for name, pair in parts.items()})

    def taken(self, places: np.ndarray) -> Reserve:
        """Return the reserve with only the rows at `places`, ascending."""
        new_place = np.full(len(self.rows), -1, np.int64)
        new_place[places] = np.arange(len(places))
        supports = self.supports.copy()
        supports[:, 0] = new_place[supports[:, 0]]
        some = {name: getattr(self, name)[places] for name in ("rows", "images", "positions", "boxes", "indices")}
        return Reserve(**some, supports=supports[supports[:, 0] >= 0])

    def without(self, images: np.ndarray) -> Reserve:
        """Return the reserve without the rows of some images."""
        return self.taken(np.flatnonzero(~np.isin(self.images, images)))

    def needed_without(self, remaining: np.ndarray) -> np.ndarray:
        """Return the rows that are needed if only the images `remaining` remain, ascending."""
        is_left = np.isin(self.supports[:, 1:], remaining).any(axis=1)
        return np.unique(self.supports[~is_left, 0])


def stored(rows: np.ndarray, radius: float) -> np.ndarray:
    """Return rows as float16 if the rounding is negligible compared with the covering radius; otherwise unchanged."""
    half = np.empty(rows.shape, np.float16)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start in range(0, len(rows), _BLOCK):  # in blocks: copies of all rows would need as much memory again
            some = rows[start : start + _BLOCK]
            half[start : start + _BLOCK] = some
            error = np.linalg.norm(half[start : start + _BLOCK].astype(rows.dtype) - some, axis=1).max(initial=0.0)
            if not (np.isfinite(error) and error <= _ROUNDING * radius):
                return rows
    return half


def images_of_rows(layout: PatchLayout) -> np.ndarray:
    """Return the index of the image of each row."""
    return np.repeat(np.arange(len(layout)), np.diff(layout.starts))
