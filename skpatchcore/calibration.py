"""Thresholds from nominal images alone: leave-one-out and conformal quantiles, as functions of arrays.

A training image's own patches are in the bank, so its score against the whole bank is far too good: a threshold
from such scores flags most good images. Everything here therefore works on scores of images whose own rows were left
out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np


def leave_group_out(groups: np.ndarray, bank_groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each group, the images that belong to it and the rows of the bank that came from it.

    Parameters
    ----------
    groups : array of shape (n_images,)
        Group of each image: its index where each is on its own.
    bank_groups : array of shape (n_bank,)
        Group of the image that each row of the bank came from.

    Yields
    ------
    images, rows : arrays of int
        Indices into the two.
    """
    for group in np.unique(groups):
        yield np.flatnonzero(groups == group), np.flatnonzero(bank_groups == group)


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
    # rounding first: (n + 1)(1 - 0.9) shall not be a little more than a whole number
    rank = math.ceil(round((n + 1) * (1 - float(contamination)), 9))
    if rank > n:
        warnings.warn(
            f"contamination={contamination:g} can't be promised with {n} calibration images: the smallest share "
            f"that can is 1/{n + 1} = {1 / (n + 1):.3g}. The largest calibration score is the threshold.",
            UserWarning,
            stacklevel=2,
        )
        return float(scores[-1])
    return float(scores[rank - 1])
