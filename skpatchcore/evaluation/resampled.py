"""metrics_of_resamples: the metrics of a result on resamples of its test images, for bootstrap intervals."""

from __future__ import annotations

import math
import warnings

import numpy as np

from skpatchcore.calibration.conformal import conformal_threshold
from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.promises import RATES
from skpatchcore.metrics.counts import metrics_of_counts, metrics_of_numbers

#: Metrics that a comparison shows, bigger = better.
METRICS = (
    "image_auroc", "image_ap", "image_f1_max", "found_at_01", "found_at_05", "found_at_10",
    "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05", "aupimo",
)  # fmt: skip
#: Fractions of images, and the label of the images that are counted: -1 for defective, and 1 for good images. Fractions
#: of good images are smaller = better.
PROPORTIONS = {
    **{f"found_at_{ending}": -1 for ending in RATES},
    **{f"flagged_at_{ending}": 1 for ending in RATES},
    "defects_found": -1,
    "good_flagged": 1,
}
# Resamples are computed in blocks of at most this number of weights.
_BLOCK = 4_000_000


def values_and_resamples(result: CategoryResult, weights: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the metrics of a result, and the metrics of resamples of its test images.

    Parameters
    ----------
    result : CategoryResult
        The result.
    weights : array of shape (n_resamples, n_test)
        How often each test image is in each resample.

    Returns
    -------
    values : dict of str to float
        Metrics of all test images by name, as in the table of :func:`~skpatchcore.evaluate`.
    resampled : dict of str to array of shape (n_resamples,)
        Metrics of the resamples. They are moved so that all test images would have the exact value, because pixel
        metrics of resamples are computed from a few hundred thresholds.
    """
    whole = metrics_of_resamples(result, np.ones((1, len(result.labels))))
    values = {metric: float(result.row.get(metric, math.nan)) for metric in whole}
    drawn = metrics_of_resamples(result, weights)
    return values, {metric: drawn[metric] + (values[metric] - whole[metric][0]) for metric in drawn}


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
    weights = np.asarray(weights)
    n_rows = max(1, _BLOCK // max(1, weights.shape[1]))
    blocks = [_metrics_of_block(result, weights[i : i + n_rows]) for i in range(0, len(weights), n_rows)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _metrics_of_block(result: CategoryResult, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of some resamples."""
    weights = np.asarray(weights, np.float64)
    is_bad = result.labels == -1
    found = _image_metrics(result, weights, is_bad)
    for ending, rate in RATES.items():
        is_flagged = result.scores < _limit(result, rate)
        found[f"found_at_{ending}"] = _share(weights, is_bad, is_flagged)
        found[f"flagged_at_{ending}"] = _share(weights, ~is_bad, is_flagged)
    found["defects_found"] = _share(weights, is_bad, result.scores < result.offset)
    found["good_flagged"] = _share(weights, ~is_bad, result.scores < result.offset)
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
    order = np.argsort(result.scores, kind="stable")  # most anomalous first
    ordered, is_bad = result.scores[order], is_bad[order]
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
    drawn = weights[:, order]
    good, bad = (np.cumsum(drawn * kind, axis=1)[:, last_of_ties] for kind in (~is_bad, is_bad))
    of_pixels = metrics_of_numbers(good, bad, bad)
    return {f"image_{name}": of_pixels[f"pixel_{name}"] for name in ("auroc", "ap", "f1_max")}
