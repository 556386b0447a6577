"""describe_drift: one sentence if a batch of images looks drifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore.calibration.drift import DriftMonitor
from skpatchcore.patches.embedding import EmbeddingLog
from skpatchcore.reports.pipelines import detector_of

# Bound on the probability of a false alarm, and the fraction of defective images that is no drift.
_ALPHA, _DEFECT_RATE = 0.01, 0.05


def describe_drift(detector: Any, scores: Sequence[float], embeddings: EmbeddingLog | None = None) -> str | None:
    """Return a sentence if a batch of images looks drifted, otherwise None.

    Parameters
    ----------
    detector : detector or Pipeline
        The detector that scored the images.
    scores : sequence of float
        Scores of all images, bigger = more normal. NaN for images that could not be scored.
    embeddings : EmbeddingLog or None, default=None
        Embeddings of the images that were scored, in the same order. None compares the scores only.

    Returns
    -------
    str or None
        The sentence states what has changed. None also if the detector has nothing to compare the images with.

    Notes
    -----
    The images are compared in a random order. Files are often sorted by kind: many defective images in a row would look
    like a drift that begins there. In random order, up to 5 % of defective images raise no alarm. With more, the
    sentence names defective parts as a possible cause.
    """
    found = np.asarray(scores, np.float64)
    known = np.flatnonzero(~np.isnan(found))
    order = np.random.RandomState(0).permutation(len(known))
    try:
        monitor = DriftMonitor(detector_of(detector), alpha=_ALPHA, defect_rate=_DEFECT_RATE)
    except ValueError:  # no threshold, and too few embeddings
        return None
    is_complete = embeddings is not None and len(embeddings) == len(known)
    log = embeddings.taken(order) if embeddings is not None and is_complete else None
    monitor.update_scores(found[known][order], log)
    if not monitor.alarm_:
        return None
    return (
        f"The images look unlike the training images (drift): {monitor.causes()} The promised false-positive rate does "
        "not hold for such images, and defects may be missed."
    )
