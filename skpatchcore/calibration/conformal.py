"""Conformal thresholds and p-values from the scores of good images.

:func:`conformal_threshold` and :func:`conformal_p_values` are functions of arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skpatchcore._utils.warning import warn_user


def conformal_rank(n: int, contamination: float) -> int:
    """Return the rank of the calibration score that is the conformal threshold.

    The rank is ``ceil((n + 1)(1 - contamination))``. A good image that is exchangeable with the calibration images
    scores above the score of this rank with a probability of at most `contamination`.

    Parameters
    ----------
    n : int
        Number of calibration scores.
    contamination : float in (0, 0.5]
        Accepted false-positive rate.

    Returns
    -------
    int
        Rank among the anomaly scores in ascending order, counted from 1. ``n + 1`` means that there are too few scores
        for the requested rate.
    """
    # Round first: floating-point error can make (n + 1)(1 - 0.9) slightly larger than an integer, which ceil would
    # increase by 1.
    return math.ceil(round((n + 1) * (1 - contamination), 9))


def conformal_threshold(anomaly_scores: np.ndarray, contamination: float | str) -> float:
    """Return the threshold that flags at most the fraction `contamination` of good images; bigger = more anomalous.

    Parameters
    ----------
    anomaly_scores : array of shape (n_images,)
        Anomaly scores of good images. Each image must be scored by a model that was not fitted on the image. NaN is
        ignored.
    contamination : float in (0, 0.5] or "auto"
        Accepted fraction of good images that are flagged. ``"auto"`` returns the largest score: no calibration image is
        flagged.

    Returns
    -------
    float
        Threshold: an image is flagged if its anomaly score is *above* the threshold. The threshold is the conformal
        quantile, i.e., the ``ceil((n + 1)(1 - contamination))``-th smallest score. NaN if there are no scores.

    Warns
    -----
    UserWarning
        If there are too few images to promise the fraction `contamination`. The largest score is then returned.
    """
    scores = np.sort(anomaly_scores[~np.isnan(anomaly_scores)])
    n = len(scores)
    if n == 0:
        return math.nan
    if contamination == "auto":
        return float(scores[-1])
    rank = conformal_rank(n, float(contamination))
    if rank > n:
        warn_user(
            f"contamination={contamination:g} cannot be promised with {n} calibration images: the smallest possible "
            f"value is 1/{n + 1} = {1 / (n + 1):.3g}. The largest calibration score is used as the threshold. Fit on "
            "more images, or increase contamination.",
        )
        return float(scores[-1])
    return float(scores[rank - 1])


def conformal_p_values(calibration_scores: Any, scores: Any) -> np.ndarray:
    """Return conformal p-values of images from their scores, **small = anomalous**.

    Both arrays of scores have the sign of `score_samples`: bigger = more normal.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, bigger = more normal. Each image must be scored by a model that was not fitted on the
        image, as in a detector's ``calibration_scores_``. NaN is ignored.
    scores : array of shape (n_images,)
        Scores of new images, bigger = more normal, e.g., ``detector.score_samples(X)``.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at most the score) / (n_calibration + 1)``. A p-value is never 0.
        If a good image is exchangeable with the calibration images, its p-value is at most `p` with a probability of at
        most `p`.

    Raises
    ------
    ValueError
        If there are no calibration scores, or if a score is NaN.

    References
    ----------
    Conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005. P-values for
    outliers: Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of
    Statistics 51, 2023.

    Examples
    --------
    >>> from skpatchcore import conformal_p_values
    >>> conformal_p_values([-4.0, -3.0, -2.0], [-5.0, -3.0, -1.0])
    array([0.25, 0.75, 1.  ])
    """
    return upper_tail_p_values(-np.asarray(calibration_scores, np.float64), -np.asarray(scores, np.float64))


def upper_tail_p_values(calibration_scores: np.ndarray, anomaly_scores: np.ndarray) -> np.ndarray:
    """Return the p-values of :func:`conformal_p_values` for anomaly scores, where bigger scores = more anomalous.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,), float64
        Anomaly scores of good images, or peaks of their anomaly maps. NaN is ignored.
    anomaly_scores : array of shape (n_images,), float64
        Anomaly scores, or peaks of anomaly maps, of new images.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at least the score) / (n_calibration + 1)``, small = anomalous.

    Raises
    ------
    ValueError
        If there are no calibration scores, or if a score is NaN.
    """
    calibration = np.sort(calibration_scores[~np.isnan(calibration_scores)])
    n = len(calibration)
    if not n:
        raise ValueError("there are no calibration scores, or all are NaN. Pass at least one calibration score.")
    if np.isnan(anomaly_scores).any():
        raise ValueError(f"score {int(np.isnan(anomaly_scores).argmax())} is NaN. Pass scores without NaN.")
    p_values: np.ndarray = (1 + n - np.searchsorted(calibration, anomaly_scores, side="left")) / (n + 1)
    return p_values
