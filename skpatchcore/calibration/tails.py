"""Calibration scores of images that look anomalous: :func:`anomalous_scores` finds a heavy tail of the scores."""

from __future__ import annotations

import numpy as np

# Fewer scores do not show how much the scores of good images vary.
_FEWEST = 20
# Number of interquartile ranges above the upper quartile. Tukey's fence for points that are far out is 3. The scores of
# good images have a heavier tail than a normal distribution, also as logarithms.
_FENCE = 4.0
# Smallest interquartile range of the logarithms that counts: scores of good images that hardly differ say little.
_LEAST = 0.05


def anomalous_scores(scores: np.ndarray) -> np.ndarray:
    """Return the indices of calibration scores that are far larger than those of most images.

    Parameters
    ----------
    scores : array of shape (n_images,)
        Anomaly scores of the calibration images, **bigger = more anomalous**. NaN and scores that are not positive
        are never returned.

    Returns
    -------
    array of int
        Indices of the scores, the largest first. Empty if there are fewer than 20 positive scores.

    Notes
    -----
    The rule is Tukey's fence for the logarithms of the scores: scores are returned that lie more than 4 interquartile
    ranges above the upper quartile. A few defective images hardly change the quartiles. If a fifth of the images or
    more are defective, they are not returned, because they belong to the spread of the scores.

    References
    ----------
    Tukey, "Exploratory Data Analysis", 1977.
    """
    is_known = np.isfinite(scores) & (scores > 0)
    if np.count_nonzero(is_known) < _FEWEST:
        return np.zeros(0, np.int64)
    logarithms = np.full(len(scores), -np.inf)
    logarithms[is_known] = np.log(scores[is_known])
    lower, upper = np.quantile(logarithms[is_known], [0.25, 0.75])
    fence = upper + _FENCE * max(upper - lower, _LEAST)
    return np.argsort(-logarithms, kind="stable")[: np.count_nonzero(logarithms > fence)]


def left_out_p_values(scores: np.ndarray) -> np.ndarray:
    """Return the p-value of each calibration score among the other ones, **small = anomalous**.

    Parameters
    ----------
    scores : array of shape (n_images,)
        Calibration scores, **bigger = more normal**.

    Returns
    -------
    array of shape (n_images,), float64
        ``(1 + number of other scores that are at most the score) / (number of other scores + 1)``; NaN where the score
        is NaN.
    """
    known = np.sort(scores[~np.isnan(scores)])
    p_values = np.searchsorted(known, scores, side="right") / max(len(known), 1)
    return np.where(np.isnan(scores), np.nan, p_values)
