"""Conformal thresholds and p-values from the scores of good images.

:func:`conformal_threshold` and :func:`conformal_p_values` are functions of arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skpatchcore._utils.warning import warn_user

#: Accepted false-positive rate of ``contamination="auto"``.
AUTO_CONTAMINATION = 0.01


def conformal_rank(n: int, contamination: float) -> int:
    """Return the rank of the calibration score that is the conformal threshold.

    The rank is ``ceil((n + 1)(1 - contamination))``. The anomaly score of a new good image is above the calibration
    score of this rank with a probability of at most `contamination`. This bound requires that the new image is
    exchangeable with the calibration images, i.e., that all orders of these images are equally probable.

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


def promised_rate(n: int, contamination: float | str) -> float:
    """Return the false-positive rate that a threshold from `n` calibration scores promises.

    Parameters
    ----------
    n : int
        Number of calibration scores.
    contamination : float in (0, 0.5] or "auto"
        Accepted false-positive rate. ``"auto"`` accepts 1 %.

    Returns
    -------
    float
        `contamination`, or ``1 / (n + 1)`` if this is larger: no smaller rate can be promised with `n` scores. NaN if
        `n` is 0.
    """
    if n == 0:
        return math.nan
    return max(AUTO_CONTAMINATION if contamination == "auto" else float(contamination), 1 / (n + 1))


def likely_rate(n: int, contamination: float, confidence: float = 0.95) -> float:
    """Return the false-positive rate that the threshold of one calibration exceeds with a small probability.

    `contamination` is the expected rate, on average over calibrations. The rate of one threshold depends on the images
    that happen to calibrate it.

    Parameters
    ----------
    n : int
        Number of calibration scores.
    contamination : float in (0, 0.5]
        Accepted false-positive rate, as for :func:`conformal_rank`.
    confidence : float, default=0.95
        Probability that the rate is at most the returned value.

    Returns
    -------
    float
        Quantile of the beta distribution of the rate. It is exact if the scores are exchangeable and have no ties.

    References
    ----------
    Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """
    from scipy.stats import beta

    rank = min(conformal_rank(n, contamination), n)
    return float(beta.ppf(confidence, n + 1 - rank, rank))


def conformal_threshold(anomaly_scores: np.ndarray, contamination: float | str) -> float:
    """Return the threshold that at most the fraction `contamination` of good images exceeds; bigger = more anomalous.

    Parameters
    ----------
    anomaly_scores : array of shape (n_images,)
        Anomaly scores of good images, the calibration images. The model that scores an image must not have been fitted
        on this image. Scores that are NaN are left out.
    contamination : float in (0, 0.5] or "auto"
        Accepted fraction of good images that are flagged, i.e., labelled anomalous. ``"auto"`` accepts 1 %, or
        ``1 / (n + 1)`` if there are fewer than 99 calibration scores. In this case, the largest score is returned.

    Returns
    -------
    float
        Threshold: an image is flagged if its anomaly score is *above* the threshold. If the ``n`` calibration scores
        are sorted in ascending order, the threshold is the score at position ``ceil((n + 1)(1 - contamination))``,
        counted from 1. NaN if there are no calibration scores.

    Warns
    -----
    UserWarning
        If there are too few calibration images to guarantee that at most the fraction `contamination` of new good
        images is flagged. The largest calibration score is then returned.
    """
    scores = np.sort(anomaly_scores[~np.isnan(anomaly_scores)])
    n = len(scores)
    if n == 0:
        return math.nan
    if contamination == "auto":
        contamination = promised_rate(n, contamination)
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
    """Return the p-value of each new image, by comparing its score with scores of good images; **small = anomalous**.

    The p-value of an image with the score ``s`` is, approximately, the fraction of good images with a score of at most
    ``s``. To flag at most about 5 % of the good images, flag the images with a p-value of at most 0.05.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,)
        Scores of good images, the calibration images, **bigger = more normal** as in `score_samples`. The model that
        scores an image must not have been fitted on this image. The ``calibration_scores_`` of a detector fulfil this
        condition. Calibration scores that are NaN are left out, and do not count in ``n_calibration``.
    scores : array of shape (n_images,)
        Scores of new images, **bigger = more normal**, e.g., ``detector.score_samples(X)``. NaN raises an error.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at most s) / (n_calibration + 1)`` per new image, where ``s`` is
        the score of the new image. The smallest possible p-value is ``1 / (n_calibration + 1)``, and the largest is 1.

    Raises
    ------
    ValueError
        If there are no calibration scores other than NaN, or if a value in `scores` is NaN.

    Notes
    -----
    The p-value of a new good image is 0.05 or smaller with a probability of at most 5 %. The same holds for every other
    number between 0 and 1 in place of 0.05. This guarantee requires that the new good image and the calibration images
    are exchangeable, i.e., that all orders of these images are equally probable. Good images of the same product,
    camera, light and material are approximately exchangeable. P-values with such a guarantee are called conformal.

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
    """Return the p-values of :func:`conformal_p_values` for anomaly scores, which have the opposite sign.

    In both arrays, bigger = more anomalous.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,), float64
        Anomaly scores of good images, or peaks of their anomaly maps. Values that are NaN are left out.
    anomaly_scores : array of shape (n_images,), float64
        Anomaly scores, or peaks of anomaly maps, of new images.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at least the score) / (n_calibration + 1)``, small = anomalous.

    Raises
    ------
    ValueError
        If there are no calibration scores other than NaN, or if a value in `anomaly_scores` is NaN.
    """
    calibration = np.sort(calibration_scores[~np.isnan(calibration_scores)])
    n = len(calibration)
    if not n:
        raise ValueError("there are no calibration scores, or all are NaN. Pass at least one calibration score.")
    if np.isnan(anomaly_scores).any():
        raise ValueError(f"score {int(np.isnan(anomaly_scores).argmax())} is NaN. Pass scores without NaN.")
    p_values: np.ndarray = (1 + n - np.searchsorted(calibration, anomaly_scores, side="left")) / (n + 1)
    return p_values


def check_adjust(method: str | None) -> None:
    """Raise a ValueError if a method of adjustment is unknown. Call this function before a long computation."""
    if method not in (None, "bh", "by"):
        raise ValueError(f"adjust={method!r}: expected 'bh', 'by' or None.")


def adjusted_p_values(p_values: np.ndarray, method: str | None) -> np.ndarray:
    """Return p-values that are adjusted for their number; small = anomalous.

    Parameters
    ----------
    p_values : array of shape (n_images,), float64
        P-values in (0, 1].
    method : {"bh", "by"} or None
        ``"bh"`` is the method of Benjamini and Hochberg. ``"by"`` is the method of Benjamini and Yekutieli. None
        returns the p-values unchanged.

    Returns
    -------
    array of shape (n_images,), float64
        At least `p_values` and at most 1. The values are those of ``scipy.stats.false_discovery_control``.

    Raises
    ------
    ValueError
        If `method` has another value.
    """
    check_adjust(method)
    if method is None:
        return p_values
    # The i-th smallest of n p-values is multiplied by n / i. An adjusted value never exceeds that of a larger p-value.
    order, ranks = np.argsort(p_values), np.arange(1, len(p_values) + 1)
    factor = np.sum(1 / ranks) if method == "by" else 1.0
    scaled = p_values[order] * len(p_values) / ranks * factor
    adjusted = np.empty_like(scaled)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return adjusted
