"""Metrics of image scores and anomaly maps: AUPRO, AUPIMO, ROC AUC, average precision and maximum F1 score.

All metrics are exact: every distinct score is a threshold. One sort of the scores suffices, because the position of a
defective pixel among the sorted good pixels is the number of good pixels that score higher.

NaN in a map marks a pixel that is not inspected. All metrics leave out such pixels, and defects without other pixels.
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


class _Pixels(NamedTuple):
    """Anomaly scores of all pixels of all images."""

    good: np.ndarray  # scores of good pixels; the highest ones are sorted, see _pixels
    defective: np.ndarray  # ascending
    regions: np.ndarray  # region of each defective pixel; empty if regions are not needed
    n_regions: int


def pro_curve(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int | None = None, resize: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the per-region-overlap (PRO) curve: mean overlap of the defects against the false-positive rate.

    Parameters
    ----------
    masks : sequence of arrays of shape (height, width)
        True or non-zero for defective pixels. All pixels of good images are False. Sizes may differ between images.
    maps : sequence of arrays of shape (height, width)
        Anomaly maps, bigger = more anomalous. Each map has the size of its mask. Pixels that are NaN are left out.
    n_points : int or None, default=None
        Maximum number of points of the curve, e.g., for a plot. The points are spread evenly over the false-positive
        rates. Each point is exact, and far less memory is needed. None returns all points.
    resize : bool, default=False
        If True, masks are resized to the sizes of their maps by nearest-neighbour interpolation. If False, different
        sizes raise an error.

    Returns
    -------
    fpr : array of shape (n_points,), float64
        False-positive rate: fraction of the good pixels of all images with a score of at least the threshold.
        Ascending from 0 to 1.
    pro : array of shape (n_points,), float64
        Per-region overlap: fraction of the pixels of a region with a score of at least the threshold, averaged over all
        regions of all images. A region is a connected component of defective pixels that touch by edges or corners.
    thresholds : array of shape (n_points,), float64
        Thresholds, descending from infinity. If `n_points` is None, every distinct score is a threshold.

    Raises
    ------
    ValueError
        If `masks` and `maps` differ in length, a mask and its map differ in size, a map holds infinity or only NaN, or
        there is no defective or no good pixel.

    References
    ----------
    Bergmann et al., "Uninformed Students", CVPR 2020; "The MVTec Anomaly Detection Dataset", IJCV 2021.
    """
    pixels = _pixels(masks, maps, resize, with_regions=True)
    if n_points is not None:
        return _thinned_pro(pixels, n_points)
    scores = np.concatenate([pixels.good, pixels.defective])
    good = np.concatenate([np.ones(len(pixels.good)), np.zeros(len(pixels.defective))])
    overlap = np.concatenate([np.zeros(len(pixels.good)), _region_weights(pixels)])
    order = scores.argsort(kind="stable")[::-1]
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # one point for each group of equal scores
    fpr, pro = good[order].cumsum()[last] / len(pixels.good), overlap[order].cumsum()[last]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, scores[last].astype(np.float64))


def aupro_score(masks: Sequence[Any], maps: Sequence[Any], *, max_fpr: float = 0.3, resize: bool = False) -> float:
    """Return the area under the per-region-overlap (PRO) curve up to a false-positive rate, **bigger = better**.

    At each threshold, PRO is the fraction of a defect's pixels that score at least the threshold, averaged over all
    defects. The false-positive rate is the fraction of the good pixels that score at least the threshold. Each distinct
    score is a threshold. The area is computed by the trapezoidal rule, with linear interpolation at `max_fpr`.

    Parameters
    ----------
    masks, maps
        One mask and one anomaly map per image, as for :func:`pro_curve`.
    max_fpr : float in (0, 1], default=0.3
        False-positive rate at which the integration ends. The area is divided by `max_fpr`. MVTec AD 2 uses 0.05.
    resize : bool, default=False
        As for :func:`pro_curve`.

    Returns
    -------
    float
        Normalised area in [0, 1]. 1 is perfect. The expected value for random maps is ``max_fpr / 2``.

    Raises
    ------
    ValueError
        If masks and maps do not match, a map holds infinity or only NaN, no pixel is defective, no pixel is good, or
        `max_fpr` is not in (0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import aupro_score
    >>> mask = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
    >>> aupro_score([mask], [np.array([[0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.1, 0.0]])])
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}: expected a number in (0, 1].")
    pixels = _pixels(masks, maps, resize, with_regions=True, max_fpr=max_fpr)
    return _area(pixels, _region_weights(pixels), max_fpr)


def pixel_roc_auc_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> float:
    """Return the area under the ROC curve over all pixels of all images, **bigger = better**.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect. The expected value for random maps is 0.5.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import pixel_roc_auc_score
    >>> mask = np.array([[False, True], [False, True]])
    >>> pixel_roc_auc_score([mask], [np.array([[0.1, 0.9], [0.4, 0.3]])])
    0.75
    """
    pixels = _pixels(masks, maps, resize)
    return _area(pixels, np.full(len(pixels.defective), 1 / len(pixels.defective)), 1.0)


def pixel_average_precision_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> float:
    """Return the average precision over all pixels of all images, **bigger = better**.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect. Random maps have about the fraction of defective pixels. As in ``average_precision_score`` of
        scikit-learn, the value is the sum of the precisions at all thresholds, weighted by the increases in recall.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    return _average_precision(*_pixels(masks, maps, resize)[:2])


def pixel_f1_max_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> F1Max:
    """Return the maximum F1 score of all thresholds on anomaly maps, over all pixels of all images.

    Parameters
    ----------
    masks, maps, resize
        One mask and one anomaly map per image, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    F1Max
        F1 score (bigger = better), threshold in units of the maps (inclusive), and number of misclassified pixels.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    return _f1_max(*_pixels(masks, maps, resize)[:2])


def pixel_metrics(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int = 500, resize: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Return all metrics of pixels and regions except AUPIMO, **bigger = better**.

    The pixels are sorted only once.

    Parameters
    ----------
    masks, maps, n_points, resize
        One mask and one map per image, the number of points, and whether masks are resized: as for :func:`pro_curve`.

    Returns
    -------
    metrics : dict of str to float
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, ``aupro`` (up to a false-positive rate of 0.3) and ``aupro_05``
        (up to 0.05). Each value equals the result of the function for this metric.
    curve : array of shape (2, n_points)
        False-positive rates and per-region overlaps of :func:`pro_curve`.

    Raises
    ------
    ValueError
        In the same cases as :func:`pro_curve`.
    """
    pixels = _pixels(masks, maps, resize, with_regions=True)
    weights = _region_weights(pixels)
    metrics = {
        "pixel_auroc": _area(pixels, np.full(len(pixels.defective), 1 / len(pixels.defective)), 1.0),
        "pixel_ap": _average_precision(*pixels[:2]),
        "pixel_f1_max": _f1_max(*pixels[:2]).f1,
        "aupro": _area(pixels, weights, 0.3),
        "aupro_05": _area(pixels, weights, 0.05),
    }
    return metrics, np.stack(_thinned_pro(pixels, n_points)[:2])


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
    found = _f1_max(np.sort(-scores[y == 1]), np.sort(-scores[y == -1]))
    return found._replace(threshold=-found.threshold)


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
    pairs = [_pair(i, mask, scored, resize) for i, (mask, scored) in enumerate(_zipped(masks, maps))]
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


def _zipped(masks: Sequence[Any], maps: Sequence[Any]) -> Any:
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks and {len(maps)} maps: expected one mask and one map per image.")
    return zip(masks, maps, strict=True)


def _pair(i: int, mask: Any, scored: Any, resize: bool) -> tuple[np.ndarray, np.ndarray]:
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


def _pixels(
    masks: Sequence[Any], maps: Sequence[Any], resize: bool, with_regions: bool = False, max_fpr: float = 1.0
) -> _Pixels:
    """Gather the scores of all pixels; sort defective pixels, and the highest good pixels up to the rate `max_fpr`."""
    good, defective, regions, n_regions = [], [], [], 0
    for i, (mask, scored) in enumerate(_zipped(masks, maps)):
        mask, scored = _pair(i, mask, scored, resize)
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
    return _Pixels(ok, bad[order], np.concatenate(regions)[order] if with_regions else np.zeros(0, int), n_regions)


def _region_weights(pixels: _Pixels) -> np.ndarray:
    """Return the contribution of each defective pixel to the mean overlap of the regions."""
    sizes = np.bincount(pixels.regions, minlength=pixels.n_regions)
    weights: np.ndarray = 1 / (sizes[pixels.regions] * pixels.n_regions)
    return weights


def _area(pixels: _Pixels, weights: np.ndarray, max_fpr: float) -> float:
    """Return the area under the curve of cumulative `weights` against the false-positive rate, divided by `max_fpr`.

    The horizontal axis is the number of good pixels above the threshold, up to
    `limit`. A defective pixel raises the curve by its weight at `above`, the number of good pixels that score higher,
    and adds ``weight * (limit - above)`` to the area. If good pixels have the same score, the curve rises linearly from
    `above` to `at_least`, the number of good pixels that score at least as high.
    """
    n_good = len(pixels.good)
    limit = max_fpr * n_good
    first = n_good - min(n_good, math.ceil(limit) + 1)
    top = pixels.good[first:]
    above = len(top) - np.searchsorted(top, pixels.defective, side="right")
    at_least = len(top) - np.searchsorted(top, pixels.defective, side="left")
    if first:  # count the scores in the unsorted part that equal the lowest sorted score
        at_lowest = at_least == len(top)
        ties = np.count_nonzero(pixels.good[:first] == top[0])
        at_least = at_least + np.where(at_lowest & (pixels.defective == top[0]), ties, 0)
    ties = np.maximum(at_least - above, 1)
    rise = np.where(at_least > limit, (limit - above) ** 2 / (2 * ties), limit - above - (at_least - above) / 2)
    return min(float(np.sum(weights * np.where(above < limit, rise, 0.0)) / limit), 1.0)  # rounding can exceed 1


def _thinned_pro(pixels: _Pixels, n_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points of the PRO curve at evenly spaced ranks of the good pixels, and at the lowest of all scores."""
    n_good = len(pixels.good)
    numbers = np.linspace(0, n_good - 1, max(n_points - 2, 1)).astype(np.int64)
    thresholds = np.unique(np.append(pixels.good[numbers], min(pixels.good[0], pixels.defective[0])))[::-1]
    fpr = (n_good - np.searchsorted(pixels.good, thresholds, side="left")) / n_good
    found = np.append(_region_weights(pixels)[::-1].cumsum()[::-1], 0.0)
    pro = found[np.searchsorted(pixels.defective, thresholds, side="left")]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, thresholds.astype(np.float64))


def _average_precision(good: np.ndarray, defective: np.ndarray) -> float:
    """Return the average precision from the sorted scores of good and defective pixels."""
    _, true, false = _counts(good, defective)
    recall_steps = np.diff(true, prepend=0) / true[-1]
    return min(float(np.sum(recall_steps * true / (true + false))), 1.0)


def _counts(good: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores of defective samples, descending, and the true and false positives at each score."""
    thresholds, numbers = np.unique(defective, return_counts=True)
    true = numbers[::-1].cumsum()
    false = len(good) - np.searchsorted(good, thresholds, side="left")
    return thresholds[::-1], true, false[::-1]


def _f1_max(good: np.ndarray, defective: np.ndarray) -> F1Max:
    """Return the maximum F1 score from the sorted anomaly scores of good and defective samples."""
    # Scores of defective samples suffice as thresholds: others only add false positives.
    thresholds, true, false = _counts(good, defective)
    f1 = 2 * true / (true + false + len(defective))
    best = int(f1.argmax())
    missed = len(defective) - true[best]
    return F1Max(float(f1[best]), float(thresholds[best]), int(false[best] + missed))
