"""Check whether new images differ from the training images in brightness, colour or contrast.

Another camera setting, channel order or value range changes all images in the same way. The detector then flags all
images, which looks like a fault of the detector. A comparison of the :class:`Appearance` of the new images with that of
the training images finds this cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Minimum number of new images for a comparison. A few images may be dark or bright because their parts are defective.
MIN_IMAGES = 4
# Tolerated differences from the training images: up to this fraction of the range from black to white, and up to this
# factor. Differences smaller than _VISIBLE are always tolerated.
_SHARE, _FACTOR, _VISIBLE = 0.15, 2.0, 0.02
# Medians are computed from every fourth pixel of every fourth row. This takes little time compared with the network.
_STEP = 4
# Images are nearly black if no value exceeds this fraction of white. 12-bit values in uint16 reach 1/16, 13-bit 1/8.
_DARK = 1 / 8


class Appearance(NamedTuple):
    """Brightness, colour and contrast of an image as the network sees it.

    Attributes
    ----------
    red, green, blue : float
        Median of each channel over the pixels, in [0, 1]. Medians change little if a defect covers less than half of
        the image.
    contrast : float
        Interquartile range of the grey values, in [0, 1].
    brightest : float
        Largest value of any channel, in [0, 1].
    """

    red: float
    green: float
    blue: float
    contrast: float
    brightest: float


def appearance_of(pixels: np.ndarray) -> Appearance:
    """Return the appearance of an image.

    Parameters
    ----------
    pixels : array of shape (1 or 3, height, width), float32 in [0, 1]
        The image. A single channel is used as red, green and blue.

    Returns
    -------
    Appearance
    """
    some = pixels[:, ::_STEP, ::_STEP].reshape(len(pixels), -1)
    # Sort once, then read medians and quartiles from the sorted rows. numpy's quantiles take several times as long.
    in_order = np.sort(np.vstack([some, some.mean(axis=0)]), axis=1)
    n = in_order.shape[1]
    red, green, blue = np.broadcast_to((in_order[:-1, (n - 1) // 2] + in_order[:-1, n // 2]) / 2, 3).tolist()
    low, high = np.interp([0.25 * (n - 1), 0.75 * (n - 1)], np.arange(n), in_order[-1])
    return Appearance(red, green, blue, float(high - low), float(pixels.max()))


def appearance_range(appearances: np.ndarray) -> np.ndarray:
    """Return the minimum and the maximum of each appearance value over the training images.

    Parameters
    ----------
    appearances : array of shape (n_images, 5)
        One :class:`Appearance` per training image.

    Returns
    -------
    array of shape (2, 5)
        Minima in the first row, maxima in the second row.
    """
    return np.stack([appearances.min(axis=0), appearances.max(axis=0)])


def describe_darkness(known: np.ndarray) -> str | None:
    """Return the text of a warning if all training images are nearly black; otherwise None.

    Parameters
    ----------
    known : array of shape (2, 5)
        The :func:`appearance_range` of the training images.

    Returns
    -------
    str or None
    """
    brightest = known[1][Appearance._fields.index("brightest")]
    if brightest > _DARK:
        return None
    return (
        f"all training images are nearly black: their largest value is {brightest:.3g}, where white is 1. If they use "
        "fewer bits than their dtype, set value_range of the extractor to the values of black and white, such as "
        "(0, 4095) for 12 bits in uint16. If value_range is already set, it is too wide."
    )


def describe_difference(known: np.ndarray, appearances: np.ndarray) -> str | None:
    """Return the text of a warning if all new images differ from the training images in the same way; otherwise None.

    Parameters
    ----------
    known : array of shape (2, 5)
        The :func:`appearance_range` of the training images.
    appearances : array of shape (n_images, 5)
        One :class:`Appearance` per new image. If there are fewer than `MIN_IMAGES` images, None is returned.

    Returns
    -------
    str or None

    Notes
    -----
    Four values of an image are compared: the medians of red, green and blue, and the contrast. A value of a new image
    differs from the training images if one of two conditions holds. (1) The value lies outside the range of the
    training images, by more than 0.15 and by more than the width of this range. (2) The value is less than half of the
    minimum of the training images or more than twice their maximum, and the difference from this minimum or maximum is
    more than 0.02. A warning is only returned if the same value of all new images differs in the same direction.
    """
    if len(appearances) < MIN_IMAGES:
        return None
    low, high = known
    margin = np.maximum(high - low, _SHARE)
    lowest = np.maximum(low - margin, np.minimum(low / _FACTOR, low - _VISIBLE))
    highest = np.minimum(high + margin, np.maximum(high * _FACTOR, high + _VISIBLE))
    is_lower, is_higher = (appearances < lowest).all(axis=0), (appearances > highest).all(axis=0)
    differences = [
        f"{name} {np.median(appearances[:, i]):.2f} (training images: {low[i]:.2f} to {high[i]:.2f})"
        for i, name in enumerate(Appearance._fields)
        if name != "brightest" and (is_lower[i] or is_higher[i])
    ]
    if not differences:
        return None
    return (
        f"all {len(appearances)} images look unlike the training images: median {', '.join(differences)}, where white "
        "is 1. Before you trust the labels, check the lighting, the camera, channel_order and value_range of the "
        "extractor."
    )


class AppearanceLog:
    """Collects the appearances of images that arrive in batches. The same image may arrive several times."""

    def __init__(self) -> None:
        self._rows: dict[int, Appearance | None] = {}

    def add(self, views: Iterable[Any], numbers: np.ndarray) -> None:
        """Record the appearances of a batch of images.

        Parameters
        ----------
        views : iterable of (View or None)
            One view per image.
        numbers : array of int
            Index of each image. If an image is recorded twice, the second appearance replaces the first.
        """
        for number, view in zip(numbers.tolist(), views, strict=True):
            self._rows[number] = None if view is None else view.appearance

    def include(self, other: AppearanceLog) -> None:
        """Add the appearances of another log."""
        self._rows.update(other._rows)

    def as_array(self) -> np.ndarray | None:
        """Return an array of shape (n_images, 5), one row per image; None if the appearance of any image is unknown."""
        known = [row for row in self._rows.values() if row is not None]
        return np.array(known) if known and len(known) == len(self._rows) else None
