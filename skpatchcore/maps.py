"""Anomaly maps from patch scores, and regions from anomaly maps; bigger = more anomalous.

:func:`anomaly_map` and :func:`regions_of_map` are functions of arrays.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View, inspected_pixels

if TYPE_CHECKING:
    import pandas as pd

# Number of rows of an anomaly map that `map_peak` computes at once.
_N_PEAK_ROWS = 16
_COLUMNS = {"bbox-0": "top", "bbox-1": "left", "bbox-2": "bottom", "bbox-3": "right", "area": "area"}


def map_of(patch_scores: np.ndarray, view: View | None, smoothing: float, mask: PixelMask | None = None) -> np.ndarray:
    """Return the anomaly map of one image at its original size; bigger = more anomalous.

    Parameters
    ----------
    patch_scores : array of shape (grid_height, grid_width)
        One score per patch. NaN for patches that are not inspected.
    view : View or None
        Region of the image that the grid covers. None if the image size is unknown.
    smoothing : float
        Standard deviation of the Gaussian in pixels of the network's input.
    mask : PixelMask or None, default=None
        Pixels of the image in the region of interest. None means all pixels.

    Returns
    -------
    array of shape (height, width), float32
        NaN for pixels that are not inspected: pixels that the network does not see, pixels outside `mask`, and pixels
        in the cells of patches that are NaN. If `view` is None, the patch scores themselves, at the size of the grid.
    """
    if view is None:
        return patch_scores.astype(np.float32)
    down, across = view.scale
    sigmas = (smoothing * down, smoothing * across)
    drawn = anomaly_map(patch_scores, view.image_size, view.box, sigmas)
    mark_uninspected(drawn, ~np.isnan(patch_scores), view, None if mask is None else mask.as_array())
    return drawn


def map_peak(patch_scores: np.ndarray, view: View | None, smoothing: float, mask: PixelMask | None = None) -> float:
    """Return the maximum of the anomaly map of one image without computing the whole map; bigger = more anomalous.

    Parameters
    ----------
    patch_scores, view, smoothing, mask
        As for :func:`map_of`.

    Returns
    -------
    float
        Maximum of the map over the pixels that are inspected, rounded to float32 as the map is. If `view` is None, or
        no pixel is inspected: the largest patch score.

    Notes
    -----
    A pixel of the map is a weighted mean of patch scores with weights that are not negative. The vertical part of the
    upsampling and smoothing is computed first. The largest value of a row after this part is a bound for all pixels of
    the row. The rows are completed in descending order of their bounds, until no bound is above the largest pixel. The
    result is exact.
    """
    largest = float(np.nanmax(patch_scores))
    if view is None or not np.isfinite(largest):
        return largest
    import torch

    from skpatchcore._utils.arrays import as_tensor
    from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread

    down, across = view.scale
    scores = filled_with_nearest(np.array(patch_scores, np.float64))
    matrices = axis_matrices(
        (scores.shape[0], scores.shape[1]), view.image_size, view.box, (smoothing * down, smoothing * across)
    )
    rows, columns = (as_tensor(matrix, torch.device("cpu")) for matrix in matrices)
    inspected = inspected_pixels(~np.isnan(patch_scores), view)
    masks = [some for some in (inspected, None if mask is None else mask.as_array()) if some is not None]
    peak = -np.inf
    with one_thread(rows.shape[0] * scores.size < SMALL_PRODUCT):
        halfway = rows @ torch.from_numpy(scores)
        bounds = halfway.amax(dim=1).numpy()
        order = np.argsort(-bounds, kind="stable")
        for start in range(0, len(order), _N_PEAK_ROWS):
            some = order[start : start + _N_PEAK_ROWS]
            if bounds[some[0]] <= peak:
                break
            part = (halfway[torch.from_numpy(some)] @ columns.T).numpy()
            for is_seen in masks:
                part[~is_seen[some]] = -np.inf
            peak = max(peak, float(part.max()))
    with np.errstate(over="ignore"):
        return float(np.float32(peak)) if np.isfinite(peak) else largest


def mark_uninspected(drawn: np.ndarray, is_counted: np.ndarray, view: View, mask: np.ndarray | None) -> None:
    """Set the pixels of an anomaly map that are not inspected to NaN, in place.

    Parameters
    ----------
    drawn : array of shape (height, width), float
        The anomaly map.
    is_counted : array of shape (grid_height, grid_width), bool
        True for the patches that are scored.
    view : View
        Region of the image that the grid covers.
    mask : array of shape (height, width), bool, or None
        True for pixels in the region of interest. None means all pixels.
    """
    inspected = inspected_pixels(is_counted, view)
    for is_seen in (inspected, mask):
        if is_seen is not None:
            drawn[~is_seen] = np.nan


def anomaly_map(
    patch_scores: np.ndarray,
    image_size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    smoothing: float | tuple[float, float] = 4.0,
) -> np.ndarray:
    """Upsample patch scores bilinearly to an image's size and smooth them with a Gaussian; bigger = more anomalous.

    Parameters
    ----------
    patch_scores : array of shape (grid_height, grid_width)
        One score per patch. A patch with the score NaN takes the score of the nearest patch that has one, so that it
        does not affect the smoothing near it.
    image_size : (int, int)
        Height and width of the map in pixels.
    box : (float, float, float, float) or None, default=None
        Top, left, height and width, in pixels, of the region of the image that the grid covers. Pixels outside the
        region take the value of the nearest pixel inside. None covers the whole image.
    smoothing : float or (float, float), default=4.0
        Standard deviation of the Gaussian in pixels of the map, for both axes or for the vertical and the horizontal
        axis. 0 turns the smoothing off.

    Returns
    -------
    array of shape (height, width), float32
        The anomaly map.

    Notes
    -----
    Upsampling and smoothing are linear and separable. Therefore one small matrix per axis combines both steps.
    """
    import torch

    from skpatchcore._utils.arrays import as_tensor
    from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread

    scores = filled_with_nearest(np.array(patch_scores, np.float64))
    matrices = axis_matrices((scores.shape[0], scores.shape[1]), image_size, box, smoothing)
    rows, columns = (as_tensor(matrix, torch.device("cpu")) for matrix in matrices)
    # The product is computed with torch: the threads of numpy's BLAS keep spinning after a product, which slows the
    # network down on the next image.
    with one_thread(rows.shape[0] * scores.shape[1] * (rows.shape[1] + columns.shape[0]) < SMALL_PRODUCT):
        return (rows @ torch.from_numpy(scores) @ columns.T).float().numpy()


def filled_with_nearest(values: np.ndarray) -> np.ndarray:
    """Replace NaN in a map by the nearest value that is not NaN. A map without other values is returned as it is."""
    is_missing = np.isnan(values)
    if not is_missing.any() or is_missing.all():
        return values
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(is_missing, return_distances=False, return_indices=True)
    filled: np.ndarray = values[tuple(nearest)]
    return filled


def axis_matrices(
    grid: tuple[int, int],
    image_size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    smoothing: float | tuple[float, float] = 4.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices of an anomaly map, which is ``rows @ patch_scores @ columns.T``.

    Parameters
    ----------
    grid : (int, int)
        Height and width of the grid of patch scores.
    image_size, box, smoothing
        As for :func:`anomaly_map`.

    Returns
    -------
    rows : array of shape (height, grid_height), float64
        Matrix that upsamples and smooths along the vertical axis. Read-only, because it is shared between calls.
    columns : array of shape (width, grid_width), float64
        The same for the horizontal axis.
    """
    height, width = image_size
    top, left, box_height, box_width = box or (0.0, 0.0, float(height), float(width))
    sigma_y, sigma_x = smoothing if isinstance(smoothing, tuple) else (smoothing, smoothing)
    rows = _axis_matrix(height, grid[0], top, box_height, float(sigma_y))
    return rows, _axis_matrix(width, grid[1], left, box_width, float(sigma_x))


@lru_cache(maxsize=64)
def _axis_matrix(n_pixels: int, n_patches: int, start: float, length: float, sigma: float) -> np.ndarray:
    """Return the matrix of shape (n_pixels, n_patches) that upsamples and smooths along one axis."""
    # Position of each pixel centre in units of patches; 0 is the centre of the first patch.
    position = np.clip((np.arange(n_pixels) + 0.5 - start) / length * n_patches - 0.5, 0, n_patches - 1)
    lower = np.minimum(position.astype(int), max(n_patches - 2, 0))
    share = position - lower
    matrix = np.zeros((n_pixels, n_patches))
    pixels = np.arange(n_pixels)
    matrix[pixels, lower] = 1 - share
    matrix[pixels, np.minimum(lower + 1, n_patches - 1)] += share
    if sigma > 1e-3:  # a narrower Gaussian has no effect, and its weights would be divided by nearly 0
        matrix = _smoothed(matrix, sigma)
    matrix.setflags(write=False)
    return matrix


def _smoothed(matrix: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth the columns of a matrix with a Gaussian, as ``scipy.ndimage.gaussian_filter1d(matrix, sigma, axis=0)``.

    The Gaussian is cut at four standard deviations. Beyond its first and last row, the matrix is mirrored.
    """
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    padded = np.pad(matrix, ((radius, radius), (0, 0)), mode="symmetric")
    return np.stack([np.convolve(column, weights, mode="valid") for column in padded.T], axis=1)


def without_small_regions(mask: np.ndarray, min_area: int) -> np.ndarray:
    """Return a mask without its connected regions of fewer than `min_area` pixels.

    Parameters
    ----------
    mask : array of shape (height, width), bool
        True for anomalous pixels. Pixels that touch by an edge or a corner are connected.
    min_area : int
        Minimum area in pixels.

    Returns
    -------
    array of shape (height, width), bool
    """
    if min_area <= 1:
        return mask
    from skimage.measure import label

    regions: np.ndarray = label(mask, connectivity=2)  # type: ignore[no-untyped-call]
    is_large = np.bincount(regions.ravel()) >= min_area
    is_large[0] = False  # the background
    return np.asarray(is_large[regions])


def regions_of_map(anomaly_map: np.ndarray, threshold: float, min_area: int = 1) -> pd.DataFrame:
    """Return the connected regions of an anomaly map above a threshold, in descending order of their peaks.

    Parameters
    ----------
    anomaly_map : array of shape (height, width)
        Anomaly map, bigger = more anomalous. NaN for pixels that are not inspected; they belong to no region.
    threshold : float
        Pixels with a value above the threshold belong to regions. Pixels that touch by an edge or a corner are
        connected.
    min_area : int, default=1
        Minimum area in pixels. Smaller regions are left out.

    Returns
    -------
    DataFrame
        One row per region: ``top``, ``left``, ``bottom``, ``right`` (bounding box in pixels; bottom and right are
        exclusive, as in slices), ``area`` (number of pixels), ``peak`` (largest value of the map in the region),
        ``peak_row`` and ``peak_column`` (position of the peak in pixels; the first one in reading order if several
        pixels have the largest value).
    """
    import pandas as pd
    from skimage.measure import label, regionprops_table

    labels: np.ndarray = label(anomaly_map > threshold, connectivity=2)  # type: ignore[no-untyped-call]
    table = regionprops_table(labels, properties=["bbox", "area"])  # type: ignore[no-untyped-call]
    places = _places_of_peaks(anomaly_map, labels, len(table["area"]))
    columns = {name: table[key].astype(np.int64) for key, name in _COLUMNS.items()}
    columns["peak"] = anomaly_map[tuple(places.T)].astype(np.float64)
    columns["peak_row"], columns["peak_column"] = places.T
    order = np.argsort(-columns["peak"], kind="stable")
    order = order[columns["area"][order] >= min_area]
    return pd.DataFrame({name: column[order] for name, column in columns.items()})


def _places_of_peaks(anomaly_map: np.ndarray, labels: np.ndarray, n_regions: int) -> np.ndarray:
    """Return row and column of the first largest pixel of each region; regions are labelled from 1."""
    inside = np.flatnonzero(labels)  # few pixels of a map: scipy.ndimage.maximum_position sorts all of them
    regions, values = labels.ravel()[inside] - 1, anomaly_map.ravel()[inside].astype(np.float64)
    peaks = np.full(n_regions, -np.inf)
    np.maximum.at(peaks, regions, values)
    is_peak = values == peaks[regions]
    first = np.unique(regions[is_peak], return_index=True)[1]
    return np.stack(np.unravel_index(inside[is_peak][first], labels.shape), axis=1)
