"""Region of interest: the part of an image that a detector inspects.

:func:`as_region` reads a region in any form that a user may pass. :func:`cells_inside` finds the cells of a patch grid
that lie in a region.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore.images.masks import pixels_of_mask

# A cell of the patch grid belongs to the region if at least this fraction of its area lies in the region.
LEAST_SHARE = 0.5
_FORMS = (
    "expected a boolean mask, the path of a mask image, a box (top, left, height, width), a polygon of at least three "
    "points (row, column), a list of boxes or polygons, or a function that returns a mask"
)


@dataclass(frozen=True)
class Region:
    """Region of interest in images of any size: a mask, polygons or a function. Exactly one of them is set.

    Attributes
    ----------
    mask : array of shape (height, width), bool, or None
        True for pixels that are inspected. The mask is scaled to each image.
    polygons : tuple of arrays of shape (n_points, 2), float64
        Row and column of the corners. The region is the union of the polygons.
    in_shares : tuple of bool
        For each polygon, whether the corners are fractions of the image's height and width. Otherwise they are pixels.
    function : callable or None
        ``function(image)`` returns the mask of an image of shape (height, width, 1 or 3) with values in [0, 1].
    """

    mask: np.ndarray | None = None
    polygons: tuple[np.ndarray, ...] = ()
    in_shares: tuple[bool, ...] = ()
    function: Callable[[np.ndarray], Any] | None = None

    def equals(self, other: Region | None) -> bool:
        """Return whether another region has the same mask and polygons, or the same function object."""
        if other is None or self.function is not other.function or self.in_shares != other.in_shares:
            return False
        pairs = zip((self.mask, *self.polygons), (other.mask, *other.polygons), strict=True)
        return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)

    def mask_of(self, size: tuple[int, int], load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the mask of an image.

        Parameters
        ----------
        size : (int, int)
            Height and width of the image in pixels.
        load : callable
            Function that returns the image as an array of shape (height, width, 1 or 3). It is called only if the
            region is a function.

        Returns
        -------
        array of shape (height, width), bool
            True for pixels that are inspected.

        Raises
        ------
        ValueError
            If a polygon in pixels exceeds the image, or if the function fails or returns an array of another shape than
            `size`.
        """
        if self.mask is not None:
            return scaled_mask(self.mask, size)
        if self.function is not None:
            image = load()
            try:
                found = np.asarray(self.function(image))
            except Exception as error:  # any error, e.g. an IndexError, which would end an iteration
                raise ValueError(f"the function roi failed: {type(error).__name__}: {error}") from error
            if found.shape != tuple(size):
                raise ValueError(
                    f"the function roi returned an array of shape {found.shape}, expected {tuple(size)}, the height "
                    "and width of the image."
                )
            return np.asarray(found != 0)
        inside = np.zeros(size, bool)
        for corners, is_relative in zip(self.polygons, self.in_shares, strict=True):
            if is_relative:
                corners = corners * size
            elif (corners.max(axis=0) > size).any():
                row, column = corners.max(axis=0)
                raise ValueError(
                    f"the region roi reaches row {row:g} and column {column:g}, but the image has {size[0]}×{size[1]} "
                    "pixels. For images of different sizes, use fractions of the image, such as 0.1."
                )
            if _is_rectangle(corners):
                rows, columns = (
                    slice(*np.ceil([low - 0.5, high - 0.5]).astype(int))
                    for low, high in zip(corners.min(axis=0), corners.max(axis=0), strict=True)
                )
                inside[rows, columns] = True
            else:
                from skimage.draw import polygon2mask

                # polygon2mask counts from the centre of the first pixel; the corners, from its upper left corner
                inside |= polygon2mask(size, corners - 0.5)  # type: ignore[no-untyped-call]
        return inside


def as_region(roi: Any) -> Region:
    """Return the region for any form of the parameter `roi`.

    Parameters
    ----------
    roi : Region, array, path, PIL image, sequence or callable
        One of:

        - mask: a boolean array of shape (height, width), or another array of this shape, a path or a PIL image, in
          which all pixels that are not 0 belong to the region.
        - box: four numbers (top, left, height, width).
        - polygon: at least three points (row, column).
        - list of boxes or polygons: the region is their union.
        - function that returns the mask of an image.

        Numbers of boxes and polygons are pixels of the image. If all numbers of a box or polygon lie in [0, 1], and at
        least one of them is a float, they are fractions of the image's height and width.

    Returns
    -------
    Region

    Raises
    ------
    ValueError
        If `roi` has another form, or if the region is empty.
    FileNotFoundError
        If `roi` is the path of a file that does not exist.
    """
    if isinstance(roi, Region):
        return roi
    if isinstance(roi, str | os.PathLike | Image.Image) or _is_mask(roi):
        mask = pixels_of_mask(roi)
        if mask.ndim != 2 or not mask.any():
            raise ValueError("roi is a mask that is completely black (0): no pixel would be inspected.")
        return Region(mask=mask)
    if callable(roi):
        return Region(function=roi)
    shapes = [roi] if _is_box(roi) or _is_polygon(roi) else roi
    if not isinstance(shapes, Sequence | np.ndarray) or not len(shapes):
        raise ValueError(f"roi={shortened(roi)}: {_FORMS}.")
    polygons, in_shares = [], []
    for shape in shapes:
        if not _is_box(shape) and not _is_polygon(shape):
            raise ValueError(f"roi={shortened(roi)}: {_FORMS}.")
        numbers = np.asarray(shape, np.float64)
        if not np.isfinite(numbers).all() or numbers.min() < 0:
            raise ValueError(f"roi={shortened(roi)}: the numbers of a region must be finite and not negative.")
        is_relative = np.asarray(shape).dtype.kind == "f" and numbers.max() <= 1
        if not is_relative and numbers.max() <= 1:
            raise ValueError(
                f"roi={shortened(roi)}: these numbers are pixels, because all are ints. Write 1.0 for fractions."
            )
        corners = _corners_of_box(numbers) if numbers.ndim == 1 else numbers
        if is_relative and corners.max() > 1 + 1e-9:
            raise ValueError(f"roi={shortened(roi)}: a box in fractions of the image reaches beyond the image.")
        if _area(corners) <= 0:
            raise ValueError(f"roi={shortened(roi)}: the region has no area.")
        polygons.append(corners.clip(max=1) if is_relative else corners)
        in_shares.append(bool(is_relative))
    return Region(polygons=tuple(polygons), in_shares=tuple(in_shares))


def shortened(roi: Any) -> str:
    """Return a short text of a parameter for an error message, with advice for a mask that is not an array."""
    text = reprlib.repr(roi)
    is_mask = isinstance(roi, list | tuple) and len(roi) > 0 and isinstance(roi[0], list | tuple) and len(roi[0]) > 4
    return f"{text} (for a mask, pass an array: np.array(mask))" if is_mask else text


def scaled_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask at another size: each pixel takes the value of the nearest pixel of `mask`."""
    if mask.shape == tuple(size):
        return mask
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    scaled: np.ndarray = mask[rows][:, columns]
    return scaled


def cells_inside(mask: np.ndarray, box: tuple[float, float, float, float], grid: tuple[int, int]) -> np.ndarray:
    """Return the cells of a patch grid that lie in a region with at least half of their area.

    Parameters
    ----------
    mask : array of shape (height, width), bool
        True for the pixels of the region, at the size of the image.
    box : (float, float, float, float)
        Top, left, height and width, in pixels, of the part of the image that the grid covers.
    grid : (int, int)
        Height and width of the grid.

    Returns
    -------
    array of shape (grid_height, grid_width), bool
        The part of a cell that lies beyond the image does not count. A cell that lies beyond the image is False.
    """
    rows = np.linspace(box[0], box[0] + box[2], grid[0] + 1)
    columns = np.linspace(box[1], box[1] + box[3], grid[1] + 1)
    inside = _summed(_summed(mask, rows, 0), columns, 1)
    areas = np.outer(np.diff(rows.clip(0, mask.shape[0])), np.diff(columns.clip(0, mask.shape[1])))
    # The tolerance is for the rounding of the sums: exactly half of a cell is enough.
    found: np.ndarray = (areas > 0) & (inside >= LEAST_SHARE * areas - 1e-6 * areas.max(initial=1.0))
    return found


def _summed(values: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """Integrate pixel values along an axis between consecutive edges, which may lie within pixels."""
    sums = np.cumsum(values, axis=axis, dtype=np.int32 if values.dtype == bool else np.float64)
    edges = edges.clip(0, sums.shape[axis])
    lower = np.minimum(edges.astype(int), sums.shape[axis] - 1)

    def before(n: np.ndarray) -> np.ndarray:
        """Return the sums of the first `n` values."""
        taken = np.take(sums, np.maximum(n - 1, 0), axis=axis)
        return np.where(np.expand_dims(n > 0, 1 - axis), taken, 0)

    share = np.expand_dims(edges - lower, 1 - axis)
    return np.diff((1 - share) * before(lower) + share * before(lower + 1), axis=axis)


def _is_mask(roi: Any) -> bool:
    """Return whether an object is an array that is a mask, and not a list of boxes or the corners of a polygon."""
    if not isinstance(roi, np.ndarray) or roi.ndim not in (2, 3):
        return False
    is_picture = roi.ndim == 3 and roi.shape[2] in (1, 3, 4)
    is_table = roi.dtype.kind in "iuf" and roi.shape[1] in (2, 4)  # points of a polygon, or boxes
    return is_picture or (roi.ndim == 2 and roi.dtype.kind in "biuf" and not is_table)


def _is_box(shape: Any) -> bool:
    numbers = isinstance(shape, Sequence | np.ndarray) and len(shape) == 4
    return numbers and all(isinstance(number, Real) for number in shape)


def _is_polygon(shape: Any) -> bool:
    if not isinstance(shape, Sequence | np.ndarray) or isinstance(shape, str) or len(shape) < 3:
        return False
    return all(
        isinstance(point, Sequence | np.ndarray)
        and len(point) == 2
        and all(isinstance(number, Real) for number in point)
        for point in shape
    )


def _corners_of_box(box: np.ndarray) -> np.ndarray:
    top, left, height, width = box
    bottom, right = top + height, left + width
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)])


def _is_rectangle(corners: np.ndarray) -> bool:
    """Return whether a polygon is a box, with corners in the order of `_corners_of_box`."""
    if corners.shape != (4, 2):
        return False
    (top, left), (bottom, right) = corners.min(axis=0), corners.max(axis=0)
    return np.array_equal(corners, [(top, left), (top, right), (bottom, right), (bottom, left)])


def _area(corners: np.ndarray) -> float:
    """Return the area of a polygon by the shoelace formula."""
    rows, columns = corners.T
    return float(abs(np.dot(rows, np.roll(columns, -1)) - np.dot(columns, np.roll(rows, -1))) / 2)
