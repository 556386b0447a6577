"""detection_capability and capability_of_defects: which sizes of synthetic or real defects a detector finds."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import conformal_threshold
from skpatchcore.datasets.defects import DEFECT_KINDS, DEFECT_SIZES
from skpatchcore.evaluation._trials import (
    DrawnImages,
    Trial,
    drawable_pixels,
    extent_of,
    size_range,
    spread_sizes,
    transition,
)
from skpatchcore.evaluation.capability_result import ALL_KINDS, DetectionCapability, size_name_of
from skpatchcore.evaluation.pod import PodCurve, fit_pod
from skpatchcore.images.containers import as_image_sequence, listed
from skpatchcore.images.masks import read_mask
from skpatchcore.images.reading import image_size, load_image, path_of
from skpatchcore.protocols import pixel_format_of

_LEAST_TRIALS = 12
# Kinds of real defects with fewer images get no curve.
_LEAST_DEFECTS = 8


def detection_capability(
    detector: Any,
    good_images: Any,
    *,
    kinds: Sequence[str] = DEFECT_KINDS,
    contrasts: float | Sequence[float] = 0.6,
    n_trials: int = 60,
    size_ranges: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    contamination: float | None = None,
    region: Any = None,
    random_state: Any = 0,
    verbose: int = 0,
) -> DetectionCapability:
    """Return which sizes of synthetic defects a fitted detector finds: POD curves, a90 and a90/95.

    Defects of graded sizes are drawn on good images, and the detector scores the images. A logistic curve of the
    probability of detection (POD) against the size is fitted to the hits and misses. ``a90`` is the size at which 90 %
    of the defects are found, and ``a90_95`` is its upper bound at 95 % confidence.

    Parameters
    ----------
    detector : detector
        A fitted detector that reads images. It is not changed.
    good_images : as for the detector's `predict`
        Images of good parts on which the detector was not fitted. More images give more reliable bounds.
    kinds : sequence of str, default=DEFECT_KINDS
        Kinds of defects, see :func:`~skpatchcore.datasets.draw_defect`.
    contrasts : float or sequence of float in (0, 1], default=0.6
        Contrasts of the defects. There is one curve per kind and contrast.
    n_trials : int, default=60
        Number of defects per kind and contrast, at least 12. One third covers all sizes. The others lie where
        detection changes from rare to nearly certain. MIL-HDBK-1823A asks for at least 60 trials of hits and misses.
    size_ranges : (float, float), mapping of kind to (float, float), or None, default=None
        Smallest and largest size in pixels. None tests scratches from 0.5 px to 10 % of the shorter side of the image,
        and other kinds from 2 px to 50 %.
    contamination : float in (0, 0.5] or None, default=None
        Accepted false-alarm rate. The threshold is computed from the detector's ``calibration_scores_``. None uses the
        detector's own threshold ``offset_``.
    region : array of shape (height, width), bool, or None, default=None
        Region to which the defects are confined. All images must have its size. Pixels that the detector does not
        inspect (outside its crop or its region of interest) never get a defect.
    random_state : int, RandomState or None, default=0
        Seed of the sizes, positions and shapes.
    verbose : int, default=0
        If not 0, show a progress bar.

    Returns
    -------
    DetectionCapability
        The trials, curves, a90, a90/95, sentences, and the false alarms on the good images without defects.

    Raises
    ------
    ImageError
        If an image cannot be read. The error names its index and path.
    ValueError
        If good images are training images of the detector, if the detector reads no images or has no threshold, if all
        good images are flagged without a defect, or if a parameter is out of its range.

    Notes
    -----
    Good images that are flagged without a defect are left out of the trials. A hit is therefore caused by the defect,
    and not by a false alarm. Several trials share one good image; the confidence bounds account for this.

    Images are drawn one by one when the detector reads them, so memory does not grow with `n_trials`. An extractor with
    a cache (``memory=``) stores the features of each drawn image.

    Synthetic defects show what a detector can find if real defects have these shapes and contrasts. They cannot show
    that real defects are found. If there are labelled defects, measure them with
    :func:`~skpatchcore.capability_of_defects`.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor, detection_capability
    >>> from skpatchcore.datasets import make_textures
    >>> task = make_textures("gravel")
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images[::4])
    >>> good = task.test_images[task.test_labels == 1]
    >>> result = detection_capability(detector, good, kinds=["blob"], contrasts=0.9, n_trials=12)
    >>> result.to_frame()[["kind", "size", "n_trials"]].values.tolist()
    [['blob', 'diameter', 12]]
    """
    _check_detector(detector, contamination)
    images = as_image_sequence(listed(good_images))
    contrasts = [float(c) for c in np.atleast_1d(np.asarray(contrasts, np.float64))]
    kinds = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    _check(kinds, contrasts, n_trials, size_ranges)
    _require_held_out(detector, images)
    offset, promised = _threshold(detector, contamination)
    pixel_format = pixel_format_of(detector)
    if region is not None:
        region = np.asarray(region, bool)
    for i, image in enumerate(images) if region is not None else ():
        _check_region(image, i, region, pixel_format)
    untouched, regions, sides = [], [], []
    for result in detector.iter_results(images):
        untouched.append(result.score)
        regions.append(drawable_pixels(result.anomaly_map, region, result.index))
        sides.append(min(extent_of(result.anomaly_map.shape, regions[-1])))
    usable = np.flatnonzero(np.array(untouched) >= offset)
    if not len(usable):
        raise ValueError(
            f"all {len(images)} good images are flagged without a defect, so a defect cannot be found in them. Use "
            "images of good parts that are like the training images, or a larger contamination."
        )
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    cells = [(kind, contrast) for kind in kinds for contrast in contrasts]
    plans = [
        _Plan(kind, contrast, _range_of(kind, size_ranges, float(np.median(sides))), usable, (seed, number))
        for number, (kind, contrast) in enumerate(cells)
    ]
    n_first = max(n_trials // 3, 6)
    trials: list[Trial] = []
    scores = np.zeros(0)
    with progress_bar(len(plans) * n_trials, "scoring defects", "image", verbose) as bar:
        for n_new in (n_first, n_trials - n_first):
            new = [trial for plan in plans for trial in plan.next_trials(n_new)]
            new.sort(key=lambda trial: trial.image)  # an image is read once for all its defects
            drawn = DrawnImages(images, new, regions, pixel_format, on_drawn=lambda: bar.update(1))
            new_scores = detector.score_samples(drawn)
            trials, scores = trials + new, np.concatenate([scores, new_scores])
            for plan in plans:
                plan.learn(trials, scores < offset)
    table = pd.DataFrame(
        {
            "image": [trial.image for trial in trials],
            "kind": [trial.kind for trial in trials],
            "size": [trial.size for trial in trials],
            "contrast": [trial.contrast for trial in trials],
            "score": scores,
            "decision": scores - offset,
            "hit": scores < offset,
        }
    )
    all_drawn = DrawnImages(images, trials, regions, pixel_format)

    def draw(trial: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = all_drawn.draw(trial)
        return load_image(image, trials[trial].image, pixel_format=pixel_format), mask

    return DetectionCapability(
        table,
        {cell: plan.curve for cell, plan in zip(cells, plans, strict=True) if plan.curve is not None},
        {kind: size_name_of(kind) for kind in kinds},
        promised,
        offset,
        len(images),
        len(images) - len(usable),
        seed,
        draw,
        float(np.mean([1.0 if drawable is None else drawable.mean() for drawable in regions])),
    )


def capability_of_defects(
    detector: Any,
    images: Any,
    masks: Iterable[Any],
    *,
    kinds: Sequence[str] | None = None,
    size: str = "diameter",
    contamination: float | None = None,
    good_images: Any = None,
) -> DetectionCapability:
    """Return which sizes of real, labelled defects a fitted detector finds: POD curves, a90 and a90/95.

    Parameters
    ----------
    detector : detector
        A fitted detector that reads images. It is not changed.
    images : as for the detector's `predict`
        Images of defective parts.
    masks : sequence of arrays or paths
        One mask per image, as for :func:`~skpatchcore.datasets.read_mask`. Images with an empty mask are left out with
        a warning, because their defect has no size.
    kinds : sequence of str or None, default=None
        Kind of defect of each image. There is one curve per kind with at least 8 images, and one curve ``"all"`` if
        there are several kinds. None means that all defects are of the kind ``"all"``.
    size : {"diameter", "width"}, default="diameter"
        Size that is computed from the mask: the diameter of a circle with the area of all defective pixels, or the
        width, i.e. the diameter of the largest circle inside the mask. The width suits scratches and cracks.
    contamination : float in (0, 0.5] or None, default=None
        As for :func:`~skpatchcore.detection_capability`.
    good_images : images or None, default=None
        Held-out images of good parts, to measure the false-alarm rate.

    Returns
    -------
    DetectionCapability
        As for :func:`~skpatchcore.detection_capability`.

    Raises
    ------
    ImageError
        If an image cannot be read.
    ValueError
        If the lengths differ, if a mask cannot be read or has another size than its image, if no mask marks a pixel, or
        as in :func:`~skpatchcore.detection_capability`.

    Notes
    -----
    An image can be flagged by a false alarm although its defect is not noticed. The curve therefore has a lower
    asymptote: the promised false-alarm rate. The stated probabilities are those of detection beyond false alarms.

    The bounds assume that the labelled defects are a random sample of all defects of their size. Defects that somebody
    noticed and labelled are often easier to find than others.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor, capability_of_defects
    >>> from skpatchcore.datasets import make_textures
    >>> task = make_textures("brick")
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images[::4])
    >>> is_blob = task.test_defects == "blob"
    >>> result = capability_of_defects(detector, task.test_images[is_blob], task.test_masks[is_blob])
    >>> result.to_frame()[["kind", "size", "n_trials"]].values.tolist()
    [['all', 'diameter', 8]]
    """
    X = as_image_sequence(listed(images))
    masks = list(masks)
    names = [ALL_KINDS] * len(X) if kinds is None else [str(kind) for kind in kinds]
    if not len(X) == len(masks) == len(names):
        raise ValueError(f"{len(X)} images, {len(masks)} masks and {len(names)} kinds: expected one per image.")
    if size not in ("diameter", "width"):
        raise ValueError(f"size={size!r}: expected 'diameter' or 'width'.")
    _check_detector(detector, contamination)
    offset, promised = _threshold(detector, contamination)
    pixel_format = pixel_format_of(detector)
    n_good = n_flagged = 0
    if good_images is not None:
        good = as_image_sequence(listed(good_images))
        _require_held_out(detector, good)
        n_good, n_flagged = len(good), int((detector.score_samples(good) < offset).sum())
    measured = [
        mask_sizes(read_mask(mask, image_size(X[i], i, pixel_format=pixel_format))) for i, mask in enumerate(masks)
    ]
    table = pd.DataFrame(measured)
    kept = np.flatnonzero(table["area"] > 0)
    if not len(kept):
        raise ValueError("no mask marks a pixel, so no defect has a size.")
    if len(kept) < len(table):
        warn_user(f"{len(table) - len(kept)} of {len(table)} masks mark no pixel: these images are left out.")
    table, chosen = table.iloc[kept].reset_index(drop=True), [X[int(i)] for i in kept]
    scores = detector.score_samples(chosen)
    table = table.assign(
        image=kept, kind=[names[i] for i in kept], size=table[size], contrast=math.nan, score=scores,
        decision=scores - offset, hit=scores < offset,
    )  # fmt: skip
    table = table[["image", "kind", "size", "contrast", "score", "decision", "hit", "diameter", "width", "area"]]
    curves = {}
    for kind in sorted(set(table["kind"])):
        own = table[table["kind"] == kind]
        if len(own) >= _LEAST_DEFECTS or table["kind"].nunique() == 1:
            curves[kind, math.nan] = fit_pod(own["size"], own["hit"], false_alarm_rate=promised)
    if table["kind"].nunique() > 1 and ALL_KINDS not in set(table["kind"]):
        curves[ALL_KINDS, math.nan] = fit_pod(table["size"], table["hit"], false_alarm_rate=promised)

    def draw(trial: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = load_image(chosen[trial], int(kept[trial]), pixel_format=pixel_format)
        return pixels, read_mask(masks[int(kept[trial])], pixels.shape[:2])

    return DetectionCapability(
        table,
        curves,
        {kind: size for kind, _ in curves},
        promised,
        offset,
        n_good,
        n_flagged,
        None,
        draw,
    )


def mask_sizes(mask: np.ndarray) -> dict[str, float]:
    """Return the sizes of a defect in pixels, from its mask.

    Parameters
    ----------
    mask : array of shape (height, width), bool
        True for defective pixels.

    Returns
    -------
    dict
        ``area`` (number of pixels), ``diameter`` (of the circle with this area) and ``width`` (diameter of the largest
        circle inside the mask).
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return {"area": 0.0, "diameter": 0.0, "width": 0.0}
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    # With each pixel as 2 × 2 pixels, all widths are even, and the largest distance is exactly the width of a bar.
    width = float(distance_transform_edt(part.repeat(2, axis=0).repeat(2, axis=1)).max())
    return {"area": float(area), "diameter": 2 * math.sqrt(area / math.pi), "width": width}


def promised_rate(detector: Any, contamination: float | None = None) -> float:
    """Return the upper bound on the fraction of good images that are flagged, which the threshold promises.

    Parameters
    ----------
    detector : detector
        A fitted detector with calibration scores.
    contamination : float or None, default=None
        Requested rate; None means the rate of the detector's own threshold.
    """
    known = np.asarray(detector.calibration_scores_, np.float64)
    known = known[~np.isnan(known)]
    least = 1 / (len(known) + 1)
    if contamination is not None:
        return max(float(contamination), least)
    rate = float(detector.promised_rate_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if conformal_threshold(-known, min(rate, 0.5)) == -float(detector.offset_):
            return rate
    # The threshold was set by hand: count the calibration images that it flags.
    return float(1 + np.count_nonzero(known < detector.offset_)) * least


class _Plan:
    """The trials of one kind and contrast: sizes, images and seeds of the next trials, and the curve so far."""

    def __init__(
        self, kind: str, contrast: float, sizes: tuple[float, float], usable: np.ndarray, seed: tuple[int, int]
    ):
        self.kind, self.contrast, self.sizes, self.seed = kind, contrast, sizes, seed
        self.curve: PodCurve | None = None
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(usable)
        self._n = 0

    def next_trials(self, n: int) -> list[Trial]:
        low, high = self.sizes if self.curve is None else transition(self.curve, *self.sizes)
        sizes = self._rng.permutation(spread_sizes(low, high, n, self._rng))  # no image gets only small defects
        numbers = range(self._n, self._n + n)
        self._n += n
        return [
            Trial(int(self._order[i % len(self._order)]), self.kind, float(size), self.contrast, (*self.seed, i))
            for i, size in zip(numbers, sizes, strict=True)
        ]

    def learn(self, trials: Sequence[Trial], hits: np.ndarray) -> None:
        """Fit the curve to all trials of this kind and contrast."""
        own = [i for i, trial in enumerate(trials) if trial.kind == self.kind and trial.contrast == self.contrast]
        self.curve = fit_pod([trials[i].size for i in own], hits[own], groups=[trials[i].image for i in own])


def _check(kinds: Sequence[str], contrasts: Sequence[float], n_trials: int, size_ranges: Any) -> None:
    unknown = [kind for kind in kinds if kind not in DEFECT_SIZES]
    if unknown or not kinds:
        raise ValueError(f"kinds={list(kinds)!r}: expected some of {list(DEFECT_SIZES)}.")
    if not contrasts or not all(0 < contrast <= 1 for contrast in contrasts):
        raise ValueError(f"contrasts={list(contrasts)!r}: expected numbers in (0, 1].")
    if n_trials < _LEAST_TRIALS:
        raise ValueError(f"n_trials={n_trials}: expected at least {_LEAST_TRIALS}.")
    given = size_ranges.values() if isinstance(size_ranges, Mapping) else [size_ranges] if size_ranges else []
    for low, high in given:
        if not 0 < low < high < math.inf:
            raise ValueError(f"size_ranges: ({low!r}, {high!r}) is not a pair of positive, ascending sizes in pixels.")


def _check_detector(detector: Any, contamination: float | None) -> None:
    check_is_fitted(detector, "offset_")
    if hasattr(detector, "n_lights_"):
        raise ValueError("the detector inspects parts with several lights, on which no defects can be drawn.")
    if not get_tags(detector).input_tags.string:
        raise ValueError("the detector reads precomputed patch features. Use a detector that reads images.")
    if contamination is not None and not (isinstance(contamination, int | float) and 0 < contamination <= 0.5):
        raise ValueError(f"contamination={contamination!r}: expected a fraction in (0, 0.5] or None.")
    if math.isnan(detector.offset_):
        raise ValueError(
            "the detector has no threshold, so no defect can be found. Fit it with calibration, or pass good images to "
            "recalibrate."
        )


def _threshold(detector: Any, contamination: float | None) -> tuple[float, float]:
    """Return the threshold, as `offset_`, and the promised false-alarm rate."""
    if contamination is None:
        return float(detector.offset_), promised_rate(detector)
    offset = -conformal_threshold(-np.asarray(detector.calibration_scores_), contamination)
    return offset, promised_rate(detector, contamination)


def _require_held_out(detector: Any, images: Sequence[Any]) -> None:
    """Raise a ValueError if images are training images of the detector."""
    known = {
        os.path.realpath(path)
        for member in (detector, *getattr(detector, "estimators_", ()))
        for path in getattr(member, "training_paths_", None) or ()
        if path is not None
    }
    paths = [path for image in images if (path := path_of(image)) is not None] if known else []
    if trained := [path for path in paths if os.path.realpath(path) in known]:
        raise ValueError(
            f"{len(trained)} of {len(images)} good images are training images of the detector, the first is "
            f"{trained[0]!r}. Pass good images on which the detector was not fitted."
        )


def _check_region(image: Any, index: int, region: np.ndarray, pixel_format: Any) -> None:
    """Raise a ValueError if the region is empty or does not have the size of an image."""
    size = image_size(image, index, pixel_format=pixel_format)
    if region.shape != size or not region.any():
        raise ValueError(
            f"region has shape {region.shape} and {int(region.sum())} True pixels, but image {index} has shape {size}."
        )


def _range_of(kind: str, given: Any, shorter_side: float) -> tuple[float, float]:
    if isinstance(given, Mapping):
        given = given.get(kind)
    return size_range(kind, shorter_side) if given is None else (float(given[0]), float(given[1]))
