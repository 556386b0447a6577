"""f1_max_score: maximum F1 score of image scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from skpatchcore.metrics._sorted import F1Max, f1_max


def f1_max_score(y: Any, scores: Any) -> F1Max:
    """Return the maximum F1 score of all thresholds on image scores; the positive class is anomalous.

    Parameters
    ----------
    y : array of shape (n_images,)
        Labels: +1 good, -1 anomalous.
    scores : array of shape (n_images,)
        Image scores, **bigger = more normal**, as returned by `score_samples`.

    Returns
    -------
    F1Max
        The maximum F1 score (bigger = better), its threshold, and the number of images that are misclassified at this
        threshold, which the PatchCore paper reports. Here, an image is classified as anomalous if its score is *at
        most* the threshold. In contrast, `predict` of a detector returns -1 only for scores *below* ``offset_``.

    Raises
    ------
    ValueError
        If the lengths differ, a label is neither +1 nor -1, all labels are equal, or a score is NaN or infinite.

    Notes
    -----
    The labels select the threshold. The F1 score measures how separable the images are, not how good ``offset_`` is.

    Examples
    --------
    >>> from skpatchcore.metrics import f1_max_score
    >>> f1_max_score([1, 1, 1, -1, -1], [-1.0, -2.0, -4.0, -3.0, -5.0])
    F1Max(f1=0.8, threshold=-3.0, n_misclassified=1)
    """
    y, scores = np.asarray(y), np.asarray(scores, np.float64)
    if y.shape != scores.shape or y.ndim != 1:
        raise ValueError(
            f"y has shape {y.shape}, scores has shape {scores.shape}: expected one label and one score per image."
        )
    if set(np.unique(y)) != {-1, 1}:
        raise ValueError(f"y holds {np.unique(y)[:5].tolist()}: expected both +1 (good) and -1 (anomalous).")
    if not np.isfinite(scores).all():
        raise ValueError(f"score {int(np.isfinite(scores).argmin())} is NaN or infinite. Pass finite scores.")
    found = f1_max(np.sort(-scores[y == 1]), np.sort(-scores[y == -1]))
    return found._replace(threshold=-found.threshold)
