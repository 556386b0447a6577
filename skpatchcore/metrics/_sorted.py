"""Pixels and images as sorted scores, from which all exact metrics are computed.

One sort of the scores suffices, because the position of a defective pixel among the sorted good pixels is the number of
good pixels that score higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from skimage.measure import label
from skimage.transform import resize as resize_image

_EMPTY = "the masks hold no {} pixel: the metric is not defined."


class F1Max(NamedTuple):
    """Maximum F1 score, and the threshold that reaches the maximum.

    Attributes
    ----------
    f1 : float
        Harmonic mean of precision and recall of the anomalous class; 1 is perfect.
    threshold : float
        Score at which the maximum is reached. Images or pixels whose scores are at least as anomalous as the threshold
        are classified as anomalous.
    n_misclassified : int
        Number of images or pixels that are classified wrongly at the threshold.
    """

    f1: float
    threshold: float
    n_misclassified: int


class Pixels(NamedTuple):
    """Anomaly scores of all pixels of all images."""

    good: np.ndarray  # scores of good pixels; the highest ones are sorted, see sorted_pixels
    defective: np.ndarray  # ascending
    regions: np.ndarray  # region of each defective pixel; empty if regions are not needed
    n_regions: int


def zipped(masks: Sequence[Any], maps: Sequence[Any]) -> Any:
    """Return the pairs of a mask and a map. Raise a ValueError if their numbers differ."""
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks and {len(maps)} maps: expected one mask and one map per image.")
    return zip(masks, maps, strict=True)


def mask_and_map(i: int, mask: Any, scored: Any, resize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Check the mask and the map of image `i`; return a bool mask and a float map of equal shape."""
    mask, scored = np.asarray(mask) != 0, np.asarray(scored)
    if scored.dtype not in (np.float32, np.float64):
        scored = scored.astype(np.float64)
    if mask.ndim != 2 or scored.ndim != 2 or (mask.shape != scored.shape and not resize):
        raise ValueError(
            f"image {i}: mask of shape {mask.shape} and map of shape {scored.shape} differ"
            f"{'' if mask.ndim == scored.ndim == 2 else ' or are not 2-D'}. Pass 2-D arrays of equal shape, or "
            "resize=True to resize masks to the sizes of their maps."
        )
    if np.isinf(scored).any() or np.isnan(scored).all():
        raise ValueError(f"image {i}: the map holds infinity, or only NaN. Pass maps with finite values.")
    if mask.shape != scored.shape:
        mask = resize_image(mask, scored.shape, order=0, anti_aliasing=False) > 0.5  # type: ignore[no-untyped-call]
    return mask, scored


def sorted_pixels(
    masks: Sequence[Any], maps: Sequence[Any], resize: bool, with_regions: bool = False, max_fpr: float = 1.0
) -> Pixels:
    """Gather the scores of all pixels; sort defective pixels, and the highest good pixels up to the rate `max_fpr`."""
    good, defective, regions, n_regions = [], [], [], 0
    for i, (mask, scored) in enumerate(zipped(masks, maps)):
        mask, scored = mask_and_map(i, mask, scored, resize)
        is_known = ~np.isnan(scored)
        good.append(scored[is_known & ~mask])
        if (known := is_known & mask).any():
            defective.append(scored[known])
            if with_regions:  # regions without an inspected pixel do not count
                numbers = np.asarray(label(mask, connectivity=2))  # type: ignore[no-untyped-call]
                inspected, own = np.unique(numbers[known], return_inverse=True)
                regions.append(own + n_regions)
                n_regions += len(inspected)
    if not defective:
        raise ValueError(_EMPTY.format("defective"))
    if not len(ok := np.concatenate(good)):
        raise ValueError(_EMPTY.format("good"))
    bad = np.concatenate(defective)
    n_below = len(ok) - min(len(ok), math.ceil(max_fpr * len(ok)) + 1)
    if n_below > 0:
        ok.partition(n_below)
    ok[n_below:].sort()
    order = bad.argsort(kind="stable")
    return Pixels(ok, bad[order], np.concatenate(regions)[order] if with_regions else np.zeros(0, int), n_regions)


def average_precision(good: np.ndarray, defective: np.ndarray) -> float:
    """Return the average precision from the sorted scores of good and defective pixels."""
    _, true, false = counts_at_scores(good, defective)
    recall_steps = np.diff(true, prepend=0) / true[-1]
    return min(float(np.sum(recall_steps * true / (true + false))), 1.0)


def counts_at_scores(good: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores of defective samples, descending, and the true and false positives at each score."""
    thresholds, numbers = np.unique(defective, return_counts=True)
    true = numbers[::-1].cumsum()
    false = len(good) - np.searchsorted(good, thresholds, side="left")
    return thresholds[::-1], true, false[::-1]


def f1_max(good: np.ndarray, defective: np.ndarray) -> F1Max:
    """Return the maximum F1 score from the sorted anomaly scores of good and defective samples."""
    # Scores of defective samples suffice as thresholds: others only add false positives.
    thresholds, true, false = counts_at_scores(good, defective)
    f1 = 2 * true / (true + false + len(defective))
    best = int(f1.argmax())
    missed = len(defective) - true[best]
    return F1Max(float(f1[best]), float(thresholds[best]), int(false[best] + missed))
