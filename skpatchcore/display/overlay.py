"""overlay_anomaly_map and outline_mask, which draw an anomaly map or a mask over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.parts import as_parts

# Colour scale from transparent to opaque: dark violet, magenta, orange, pale yellow. The brightness increases along the
# scale, so it is also readable without colour.
_STOPS = np.array([0.0, 0.35, 0.7, 1.0])
_COLORS = np.array([[0.18, 0.04, 0.38], [0.62, 0.13, 0.42], [0.96, 0.47, 0.11], [0.99, 0.96, 0.60]])
_MOST_OPAQUE = 0.75
# Ratios of the anomaly map to the threshold at the lower and the upper end of the colour scale.
HEAT_RANGE = (0.75, 1.75)
# Width in pixels of the stripes over pixels that are not inspected, and the brightness of dark and of light stripes.
_STRIPE, _STRIPES = 3, (0.3, 0.55)
# Colour of the line around regions: red, green and blue.
_EDGE = np.array([0.0, 0.9, 1.0])
# Number of pixels that are coloured at once.
_N_PIXELS = 1 << 18


def overlay_anomaly_map(image: Any, anomaly_map: Any, threshold: float, contour: bool = True) -> np.ndarray:
    """Return the image with its anomaly map drawn over it in colours.

    The overlay colour of a pixel depends only on the ratio of its map value to the threshold. Therefore colours of
    different images can be compared. A pixel with a ratio of at most 0.75 keeps its own colour. From the ratio 0.75 to
    1.75, the overlay changes from dark violet to pale yellow and becomes less transparent. Pixels with ratios between
    0.75 and 1 are coloured too, although they are below the threshold. The cyan line shows the threshold itself. Pixels
    that are not inspected (NaN in the map) are dark with diagonal stripes.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    anomaly_map : array of shape (height, width)
        The anomaly map of the image, bigger = more anomalous.
    threshold : float
        The pixel threshold: the detector's ``pixel_offset_``. Pixels with larger map values are anomalous.
    contour : bool, default=True
        If True, a cyan line is drawn around the pixels above the threshold.

    Returns
    -------
    array of shape (height, width, 3), uint8
        The coloured image.

    Raises
    ------
    ValueError
        If image and map differ in size.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.display import overlay_anomaly_map
    >>> overlay_anomaly_map(np.zeros((4, 6, 1)), np.ones((4, 6)), threshold=0.5).shape
    (4, 6, 3)
    """
    scores = np.asarray(anomaly_map)
    image = _in_color(image, scores)
    picture, mask = np.empty(image.shape, np.uint8), np.empty(scores.shape, bool)
    n_rows = max(1, _N_PIXELS // max(scores.shape[1], 1))
    for start in range(0, len(scores), n_rows):  # in parts: the intermediate arrays of a large image take much memory
        rows = slice(start, start + n_rows)
        values = np.asarray(scores[rows], float)
        part = _colored(np.asarray(image[rows], float), values, threshold)
        mask[rows] = values > threshold
        picture[rows] = as_bytes(hatched(part, np.isnan(values), start, max(scores.shape)))
    if contour:
        picture[_edge_of(mask)] = as_bytes(_EDGE)
    return picture


def _colored(image: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return an image with the colours of its scores; the image has three channels of floats in [0, 1]."""
    heat = np.nan_to_num(scores / max(threshold, np.finfo(float).tiny) - HEAT_RANGE[0], nan=0.0).clip(0, 1)
    is_hot = heat > 0  # most pixels are not: they keep their own colour
    if is_hot.any():
        hot = heat[is_hot]
        opacity = (hot * 2).clip(0, _MOST_OPAQUE)[:, None]
        image = image.copy()  # it may be a read-only view
        image[is_hot] = image[is_hot] * (1 - opacity) + heat_colors(hot) * opacity
    return image


def shown_images(estimator: Any, X: Any) -> Sequence[Any]:
    """Return the images to draw for the samples of a detector: of parts with several lights, the first light."""
    return as_parts(X).light(0) if hasattr(estimator, "n_lights_") else as_image_sequence(X)


def hatched(picture: np.ndarray, unseen: np.ndarray, first_row: int = 0, longest: int | None = None) -> np.ndarray:
    """Return a picture with dark diagonal stripes over some pixels.

    Parameters
    ----------
    picture : array of shape (height, width, 3), float in [0, 1]
        The picture.
    unseen : array of shape (height, width), bool
        True for pixels that are not inspected. They get stripes.
    first_row : int, default=0
        Number of rows above these rows, if they are a part of a picture.
    longest : int or None, default=None
        Longer side of the whole picture in pixels, which sets the width of the stripes. None uses the longer side of
        `picture`.

    Returns
    -------
    array of shape (height, width, 3), float in [0, 1]
    """
    if not unseen.any():
        return picture
    rows, columns = np.indices(unseen.shape)
    is_dark = (first_row + rows + columns) // (_STRIPE * (1 + (longest or max(unseen.shape)) // 400)) % 2 == 0
    brightness = np.where(unseen, np.where(is_dark, *_STRIPES), 1.0)
    hatched: np.ndarray = picture * brightness[..., None]
    return hatched


def heat_colors(heat: np.ndarray) -> np.ndarray:
    """Return the colours of values in [0, 1] as an array of shape (..., 3): red, green and blue in [0, 1]."""
    return np.stack([np.interp(heat, _STOPS, channel) for channel in _COLORS.T], axis=-1)


def outline_mask(image: Any, mask: Any) -> np.ndarray:
    """Return the image with a cyan line around the regions of a mask.

    Parameters
    ----------
    image : array of shape (height, width, 1 or 3), float in [0, 1]
        The image.
    mask : array of shape (height, width)
        True (or non-zero) for pixels inside the regions.

    Returns
    -------
    array of shape (height, width, 3), uint8
        The image with the line.

    Raises
    ------
    ValueError
        If image and mask differ in size.
    """
    mask = np.asarray(mask) != 0
    picture = np.array(_in_color(image, mask), float)
    picture[_edge_of(mask)] = _EDGE
    return as_bytes(picture)


def _edge_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of the line around the regions of a mask."""
    width = 1 + 2 * (max(mask.shape) // 600)
    edge: np.ndarray = dilated(mask, (width + 1) // 2) & ~mask
    return edge


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels that are at most `radius` rows and `radius` columns away from a pixel of a mask."""
    wider = mask
    for axis in (0, 1):  # a square is the product of a column and a row
        before, wider = wider, wider.copy()
        for shift in range(1, min(radius, mask.shape[axis] - 1) + 1):
            for to, start in ((slice(shift, None), slice(None, -shift)), (slice(None, -shift), slice(shift, None))):
                target, source = (part if axis == 0 else (slice(None), part) for part in (to, start))
                wider[target] |= before[source]
    return wider


def _in_color(image: Any, other: np.ndarray) -> np.ndarray:
    """Return the image with three channels, after a check that its size equals the size of `other`."""
    image = np.asarray(image)
    if image.shape[:2] != other.shape:
        raise ValueError(
            f"image of shape {image.shape} and map of shape {other.shape} differ in size: expected the same height and "
            "width."
        )
    return np.broadcast_to(image, (*other.shape, 3))


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Convert an image of floats in [0, 1] to uint8."""
    return (picture * 255).round().astype(np.uint8)
