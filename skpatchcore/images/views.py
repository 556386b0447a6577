"""`View`, `placed` and `inspected_pixels`: which region of an image the network sees after resizing and cropping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from skpatchcore.images.appearance import Appearance
from skpatchcore.images.errors import ImageError
from skpatchcore.images.turns import Turn

Size = int | tuple[int, int] | None

# Without a crop, the sides of a resized image differ by a multiple of this number of pixels. All images of one detector
# then fill the last row and column of patches alike, for layers with a stride of at most 16 pixels. Otherwise, patches
# at the edge of an image with slightly different proportions are unlike those of the training images, and the image is
# flagged.
ROUNDED_TO = 16


@dataclass(frozen=True)
class View:
    """Region of an image that the network sees, which is also the region that the patch grid covers.

    The detector uses the view to draw patch scores at their places in the image.

    Attributes
    ----------
    image_size : (int, int)
        Height and width of the image in pixels, before resizing.
    box : (float, float, float, float)
        Top, left, height and width of the region that the patch grid covers, in pixels of the image before resizing.
    input_size : (int, int)
        Height and width in pixels of the network's input, after resizing and cropping.
    scale : (float, float)
        Number of pixels of the original image per pixel of the network's input, vertically and horizontally.
    appearance : Appearance or None
        Brightness, colour and contrast of the network's input. None if these values are unknown.
    seen : (float, float, float, float) or None
        Top, left, height and width of the region that the network sees, in pixels of the image before resizing. None
        means that it is `box`. With a stride above 1, `box` is a little larger or smaller than this region.
    turn : Turn or None
        How the image was turned before it was resized; None if it was not. All other attributes refer to the turned
        image.
    """

    image_size: tuple[int, int]
    box: tuple[float, float, float, float]
    input_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    appearance: Appearance | None = None
    seen: tuple[float, float, float, float] | None = None
    turn: Turn | None = None

    @property
    def region(self) -> tuple[float, float, float, float]:
        """Top, left, height and width of the region that the network sees, in pixels of the image before resizing."""
        return self.box if self.seen is None else self.seen

    def of_patches(self, grid: tuple[int, int], stride: int) -> View:
        """Return the view of a grid that keeps only every `stride`-th patch in both directions.

        Parameters
        ----------
        grid : (int, int)
            Height and width of the complete patch grid.
        stride : int
            Distance between two kept patches, in patches.

        Returns
        -------
        View
            View with a `box` in which the kept patches stay at their positions in the image.
        """
        count = [(n - 1) // stride + 1 for n in grid]
        top, left, height, width = self.box
        rows, columns = height / grid[0], width / grid[1]
        # Each kept patch lies in the centre of a cell that is `stride` times as large as the cell of one patch.
        box = (
            top + (1 - stride) / 2 * rows,
            left + (1 - stride) / 2 * columns,
            count[0] * stride * rows,
            count[1] * stride * columns,
        )
        return replace(self, box=box, seen=self.region)

    def boxes_of(self, positions: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Return the boxes of patches in the image.

        Parameters
        ----------
        positions : array of shape (n_patches, 2)
            Row and column of each patch in the grid.
        grid : array of shape (2,)
            Height and width of the grid.

        Returns
        -------
        array of shape (n_patches, 4), float64
            Top, left, height and width of the grid cell of each patch, in pixels of the image before turning and
            resizing. The receptive field of a patch feature is larger than its cell.
        """
        cell = np.array(self.box[2:]) / grid
        boxes = np.hstack([self.box[:2] + positions * cell, np.broadcast_to(cell, positions.shape)])
        return boxes if self.turn is None else self.turn.original_boxes(boxes, self.image_size)


def inspected_pixels(is_counted: np.ndarray, view: View) -> np.ndarray | None:
    """Return the pixels of an image that are inspected; None if all of them are.

    Parameters
    ----------
    is_counted : array of shape (grid_height, grid_width), bool
        True for the patches that are scored.
    view : View
        Region of the image that the grid covers.

    Returns
    -------
    array of shape (height, width), bool, or None
        True for a pixel with its centre in the region that the network sees, if the patch in whose cell the centre
        lies is scored.
    """
    (height, width), (top, left, tall, wide) = view.image_size, view.region
    sees_all = top <= 0.5 and left <= 0.5 and top + tall >= height - 0.5 and left + wide >= width - 0.5
    if sees_all and is_counted.all():
        return None
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    seen: np.ndarray = np.outer((rows >= top) & (rows <= top + tall), (columns >= left) & (columns <= left + wide))
    if is_counted.all():
        return seen
    box_top, box_left, box_height, box_width = view.box
    n_rows, n_columns = is_counted.shape
    of_rows = ((rows - box_top) / box_height * n_rows).astype(int).clip(0, n_rows - 1)
    of_columns = ((columns - box_left) / box_width * n_columns).astype(int).clip(0, n_columns - 1)
    inspected: np.ndarray = seen & is_counted[of_rows][:, of_columns]
    return inspected


def placed(
    own: tuple[int, int],
    size: Size,
    crop: Size,
    index: int,
    path: str | None = None,
    max_pixels: int | None = None,
    rounded_to: int = ROUNDED_TO,
) -> tuple[tuple[int, int], tuple[int, int], View]:
    """Return the resized size, the position of the crop and the view for an image of a given size.

    Parameters
    ----------
    own : (int, int)
        Height and width of the image in pixels.
    size, crop, index, path, max_pixels, rounded_to
        As for :func:`~skpatchcore.images.resizing.resize_and_crop`.

    Returns
    -------
    resized : (int, int)
        Height and width after resizing.
    corner : (int, int)
        Top and left of the crop in the resized image.
    view : View
        Region of the image that the network sees.

    Raises
    ------
    ImageError
        If the crop is larger than the resized image, or the resized image has more than `max_pixels` pixels.
    """
    resized = _resized_size(own, size, rounded_to if crop is None else 1)
    if max_pixels is not None and resized != own and resized[0] * resized[1] > max_pixels:
        raise ImageError(
            f"{own[0]}×{own[1]} pixels, {resized[0]}×{resized[1]} after resizing: more than max_pixels={max_pixels}. "
            "Use a smaller image_size.",
            index,
            path,
        )
    cut = resized if crop is None else as_pair(crop)
    if cut[0] > resized[0] or cut[1] > resized[1]:
        raise ImageError(
            f"{resized[0]}×{resized[1]} pixels after resizing, smaller than crop_size {cut[0]}×{cut[1]}. Use a smaller "
            "crop_size or a larger image_size.",
            index,
            path,
        )
    top, left = (round((whole - part) / 2) for whole, part in zip(resized, cut, strict=True))
    scale = own[0] / resized[0], own[1] / resized[1]
    box = (top * scale[0], left * scale[1], cut[0] * scale[0], cut[1] * scale[1])
    return resized, (top, left), View(own, box, (cut[0], cut[1]), scale)


def _resized_size(own: tuple[int, int], size: Size, rounded_to: int) -> tuple[int, int]:
    """Return the height and width of an image after resizing."""
    if size is None:
        return own
    if not isinstance(size, Integral):
        return as_pair(size)
    height, width = own
    short = int(size)
    long = short * max(own) / min(own)
    if rounded_to > 1:  # otherwise, the length of the longer side is truncated, as in torchvision
        long = short + rounded_to * round((long - short) / rounded_to)
    return (short, int(long)) if height <= width else (int(long), short)


def as_pair(size: Any) -> tuple[int, int]:
    """Return a size as height and width."""
    return (int(size), int(size)) if isinstance(size, Integral) else (int(size[0]), int(size[1]))
