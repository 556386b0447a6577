"""surface_ink: the material of defects that are made from the surface of the part itself.

The strength of cracks and rough spots scales with the variation of the surface around them: a faint crack is visible on
a smooth surface, but not on a rough one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Function that returns the pixels of an image in some rows and columns, in [0, 1], as float32.
Crop = Callable[[slice, slice], np.ndarray]
# The variation of a surface is the median, over a window, of the standard deviation of the grey values in a Gaussian
# neighbourhood of this many pixels. The window is this many pixels larger than the defect.
_NEIGHBOURHOOD, _MARGIN = 4.0, 16
# A smooth surface counts as varying by this fraction of white.
_LEAST_VARIATION = 0.02
# Difference between a crack and the surface, and standard deviation of the grain of a rough spot, in variations.
_CRACK, _GRAIN = 8.0, 2.5
# Shift of a warped surface, as fractions of the diameter of the spot.
_SHIFTS = (0.25, 0.5)
# A dark crack is drawn with this probability, and a bright one otherwise.
_DARK = 0.75


def surface_ink(
    kind: str, crop: Crop, image_size: tuple[int, int], box: tuple[slice, slice], size: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the material of a defect for each pixel of its bounding box, in [0, 1].

    Parameters
    ----------
    kind : {"crack", "misplaced", "warped", "rough", "worn"}
        Kind of the defect: a line that is darker or brighter than the surface, a piece of the same image from another
        place, a shifted surface, a surface with additional grain, or a blurred surface.
    crop : callable
        ``crop(rows, columns)`` returns pixels of the image, of shape (height, width, n_channels).
    image_size : (int, int)
        Height and width of the image.
    box : (slice, slice)
        Rows and columns of the bounding box.
    size : float
        Size of the defect in pixels.
    rng : numpy Generator
        Random number generator.

    Returns
    -------
    array of shape (height, width, n_channels), float32
    """
    from scipy.ndimage import gaussian_filter, map_coordinates  # scipy takes long to import

    surface = crop(*box)
    if kind == "misplaced":
        return _elsewhere(crop, image_size, box, rng)
    if kind == "worn":
        blurred: np.ndarray = gaussian_filter(surface, (size / 5, size / 5, 0), mode="nearest")
        return blurred
    if kind == "warped":
        angle, shift = rng.uniform(0, 2 * np.pi), size * rng.uniform(*_SHIFTS)
        rows, columns = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32)
        places = [rows - np.float32(shift * np.sin(angle)), columns - np.float32(shift * np.cos(angle))]
        channels = [map_coordinates(channel, places, order=1, mode="nearest") for channel in np.moveaxis(surface, 2, 0)]
        return np.stack(channels, axis=2)
    variation = variation_of(crop, image_size, box)
    if kind == "crack":
        sign = -1.0 if rng.random() < _DARK else 1.0
        brightness = float(surface.mean())
        if not 0 <= brightness + sign * variation * _CRACK / 2 <= 1:  # a dark line on black would not be visible
            sign = -sign
        return (surface + np.float32(sign * _CRACK * variation)).clip(0, 1)
    grain = gaussian_filter(rng.standard_normal(surface.shape[:2], np.float32), rng.uniform(0.6, 2.0))
    grain *= np.float32(_GRAIN * variation / (grain.std() or 1))
    rough: np.ndarray = (surface + grain[..., None]).clip(0, 1)
    return rough


def variation_of(crop: Crop, image_size: tuple[int, int], box: tuple[slice, slice]) -> float:
    """Return how much the grey values around a bounding box vary, as a fraction of white; at least 0.02."""
    from scipy.ndimage import gaussian_filter

    window = [
        slice(max(0, some.start - _MARGIN), min(side, some.stop + _MARGIN))
        for some, side in zip(box, image_size, strict=True)
    ]
    grey = crop(window[0], window[1]).mean(axis=2, dtype=np.float64)
    mean = gaussian_filter(grey, _NEIGHBOURHOOD)
    variance = gaussian_filter(grey**2, _NEIGHBOURHOOD) - mean**2
    return max(float(np.sqrt(np.median(variance.clip(0)))), _LEAST_VARIATION)


def _elsewhere(
    crop: Crop, image_size: tuple[int, int], box: tuple[slice, slice], rng: np.random.Generator
) -> np.ndarray:
    """Return a piece of the image from another place, turned by a multiple of 90 degrees and possibly mirrored."""
    height, width = (some.stop - some.start for some in box)
    is_turned = bool(rng.integers(2)) and height <= image_size[1] and width <= image_size[0]
    tall, wide = (width, height) if is_turned else (height, width)
    top, left = (int(rng.integers(0, side - length + 1)) for side, length in zip(image_size, (tall, wide), strict=True))
    piece = crop(slice(top, top + tall), slice(left, left + wide))
    piece = np.rot90(piece, 1 if is_turned else 2 * int(rng.integers(2)))
    return np.ascontiguousarray(piece[:, ::-1] if rng.random() < 0.5 else piece)
