"""Conformal thresholds and p-values from the scores of good images: functions of arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skpatchcore._utils.warning import warn_user


def conformal_rank(n: int, contamination: float) -> int:
    """Return which of `n` calibration scores, ascending in anomaly from 1, is the threshold; ``n + 1`` if none will do.

    ``ceil((n + 1)(1 - contamination))``: above it, a good image that is exchangeable with the `n` falls with a
    probability of at most `contamination`.
    """
    # rounding first: (n + 1)(1 - 0.9) shall not be a little more than a whole number
    return math.ceil(round((n + 1) * (1 - contamination), 9))


def conformal_threshold(anomaly_scores: np.ndarray, contamination: float | str) -> float:
    """Return the threshold that flags at most a share `contamination` of good images; bigger scores = more anomalous.

    Parameters
    ----------
    anomaly_scores : array of shape (n_images,)
        Scores of good images that had no part in what they are compared with. NaN is left out.
    contamination : float in (0, 0.5] or "auto"
        Accepted share of good images flagged; ``"auto"`` flags none of these.

    Returns
    -------
    float
        A score *above* it is flagged: the ``ceil((n + 1)(1 - contamination))``-th smallest of the scores, the conformal
        quantile. NaN where there are no scores.

    Warns
    -----
    UserWarning
        If there are too few images to promise so small a share; the largest score is returned then.
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
            f"contamination={contamination:g} can't be promised with {n} calibration images: the smallest share "
            f"that can is 1/{n + 1} = {1 / (n + 1):.3g}. The largest calibration score is the threshold.",
        )
        return float(scores[-1])
    return float(scores[rank - 1])


def conformal_p_values(calibration_scores: Any, scores: Any) -> np.ndarray:
    """Return how usual scores are among those of good images, **small = anomalous**; both: bigger = more normal.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,)
        Scores of good images that had no part in what they are compared with, such as a detector's
        ``calibration_scores_``. NaN is left out.
    scores : array of shape (n_images,)
        Scores of the images in question, such as ``detector.score_samples(X)``.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at most the score) / (n_calibration + 1)``: never 0, and for good
        images that are exchangeable with the calibration images at most `p` with a probability of at most `p`.

    Raises
    ------
    ValueError
        If there are no calibration scores, or a score is NaN.

    References
    ----------
    Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; for outliers: Bates, Candès, Lei, Romano
    and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51, 2023.

    Examples
    --------
    >>> from skpatchcore import conformal_p_values
    >>> conformal_p_values([-4.0, -3.0, -2.0], [-5.0, -3.0, -1.0])
    array([0.25, 0.75, 1.  ])
    """
    return upper_tail_p_values(-np.asarray(calibration_scores, np.float64), -np.asarray(scores, np.float64))


def upper_tail_p_values(calibration_scores: np.ndarray, anomaly_scores: np.ndarray) -> np.ndarray:
    """Return the p-values of :func:`conformal_p_values` for anomaly scores, **bigger = more anomalous**.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,), float64
        Anomaly scores, or peaks of anomaly maps, of good images. NaN is ignored.
    anomaly_scores : array of shape (n_images,), float64
        Scores in question.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of calibration scores that are at least the score) / (n_calibration + 1)``.

    Raises
    ------
    ValueError
        If there are no calibration scores, or a score is NaN.
    """
    calibration = np.sort(calibration_scores[~np.isnan(calibration_scores)])
    n = len(calibration)
    if not n:
        raise ValueError("there are no calibration scores to compare with.")
    if np.isnan(anomaly_scores).any():
        raise ValueError(f"score {int(np.isnan(anomaly_scores).argmax())} is NaN: it can't be compared.")
    p_values: np.ndarray = (1 + n - np.searchsorted(calibration, anomaly_scores, side="left")) / (n + 1)
    return p_values
