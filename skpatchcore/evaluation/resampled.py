"""metrics_of_resamples: the metrics of a result on resamples of its test images, for bootstrap intervals."""

from __future__ import annotations

import math
import warnings

import numpy as np

from skpatchcore.calibration.conformal import conformal_threshold
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.promises import RATES
from skpatchcore.metrics.counts import PixelCounts, metrics_of_counts

#: Metrics that a comparison shows, bigger = better.
METRICS = (
    "image_auroc", "image_ap", "image_f1_max", "found_at_01", "found_at_05", "found_at_10",
    "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05", "aupimo",
)  # fmt: skip


def metrics_of_resamples(result: CategoryResult, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of a result on resamples of its test images.

    Parameters
    ----------
    result : CategoryResult
        The result. Without ``pixel_counts``, there are no pixel metrics except AUPIMO.
    weights : array of shape (n_resamples, n_test)
        How often each test image is in each resample.

    Returns
    -------
    dict of str to array of shape (n_resamples,)
        Metrics of :func:`~skpatchcore.evaluate` by name. NaN where a metric is not defined. The threshold of
        ``found_at_05`` stays as it is, because it comes from training images.
    """
    weights = np.asarray(weights, np.float64)
    is_bad = result.labels == -1
    found = _image_metrics(result, weights, is_bad)
    for ending, rate in RATES.items():
        found[f"found_at_{ending}"] = _share(weights, is_bad, result.scores < _limit(result, rate))
    if result.pixel_counts is not None and result.pixel_counts.defective[:, -1].any():
        found.update(metrics_of_counts(result.pixel_counts, weights))
    if len(result.aupimo):
        known = ~np.isnan(result.aupimo)
        found["aupimo"] = _share(weights, known, result.aupimo)
    return found


def _limit(result: CategoryResult, rate: float) -> float:
    """Return the score below which an image is flagged at a promised rate; NaN if it cannot be promised."""
    known = -np.asarray(result.calibration_scores, np.float64)
    n = int(np.count_nonzero(~np.isnan(known)))
    if not n or 1 / (n + 1) > rate:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return -float(conformal_threshold(known, rate))


def _share(weights: np.ndarray, is_counted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of the values of the counted images in each resample."""
    own = weights[:, is_counted]
    with np.errstate(invalid="ignore"):
        return np.asarray(own @ np.asarray(values[is_counted], np.float64) / own.sum(axis=1))


def _image_metrics(result: CategoryResult, weights: np.ndarray, is_bad: np.ndarray) -> dict[str, np.ndarray]:
    """Return AUROC, average precision and maximum F1 score of images: each image counts like one pixel."""
    thresholds = np.append(np.unique(-result.scores)[::-1], -np.inf)
    reached = (-result.scores[:, None] >= thresholds).astype(np.float32)
    counts = PixelCounts(thresholds, reached * ~is_bad[:, None], reached * is_bad[:, None], reached * is_bad[:, None])
    of_pixels = metrics_of_counts(counts, weights)
    return {
        "image_auroc": of_pixels["pixel_auroc"],
        "image_ap": of_pixels["pixel_ap"],
        "image_f1_max": of_pixels["pixel_f1_max"],
    }
