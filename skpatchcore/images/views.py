"""What of an image the network sees: resized, cut to its centre, and how that lies in the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from skpatchcore.images.appearance import Appearance, appearance_of
from skpatchcore.images.errors import ImageError

Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class View:
    """What of an image the network sees, so that its grid can be laid over the image again.

    Attributes
    ----------
    image_size : (int, int)
        The image's own height and width in pixels.
    box : (float, float, float, float)
        Top, left, height and width of what the grid covers, in the image's own pixels.
    input_size : (int, int)
        Height and width in pixels of the part that is seen as the network gets it.
    scale : (float, float)
        Pixels of the image for each pixel that the network gets, down and across.
    appearance : Appearance or None
        Brightness and contrast of what the network sees; None if they are not known.
    """

    image_size: tuple[int, int]
    box: tuple[float, float, float, float]
    input_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    appearance: Appearance | None = None

    def of_patches(self, grid: tuple[int, int], stride: int) -> View:
        """Return the view of every `stride`-th patch of a `grid` of (height, width), at those patches' places."""
        count = [(n - 1) // stride + 1 for n in grid]
        top, left, height, width = self.box
        rows, columns = height / grid[0], width / grid[1]
        # The patches that are left stand in the middle of cells that are `stride` times as large.
        box = (
            top + (1 - stride) / 2 * rows,
            left + (1 - stride) / 2 * columns,
            count[0] * stride * rows,
            count[1] * stride * columns,
        )
        return replace(self, box=box)

    def boxes_of(self, positions: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Return where in the image patches lie.

        Parameters
        ----------
        positions : array of shape (n_patches, 2)
            Rows and columns in the grid.
        grid : array of shape (2,)
            The grid's height and width.

        Returns
        -------
        array of shape (n_patches, 4), float64
            Top, left, height and width of their cells in the image's own pixels. What a patch's feature has seen
            reaches further.
        """
        cell = np.array(self.box[2:]) / grid
        return np.hstack([self.box[:2] + positions * cell, np.broadcast_to(cell, positions.shape)])


def resize_and_crop(
    pixels: np.ndarray, size: Size, crop: Size, index: int, path: str | None = None, max_pixels: int | None = None
) -> tuple[torch.Tensor, View]:
    """Resize an image with antialiasing and cut out its centre, as torchvision's ``Resize`` and ``CenterCrop`` do.

    Parameters
    ----------
    pixels : array of shape (height, width, n_channels), float32
        The image.
    size : int, (int, int) or None
        Length of the shorter side, or height and width; None keeps the image's own size.
    crop : int, (int, int) or None
        Side of the central square, or height and width; None keeps everything.
    index : int
        Position in `X`, for the error.
    path : str or None
        Its file, for the error.
    max_pixels : int or None, default=None
        How many it may have after resizing.

    Returns
    -------
    tensor of shape (n_channels, height, width), float32
        What the network sees.
    View
        Where that lies in the image.

    Raises
    ------
    ImageError
        If the crop is larger than the resized image, for nothing is made up at the border; or if that has too many
        pixels.
    """
    resized, (top, left), view = placed((pixels.shape[0], pixels.shape[1]), size, crop, index, path, max_pixels)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    if resized != view.image_size:
        tensor = F.interpolate(tensor[None], size=resized, mode="bilinear", align_corners=False, antialias=True)[0]
    seen = tensor[:, top : top + view.input_size[0], left : left + view.input_size[1]]
    return seen, replace(view, appearance=appearance_of(seen))


def placed(
    own: tuple[int, int], size: Size, crop: Size, index: int, path: str | None = None, max_pixels: int | None = None
) -> tuple[tuple[int, int], tuple[int, int], View]:
    """Return where the part that the network sees lies in an image of a given size.

    Parameters
    ----------
    own : (int, int)
        The image's height and width in pixels.
    size, crop, index, path, max_pixels
        As for :func:`resize_and_crop`.

    Returns
    -------
    resized : (int, int)
        Height and width after resizing.
    corner : (int, int)
        Top and left of the crop in there.
    view : View
        The same in the image's own pixels.

    Raises
    ------
    ImageError
        If the crop is larger than the resized image, or that has too many pixels.
    """
    resized = _resized_size(own, size)
    if max_pixels is not None and resized != own and resized[0] * resized[1] > max_pixels:
        raise ImageError(
            f"{own[0]}×{own[1]} pixels, {resized[0]}×{resized[1]} after resizing: more than max_pixels={max_pixels}.",
            index,
            path,
        )
    cut = resized if crop is None else _pair(crop)
    if cut[0] > resized[0] or cut[1] > resized[1]:
        raise ImageError(
            f"{resized[0]}×{resized[1]} pixels after resizing, smaller than crop_size {cut[0]}×{cut[1]}.",
            index,
            path,
        )
    top, left = (round((whole - part) / 2) for whole, part in zip(resized, cut, strict=True))
    scale = own[0] / resized[0], own[1] / resized[1]
    box = (top * scale[0], left * scale[1], cut[0] * scale[0], cut[1] * scale[1])
    return resized, (top, left), View(own, box, (cut[0], cut[1]), scale)


def _resized_size(own: tuple[int, int], size: Size) -> tuple[int, int]:
    if size is None:
        return own
    if not isinstance(size, Integral):
        return _pair(size)
    height, width = own
    short = int(size)
    # torchvision truncates the longer side
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, Integral) else (int(size[0]), int(size[1]))
