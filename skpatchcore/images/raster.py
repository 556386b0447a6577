"""Raster: the values that an image file or object stores, before they are scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

# Raises an error if an image of this height and width has too many pixels. Called before pixels are decoded.
CheckSize = Callable[[int, int], None]


class DecodingError(ValueError):
    """A file that can't be decoded exactly. The message says why, without index and path."""


@dataclass(frozen=True)
class Raster:
    """Stored values of an image, in its upright orientation.

    Attributes
    ----------
    pixels : array of shape (height, width, 1 or 3), or with other channels of an array that a user gave
        Integers or floats: grey or red, green and blue.
    white : float or None
        The value of full intensity; 0 is black. None if the format does not define it: signed integers, and integers of
        more than 16 bits.
    alpha : array of shape (height, width) or None
        Opacity, in the file's own units; 0 is transparent.
    labels : array of shape (height, width) or None
        Indices into the palette, of images with a palette.
    is_lossy : bool
        If True, the stored values are approximate, as in JPEG.
    """

    pixels: np.ndarray
    white: float | None
    alpha: np.ndarray | None = None
    labels: np.ndarray | None = None
    is_lossy: bool = False

    def turned(self, orientation: int) -> Raster:
        """Return the raster upright.

        Parameters
        ----------
        orientation : int
            EXIF orientation, 1 to 8; other values count as 1, which is upright.
        """
        if orientation not in range(2, 9):
            return self
        alpha, labels = (None if a is None else upright(a, orientation) for a in (self.alpha, self.labels))
        return replace(self, pixels=upright(self.pixels, orientation), alpha=alpha, labels=labels)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return an array whose first axes are height and width, turned and mirrored as an EXIF orientation says.

    Parameters
    ----------
    array : array of shape (height, width, ...)
        As stored.
    orientation : int
        1 to 8. 5 to 8 swap height and width.
    """
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    # After the swap: 5 none, 6 mirrored left to right, 7 both, 8 upside down.
    flips = {2: (False, True), 3: (True, True), 4: (True, False), 6: (False, True), 7: (True, True), 8: (True, False)}
    upside_down, mirrored = flips.get(orientation, (False, False))
    if upside_down:
        array = array[::-1]
    return array[:, ::-1] if mirrored else array


def white_of(dtype: np.dtype, n_bits: int | None = None) -> float | None:
    """Return the value of full intensity of a dtype; None if it is not defined.

    Parameters
    ----------
    dtype : dtype
        Of the stored values.
    n_bits : int or None, default=None
        Bits that are used, if the format says so, such as 12 of 16.
    """
    if dtype.kind == "b":
        return 1.0
    if dtype.kind == "f":
        return 1.0
    if dtype.kind == "u" and (n_bits or 8 * dtype.itemsize) <= 16:
        return float(2 ** (n_bits or 8 * dtype.itemsize) - 1)
    return None
