"""aupimo_scores: per-image overlap at thresholds that nearly no pixel of good images reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore.metrics._sorted import mask_and_map, zipped


def aupimo_scores(
    masks: Sequence[Any],
    maps: Sequence[Any],
    *,
    fpr_bounds: tuple[float, float] = (1e-5, 1e-4),
    resize: bool = False,
) -> np.ndarray:
    """Return the per-image overlap (AUPIMO) of each anomalous image, **bigger = better**.

    The score is the mean pixel recall of the image at thresholds that nearly no pixel of good images reaches.

    Parameters
    ----------
    masks, maps
        One mask and one anomaly map per image, as for :func:`pro_curve`. Images with an empty mask are good images.
    fpr_bounds : (float, float), default=(1e-5, 1e-4)
        Lower and upper false-positive rate between which the recall is averaged, on a logarithmic scale. The rate is
        the fraction of the pixels of a good image that score at least the threshold, averaged over the good images.
    resize : bool, default=False
        Whether masks are resized, as for :func:`pro_curve`.

    Returns
    -------
    array of shape (n_images,), float64
        Scores in [0, 1]. NaN for good images, and for anomalous images without an inspected defective pixel.

    Raises
    ------
    ValueError
        If masks and maps do not match, a map holds infinity or only NaN, there is no good image, there is no anomalous
        image, or `fpr_bounds` do not ascend in (0, 1].

    Notes
    -----
    At thresholds above the highest score of all good pixels, the false-positive rate is 0, which has no logarithm. The
    recall just above that score is used for all rates up to the rate at that score.

    References
    ----------
    Bertoldo, Vezakis et al., "AUPIMO: Redefining Anomaly Localization Benchmarks with High Speed and Low Tolerance",
    BMVC 2024.
    """
    low, high = fpr_bounds
    if not 0 < low < high <= 1:
        raise ValueError(f"fpr_bounds={fpr_bounds}: expected 0 < lower < upper <= 1.")
    pairs = [mask_and_map(i, mask, scored, resize) for i, (mask, scored) in enumerate(zipped(masks, maps))]
    is_good = np.array([not mask.any() for mask, _ in pairs])
    if is_good.all() or not is_good.any():
        raise ValueError(
            "all images are good, or all are anomalous: AUPIMO needs at least one good image and one anomalous image."
        )
    tops, weights = [], []
    for scored in (scored[~np.isnan(scored)] for (_, scored), good in zip(pairs, is_good, strict=True) if good):
        # At the score of rank n_kept, this image alone raises the mean rate above the upper bound. Drop lower scores.
        n_kept = min(scored.size, math.ceil(high * is_good.sum() * scored.size) + 1)
        top = scored[scored >= np.partition(scored, scored.size - n_kept)[scored.size - n_kept]]
        tops.append(top)
        weights.append(np.full(len(top), 1 / scored.size / is_good.sum()))
    scores, weight = np.concatenate(tops), np.concatenate(weights)
    order = scores.argsort(kind="stable")[::-1]
    scores, rates = scores[order], weight[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    steps, rates = scores[last], rates[last]
    # At the threshold steps[k], the log rate increases from begins[k] to ends[k].
    end = np.searchsorted(rates, high) + 1
    steps, rates = steps[:end], rates[:end]
    begins = np.log(np.append(low, np.maximum(rates[:-1], low)))
    ends = np.log(np.clip(rates, low, high))
    results = np.full(len(pairs), np.nan)
    for i in np.flatnonzero(~is_good):
        mask, scored = pairs[i]
        found = np.sort(scored[mask & ~np.isnan(scored)])
        if not len(found):
            continue
        above = 1 - np.searchsorted(found, steps, side="right") / len(found)
        at_least = 1 - np.searchsorted(found, steps, side="left") / len(found)
        # If defective pixels have the same score as good pixels, interpolate the recall linearly along the log rate.
        # The integral over an interval is the recall in its middle times its width.
        true_begin, true_end = np.log(np.append(rates[0], rates[:-1])), np.log(rates)
        width = np.where(true_end > true_begin, true_end - true_begin, 1.0)
        slope = np.where(true_end > true_begin, (at_least - above) / width, 0.0)
        middle = above + slope * ((begins + ends) / 2 - true_begin).clip(min=0)
        results[i] = np.sum(middle * (ends - begins).clip(min=0)) / math.log(high / low)
    return results
