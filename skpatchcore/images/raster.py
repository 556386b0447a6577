"""`Raster`: the pixel values that an image file or object stores, before they are scaled to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

# Function of height and width. Raises an error if an image of this size has too many pixels. Called before decoding.
CheckSize = Callable[[int, int], None]


class DecodingError(ValueError):
    """Raised if a file cannot be decoded exactly; the message states the reason, without index and path."""


@dataclass(frozen=True)
class Raster:
    """Stored values of an image in upright orientation.

    Attributes
    ----------
    pixels : array of shape (height, width, 1 or 3), int or float
        Grey values, or red, green and blue.
    white : float or None
        The stored value of white (full intensity). The stored value of black is 0. None if the dtype does not define
        white: signed integers, and integers of more than 16 bits.
    alpha : array of shape (height, width) or None
        Opacity, in the units of the file. 0 is transparent. None if the image has no alpha channel.
    labels : array of shape (height, width) or None
        Indices into the palette. None if the image has no palette.
    is_lossy : bool
        Whether the stored values are approximate, as in JPEG files.
    """

    pixels: np.ndarray
    white: float | None
    alpha: np.ndarray | None = None
    labels: np.ndarray | None = None
    is_lossy: bool = False

    def turned(self, orientation: int) -> Raster:
        """Return the raster in upright orientation.

        Parameters
        ----------
        orientation : int
            EXIF orientation of the stored values, from 1 to 8. 1 is upright. All other numbers count as 1.

        Returns
        -------
        Raster
        """
        if orientation not in range(2, 9):
            return self
        alpha, labels = (None if a is None else upright(a, orientation) for a in (self.alpha, self.labels))
        return replace(self, pixels=upright(self.pixels, orientation), alpha=alpha, labels=labels)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image to its upright orientation.

    Parameters
    ----------
    array : array of shape (height, width, ...)
        The stored values.
    orientation : int
        EXIF orientation of the stored values, from 1 to 8. Values from 5 to 8 swap height and width.

    Returns
    -------
    array of shape (height, width, ...)
        A view of `array`. Height and width are swapped if `orientation` is at least 5.
    """
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    # Flips by orientation: (upside down, left to right). 5 to 8 are applied after the axes are swapped; 5 has no flip.
    flips = {2: (False, True), 3: (True, True), 4: (True, False), 6: (False, True), 7: (True, True), 8: (True, False)}
    upside_down, mirrored = flips.get(orientation, (False, False))
    if upside_down:
        array = array[::-1]
    return array[:, ::-1] if mirrored else array


def white_of(dtype: np.dtype, n_bits: int | None = None) -> float | None:
    """Return the value of full intensity (white) of a dtype; None if white is not defined for this dtype.

    Parameters
    ----------
    dtype : dtype
        Type of the stored values.
    n_bits : int or None, default=None
        Number of bits that are used, e.g. 12 bits of uint16. None means that all bits are used.

    Returns
    -------
    float or None
        1 for bool and float, the largest value for unsigned integers of at most 16 bits, otherwise None.
    """
    if dtype.kind == "b":
        return 1.0
    if dtype.kind == "f":
        return 1.0
    if dtype.kind == "u" and (n_bits or 8 * dtype.itemsize) <= 16:
        return float(2 ** (n_bits or 8 * dtype.itemsize) - 1)
    return None
