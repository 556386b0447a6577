"""PixelResults: everything that an evaluation knows about the pixels of the test images of a category."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skpatchcore.datasets import read_mask
from skpatchcore.metrics import aupimo_scores, pixel_metrics
from skpatchcore.metrics.counts import PixelCounts, count_pixels

_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05", "aupimo")
# Points of a curve that are kept for plots.
N_POINTS = 500


@dataclass
class PixelResults:
    """Pixel metrics of a category, and what they were computed from.

    Attributes
    ----------
    metrics : dict of str to float
        Pixel metrics by name, bigger = better. NaN without maps or without masks.
    pro : array of shape (2, n_points)
        Curve of the overlap of regions over the false-positive rate; empty without masks.
    aupimo : array of shape (n_test,)
        AUPIMO of each image; empty without masks.
    counts : PixelCounts or None
        Numbers of pixels above thresholds; None without masks.
    n_masks : int
        Number of defective images that are counted.
    inspected : float
        Fraction of the pixels that is inspected. NaN without maps.
    n_uninspected : int
        Number of images whose defective pixels are all not inspected.
    """

    metrics: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_METRICS, math.nan))
    pro: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))
    aupimo: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: PixelCounts | None = None
    n_masks: int = 0
    inspected: float = math.nan
    n_uninspected: int = 0


def pixel_results(
    maps: Sequence[Any],
    inspections: Sequence[Any],
    masks: Sequence[Any],
    labels: np.ndarray,
    as_seen: Callable[[np.ndarray], np.ndarray],
) -> PixelResults:
    """Return the pixel metrics of the test images.

    Parameters
    ----------
    maps : sequence of arrays, or of None
        Anomaly maps, bigger = more anomalous. None if the detector has no maps.
    inspections : sequence of bool arrays, or of None
        Inspected pixels of each image at its own size.
    masks : sequence
        Masks of the data set, or their files.
    labels : array of shape (n_test,)
        +1 for good and -1 for defective images.
    as_seen : callable
        Returns a mask at the resolution of the maps.

    Returns
    -------
    PixelResults
        Defective images without a mask, or without an inspected defective pixel, are not counted.
    """
    if any(anomaly_map is None for anomaly_map in maps):
        return PixelResults()
    own = [read_mask(mask, known.shape) for mask, known in zip(masks, inspections, strict=True)]
    unseen = [bool(mask.any() and not mask[known].any()) for mask, known in zip(own, inspections, strict=True)]
    seen = [as_seen(mask) for mask in own]
    counted = [i for i, mask in enumerate(seen) if labels[i] == 1 or (mask.any() and not unseen[i])]
    found = PixelResults(
        n_masks=len(counted) - int((labels == 1).sum()),
        inspected=float(np.mean([known.mean() for known in inspections])),
        n_uninspected=sum(unseen),
    )
    some, some_maps = [seen[i] for i in counted], [maps[i] for i in counted]
    if any((mask & ~np.isnan(anomaly_map)).any() for mask, anomaly_map in zip(some, some_maps, strict=True)):
        values, found.pro = pixel_metrics(some, some_maps, n_points=N_POINTS)
        overlaps = aupimo_scores(some, some_maps)
        found.metrics = {**values, "aupimo": float(np.nanmean(overlaps))}
        found.aupimo = np.full(len(labels), np.nan)
        found.aupimo[counted] = overlaps
        found.counts = _of_all_images(count_pixels(some, some_maps), counted, len(labels))
    return found


def _of_all_images(counts: PixelCounts, counted: Sequence[int], n_images: int) -> PixelCounts:
    """Return counts of all images. An image that is not counted has zeros."""
    parts = []
    for part in counts[1:]:
        whole = np.zeros((n_images, part.shape[1]), part.dtype)
        whole[counted] = part
        parts.append(whole)
    return PixelCounts(counts.thresholds, *parts)
