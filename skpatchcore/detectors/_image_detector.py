"""ImageDetector: the base class that turns anomaly scores and maps into decisions, p-values, masks and regions."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from sklearn.base import OutlierMixin
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.labels import is_nominal
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore._utils.warning import warn_user
from skpatchcore.calibration.conformal import conformal_threshold, upper_tail_p_values
from skpatchcore.detectors._results import ImageResult, Scored, as_stack, results_of, score_or_flag, turned
from skpatchcore.images.containers import as_image_sequence, listed
from skpatchcore.images.errors import ImageWarning
from skpatchcore.maps import regions_of_map
from skpatchcore.patches.stream import n_images_of


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


class ImageDetector(OutlierMixin):
    """Base class of all detectors, which turns anomaly scores and maps into decisions.

    A subclass must have the parameter ``contamination`` and the methods ``fit`` and ``_iter_scores``. Its ``fit`` must
    end with a call of ``_set_thresholds``.
    """

    # Searches and pipelines do not route on_error as metadata.
    __metadata_request__predict = {"on_error": UNUSED}
    __metadata_request__decision_function = {"on_error": UNUSED}

    contamination: float | str
    calibration_scores_: np.ndarray
    calibration_peaks_: np.ndarray
    offset_: float
    pixel_offset_: float

    @abstractmethod
    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Yield the anomaly scores of one batch after another, **bigger = more anomalous**.

        Parameters
        ----------
        X : sequence of images
            The images.
        of_map : callable or None
            Reduces each anomaly map to the value ``of_map(anomaly_map)`` that is kept. If None, no maps are computed.
        adapt : bool, default=False
            If True, the images are known to be good: `appearance_range_` is extended to them, without a warning.

        Yields
        ------
        scores : array of shape (n_batch,), float64
        kept : list
            The values of `of_map`, one per image. Empty if `of_map` is None.
        """

    def fit_predict(self, X: Any, y: Any = None, *, groups: Any = None) -> np.ndarray:
        """Fit on images and return the labels of *these* images: +1 for normal and -1 for anomalous ones.

        The score of a nominal image is its calibration score, which excludes its own patches. ``fit(X).predict(X)``
        would compare each image with its own patches and flag almost no image. ``contamination="auto"`` flags no
        training image. To find anomalous images among the training images, set `contamination` to a fraction.

        Parameters
        ----------
        X, y, groups : as for `fit`
            Images without the label +1 in `y` are scored by the detector that is fitted on the other images.

        Returns
        -------
        array of shape (n_images,), int
            -1 if the score is below the threshold, or if the image cannot be scored without its own patches.

        Raises
        ------
        ImageError, ValueError
            As in `fit` and `predict`. Also if `calibration` scores only a part of the training images.
        """
        self._require_scores_of_training_images()
        X = listed(X)
        self.fit(X, y, groups=groups)
        self._require_threshold()
        # warn=False: fit has already warned about labels.
        nominal = is_nominal(y, n_images_of(X), is_table=hasattr(self, "n_features_in_"), warn=False)
        if len(self.calibration_scores_) < nominal.sum():
            raise ValueError("calibration scores only a part of the training images: use 'leave-one-out' or folds.")
        scores = np.empty(len(nominal))
        scores[nominal] = self.calibration_scores_
        if not nominal.all():
            scores[~nominal] = self.score_samples(safe_indexing(X, np.flatnonzero(~nominal)))
        return np.where(scores >= self.offset_, 1, -1)

    def score_samples(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return image scores of shape (n_images,), **bigger = more normal**: minus the anomaly scores.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            Action for an image that cannot be scored. ``"raise"`` raises an ImageError. ``"flag"`` returns NaN as the
            score of this image, scores the other images, and warns with an :class:`~skpatchcore.ImageWarning`.

        Returns
        -------
        array of shape (n_images,), float64
            At most 0, in units of feature distance. For PatchCore (Equations 6 and 7), the score is 0 if all patches of
            the image are in the memory bank. The scores of an ensemble are standardised and can be positive.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image. The error names the image's index and path.

        Warns
        -----
        ImageWarning
            If images are flagged. The warning's ``failures`` are the errors of these images.
        """
        return np.asarray(turned(self._scored(X, None, on_error)[0]))

    def decision_function(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns NaN for an image that cannot be scored.

        Returns
        -------
        array of shape (n_images,), float64
            ``score_samples(X) - offset_``. After a fit with ``calibration=None``, there is no threshold, and the method
            returns ``score_samples(X)``. These values rank images, e.g. for ``scoring="roc_auc"``. 0 has no meaning.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. Also if there were too few training images for the requested `calibration`.
        """
        check_is_fitted(self, "offset_")
        if self._only_ranks():
            return self.score_samples(X, on_error=on_error)
        self._require_threshold()
        return self.score_samples(X, on_error=on_error) - self.offset_

    def predict(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns -1 (anomalous) for an image that cannot be scored.

        Returns
        -------
        array of shape (n_images,), int
            +1 if `decision_function` is at least 0, otherwise -1.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. Also if there is no threshold: ``calibration=None`` or too few training images.
        """
        self._require_threshold()
        # NaN >= 0 is False: an image with score NaN is labelled -1.
        return np.where(self.decision_function(X, on_error=on_error) >= 0, 1, -1)

    def p_values(self, X: Any, *, adjust: str | None = None) -> np.ndarray:
        """Return conformal p-values, **small = anomalous**: estimated fractions of good images with scores as low.

        Parameters
        ----------
        X : as for `fit`
            The images.
        adjust : {"bh", "by"} or None, default=None
            Adjustment for the selection of anomalous images from a batch. Among the images with adjusted p-values of at
            most `q`, the expected fraction of good images is at most `q`. ``"bh"`` is the method of Benjamini and
            Hochberg. ``"by"`` is the method of Benjamini and Yekutieli, which allows any dependence of the p-values.

        Returns
        -------
        array of shape (n_images,), float64
            ``(1 + number of calibration scores that are at most the image's score) / (n_calibration + 1)``. Without
            `adjust`, ``predict`` returns -1 exactly for the images with a p-value of at most `contamination`, if
            `contamination` is a fraction of at least ``1 / (n_calibration + 1)``.

        Raises
        ------
        ImageError, ValueError
            As in `predict`.

        Notes
        -----
        If a good image is exchangeable with the calibration images, its p-value is at most `p` with a probability of at
        most `p`. This bound is exact for held-out images (``calibration=0.2``, or `recalibrate`). The bound is
        approximate with ``"leave-one-out"`` and folds, because their scores do not come from the final bank. The bound
        is also approximate with groups, because images of a new group are not exchangeable with the calibration images.
        With groups, the effective number of calibration images is close to the number of groups. The smallest possible
        p-value is ``1 / (n_calibration + 1)``. Adjusted p-values of a large batch are therefore rarely small.

        References
        ----------
        Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51,
        2023. They show that the method of Benjamini and Hochberg is valid for conformal p-values.
        """
        if adjust not in (None, "bh", "by"):
            raise ValueError(f"adjust={adjust!r}: expected 'bh', 'by' or None.")
        self._require_threshold()
        values = upper_tail_p_values(turned(self.calibration_scores_), self._scored(X, None)[0])
        return values if adjust is None else false_discovery_control(values, method=adjust)

    def segment(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return anomaly maps, **bigger = more anomalous**, each at its image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images, height, width), float32
            Upsampled and smoothed patch scores, in units of feature distance. A list of arrays of shape (height, width)
            if the images differ in size. Pixels outside the extractor's crop repeat the value of the nearest pixel
            inside, because the network does not see them. With precomputed features, the maps are the patch scores, of
            shape (grid_height, grid_width).

        Raises
        ------
        ImageError
            If an image cannot be scored, as in `score_samples`.
        """
        return self.score_and_segment(X)[1]

    def score_and_segment(self, X: Any, *, on_error: str = "raise") -> tuple[np.ndarray, np.ndarray | list[Any]]:
        """Return the results of `score_samples` and `segment` from one run of the network.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`. ``"flag"`` returns the score NaN and the map None for an image that cannot be scored.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous.

        Raises
        ------
        ImageError
            If an image cannot be scored, as in `score_samples`.
        """
        scores, maps = self._scored(X, np.asarray, on_error)
        return turned(scores), as_stack(maps)

    def iter_results(
        self, X: Any, *, with_maps: bool = True, on_error: str = "raise", chunk_size: int = 64
    ) -> Iterator[ImageResult]:
        """Yield the results of images one by one, in bounded memory for any number of images.

        Parameters
        ----------
        X : as for `fit`, or an iterable of images
            The images. A generator may be endless, e.g. the images of a camera.
        with_maps : bool, default=True
            If False, no anomaly maps are computed, which can be faster.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`. The result of a flagged image contains the ``error``, and there is no warning.
        chunk_size : int, default=64
            Number of images that are read from a generator before the first of them is scored. Use 1 for a camera.

        Yields
        ------
        ImageResult
            Score, decision, label, p-value, anomaly map and error of one image, in the order of `X`.

        Raises
        ------
        ImageError
            As in `score_samples`, after the results of all previous images.

        Examples
        --------
        >>> import numpy as np
        >>> from skpatchcore import PatchCoreDetector
        >>> features = np.random.default_rng(0).random((20, 4, 4, 8))
        >>> detector = PatchCoreDetector("precomputed", random_state=0).fit(features)
        >>> [result.label for result in detector.iter_results(features[:2] + 9)]
        [-1, -1]
        """
        check_is_fitted(self, "offset_")
        _check_on_error(on_error)
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected at least 1.")

        def scored(images: Any) -> Iterator[Scored]:
            for part in self._iter_or_flag(images, np.asarray if with_maps else None, "flag"):
                if part.error is not None and on_error == "raise":
                    raise part.error
                yield part

        return results_of(X, scored, self.calibration_scores_, self.offset_, chunk_size)

    def predict_mask(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return masks of the anomalous pixels, **True = anomalous**, at each image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images, height, width), bool
            True if the anomaly map is above ``pixel_offset_``. At most a fraction `contamination` of good images has
            any such pixel, if there are enough calibration images for this bound. A list of arrays of shape (height,
            width) if the images differ in size.

        Raises
        ------
        ImageError, ValueError
            As in `predict`.
        """
        self._require_threshold()
        return as_stack(self._scored(X, lambda anomaly_map: anomaly_map > self.pixel_offset_)[1])

    def regions(self, X: Any, *, min_area: int = 1) -> pd.DataFrame:
        """Return a table of the connected regions of anomalous pixels, with a p-value for each region.

        Parameters
        ----------
        X : as for `fit`
            The images.
        min_area : int, default=1
            Minimum area of a region in pixels. Smaller regions are left out.

        Returns
        -------
        DataFrame
            One row per region, in the order of the images. The regions of an image are sorted by peak, highest first.
            Columns: ``image`` (index in `X`), ``top``, ``left``, ``bottom``, ``right`` (bounding box in pixels; bottom
            and right are exclusive, as in slices), ``area`` (pixels), ``peak`` (largest value of the anomaly map in the
            region, bigger = more anomalous), ``peak_row``, ``peak_column``, and ``p_value`` (conformal p-value of the
            peak among the map maxima of good images, small = anomalous). The table is empty if no pixel is anomalous.

        Raises
        ------
        ImageError, ValueError
            As in `predict`. Also if `min_area` is less than 1.
        """
        if min_area < 1:
            raise ValueError(f"min_area={min_area}: expected at least 1 pixel.")
        self._require_threshold()
        tables = self._scored(X, lambda anomaly_map: regions_of_map(anomaly_map, self.pixel_offset_, min_area))[1]
        found: pd.DataFrame = pd.concat(tables, keys=range(len(tables)), names=["image", None])
        found = found.reset_index(level="image").reset_index(drop=True).astype({"image": np.int64})
        return found.assign(p_value=upper_tail_p_values(self.calibration_peaks_, found["peak"].to_numpy()))

    def recalibrate(self, X: Any = None, *, contamination: float | str | None = None) -> Any:
        """Set new thresholds without a new fit, from new good images or for another false-positive rate.

        Parameters
        ----------
        X : as for `fit`, or None, default=None
            Good images on which the detector was not fitted. The bound on the false-positive rate is exact if new good
            images are exchangeable with `X`. None uses the existing calibration scores.
        contamination : float in (0, 0.5], "auto" or None, default=None
            Accepted false-positive rate: fraction of good images that may be flagged. None uses the detector's own
            `contamination`. This parameter of the detector does not change, and a new `fit` uses it again.

        Returns
        -------
        detector
            The detector itself, with new ``offset_`` and ``pixel_offset_``. If `X` is given, ``calibration_scores_``,
            ``calibration_peaks_`` and ``calibration_image_indices_`` are replaced by those of `X`, and
            ``appearance_range_`` is extended to `X`.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. Also if `contamination` is out of its range, or if neither `X` nor calibration scores
            are available.

        Warns
        -----
        UserWarning
            If there are too few calibration images for the requested `contamination`.
        """
        check_is_fitted(self, "offset_")
        contamination = self.contamination if contamination is None else contamination
        if contamination != "auto" and (isinstance(contamination, str) or not 0 < contamination <= 0.5):
            raise ValueError(f"contamination={contamination!r}: expected a fraction in (0, 0.5] or 'auto'.")
        if X is None:
            self._require_threshold()
            scores, peaks = turned(self.calibration_scores_), self.calibration_peaks_
            images = self.calibration_image_indices_
        else:
            with restored_on_failure(self):
                parts = list(self._iter_scores(X, np.max, adapt=True))
            scores = np.concatenate([some for some, _ in parts])
            peaks = np.array([peak for _, maxima in parts for peak in maxima], np.float64)
            images = np.arange(len(scores))
        self._set_thresholds(scores, peaks, images, contamination)
        return self

    def _scored(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str = "raise"
    ) -> tuple[np.ndarray, list[Any]]:
        """Return the anomaly scores of all images and the values of `of_map`. Warn if images are flagged."""
        _check_on_error(on_error)
        parts = list(self._iter_or_flag(X, of_map, on_error))
        if failures := [part.error for part in parts if part.error is not None]:
            warn_user(ImageWarning(failures))
        kept = [] if of_map is None else [item for part in parts for item in part.kept]
        return np.concatenate([part.scores for part in parts]), kept

    def _iter_or_flag(self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str) -> Iterator[Scored]:
        if on_error == "raise":
            return (Scored(scores, kept) for scores, kept in self._iter_scores(X, of_map))
        check_is_fitted(self, "offset_")
        if get_tags(self).input_tags.string:  # otherwise `X` contains features, not images
            X = as_image_sequence(X)
        return score_or_flag(X, lambda images: self._iter_scores(images, of_map))

    def _set_thresholds(
        self, scores: np.ndarray, peaks: np.ndarray, images: np.ndarray, contamination: float | str
    ) -> None:
        """Set both thresholds from scores and map maxima of the calibration images, bigger = more anomalous."""
        threshold = conformal_threshold(scores, contamination)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # conformal_threshold(scores, ...) has already warned
            pixel_offset = conformal_threshold(peaks, contamination)
        self.calibration_scores_, self.calibration_peaks_ = turned(scores), peaks
        self.calibration_image_indices_ = images
        self.offset_, self.pixel_offset_ = turned(threshold), pixel_offset

    def _require_scores_of_training_images(self) -> None:
        """Raise a ValueError if the parameters exclude calibration scores of all training images."""

    def _warn_of_thresholds(self, params: dict[str, Any]) -> None:
        """Warn if `contamination`, which only `fit` reads, is changed on a fitted detector."""
        if hasattr(self, "offset_") and params.get("contamination", self.contamination) != self.contamination:
            warn_user(
                "contamination has no effect on the thresholds of a fitted detector until the next fit. Call "
                "recalibrate(contamination=...) to change the thresholds without a new fit."
            )

    def _only_ranks(self) -> bool:
        """Return whether the detector has no threshold because of ``calibration=None``."""
        return math.isnan(self.offset_) and getattr(self, "calibration", "leave-one-out") is None

    def _require_threshold(self) -> None:
        check_is_fitted(self, "offset_")
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold: it was fitted with calibration=None or on too few images for "
                "leave-one-out. score_samples and segment work without a threshold. For predict, fit with calibration "
                "and on more images, or pass other good images to recalibrate."
            )


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "flag"):
        raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'flag'.")
