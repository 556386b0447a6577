"""CombinedDetector: the base class of detectors that combine the scores and maps of several fitted detectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, StrOptions
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.sketches import LEVELS
from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._results import turned
from skpatchcore.detectors._thresholds import older_thresholds
from skpatchcore.detectors._whole_image import WholeImageDetector
from skpatchcore.images.containers import n_images_of
from skpatchcore.images.errors import ImageError, InspectionWarning
from skpatchcore.patches.inspection import Inspection

# Constraints of the parameters that all subclasses have.
COMBINED_CONSTRAINTS: dict[str, Any] = {
    "aggregate": [StrOptions({"mean", "max"})],
    "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
    "pixel_contamination": [Interval(Real, 0, 0.5, closed="right"), None],
}


class CombinedDetector(DocumentationLinkMixin, OlderStatesMixin, ImageDetector, BaseEstimator):
    """Base class of detectors that combine the standardised scores and maps of several detectors, the members.

    A subclass must have the parameters ``aggregate``, ``contamination`` and ``pixel_contamination`` and the methods
    ``fit`` and ``_iter_scores``. ``fit`` calls ``_combine``, and ``_iter_scores`` calls ``_iter_combined``.
    """

    aggregate: str
    estimators_: list[Any]
    inspection_: Inspection | None

    def _combine(self, members: dict[str, Any], X: Any, advice: str) -> Self:
        """Store the fitted members, and calibrate their combination.

        Parameters
        ----------
        members : dict of str to detector
            The fitted members by name.
        X : samples of `fit`
            Only their number is used, in an error message.
        advice : str
            What to do if members are calibrated on different samples.
        """
        first = next(iter(members))
        images = scored_by(members[first])
        for name, member in members.items():
            if np.count_nonzero(~np.isnan(member.calibration_scores_)) < 2:
                raise ValueError(
                    f"{name!r} has too few calibration scores for the standardisation, from n_samples="
                    f"{n_images_of(X)}: at least 2 are needed. Set its calibration, or fit on more images."
                )
            if not np.array_equal(scored_by(member), images):
                raise ValueError(f"{name!r} calibrates on other images than {first!r}: {advice}")
        self.estimators_ = fitted = list(members.values())
        for learnt in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted[0], learnt):
                setattr(self, learnt, getattr(fitted[0], learnt))
            elif hasattr(self, learnt):  # an earlier fit on a table has set the attribute
                delattr(self, learnt)
        # A combined score is NaN for a calibration image that any of the members could not score.
        over_members = np.mean if self.aggregate == "mean" else np.max
        # The thresholds of a member with suspect_share leave out images that look anomalous to this member.
        images = reduce(np.intersect1d, [d.calibration_image_indices_ for d in fitted])
        common = [np.isin(d.calibration_image_indices_, images) for d in fitted]
        pairs = list(zip(fitted, common, strict=True))
        scores = over_members([_standardised(turned(d.calibration_scores_[some]), d) for d, some in pairs], axis=0)
        # Where only some members inspect a pixel, the combined map is the mean of these members only. It can exceed the
        # mean of the maxima, so the maximum is the bound.
        is_mean = self.aggregate == "mean" and inspect_the_same(fitted)
        peaks = [_standardised_map(d.calibration_peaks_[some], d) for d, some in pairs]
        peaks = np.mean(peaks, axis=0) if is_mean else np.max(peaks, axis=0)
        sketches = np.stack([d.calibration_sketches_[some] for d, some in pairs])
        sketches[:, :, 0] = [_standardised_map(d.calibration_sketches_[some, 0], d) for d, some in pairs]
        sketches = sketches.mean(axis=0) if is_mean else sketches_of_maximum(sketches)
        self.calibration_plan_ = fitted[0].calibration_plan_
        known = [part for d in fitted if (part := getattr(d, "inspection_", None)) is not None]
        self.inspection_ = joint_inspection(known) if len(known) == len(fitted) else None
        if self.inspection_ is not None and (problem := self.inspection_.problem()):
            warn_user(problem, InspectionWarning)
        self._set_thresholds(scores, peaks, sketches, images, self.contamination, self.pixel_contamination)
        return self

    def _iter_combined(
        self,
        images: Sequence[Any],
        of_map: Callable[[np.ndarray], Any] | None,
        adapt: bool,
        check: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Yield the combined anomaly score of one sample after another, with the value of the combined map.

        Parameters
        ----------
        images : sequence
            The images of each member.
        of_map, adapt
            As for ``_iter_scores``.
        check : callable or None, default=None
            ``check(index)`` raises an error if the maps of a sample cannot be combined.
        """
        check_is_fitted(self, "estimators_")
        whole_map = None if of_map is None else np.asarray
        over_members = np.mean if self.aggregate == "mean" else np.max
        of_members = [
            self._one_by_one(member, d._iter_scores(X, whole_map, adapt))
            for member, (d, X) in enumerate(zip(self.estimators_, images, strict=True))
        ]
        for index, results in enumerate(zip(*of_members, strict=True)):
            if check is not None:
                check(index)
            pairs = list(zip(results, self.estimators_, strict=True))
            scores = over_members([_standardised(score, d) for (score, _), d in pairs], axis=0)
            if of_map is None:
                yield scores, []
                continue
            maps = [_standardised_map(anomaly_map, d) for (_, anomaly_map), d in pairs]
            yield scores, [of_map(combined_map(maps, self.aggregate))]

    def _one_by_one(
        self, member: int, batches: Iterator[tuple[np.ndarray, list[Any]]]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield per image the score, as an array with one item, and the map, or None if there are no maps."""
        try:
            for scores, maps in batches:
                for i in range(len(scores)):
                    yield scores[i : i + 1], maps[i] if maps else None
        except ImageError as error:
            raise self._error_of(error, member) from error

    def _error_of(self, error: ImageError, member: int) -> ImageError:
        """Return the error of a member, with more details in its message if there are any."""
        return error

    def __setstate__(self, state: dict[str, Any]) -> None:
        older = {"inspection_": None, **older_thresholds(state)} if "offset_" in state else {}
        super().__setstate__({**older, **state})


def require_maps(members: dict[str, Any], owner: Any) -> None:
    """Raise a ValueError if some of the detectors of a combined detector, by name, have no anomaly maps."""
    for name, member in members.items():
        if isinstance(member, WholeImageDetector):
            raise ValueError(
                f"{name!r} is a {type(member).__name__}, which has no anomaly maps: a {type(owner).__name__} combines "
                "scores and maps. Choose a detector that scores patches, such as PatchCoreDetector."
            )


@contextmanager
def without_inspection_warnings() -> Iterator[None]:
    """Ignore the warnings of members about what they inspect: the combined detector warns once for all members."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InspectionWarning)
        yield


def inspect_the_same(members: Sequence[Any]) -> bool:
    """Return whether all members surely inspect the same pixels of each image."""
    parts = [part for member in members if (part := getattr(member, "inspection_", None)) is not None]
    if all(part.inspected == 1 for part in parts) and len(parts) == len(members):
        return True
    regions = [getattr(member, "roi_", None) for member in members]
    have_one_region = all(
        region is regions[0] or (region is not None and region.equals(regions[0])) for region in regions
    )
    return have_one_region and len({(part.seen, part.inspected) for part in parts}) <= 1


def joint_inspection(parts: Sequence[Inspection]) -> Inspection:
    """Return what several detectors inspect together, from what each of them inspects.

    The fractions of pixels are those of the member that inspects most, because the pixels of the others are not known:
    they are lower bounds. The patch size is the smallest one.
    """
    finest = min(parts, key=lambda part: max(part.patch_size))
    return replace(finest, seen=max(part.seen for part in parts), inspected=max(part.inspected for part in parts))


def combined_map(maps: Sequence[np.ndarray], aggregate: str) -> np.ndarray:
    """Return the mean or the maximum of anomaly maps at each pixel, over the maps that inspect the pixel.

    Parameters
    ----------
    maps : sequence of arrays of shape (height, width)
        Maps of the members, bigger = more anomalous. NaN marks pixels that a member does not inspect.
    aggregate : {"mean", "max"}
        How the values of a pixel are combined.

    Returns
    -------
    array of shape (height, width), float32
        NaN for a pixel that no member inspects.
    """
    stack = np.asarray(maps, np.float32)
    if aggregate == "max":
        found: np.ndarray = np.fmax.reduce(stack)
        return found
    n_known = np.count_nonzero(~np.isnan(stack), axis=0)
    if (n_known == len(stack)).all():
        return np.asarray(stack.mean(axis=0, dtype=np.float32))
    total = np.where(np.isnan(stack), np.float32(0), stack).sum(axis=0, dtype=np.float32)
    return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan).astype(np.float32)


def sketches_of_maximum(sketches: np.ndarray) -> np.ndarray:
    """Return sketches of the maximum of several maps, from the sketches of the maps.

    Parameters
    ----------
    sketches : array of shape (n_maps, n_images, 2, n_levels)
        Sketches of the maps of each image, as of :func:`~skpatchcore.calibration.sketches.sketch_of_map`.

    Returns
    -------
    array of shape (n_images, 2, n_levels), float32
        Upper bounds: a value of the maximum exceeds a threshold where a value of any map does. Therefore, the fraction
        of its pixels above a threshold is at most the sum of the fractions of the maps. The area of its largest region
        is estimated by the sum of the largest areas of the maps. The largest value is exact. NaN if a sketch is NaN.
    """
    _, n_images, _, n_levels = sketches.shape
    combined = np.full((n_images, 2, n_levels), np.nan, np.float32)
    for i in np.flatnonzero(~np.isnan(sketches).any(axis=(0, 2, 3))):
        values, areas = sketches[:, i, 0, ::-1], sketches[:, i, 1, ::-1]  # values in ascending order
        thresholds = np.unique(values)
        # For equal values, np.interp uses the last item, i.e. the smallest fraction. Nothing is above the maximum.
        fractions = np.sum([np.interp(thresholds, own, LEVELS[::-1], right=0.0) for own in values], axis=0)
        pairs = zip(values, areas, strict=True)
        largest = np.sum([np.interp(thresholds, own, area, right=0.0) for own, area in pairs], axis=0)
        # The smallest threshold with at most the fraction of each level above it; the fractions are descending.
        first = len(thresholds) - np.searchsorted(fractions[::-1], LEVELS, side="right")
        # No quantile of the maximum is below that of any map.
        combined[i, 0] = np.maximum(thresholds[first], sketches[:, i, 0].max(axis=0))
        combined[i, 1] = np.minimum(largest[first], 1.0)
    return combined


def scored_by(member: Any) -> np.ndarray:
    """Return the calibration images of a member, ascending, including images that its thresholds leave out."""
    known = member.calibration_image_indices_
    return np.union1d(known, getattr(member, "suspect_image_indices_", known[:0]))


def _standardised(anomaly_scores: np.ndarray, detector: Any) -> np.ndarray:
    """Standardise anomaly scores with the mean and the standard deviation of the calibration scores."""
    known = turned(detector.calibration_scores_)
    standardised: np.ndarray = (anomaly_scores - np.nanmean(known)) / _spread(known)
    return standardised


def _standardised_map(anomaly_map: np.ndarray, detector: Any) -> np.ndarray:
    """Standardise an anomaly map with the mean and the standard deviation of the calibration peaks."""
    known = detector.calibration_peaks_
    standardised: np.ndarray = (anomaly_map - np.nanmean(known)) / _spread(known)
    return standardised


def _spread(known: np.ndarray) -> float:
    """Return the standard deviation without NaN, or 1 if the standard deviation is 0."""
    return float(np.nanstd(known)) or 1.0
