"""How well scores and maps tell defects from good parts: exact, at every threshold there is.

Nothing here walks over a grid of thresholds. What counts is how many good pixels score above each defective one, and
that is read off the sorted scores of the good pixels: one sort, whatever the number of thresholds, images or defects.
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
    """The best F1 score, and where it is reached.

    Attributes
    ----------
    f1 : float
        Harmonic mean of precision and recall of what is anomalous; 1 is perfect.
    threshold : float
        What is at least as anomalous as it counts as anomalous.
    n_misclassified : int
        How many are on the wrong side of it.
    """

    f1: float
    threshold: float
    n_misclassified: int


class _Pixels(NamedTuple):
    """Scores of all pixels: of good ones, ascending; and of defective ones, ascending, with the region of each."""

    good: np.ndarray
    defective: np.ndarray
    regions: np.ndarray
    n_regions: int


def pro_curve(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int | None = None, resize: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the per-region-overlap curve: how much of each defect is found, beside the good pixels that are flagged.

    Parameters
    ----------
    masks : sequence of arrays of shape (height, width)
        True (or non-zero) where a pixel is defective; all False for good images. Sizes may differ between images.
    maps : sequence of arrays of shape (height, width)
        Anomaly maps, bigger = more anomalous, each of its mask's size.
    n_points : int or None, default=None
        For a picture: at most so many points of the curve, evenly spread over the false-positive rates, in far less
        memory. Those that are returned are exact. None returns all.
    resize : bool, default=False
        Bring masks to their maps' sizes, by nearest neighbours, where they differ.

    Returns
    -------
    fpr : array of shape (n_points,), float64
        Share of the good pixels of all images that score at least the threshold; ascending from 0 to 1.
    pro : array of shape (n_points,), float64
        The same share of each connected region of defective pixels (touching by edges or corners), averaged over all
        regions of all images.
    thresholds : array of shape (n_points,), float64
        Descending from infinity; without `n_points` every distinct score is one.

    Raises
    ------
    ValueError
        If lengths or sizes differ, a map holds NaN or infinity, or there is no defective or no good pixel.

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
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last point of each tie
    fpr, pro = good[order].cumsum()[last] / len(pixels.good), overlap[order].cumsum()[last]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, scores[last].astype(np.float64))


def aupro_score(masks: Sequence[Any], maps: Sequence[Any], *, max_fpr: float = 0.3, resize: bool = False) -> float:
    """Return the area under the per-region-overlap curve up to a false-positive rate, **bigger = better**.

    Parameters
    ----------
    masks, maps
        As for :func:`pro_curve`.
    max_fpr : float in (0, 1], default=0.3
        Where the area ends; it is divided by it. MVTec AD 2 uses 0.05.
    resize : bool, default=False
        As for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect; chance is half of `max_fpr`.

    Raises
    ------
    ValueError
        As :func:`pro_curve`, and if `max_fpr` is out of its range.

    Notes
    -----
    The integral of the exact curve by trapezoids, interpolated at the limit. Only good pixels above the limit are
    sorted.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import aupro_score
    >>> mask = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
    >>> aupro_score([mask], [np.array([[0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.1, 0.0]])])
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}: expected a share in (0, 1].")
    pixels = _pixels(masks, maps, resize, with_regions=True, max_fpr=max_fpr)
    return _area(pixels, _region_weights(pixels), max_fpr)


def pixel_roc_auc_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> float:
    """Return the area under the ROC curve over all pixels of all images, **bigger = better**.

    Parameters
    ----------
    masks, maps, resize
        As for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect, 0.5 is chance.

    Raises
    ------
    ValueError
        As :func:`pro_curve`.

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
        As for :func:`pro_curve`.

    Returns
    -------
    float
        1 is perfect; chance is the share of defective pixels. As scikit-learn's ``average_precision_score`` has it: the
        sum of precisions at each threshold, weighted by the step in recall.

    Raises
    ------
    ValueError
        As :func:`pro_curve`.
    """
    return _average_precision(*_pixels(masks, maps, resize)[:2])


def pixel_f1_max_score(masks: Sequence[Any], maps: Sequence[Any], *, resize: bool = False) -> F1Max:
    """Return the best F1 score that any threshold on anomaly maps reaches, over all pixels of all images.

    Parameters
    ----------
    masks, maps, resize
        As for :func:`pro_curve`.

    Returns
    -------
    F1Max
        The score, the threshold (in the maps' units) and the number of misclassified pixels.

    Raises
    ------
    ValueError
        As :func:`pro_curve`.
    """
    return _f1_max(*_pixels(masks, maps, resize)[:2])


def pixel_metrics(
    masks: Sequence[Any], maps: Sequence[Any], *, n_points: int = 500, resize: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Return all metrics of pixels and regions, but for AUPIMO, from one sort of the pixels.

    Parameters
    ----------
    masks, maps, n_points, resize
        As for :func:`pro_curve`.

    Returns
    -------
    metrics : dict of str to float
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, ``aupro`` (up to a false-positive rate of 0.3) and ``aupro_05``
        (0.05), each what its own function returns; **bigger = better**.
    curve : array of shape (2, n_points)
        The first two of what :func:`pro_curve` returns.

    Raises
    ------
    ValueError
        As :func:`pro_curve`.
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
    """Return the best F1 score in finding anomalous images that any threshold on their scores reaches.

    Parameters
    ----------
    y : array of shape (n_images,)
        +1 good, -1 anomalous.
    scores : array of shape (n_images,)
        **Bigger = more normal**, as `score_samples` has it.

    Returns
    -------
    F1Max
        The score; the threshold, at or below which an image counts as anomalous; and the number of images on the wrong
        side of it, which the paper reports.

    Raises
    ------
    ValueError
        If lengths differ, labels are others than +1 and -1 or all the same, or a score is NaN or infinite.

    Notes
    -----
    It knows the labels: a measure of how separable the images are, not of how well a threshold was set.

    Examples
    --------
    >>> from skpatchcore.metrics import f1_max_score
    >>> f1_max_score([1, 1, 1, -1, -1], [-1.0, -2.0, -4.0, -3.0, -5.0])
    F1Max(f1=0.8, threshold=-3.0, n_misclassified=1)
    """
    y, scores = np.asarray(y), np.asarray(scores, np.float64)
    if y.shape != scores.shape or y.ndim != 1:
        raise ValueError(f"y of shape {y.shape} and scores of shape {scores.shape}: expected one of each an image.")
    if set(np.unique(y)) != {-1, 1}:
        raise ValueError(f"y holds {np.unique(y)[:5].tolist()}: expected both +1 (good) and -1 (anomalous).")
    if not np.isfinite(scores).all():
        raise ValueError(f"score {int(np.isfinite(scores).argmin())} is NaN or infinite.")
    found = _f1_max(np.sort(-scores[y == 1]), np.sort(-scores[y == -1]))
    return found._replace(threshold=-found.threshold)


def aupimo_scores(
    masks: Sequence[Any],
    maps: Sequence[Any],
    *,
    fpr_bounds: tuple[float, float] = (1e-5, 1e-4),
    resize: bool = False,
) -> np.ndarray:
    """Return how much of each anomalous image's defects is found while nearly no pixel of good images is flagged.

    Parameters
    ----------
    masks, maps
        As for :func:`pro_curve`. Images whose mask is empty are the good ones.
    fpr_bounds : (float, float), default=(1e-5, 1e-4)
        Between which false-positive rates recall is averaged, on a logarithmic scale. The rate is that of each good
        image, averaged over the good images.
    resize : bool, default=False
        As for :func:`pro_curve`.

    Returns
    -------
    array of shape (n_images,), float64
        In [0, 1], **bigger = better**; NaN for good images.

    Raises
    ------
    ValueError
        As :func:`pro_curve`, and if there is no good or no anomalous image, or bounds are out of order.

    Notes
    -----
    Below the first good pixel that is flagged, the false-positive rate is 0; recall there counts for all rates up to
    that pixel's.

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
        raise ValueError("AUPIMO is defined by good images and anomalous ones: one of the two is missing.")
    tops, weights = [], []
    for scored in (scored.ravel() for (_, scored), good in zip(pairs, is_good, strict=True) if good):
        # one image's pixels carry the average only as far as all are above the upper bound; ties belong together
        n_kept = min(scored.size, math.ceil(high * is_good.sum() * scored.size) + 1)
        top = scored[scored >= np.partition(scored, scored.size - n_kept)[scored.size - n_kept]]
        tops.append(top)
        weights.append(np.full(len(top), 1 / scored.size / is_good.sum()))
    scores, weight = np.concatenate(tops), np.concatenate(weights)
    order = scores.argsort(kind="stable")[::-1]
    scores, rates = scores[order], weight[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    steps, rates = scores[last], rates[last]
    # Each good score lets the rate rise, from what it was above the score to what it is from the score on.
    end = np.searchsorted(rates, high) + 1
    steps, rates = steps[:end], rates[:end]
    begins = np.log(np.append(low, np.maximum(rates[:-1], low)))
    ends = np.log(np.clip(rates, low, high))
    results = np.full(len(pairs), np.nan)
    for i in np.flatnonzero(~is_good):
        mask, scored = pairs[i]
        found = np.sort(scored[mask])
        above = 1 - np.searchsorted(found, steps, side="right") / len(found)
        at_least = 1 - np.searchsorted(found, steps, side="left") / len(found)
        # Where a tie lets both rise, recall rises in a straight line along the logarithm of the rate.
        true_begin, true_end = np.log(np.append(rates[0], rates[:-1])), np.log(rates)
        width = np.where(true_end > true_begin, true_end - true_begin, 1.0)
        slope = np.where(true_end > true_begin, (at_least - above) / width, 0.0)
        middle = above + slope * ((begins + ends) / 2 - true_begin).clip(min=0)
        results[i] = np.sum(middle * (ends - begins).clip(min=0)) / math.log(high / low)
    return results


def _zipped(masks: Sequence[Any], maps: Sequence[Any]) -> Any:
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks and {len(maps)} maps: expected one of each an image.")
    return zip(masks, maps, strict=True)


def _pair(i: int, mask: Any, scored: Any, resize: bool) -> tuple[np.ndarray, np.ndarray]:
    mask, scored = np.asarray(mask) != 0, np.asarray(scored)
    if scored.dtype not in (np.float32, np.float64):
        scored = scored.astype(np.float64)
    if mask.ndim != 2 or scored.ndim != 2 or (mask.shape != scored.shape and not resize):
        raise ValueError(
            f"image {i}: mask of shape {mask.shape} and map of shape {scored.shape} differ"
            f"{'' if mask.ndim == scored.ndim == 2 else ' or are not 2-D'}; resize=True brings masks to their maps' "
            "sizes."
        )
    if not np.isfinite(scored).all():
        raise ValueError(f"image {i}: the map holds NaN or infinity.")
    if mask.shape != scored.shape:
        mask = resize_image(mask, scored.shape, order=0, anti_aliasing=False) > 0.5  # type: ignore[no-untyped-call]
    return mask, scored


def _pixels(
    masks: Sequence[Any], maps: Sequence[Any], resize: bool, with_regions: bool = False, max_fpr: float = 1.0
) -> _Pixels:
    """Gather the pixels; of good ones, all count, but only those above the `max_fpr` of them need be in order."""
    good, defective, regions = [], [], []
    n_regions = 0
    for i, (mask, scored) in enumerate(_zipped(masks, maps)):
        mask, scored = _pair(i, mask, scored, resize)
        good.append(scored[~mask])
        if mask.any():
            defective.append(scored[mask])
            if with_regions:
                numbers, n_own = label(mask, connectivity=2, return_num=True)  # type: ignore[no-untyped-call]
                regions.append(numbers[mask] - 1 + n_regions)
                n_regions += n_own
    if not defective:
        raise ValueError(_EMPTY.format("defective"))
    ok, bad = np.concatenate(good), np.concatenate(defective)
    if not len(ok):
        raise ValueError(_EMPTY.format("good"))
    n_below = len(ok) - min(len(ok), math.ceil(max_fpr * len(ok)) + 1)
    if n_below > 0:
        ok.partition(n_below)
    ok[n_below:].sort()
    order = bad.argsort(kind="stable")
    numbers = np.concatenate(regions)[order] if with_regions else np.zeros(0, np.int64)
    return _Pixels(ok, bad[order], numbers, n_regions)


def _region_weights(pixels: _Pixels) -> np.ndarray:
    """Return what each defective pixel adds to the average overlap of the regions."""
    sizes = np.bincount(pixels.regions, minlength=pixels.n_regions)
    weights: np.ndarray = 1 / (sizes[pixels.regions] * pixels.n_regions)
    return weights


def _area(pixels: _Pixels, weights: np.ndarray, max_fpr: float) -> float:
    """Return the area under the curve of cumulated `weights` over the share of good pixels, up to `max_fpr`, over it.

    A defective pixel counts from where good pixels score less than it; with those that score the same, the curve rises
    in a straight line.
    """
    n_good = len(pixels.good)
    limit = max_fpr * n_good
    first = n_good - min(n_good, math.ceil(limit) + 1)
    top = pixels.good[first:]
    above = len(top) - np.searchsorted(top, pixels.defective, side="right")
    at_least = len(top) - np.searchsorted(top, pixels.defective, side="left")
    if first:  # ties of the lowest one in order may lie below it, out of order
        at_lowest = at_least == len(top)
        ties = np.count_nonzero(pixels.good[:first] == top[0])
        at_least = at_least + np.where(at_lowest & (pixels.defective == top[0]), ties, 0)
    ties = np.maximum(at_least - above, 1)
    rise = np.where(at_least > limit, (limit - above) ** 2 / (2 * ties), limit - above - (at_least - above) / 2)
    # rounding may carry a perfect ranking beyond 1
    return min(float(np.sum(weights * np.where(above < limit, rise, 0.0)) / limit), 1.0)


def _thinned_pro(pixels: _Pixels, n_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points of the curve at thresholds that are scores of good pixels, and at the lowest score of all."""
    n_good = len(pixels.good)
    numbers = np.linspace(0, n_good - 1, max(n_points - 2, 1)).astype(np.int64)
    lowest = min(pixels.good[0], pixels.defective[0])
    thresholds = np.unique(np.append(pixels.good[numbers], lowest))[::-1]
    fpr = (n_good - np.searchsorted(pixels.good, thresholds, side="left")) / n_good
    found = np.append(_region_weights(pixels)[::-1].cumsum()[::-1], 0.0)
    pro = found[np.searchsorted(pixels.defective, thresholds, side="left")]
    return np.append(0.0, fpr), np.append(0.0, pro.clip(max=1.0)), np.append(np.inf, thresholds.astype(np.float64))


def _average_precision(good: np.ndarray, defective: np.ndarray) -> float:
    _, true, false = _counts(good, defective)
    recall_steps = np.diff(true, prepend=0) / true[-1]
    return min(float(np.sum(recall_steps * true / (true + false))), 1.0)


def _counts(good: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores of defective ones, descending, and how many of either kind score at least as much."""
    thresholds, numbers = np.unique(defective, return_counts=True)
    true = numbers[::-1].cumsum()
    false = len(good) - np.searchsorted(good, thresholds, side="left")
    return thresholds[::-1], true, false[::-1]


def _f1_max(good: np.ndarray, defective: np.ndarray) -> F1Max:
    # between the scores of two defective ones, a lower threshold only flags more good ones
    thresholds, true, false = _counts(good, defective)
    f1 = 2 * true / (true + false + len(defective))
    best = int(f1.argmax())
    missed = len(defective) - true[best]
    return F1Max(float(f1[best]), float(thresholds[best]), int(false[best] + missed))
