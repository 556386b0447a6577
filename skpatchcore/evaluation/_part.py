"""part_of: find the part in an image with a uniform background, so that synthetic defects are drawn on the part."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_closing, binary_fill_holes, binary_opening, gaussian_filter

# The image is reduced to at most this number of pixels per side.
_SIDE = 128
# The background is uniform if this fraction of the pixels at the border of the image belong to it.
_LEAST_BORDER = 0.85
# Fractions of the image that a part takes. Outside, the border is not taken as a background.
_LEAST_PART, _LARGEST_PART = 0.05, 0.85
# Least difference between the part and the background, as a fraction of white.
_LEAST_DIFFERENCE = 0.08


def part_of(image: np.ndarray) -> np.ndarray | None:
    """Return the pixels of the part in an image; None if the image has no uniform background.

    Parameters
    ----------
    image : array of shape (height, width, n_channels), float in [0, 1]
        The image.

    Returns
    -------
    array of shape (height, width), bool, or None
        True on the part. None if no background is found: the part covers the image, or the background is not uniform.

    Notes
    -----
    The background has the median colour of the pixels at the border. Otsu's threshold divides the distances from this
    colour. The result is used only if nearly all pixels at the border are background.
    """
    from skimage.filters import threshold_otsu
    from skimage.transform import resize

    step = max(1, max(image.shape[:2]) // _SIDE)
    small = gaussian_filter(image[::step, ::step].astype(np.float32), (1, 1, 0))
    if min(small.shape[:2]) < 8:
        return None
    border = np.zeros(small.shape[:2], bool)
    border[:2], border[-2:], border[:, :2], border[:, -2:] = True, True, True, True
    distances = np.abs(small - np.median(small[border], axis=0)).max(axis=2)
    if np.ptp(distances) == 0:
        return None
    threshold = max(float(threshold_otsu(distances)), _LEAST_DIFFERENCE / 2)  # type: ignore[no-untyped-call]
    part = binary_fill_holes(binary_opening(binary_closing(distances > threshold)))
    share = float(part.mean())
    is_background = float((~part)[border].mean()) >= _LEAST_BORDER
    if not is_background or not _LEAST_PART <= share <= _LARGEST_PART:
        return None
    if np.median(distances[part]) < _LEAST_DIFFERENCE:
        return None
    found: np.ndarray = resize(part.astype(np.float32), image.shape[:2], order=0) > 0.5  # type: ignore[no-untyped-call]
    return found
