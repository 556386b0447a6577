"""PixelCounts: numbers of pixels per image above fixed thresholds, from which pixel metrics of resamples follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from skimage.measure import label

from skpatchcore.metrics._sorted import mask_and_map, zipped

# Numbers of thresholds at ranks of good pixels and of defective pixels.
_N_GOOD, _N_DEFECTIVE = 240, 120


class PixelCounts(NamedTuple):
    """Numbers of pixels of each image with a score of at least each threshold.

    Attributes
    ----------
    thresholds : array of shape (n_levels,), float64
        Thresholds, descending. The last one is minus infinity, so that the last column counts all pixels.
    good, defective : arrays of shape (n_images, n_levels), float32
        Numbers of good and of defective pixels.
    overlap : array of shape (n_images, n_levels), float32
        Sum over the regions of an image of the fraction of the pixels of the region. The last column is the number of
        regions.
    """

    thresholds: np.ndarray
    good: np.ndarray
    defective: np.ndarray
    overlap: np.ndarray


def count_pixels(masks: Sequence[Any], maps: Sequence[Any]) -> PixelCounts:
    """Count the pixels of each image above thresholds that are spread over the false-positive rates and recalls.

    Parameters
    ----------
    masks : sequence of arrays of shape (height, width)
        True or non-zero for defective pixels.
    maps : sequence of arrays of shape (height, width)
        Anomaly maps, bigger = more anomalous. NaN for pixels that are not inspected, which are not counted.

    Returns
    -------
    PixelCounts
        With at most 361 thresholds.

    Raises
    ------
    ValueError
        If masks and maps do not match, or a map holds infinity or only NaN.
    """
    pairs = [mask_and_map(i, mask, scored, False) for i, (mask, scored) in enumerate(zipped(masks, maps))]
    thresholds = _thresholds(pairs)
    shape = len(pairs), len(thresholds)
    good, defective, overlap = (np.zeros(shape, np.float32) for _ in range(3))
    for i, (mask, scored) in enumerate(pairs):
        known = ~np.isnan(scored)
        good[i] = _numbers_at(scored[known & ~mask], thresholds)
        if (inspected := known & mask).any():
            defective[i] = _numbers_at(scored[inspected], thresholds)
            regions = np.asarray(label(mask, connectivity=2))[inspected]  # type: ignore[no-untyped-call]
            for region in np.unique(regions):
                found = _numbers_at(scored[inspected][regions == region], thresholds)
                overlap[i] += found / found[-1]
    return PixelCounts(thresholds, good, defective, overlap)


def metrics_of_counts(counts: PixelCounts, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return pixel metrics of resamples of images, **bigger = better**.

    Parameters
    ----------
    counts : PixelCounts
        The counts of all images.
    weights : array of shape (n_resamples, n_images)
        How often each image is in each resample.

    Returns
    -------
    dict of str to array of shape (n_resamples,)
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, ``aupro`` (up to a false-positive rate of 0.3) and ``aupro_05``
        (up to 0.05). NaN for a resample without good or without defective pixels. The curves are linear between the
        thresholds; therefore the values differ a little from those of :func:`~skpatchcore.metrics.pixel_metrics`.
    """
    weights = np.asarray(weights, np.float64)
    return metrics_of_numbers(*(weights @ part.astype(np.float64) for part in counts[1:]))


def metrics_of_numbers(good: np.ndarray, defective: np.ndarray, overlap: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics from the numbers of pixels (or of images) above descending thresholds, **bigger = better**.

    Parameters
    ----------
    good, defective : arrays of shape (n_resamples, n_levels)
        Numbers of good and of defective pixels. The last column counts all of them.
    overlap : array of shape (n_resamples, n_levels)
        Sum over the regions of the fraction of the region. The last column is the number of regions.

    Returns
    -------
    dict of str to array of shape (n_resamples,)
        As :func:`metrics_of_counts`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        fpr, recall, pro = (part / part[:, -1:] for part in (good, defective, overlap))
        precision = defective / (defective + good)
        f1 = 2 * defective / (defective + good + defective[:, -1:])
    steps = np.diff(recall, axis=1, prepend=0)
    return {
        "pixel_auroc": area_to(fpr, recall, 1.0),
        "pixel_ap": np.where(steps > 0, steps * precision, 0).sum(axis=1) + 0 * recall[:, -1],
        "pixel_f1_max": np.nanmax(np.where(np.isnan(f1), -np.inf, f1), axis=1) + 0 * recall[:, -1],
        "aupro": area_to(fpr, pro, 0.3),
        "aupro_05": area_to(fpr, pro, 0.05),
    }


def area_to(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Return the areas under curves up to a limit, divided by the limit.

    Parameters
    ----------
    x, y : arrays of shape (n_curves, n_points)
        Points of the curves, ascending in x. The point (0, 0) comes before them. Points lie on straight lines.
    limit : float
        Largest x. The area ends there.
    """
    x, y = (np.concatenate([np.zeros((len(part), 1)), part], axis=1) for part in (x, y))
    left, right = np.minimum(x[:, :-1], limit), np.minimum(x[:, 1:], limit)
    width = x[:, 1:] - x[:, :-1]
    share = np.divide(right - left, width, out=np.zeros_like(width), where=width > 0)
    end = y[:, :-1] + share * (y[:, 1:] - y[:, :-1])
    areas: np.ndarray = ((right - left) * (y[:, :-1] + end) / 2).sum(axis=1) / limit
    return areas


def _thresholds(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return scores at ranks of the good pixels, which are dense among the highest ones, and of the defective ones."""
    good = np.sort(np.concatenate([scored[~np.isnan(scored) & ~mask] for mask, scored in pairs]))[::-1]
    bad = np.sort(np.concatenate([scored[~np.isnan(scored) & mask] for mask, scored in pairs]))[::-1]
    ranks = np.unique(np.geomspace(1, max(1, len(good)), _N_GOOD).astype(int)) - 1
    evenly = np.linspace(0, max(0, len(bad) - 1), _N_DEFECTIVE).astype(int)
    found = np.concatenate([good[ranks] if len(good) else good, bad[evenly] if len(bad) else bad]).astype(np.float64)
    return np.append(np.unique(found)[::-1], -np.inf)


def _numbers_at(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how many scores are at least each threshold."""
    ascending = np.sort(scores).astype(np.float64)
    numbers: np.ndarray = len(ascending) - np.searchsorted(ascending, thresholds, side="left")
    return numbers
