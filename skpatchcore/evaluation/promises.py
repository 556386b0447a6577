"""Recall of defective images at a promised false-positive rate, with the measured rate beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from skpatchcore.calibration.conformal import conformal_threshold

#: Promised false-positive rates by the ending of their columns.
RATES = {"01": 0.01, "05": 0.05, "10": 0.1}


def decisions_at_rates(calibration_scores: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return which fractions of defective and of good test images are flagged at each promised rate.

    Parameters
    ----------
    calibration_scores : array of shape (n_calibration,)
        Calibration scores of the detector, bigger = more normal.
    scores : array of shape (n_test,)
        Scores of the test images, bigger = more normal.
    labels : array of shape (n_test,)
        +1 for good and -1 for defective test images.

    Returns
    -------
    dict of str to float
        ``found_at_01``: fraction of the defective images that are flagged by the threshold that promises to flag at
        most 1 % of good images (bigger = better). ``flagged_at_01``: fraction of the good test images that this
        threshold flags; it should be about 0.01 or less. The same for 5 % and 10 %. NaN if there are too few
        calibration images to promise the rate.
    """
    known = -np.asarray(calibration_scores, np.float64)
    n = int(np.count_nonzero(~np.isnan(known)))
    row = {}
    for ending, rate in RATES.items():
        can_promise = n > 0 and 1 / (n + 1) <= rate
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            threshold = conformal_threshold(known, rate) if can_promise else math.nan
        for name, label in (("found", -1), ("flagged", 1)):
            flagged = float((-scores[labels == label] > threshold).mean())
            row[f"{name}_at_{ending}"] = flagged if can_promise else math.nan
    return row


def describe_rates(row: Mapping[str, Any]) -> str:
    """Return the recall at the promised rates in one sentence.

    Parameters
    ----------
    row : mapping
        Row of the table of :func:`~skpatchcore.evaluate`. Results of older versions lack the columns.

    Returns
    -------
    str
        The sentence. An empty text if no rate could be promised.
    """
    parts = []
    for ending, rate in RATES.items():
        found, flagged = (float(row.get(f"{name}_at_{ending}", math.nan)) for name in ("found", "flagged"))
        if not math.isnan(found):
            parts.append(
                f"{100 * found:.0f} % at a promised false-positive rate of {100 * rate:g} % (measured: "
                f"{round(flagged * row['n_good'])} of {row['n_good']} good images)"
            )
    return f"Defects found: {', '.join(parts)}." if parts else ""
