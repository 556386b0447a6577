"""Brightness and contrast of images, and whether new ones look unlike those that a detector was trained on.

A camera setting, another channel order or another range of values changes all images alike. A detector then finds all
of them anomalous, which looks like a fault of the detector. These numbers tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

# Fewer new images say nothing about the camera: a defective part may be dark or bright itself.
MIN_IMAGES = 4
# Differences from the training images that are no fault of the camera or of its settings: up to this share of the range
# from black to white, and up to this factor. A factor counts from a difference on that can be seen.
_SHARE, _FACTOR, _VISIBLE = 0.15, 2.0, 0.02
# Every fourth pixel of every fourth row suffices for medians, and takes a small part of the network's time.
_STEP = 4
# 12 bits in a container of 16 reach 1/16, 13 bits reach 1/8.
_DARK = 1 / 8


class Appearance(NamedTuple):
    """What an image looks like to the network.

    Attributes
    ----------
    red, green, blue : float
        Medians over its pixels, in [0, 1]: a defect of less than half of the image does not move them far.
    contrast : float
        Interquartile range of its grey values.
    brightest : float
        Largest value of any channel.
    """

    red: float
    green: float
    blue: float
    contrast: float
    brightest: float


def appearance_of(pixels: torch.Tensor) -> Appearance:
    """Return the appearance of an image.

    Parameters
    ----------
    pixels : tensor of shape (1 or 3, height, width), float32 in [0, 1]
        The image; a single channel stands for all three.
    """
    some = pixels[:, ::_STEP, ::_STEP].flatten(1).numpy()
    in_order = np.sort(np.vstack([some, some.mean(axis=0)]), axis=1)  # numpy's own quantiles take several times as long
    n = in_order.shape[1]
    red, green, blue = np.broadcast_to((in_order[:-1, (n - 1) // 2] + in_order[:-1, n // 2]) / 2, 3).tolist()
    low, high = np.interp([0.25 * (n - 1), 0.75 * (n - 1)], np.arange(n), in_order[-1])
    return Appearance(red, green, blue, float(high - low), float(pixels.max()))


def appearance_range(appearances: np.ndarray) -> np.ndarray:
    """Return the lowest and the highest value of each number over images.

    Parameters
    ----------
    appearances : array of shape (n_images, 5)
        One row per training image.

    Returns
    -------
    array of shape (2, 5)
    """
    return np.stack([appearances.min(axis=0), appearances.max(axis=0)])


def describe_darkness(known: np.ndarray) -> str | None:
    """Return a warning for training images that use a small part of the range of values; None if they do not.

    Parameters
    ----------
    known : array of shape (2, 5)
        Their :func:`appearance_range`.
    """
    brightest = known[1][Appearance._fields.index("brightest")]
    if brightest > _DARK:
        return None
    return (
        f"no training image has a value above {brightest:.3g} of white: they are nearly black to the network. If they "
        "have fewer bits than their dtype, set value_range of the extractor to the values of black and white, such as "
        "(0, 4095) for 12 bits in uint16. If it is set, it is too wide."
    )


def describe_difference(known: np.ndarray, appearances: np.ndarray) -> str | None:
    """Return a warning if all new images differ from all training images in the same way; None if they do not.

    Parameters
    ----------
    known : array of shape (2, 5)
        The training images' :func:`appearance_range`.
    appearances : array of shape (n_images, 5)
        Of new images. Fewer than `MIN_IMAGES` are not compared.

    Notes
    -----
    A median or the contrast counts as different if it lies beyond the training images' range by more than 0.15 and the
    width of that range, or by a factor of 2.
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
        "is 1. Check the lighting, the camera, channel_order and value_range of the extractor before you trust the "
        "labels."
    )


class AppearanceLog:
    """The appearances of images that pass in batches, possibly several times."""

    def __init__(self) -> None:
        self._rows: dict[int, Appearance | None] = {}

    def add(self, views: Iterable[Any], numbers: np.ndarray) -> None:
        """Record images by their numbers.

        Parameters
        ----------
        views : iterable of (View or None)
            Of the images.
        numbers : array of int
            The images' numbers.
        """
        for number, view in zip(numbers.tolist(), views, strict=True):
            self._rows[number] = None if view is None else view.appearance

    def as_array(self) -> np.ndarray | None:
        """Return one row per image, of shape (n_images, 5); None if any appearance is unknown."""
        known = [row for row in self._rows.values() if row is not None]
        return np.array(known) if known and len(known) == len(self._rows) else None
