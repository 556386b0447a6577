"""Sketches of the anomaly maps of good images: enough to set thresholds for pixels and regions without the maps.

:func:`sketch_of_map` is computed for each calibration image. :func:`pixel_threshold` and :func:`smallest_area` compute
thresholds from the sketches of all calibration images.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from skpatchcore.calibration.conformal import conformal_rank
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View
from skpatchcore.maps import map_of

# Maximum number of rows and columns of a map from which values and regions are computed. Maps are smooth, so a larger
# map is thinned: every second, third, ... row and column is used. Regions take more time.
_N_ROWS, _N_ROWS_OF_REGIONS = 128, 64
# Fractions of a map's pixels, in ascending order. The first one stands for the largest value of the map.
LEVELS = np.concatenate([[0.0], 2.0 ** np.arange(-14, 0.25, 0.5)])
# Number of halvings of the interval that contains the threshold. float64 has 53 binary digits.
_N_HALVINGS = 60
# Neighbours of a pixel in a region: it may touch by an edge or a corner.
_TOUCHING = np.ones((3, 3), int)


def no_sketches(n_images: int) -> np.ndarray:
    """Return sketches of `n_images` images without a map: an array of NaN of shape (n_images, 2, n_levels)."""
    return np.full((n_images, 2, len(LEVELS)), np.nan, np.float32)


def sketch_of_map(anomaly_map: np.ndarray) -> np.ndarray:
    """Return the sketch of an anomaly map: how its values and its regions are distributed.

    Parameters
    ----------
    anomaly_map : array of shape (height, width)
        Anomaly map, bigger = more anomalous. NaN marks pixels that are not inspected; they do not count.

    Returns
    -------
    array of shape (2, n_levels), float32
        For each of the fractions ``LEVELS``: the value that this fraction of the pixels exceeds (row 0), and the area
        of the largest region of pixels above this value, as a fraction of the pixels (row 1). The first value is the
        maximum of the map.
    """
    inspected = _inspected_part(anomaly_map)
    thinned, small = _thinned(inspected, _N_ROWS), _thinned(inspected, _N_ROWS_OF_REGIONS)
    # The inspected pixels may lie between the rows and columns that are used.
    thinned, small = (inspected if np.isnan(some).all() else some for some in (thinned, small))
    values = np.sort(thinned[~np.isnan(thinned)])[::-1]
    n = len(values)
    sketch = np.zeros((2, len(LEVELS)), np.float32)
    if not n:
        return np.full_like(sketch, np.nan)
    # The value at position k, counted from 0, is exceeded by at most k of n pixels.
    sketch[0] = values[np.minimum((LEVELS * n).astype(int), n - 1)]
    sketch[0, 0] = np.nanmax(anomaly_map)
    for i, value in enumerate(sketch[0, 1:], 1):
        if i > 1 and value == sketch[0, i - 1]:
            sketch[1, i] = sketch[1, i - 1]
            continue
        regions, n_regions = label(small > value, _TOUCHING)
        if n_regions:
            sketch[1, i] = np.bincount(regions.ravel())[1:].max() / np.count_nonzero(~np.isnan(small))
    return sketch


def sketch_of_scores(
    patch_scores: np.ndarray, view: View | None, mask: PixelMask | None, smoothing: float
) -> np.ndarray:
    """Return the sketch of an image's anomaly map, which is computed as in :func:`~skpatchcore.maps.map_of`."""
    return sketch_of_map(map_of(patch_scores, view, smoothing, mask))


def _inspected_part(anomaly_map: np.ndarray) -> np.ndarray:
    """Return the smallest rectangle of the map that holds all pixels that are not NaN."""
    known = ~np.isnan(anomaly_map)
    if known.all() or not known.any():
        return anomaly_map
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    return anomaly_map[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thinned(anomaly_map: np.ndarray, n_rows: int) -> np.ndarray:
    """Return every second, third, ... row and column, so that at most `n_rows` rows and columns are left."""
    steps = [max(1, -(-n // n_rows)) for n in anomaly_map.shape]
    return anomaly_map[:: steps[0], :: steps[1]]


def fractions_above(sketches: np.ndarray, threshold: float) -> np.ndarray:
    """Return the fraction of each image's pixels above a threshold.

    Parameters
    ----------
    sketches : array of shape (n_images, 2, n_levels)
        Sketches of anomaly maps.
    threshold : float
        Value of the anomaly map.

    Returns
    -------
    array of shape (n_images,), float64
        Fractions in [0, 1], interpolated between the levels of the sketch.
    """
    return _at_threshold(sketches, threshold, np.broadcast_to(LEVELS, sketches[:, 0].shape))


def largest_areas(sketches: np.ndarray, threshold: float) -> np.ndarray:
    """Return the area of each image's largest region above a threshold, as a fraction of the image's pixels.

    Parameters and shapes are those of :func:`fractions_above`.
    """
    return _at_threshold(sketches, threshold, sketches[:, 1].astype(np.float64))


def _at_threshold(sketches: np.ndarray, threshold: float, of_levels: np.ndarray) -> np.ndarray:
    """Interpolate a quantity of each image, given per level, at the level whose value is `threshold`."""
    values = sketches[:, 0].astype(np.float64)  # descending in each row
    n_levels = values.shape[1]
    # Number of levels with a value above the threshold: the quantity lies between this level and the level before.
    upper = (values > threshold).sum(axis=1)
    inside = np.clip(upper, 1, n_levels - 1)
    rows = np.arange(len(values))
    high, low = values[rows, inside - 1], values[rows, inside]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(high > low, (high - threshold) / (high - low), 0.0)
    first, second = of_levels[rows, inside - 1], of_levels[rows, inside]
    found: np.ndarray = first + np.clip(share, 0, 1) * (second - first)
    return np.where(upper == 0, 0.0, np.where(upper == n_levels, of_levels[:, -1], found))


def pixel_threshold(sketches: np.ndarray, pixel_contamination: float) -> float:
    """Return the threshold that a fraction of the pixels of good images exceeds; bigger = more anomalous.

    Parameters
    ----------
    sketches : array of shape (n_images, 2, n_levels)
        Sketches of the anomaly maps of good images. The model that computes a map must not have been fitted on its
        image. Sketches that are NaN are left out.
    pixel_contamination : float in (0, 0.5]
        Accepted fraction of the pixels of good images that are above the threshold.

    Returns
    -------
    float
        The smallest threshold at which the mean fraction over the calibration images and one more image is at most
        `pixel_contamination`. The additional image stands for a new image; it counts like the calibration image with
        the largest fraction. NaN if there are no sketches.

    Notes
    -----
    The mean over a large number of new good images is about `pixel_contamination`. The pixels of one image are not
    independent, so the fraction differs much between images. With few calibration images, the additional image makes
    the threshold stricter.

    References
    ----------
    The mean over n + 1 images is that of conformal risk control (Angelopoulos et al., "Conformal Risk Control", ICLR
    2024), with the largest observed loss in place of the largest possible loss. The guarantee of that method therefore
    does not hold exactly.
    """
    known = sketches[~np.isnan(sketches[:, 0, 0])]
    if not len(known):
        return float("nan")
    low, high = float(known[:, 0].min()), float(known[:, 0].max())

    def accepts(threshold: float) -> bool:
        fractions = fractions_above(known, threshold)
        return bool((fractions.sum() + fractions.max()) / (len(fractions) + 1) <= pixel_contamination)

    if accepts(low):
        return low
    for _ in range(_N_HALVINGS):  # nothing is above `high`, so `high` is always accepted
        middle = (low + high) / 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def smallest_area(sketches: np.ndarray, threshold: float, contamination: float) -> float:
    """Return the area that a region must exceed so that few good images have such a region.

    Parameters
    ----------
    sketches : array of shape (n_images, 2, n_levels)
        Sketches of the anomaly maps of good images, as in :func:`pixel_threshold`.
    threshold : float
        Pixels above this value belong to regions.
    contamination : float in (0, 0.5]
        Accepted fraction of good images with a region of a larger area.

    Returns
    -------
    float
        Area as a fraction of the image's inspected pixels. If the n largest regions of the images are sorted by area in
        ascending order, this is the area at position ``ceil((n + 1)(1 - contamination))``, at most n. NaN without
        sketches.
    """
    known = sketches[~np.isnan(sketches[:, 0, 0])]
    if not len(known):
        return float("nan")
    rank = min(conformal_rank(len(known), contamination), len(known))
    return float(np.sort(largest_areas(known, threshold))[rank - 1])
