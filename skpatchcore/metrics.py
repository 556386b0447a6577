"""How well scores and maps tell defects from good parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score


def pixel_roc_auc_score(masks: Sequence[Any], maps: Sequence[Any]) -> float:
    """Return the area under the ROC curve over all pixels of all images; 1 is perfect, 0.5 is chance.

    Parameters
    ----------
    masks : sequence of arrays of shape (height, width), bool
        True (or non-zero) where a pixel is defective; all False for good images. Sizes may differ between images.
    maps : sequence of arrays of shape (height, width)
        Anomaly maps, bigger = more anomalous, each of its mask's size.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If lengths or sizes differ, a map holds NaN, or there is no defective or no good pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import pixel_roc_auc_score
    >>> mask = np.array([[False, True], [False, True]])
    >>> pixel_roc_auc_score([mask], [np.array([[0.1, 0.9], [0.4, 0.3]])])
    0.75
    """
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks and {len(maps)} maps: expected one of each an image.")
    defective, scores = [], []
    for i, (mask, scored) in enumerate(zip(masks, maps, strict=True)):
        mask, scored = np.asarray(mask), np.asarray(scored)
        if mask.shape != scored.shape:
            raise ValueError(f"image {i}: mask of shape {mask.shape} and map of shape {scored.shape} differ.")
        if np.isnan(scored).any():
            raise ValueError(f"image {i}: the map holds NaN.")
        defective.append((mask != 0).ravel())
        scores.append(scored.ravel())
    labels = np.concatenate(defective) if defective else np.zeros(0, bool)
    if not labels.any() or labels.all():
        raise ValueError("the masks hold no defective or no good pixel: the ROC curve is not defined.")
    return float(roc_auc_score(labels, np.concatenate(scores)))
