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

    A subclass must have the parameter ``contamination`` and the methods ``_iter_scores`` and ``fit``, which must call
    ``_set_thresholds`` at its end.
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
        """Yield the anomaly scores of one batch after another, **bigger = more anomalous**, with values of the maps.

        Each pair holds the scores, of shape (n_batch,), and the list of ``of_map(anomaly_map)``, one value per image.
        If `of_map` is None, no maps are computed, and the list is empty. If `adapt` is True, the images are known to be
        good: `appearance_range_` is extended to include the images, without a warning.
        """

    def fit_predict(self, X: Any, y: Any = None, *, groups: Any = None) -> np.ndarray:
        """Fit on images and return the labels of *these* images: +1 for normal and -1 for anomalous ones.

        The detector is fitted on the images with the label +1 in `y`. The score of such an image is its calibration
        score, which is computed by a model that was not fitted on the image. In contrast, ``fit(X).predict(X)`` would
        compare each image with its own patches and return -1 for almost no image. With ``contamination="auto"``, the
        threshold is the lowest calibration score. Therefore no calibration score is below the threshold. To find
        anomalous images among the images with the label +1, set `contamination` to a fraction.

        Parameters
        ----------
        X, y, groups : as for `fit`
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
            score of this image, scores all other images, and issues an :class:`~skpatchcore.ImageWarning`.

        Returns
        -------
        array of shape (n_images,), float64
            At most 0, except for PatchCoreEnsemble: its scores are averages of standardised scores and can be positive.
            PatchCoreDetector uses Equations 6 and 7 of the PatchCore paper: the score is 0 if all patches of the image
            are in the memory bank. Scores are in units of feature distance. Those of PaDiMDetector have no unit.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image, and ``on_error="raise"``. The error names the image's index
            and path.
        ValueError
            If the patch features of `X` and of the training images differ in their number of channels.

        Warns
        -----
        ImageWarning
            If images cannot be scored, and ``on_error="flag"``. The warning's ``failures`` are their errors.
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
            ``score_samples(X) - offset_``. After a fit with ``calibration=None``, there is no threshold: the method
            returns ``score_samples(X)``, which ranks images, e.g. for ``scoring="roc_auc"``. 0 then has no meaning.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. In addition, a ValueError if there were too few training images for a threshold.
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
            As in `score_samples`. In addition, a ValueError if the detector has no threshold, because it was fitted
            with ``calibration=None`` or on too few images.
        """
        self._require_threshold()
        return np.where(self.decision_function(X, on_error=on_error) >= 0, 1, -1)  # NaN >= 0 is False: -1

    def p_values(self, X: Any, *, adjust: str | None = None) -> np.ndarray:
        """Return conformal p-values, **small = anomalous**: estimated fractions of good images that score no higher.

        Parameters
        ----------
        X : as for `fit`
            The images.
        adjust : {"bh", "by"} or None, default=None
            Adjustment for the number of images in `X`. Select all images with adjusted p-values of at most `q`, where
            you choose `q`: the expected fraction of good images among the selected images is then at most `q`. ``"bh"``
            is the method of Benjamini and Hochberg. ``"by"`` is the method of Benjamini and Yekutieli, which is valid
            for any statistical dependence between the p-values.

        Returns
        -------
        array of shape (n_images,), float64
            ``(1 + number of calibration scores that are at most the image's score) / (n_calibration + 1)``, before the
            adjustment. If `contamination` is a fraction of at least ``1 / (n_calibration + 1)``, then `predict` returns
            -1 for an image if and only if this p-value is at most `contamination`.

        Raises
        ------
        ImageError, ValueError
            As in `predict`. In addition, a ValueError if `adjust` has an invalid value.

        Notes
        -----
        For every number `a`, a good image has a p-value of at most `a` with a probability of at most `a`, if the image
        and the calibration images are exchangeable (their order carries no information). This guarantee is exact for
        calibration images on which no model was fitted (``calibration=0.2``, or `recalibrate`). The guarantee is
        approximate with ``"leave-one-out"`` and with folds (``calibration=5``), because the final model does not score
        the calibration images. The guarantee is also approximate with groups, because images of a new group are not
        exchangeable with the calibration images: it is about as good as with one calibration image per group. The
        smallest possible p-value is ``1 / (n_calibration + 1)``. ``"bh"`` multiplies p-values by up to the number of
        images in `X`, and ``"by"`` by even more. Therefore adjusted p-values of a large batch are rarely small.

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
            Upsampled and smoothed patch scores, in the unit of `score_samples`. A list of arrays of shape (height,
            width) if the images differ in size. Pixels outside the extractor's crop have the value of the nearest pixel
            inside the crop, because the network does not see the pixels outside. With precomputed features, the maps
            are the patch scores, of shape (grid_height, grid_width).

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
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
            If an image cannot be read or is not an image, and ``on_error="raise"``.
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
            Action for an image that cannot be scored. ``"raise"`` raises an ImageError. ``"flag"`` yields a result with
            the ``error``, the score NaN and the label -1. There is no warning.
        chunk_size : int, default=64
            Number of images that are read from a generator before the first of them is scored. Use 1 for a camera.

        Yields
        ------
        ImageResult
            Score, decision, label, p-value, anomaly map and error of one image, in the order of `X`.

        Raises
        ------
        ImageError
            If an image cannot be scored, and ``on_error="raise"``. The results of all previous images come first.

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
            True if the anomaly map is above ``pixel_offset_``. A list of arrays of shape (height, width) if the images
            differ in size. At most a fraction `contamination` of good images is expected to have True pixels, if there
            are at least ``1 / contamination - 1`` calibration images (``"auto"``: ``1 / (n_calibration + 1)``).

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
            region, bigger = more anomalous), ``peak_row``, ``peak_column``, and ``p_value`` (small = anomalous:
            ``(1 + number of calibration_peaks_ that are at least the peak) / (n_calibration + 1)``). The table is empty
            if no pixel is anomalous.

        Raises
        ------
        ImageError, ValueError
            As in `predict`. In addition, a ValueError if `min_area` is less than 1.
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
            Good images on which the detector was not fitted. The bound on the false-positive rate then holds for new
            good images that are exchangeable with `X`. None uses the existing calibration scores.
        contamination : float in (0, 0.5], "auto" or None, default=None
            Accepted false-positive rate: fraction of good images for which `predict` may return -1. None uses the
            detector's parameter `contamination`. `recalibrate` never changes this parameter, and `fit` uses it again.

        Returns
        -------
        detector
            The detector itself, with new ``offset_`` and ``pixel_offset_``. If `X` is given, ``calibration_scores_``,
            ``calibration_peaks_`` and ``calibration_image_indices_`` are those of `X`. The brightness, colours and
            contrast of `X` are then included in ``appearance_range_``, and cause no warning in new images.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. In addition, a ValueError if `contamination` is out of its range, or if `X` is None
            and the detector has no threshold.

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
        """Return the anomaly scores of all images and the values of `of_map`. Warn if images cannot be scored."""
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
