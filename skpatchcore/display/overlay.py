"""Anomaly maps as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.morphology import dilation, footprint_rectangle

# From transparent to opaque: dark violet, magenta, orange, pale yellow. Brightness rises along it, so it reads
# without colour too.
_STOPS = np.array([0.0, 0.35, 0.7, 1.0])
_COLORS = np.array([[0.18, 0.04, 0.38], [0.62, 0.13, 0.42], [0.96, 0.47, 0.11], [0.99, 0.96, 0.60]])
_MOST_OPAQUE = 0.75
# Ratios of map to threshold between which colours run.
HEAT_RANGE = (0.75, 1.75)


def overlay_anomaly_map(image: Any, anomaly_map: Any, threshold: float, contour: bool = True) -> np.ndarray:
    """Return the image with its anomaly map laid over it, in colours that mean the same in every picture.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    anomaly_map : array of shape (height, width)
        Its map, bigger = more anomalous.
    threshold : float
        The detector's ``pixel_offset_``. Up to three quarters of it the image shows as it is; from there colour sets in
        and is strongest at one and three quarters.
    contour : bool, default=True
        Draw a cyan line around what lies above the threshold.

    Returns
    -------
    array of shape (height, width, 3), uint8
        The picture.

    Raises
    ------
    ValueError
        If the two differ in size.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.display import overlay_anomaly_map
    >>> overlay_anomaly_map(np.zeros((4, 6, 1)), np.ones((4, 6)), threshold=0.5).shape
    (4, 6, 3)
    """
    scores = np.asarray(anomaly_map, float)
    image = _in_color(image, scores)
    heat = (scores / max(threshold, np.finfo(float).tiny) - HEAT_RANGE[0]).clip(0, 1)
    colors = heat_colors(heat)
    opacity = (heat * 2).clip(0, _MOST_OPAQUE)[..., None]
    picture = image * (1 - opacity) + colors * opacity
    return outline_mask(picture, scores > threshold) if contour else as_bytes(picture)


def heat_colors(heat: np.ndarray) -> np.ndarray:
    """Return the colours of values in [0, 1]: array of the same shape and one axis more, of red, green and blue."""
    return np.stack([np.interp(heat, _STOPS, channel) for channel in _COLORS.T], axis=-1)


def outline_mask(image: Any, mask: Any) -> np.ndarray:
    """Return the image with a cyan line around what a mask covers.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    mask : array of shape (height, width)
        True (or non-zero) inside.

    Returns
    -------
    array of shape (height, width, 3), uint8
        The picture.

    Raises
    ------
    ValueError
        If the two differ in size.
    """
    mask = np.asarray(mask) != 0
    picture = _in_color(image, mask).copy()
    width = 1 + 2 * (max(mask.shape) // 600)
    square: np.ndarray = footprint_rectangle((width + 2, width + 2))  # type: ignore[no-untyped-call]
    edge = dilation(mask, square) & ~mask
    picture[edge] = (0.0, 0.9, 1.0)
    return as_bytes(picture)


def _in_color(image: Any, other: np.ndarray) -> np.ndarray:
    image = np.asarray(image, float)
    if image.shape[:2] != other.shape:
        raise ValueError(f"image of shape {image.shape} and map of shape {other.shape} differ in size.")
    return np.broadcast_to(image, (*other.shape, 3))


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Return an image of floats in [0, 1] as uint8."""
    return (picture * 255).round().astype(np.uint8)
