"""CalibratedDetector: the base class that sets thresholds from the scores and maps of good images."""

from __future__ import annotations

import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.labels import is_nominal
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import conformal_threshold, promised_rate
from skpatchcore.calibration.sketches import no_sketches, pixel_threshold, sketch_of_map, smallest_area
from skpatchcore.detectors._results import turned
from skpatchcore.images.containers import listed, n_images_of, with_regions

# The value of `calibration_plan_` after `recalibrate` with images.
_OTHER = "other good images"


@contextmanager
def restored_on_failure(estimator: Any) -> Iterator[None]:
    """Restore the attributes of an estimator if the block raises."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


class CalibratedDetector(OutlierMixin):
    """Base class that sets the thresholds of a detector, and moves them without a new fit.

    A subclass must have the parameters ``contamination`` and ``pixel_contamination`` and the methods ``fit``,
    ``score_samples`` and ``_iter_scores``. ``fit`` must call ``_set_thresholds`` at its end.
    """

    contamination: float | str
    pixel_contamination: float | None
    calibration_scores_: np.ndarray
    calibration_peaks_: np.ndarray
    calibration_sketches_: np.ndarray
    calibration_image_indices_: np.ndarray
    calibration_plan_: str
    promised_rate_: float
    offset_: float
    pixel_offset_: float
    min_area_: float

    @abstractmethod
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> Any:
        """Fit on images of good parts, and set the thresholds."""

    @abstractmethod
    def score_samples(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return image scores, bigger = more normal."""

    @abstractmethod
    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Yield the anomaly scores of one batch after another, **bigger = more anomalous**, with values of the maps.

        Each pair holds the scores, of shape (n_batch,), and the list of ``of_map(anomaly_map)``, one value per image.
        If `of_map` is None, no maps are computed, and the list is empty. If `adapt` is True, the images are known to be
        good: `appearance_range_` is extended to include the images, without a warning.
        """

    def fit_predict(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> np.ndarray:
        """Fit on images and return the labels of *these* images: +1 for normal and -1 for anomalous ones.

        The detector is fitted on the images with the label +1 in `y`. The score of such an image is its calibration
        score, which is computed by a model that was not fitted on the image. In contrast, ``fit(X).predict(X)`` would
        compare each image with its own patches and return -1 for almost no image. About the fraction `contamination` of
        the images with the label +1 are labelled -1. To find anomalous images among them, set `contamination` to the
        expected fraction of anomalous images.

        Parameters
        ----------
        X, y, groups, roi : as for `fit`
            Images without the label +1 in `y` are scored by the fitted detector, as new images.

        Returns
        -------
        array of shape (n_images,), int
            +1 if the image's score is at least the threshold, otherwise -1. An image without a score is labelled -1. An
            image has no score if all patches in the model come from this image or from its group.

        Raises
        ------
        ImageError, ValueError
            As in `fit` and `predict`. In addition, a ValueError if the images with the label +1 do not all get a
            calibration score, e.g. with ``calibration=0.2``.
        """
        self._require_scores_of_training_images()
        X = with_regions(listed(X), roi)
        self.fit(X, y, groups=groups)
        self._require_threshold()
        # warn=False: fit has already warned about labels.
        nominal = is_nominal(y, n_images_of(X), is_table=hasattr(self, "n_features_in_"), warn=False)
        known = self._scores_of_training_images()
        if len(known) < nominal.sum():
            raise ValueError("calibration scores only a part of the training images: use 'leave-one-out' or folds.")
        scores = np.empty(len(nominal))
        scores[nominal] = known
        if not nominal.all():
            scores[~nominal] = self.score_samples(safe_indexing(X, np.flatnonzero(~nominal)))
        return np.where(scores >= self.offset_, 1, -1)

    def recalibrate(
        self,
        X: Any = None,
        *,
        contamination: float | str | None = None,
        pixel_contamination: float | None = None,
        roi: Any = None,
    ) -> Any:
        """Set new thresholds without a new fit, from new good images or for another false-positive rate.

        Parameters
        ----------
        X : as for `fit`, or None, default=None
            Good images on which the detector was not fitted. The bound on the false-positive rate then holds for new
            good images that are exchangeable with `X`. None uses the existing calibration scores.
        contamination : float in (0, 0.5], "auto" or None, default=None
            Accepted false-positive rate: fraction of good images for which `predict` may return -1. None uses the
            detector's parameter `contamination`. `recalibrate` never changes this parameter, and `fit` uses it again.
        pixel_contamination : float in (0, 0.5] or None, default=None
            Accepted fraction of the pixels of good images above the pixel threshold. None uses the detector's parameter
            `pixel_contamination`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        detector
            The detector itself, with new ``offset_``, ``pixel_offset_``, ``min_area_`` and ``promised_rate_``. If `X`
            is given, ``calibration_scores_``, ``calibration_peaks_``, ``calibration_sketches_`` and
            ``calibration_image_indices_`` are those of `X`, and ``calibration_plan_`` is "other good images". The
            brightness, colours and contrast of `X` are then included in ``appearance_range_``, and cause no warning in
            new images.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. In addition, a ValueError if `contamination` or `pixel_contamination` is out of its
            range, or if `X` is None and the detector has no threshold.

        Warns
        -----
        UserWarning
            If there are too few calibration images for the requested `contamination`.
        """
        check_is_fitted(self, "offset_")
        contamination = self.contamination if contamination is None else contamination
        if contamination != "auto" and (isinstance(contamination, str) or not 0 < contamination <= 0.5):
            raise ValueError(f"contamination={contamination!r}: expected a fraction in (0, 0.5] or 'auto'.")
        if pixel_contamination is None:
            pixel_contamination = self.pixel_contamination
        check_pixel_contamination(pixel_contamination)
        with restored_on_failure(self):
            self._recalibrate(listed(X), contamination, pixel_contamination, roi)
        return self

    def _recalibrate(self, X: Any, contamination: float | str, pixel_contamination: float | None, roi: Any) -> None:
        """Set and record new thresholds from the images `X`; from the existing calibration scores if it is None."""
        before = self._before_recalibration()
        if X is None:
            self._require_threshold()
            scores, sketches = turned(self.calibration_scores_), self.calibration_sketches_
            peaks, images = self.calibration_peaks_, self.calibration_image_indices_
        else:
            _warn_of_training_images(X, getattr(self, "training_paths_", None))
            parts = list(self._iter_scores(with_regions(X, roi), sketch_of_map, adapt=True))
            scores = np.concatenate([some for some, _ in parts])
            sketches = np.array([sketch for _, some in parts for sketch in some])
            peaks, images = peaks_of(sketches), np.arange(len(scores))
            self.calibration_plan_ = _OTHER
        self._set_thresholds(scores, peaks, sketches, images, contamination, pixel_contamination)
        self._after_recalibration(before, X, 0 if X is None else len(scores))

    def _calibrated_images(self) -> np.ndarray:
        """Return the index of each calibration image in the `X` of `fit`; -1 for images of `recalibrate`."""
        is_other = self.calibration_plan_ == _OTHER
        return np.full(len(self.calibration_scores_), -1) if is_other else self.calibration_image_indices_

    def _before_recalibration(self) -> Any:
        """Return what `_after_recalibration` needs to know of the detector before."""

    def _after_recalibration(self, before: Any, X: Any, n_images: int) -> None:
        """Record that `recalibrate` has set the thresholds. `X` are its images, or None."""

    def _set_thresholds(
        self,
        scores: np.ndarray,
        peaks: np.ndarray,
        sketches: np.ndarray,
        images: np.ndarray,
        contamination: float | str,
        pixel_contamination: float | None,
    ) -> None:
        """Set the thresholds from scores, map maxima and map sketches of calibration images, bigger = more anomalous.

        ``calibration_peaks_`` are an attribute of their own, because detectors of older versions have no sketches.
        """
        threshold = conformal_threshold(scores, contamination)
        rate = promised_rate(int(np.count_nonzero(~np.isnan(scores))), contamination)
        if pixel_contamination is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # conformal_threshold(scores, ...) has already warned
                pixel_offset = conformal_threshold(peaks, contamination)
        else:
            pixel_offset = self._pixel_threshold(sketches, pixel_contamination)
        self.calibration_scores_, self.calibration_peaks_, self.calibration_sketches_ = turned(scores), peaks, sketches
        self.calibration_image_indices_, self.promised_rate_ = images, rate
        self.offset_, self.pixel_offset_ = turned(threshold), pixel_offset
        self.min_area_ = smallest_area(sketches, pixel_offset, rate) if math.isfinite(rate) else math.nan

    def _pixel_threshold(self, sketches: np.ndarray, pixel_contamination: float) -> float:
        """Return the pixel threshold of a fraction of pixels. Raise a ValueError if there are no sketches."""
        threshold = pixel_threshold(sketches, pixel_contamination)
        if math.isnan(threshold) and len(sketches):
            raise ValueError(
                f"pixel_contamination={pixel_contamination:g} needs sketches of the calibration images' anomaly maps, "
                "and this detector has none. It was saved by an older version, or no calibration image could be "
                "scored. Fit again, or pass good images to recalibrate."
            )
        return threshold

    def _warn_of_thresholds(self, params: dict[str, Any]) -> None:
        """Warn if a parameter is changed on a fitted detector, and the thresholds remain those of the old value."""
        for name in ("contamination", "pixel_contamination"):
            if hasattr(self, "offset_") and params.get(name, getattr(self, name)) != getattr(self, name):
                warn_user(
                    f"{name} has no effect on the thresholds of a fitted detector until the next fit. Call "
                    f"recalibrate({name}=...) to change the thresholds without a new fit."
                )
        if hasattr(self, "offset_") and params.get("image_score", own := getattr(self, "image_score", None)) != own:
            warn_user(
                "image_score changes the scores of a fitted detector, but not its thresholds. Pass good images that "
                "were not used for the fit to recalibrate, or fit again."
            )
        if (
            hasattr(self, "offset_")
            and getattr(self, "image_score", None) == "map-max"
            and params.get("smoothing", own := getattr(self, "smoothing", None)) != own
        ):
            warn_user(
                "smoothing changes the scores of a fitted detector with image_score='map-max', but not its thresholds. "
                "Pass good images that were not used for the fit to recalibrate, or fit again."
            )

    def _require_scores_of_training_images(self) -> None:
        """Raise a ValueError if the parameters exclude calibration scores of all training images."""

    def _scores_of_training_images(self) -> np.ndarray:
        """Return the scores of the training images with a score, in ascending order of their indices."""
        return self.calibration_scores_

    def _only_ranks(self) -> bool:
        """Return whether the detector has no threshold because of ``calibration=None``."""
        return math.isnan(self.offset_) and getattr(self, "calibration", "auto") is None

    def _require_threshold(self) -> None:
        check_is_fitted(self, "offset_")
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold: it was fitted with calibration=None or on too few images for "
                "leave-one-out. score_samples and segment work without a threshold. For predict, fit with calibration "
                "and on more images, or pass other good images to recalibrate."
            )


def check_pixel_contamination(value: float | None) -> None:
    """Raise a ValueError if a fraction of pixels is out of its range."""
    if value is not None and (isinstance(value, str) or not 0 < value <= 0.5):
        raise ValueError(f"pixel_contamination={value!r}: expected a fraction in (0, 0.5] or None.")


def peaks_of(sketches: np.ndarray) -> np.ndarray:
    """Return the maximum of each image's anomaly map."""
    return sketches[:, 0, 0].astype(np.float64)


def older_thresholds(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that the state of a fitted detector of an older version lacks.

    In older versions, ``contamination="auto"`` used the largest calibration score.
    """
    n = len(state["calibration_scores_"])
    n_scored, contamination = int(np.count_nonzero(~np.isnan(state["calibration_scores_"]))), state["contamination"]
    return {
        "calibration_sketches_": no_sketches(n),
        "promised_rate_": promised_rate(n_scored, 0.0 if contamination == "auto" else contamination),
        "min_area_": math.nan,
        "calibration_plan_": "unknown",
    }


def _warn_of_training_images(X: Any, training_paths: list[str | None] | None) -> None:
    """Warn if images for a recalibration are training images, whose scores look far too normal."""
    if training_paths is None or not isinstance(X, list | tuple):
        return
    known = set(training_paths)
    n_known = sum(isinstance(x, str | os.PathLike) and os.path.abspath(os.fsdecode(x)) in known for x in X)
    if n_known:
        warn_user(
            f"{n_known} of {len(X)} images are training images of the detector. Their scores look too normal (too "
            "high). With a threshold from these scores, most new good images are flagged. Pass good images that were "
            "not used for the fit."
        )
