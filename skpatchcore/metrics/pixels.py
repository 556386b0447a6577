"""Metrics of anomaly maps: AUPRO, ROC AUC, average precision and maximum F1 score over all pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore.metrics._sorted import F1Max, Pixels, average_precision, f1_max, sorted_pixels


def pro_curve(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int | None = None, resize: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the per-region-overlap (PRO) curve: mean overlap of the defects against the false-positive rate.

    Parameters
    ----------
    masks : sequence of arrays of shape (height, width)
        True or non-zero for defective pixels. All pixels of good images are False. Sizes may differ between images.
    maps : sequence of arrays of shape (height, width)
        Anomaly maps, bigger = more anomalous. Each map has the size of its mask. Pixels that are NaN are left out.
    n_points : int or None, default=None
        Maximum number of points of the curve, e.g., for a plot. The points are spread evenly over the false-positive
        rates. Each point is exact, and far less memory is needed. None returns all points.
    resize : bool, default=False
        If True, masks are resized to the sizes of their maps by nearest-neighbour interpolation. If False, different
        sizes raise an error.

    Returns
    -------
    fpr : array of shape (n_points,), float64
        False-positive rate: fraction of the good pixels of all images with a score of at least the threshold.
        Ascending from 0 to 1.
    pro : array of shape (n_points,), float64
        Per-region overlap: fraction of the pixels of a region with a score of at least the threshold, averaged over all
        regions of all images. A region is a connected component of defective pixels that touch by edges or corners.
    thresholds : array of shape (n_points,), float64
        Thresholds, descending from infinity. If `n_points` is None, every distinct score is a threshold.

    Raises
    ------
    ValueError
        If `masks` and `maps` differ in length, a mask and its map differ in size, a map holds infinity or only NaN, or
        there is no defective or no good pixel.

    References
    ----------
    Bergmann et al., "Uninformed Students", CVPR 2020; "The MVTec Anomaly Detection Dataset", IJCV 2021.
    """
    pixels = sorted_pixels(masks, maps, resize, with_regions=True)
    if n_points is not None:
        return _thinned_pro(pixels, n_points)
    scores = np.concatenate([pixels.good, pixels.defective])
    good = np.concatenate([np.ones(len(pixels.good)), np.zeros(len(pixels.defective))])
    overlap = np.concatenate([np.zeros(len(pixels.good)), _region_weights(pixels)])
    order = scores.argsort(kind="stable")[::-1]
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # one point for each group of equal scores
    fpr, pro = good[order].cumsum()[last] / len(pixels.good), overlap[order].cumsum()[last]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, scores[last].astype(np.float64))


def aupro_score(masks: Sequence[Any], maps: Sequence[Any], *, max_fpr: float = 0.3, resize: bool = False) -> float:
    """Return the area under the per-region-overlap (PRO) curve up to a false-positive rate, **bigger = better**.

    At each threshold, PRO is the fraction of a defect's pixels that score at least the threshold, averaged over all
    defects. The false-positive rate is the fraction of the good pixels that score at least the threshold. Each distinct
    score is a threshold. The area is computed by the trapezoidal rule, with linear interpolation at `max_fpr`.

    Parameters
    ----------
    masks, maps
        One mask and one anomaly map per image, as for :func:`pro_curve`.
    max_fpr : float in (0, 1], default=0.3
        False-positive rate at which the integration ends. The area is divided by `max_fpr`. MVTec AD 2 uses 0.05.
    resize : bool, default=False
        As for :func:`pro_curve`.

    Returns
    -------
    float
        Normalised area in [0, 1]. 1 is perfect. The expected value for random maps is ``max_fpr / 2``.

    Raises
    ------
    ValueError
        If masks and maps do not match, a map holds infinity or only NaN, no pixel is defective, no pixel is good, or
        `max_fpr` is not in (0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import aupro_score
    >>> mask = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
    >>> aupro_score([mask], [np.array([[0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.1, 0.0]])])
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}: expected a number in (0, 1].")
    pixels = sorted_pixels(masks, maps, resize, with_regions=True, max_fpr=max_fpr)
    return _area(pixels, _region_weights(pixels), max_fpr)


def pixel_roc_auc_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> float:
    """Return the area under the ROC curve over all pixels of all images, **bigger = better**.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect. The expected value for random maps is 0.5.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import pixel_roc_auc_score
    >>> mask = np.array([[False, True], [False, True]])
    >>> pixel_roc_auc_score([mask], [np.array([[0.1, 0.9], [0.4, 0.3]])])
    0.75
    """
    pixels = sorted_pixels(masks, maps, resize)
    return _area(pixels, np.full(len(pixels.defective), 1 / len(pixels.defective)), 1.0)


def pixel_average_precision_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> float:
    """Return the average precision over all pixels of all images, **bigger = better**.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect. Random maps have about the fraction of defective pixels. As in ``average_precision_score`` of
        scikit-learn, the value is the sum of the precisions at all thresholds, weighted by the increases in recall.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    return average_precision(*sorted_pixels(masks, maps, resize)[:2])


def pixel_f1_max_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> F1Max:
    """Return the maximum F1 score of all thresholds on anomaly maps, over all pixels of all images.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    F1Max
        F1 score (bigger = better), threshold in units of the maps (inclusive), and number of misclassified pixels.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    return f1_max(*sorted_pixels(masks, maps, resize)[:2])


def pixel_metrics(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int = 500, resize: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Return all metrics of pixels and regions except AUPIMO, **bigger = better**.

    The pixels are sorted only once.

    Parameters
    ----------
    masks, maps, n_points, resize
        One mask and one map per image, the number of points, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    metrics : dict of str to float
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, ``aupro`` (up to a false-positive rate of 0.3) and ``aupro_05``
        (up to 0.05). Each value equals the result of the function for this metric.
    curve : array of shape (2, n_points)
        False-positive rates and per-region overlaps of :func:`pro_curve`.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    pixels = sorted_pixels(masks, maps, resize, with_regions=True)
    weights = _region_weights(pixels)
    metrics = {
        "pixel_auroc": _area(pixels, np.full(len(pixels.defective), 1 / len(pixels.defective)), 1.0),
        "pixel_ap": average_precision(*pixels[:2]),
        "pixel_f1_max": f1_max(*pixels[:2]).f1,
        "aupro": _area(pixels, weights, 0.3),
        "aupro_05": _area(pixels, weights, 0.05),
    }
    return metrics, np.stack(_thinned_pro(pixels, n_points)[:2])


def _region_weights(pixels: Pixels) -> np.ndarray:
    """Return the contribution of each defective pixel to the mean overlap of the regions."""
    sizes = np.bincount(pixels.regions, minlength=pixels.n_regions)
    weights: np.ndarray = 1 / (sizes[pixels.regions] * pixels.n_regions)
    return weights


def _area(pixels: Pixels, weights: np.ndarray, max_fpr: float) -> float:
    """Return the area under the curve of cumulative `weights` against the false-positive rate, divided by `max_fpr`.

    The horizontal axis is the number of good pixels above the threshold, up to
    `limit`. A defective pixel raises the curve by its weight at `above`, the number of good pixels that score higher,
    and adds ``weight * (limit - above)`` to the area. If good pixels have the same score, the curve rises linearly from
    `above` to `at_least`, the number of good pixels that score at least as high.
    """
    n_good = len(pixels.good)
    limit = max_fpr * n_good
    first = n_good - min(n_good, math.ceil(limit) + 1)
    top = pixels.good[first:]
    above = len(top) - np.searchsorted(top, pixels.defective, side="right")
    at_least = len(top) - np.searchsorted(top, pixels.defective, side="left")
    if first:  # count the scores in the unsorted part that equal the lowest sorted score
        at_lowest = at_least == len(top)
        ties = np.count_nonzero(pixels.good[:first] == top[0])
        at_least = at_least + np.where(at_lowest & (pixels.defective == top[0]), ties, 0)
    ties = np.maximum(at_least - above, 1)
    rise = np.where(at_least > limit, (limit - above) ** 2 / (2 * ties), limit - above - (at_least - above) / 2)
    return min(float(np.sum(weights * np.where(above < limit, rise, 0.0)) / limit), 1.0)  # rounding can exceed 1


def _thinned_pro(pixels: Pixels, n_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points of the PRO curve at evenly spaced ranks of the good pixels, and at the lowest of all scores."""
    n_good = len(pixels.good)
    numbers = np.linspace(0, n_good - 1, max(n_points - 2, 1)).astype(np.int64)
    thresholds = np.unique(np.append(pixels.good[numbers], min(pixels.good[0], pixels.defective[0])))[::-1]
    fpr = (n_good - np.searchsorted(pixels.good, thresholds, side="left")) / n_good
    found = np.append(_region_weights(pixels)[::-1].cumsum()[::-1], 0.0)
    pro = found[np.searchsorted(pixels.defective, thresholds, side="left")]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, thresholds.astype(np.float64))
