"""ImageDetector: anomaly scores and maps to decisions, p-values, masks and regions, in scikit-learn's signs."""

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
    """Leave an estimator as it was where the block raises."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


class ImageDetector(OutlierMixin):
    """Base class of all detectors: it turns anomaly scores and maps into decisions.

    A subclass has a parameter ``contamination`` and two methods: ``fit``, which ends with ``_set_thresholds``, and
    ``_iter_scores``.
    """

    # no metadata that searches and pipelines would route
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
        """Yield anomaly scores of the next images, **bigger = more anomalous**.

        Parameters
        ----------
        X : sequence of images
            The images.
        of_map : callable or None
            ``of_map(anomaly_map)`` returns what is kept of each map; None makes no maps.
        adapt : bool, default=False
            If True, the images are known to be good: `appearance_range_` is extended to them, without a warning.

        Yields
        ------
        scores : array of shape (n_batch,), float64
        kept : list
            One item per image; empty without `of_map`.
        """

    def fit_predict(self, X: Any, y: Any = None, *, groups: Any = None) -> np.ndarray:
        """Learn from images and say which of *them* stand out: +1 for normal and -1 for anomalous ones.

        Each nominal image is judged by its calibration score, not against a bank that holds its own patches:
        ``fit(X).predict(X)`` would find next to nothing. With ``contamination="auto"`` the threshold is set so that
        none is flagged; give a share to look for the odd ones among the training images.

        Parameters
        ----------
        X, y, groups : as for `fit`
            Images that `y` does not label +1 are judged by what was learnt from the others.

        Returns
        -------
        array of shape (n_images,), int
            -1 for scores below the threshold, and for images that can't be scored without their own rows.

        Raises
        ------
        ImageError, ValueError
            As `fit` and `predict`; also if `calibration` scores a part of the training images only.
        """
        self._require_scores_of_training_images()
        X = listed(X)
        self.fit(X, y, groups=groups)
        self._require_threshold()
        # fit has warned
        nominal = is_nominal(y, n_images_of(X), is_table=hasattr(self, "n_features_in_"), warn=False)
        if len(self.calibration_scores_) < nominal.sum():
            raise ValueError("calibration scores a part of the training images only: the others can't be judged.")
        scores = np.empty(len(nominal))
        scores[nominal] = self.calibration_scores_
        if not nominal.all():
            scores[~nominal] = self.score_samples(safe_indexing(X, np.flatnonzero(~nominal)))
        return np.where(scores >= self.offset_, 1, -1)

    def score_samples(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return image scores, **bigger = more normal**: minus the anomaly score.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            What becomes of an image that can't be judged. ``"flag"``: its score is NaN, the others are scored all the
            same, and an :class:`~skpatchcore.ImageWarning` tells which and why.

        Returns
        -------
        array of shape (n_images,), float64
            At most 0, in units of feature distance. For PatchCore (Eq. 6-7), 0 is an image whose patches are all in the
            memory bank. An ensemble's scores are standardised, and may be positive.

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.

        Warns
        -----
        ImageWarning
            If images were flagged; its ``failures`` are their errors.
        """
        return np.asarray(turned(self._scored(X, None, on_error)[0]))

    def decision_function(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As of `score_samples`: NaN where an image can't be judged.

        Returns
        -------
        array of shape (n_images,), float64
            ``score_samples(X) - offset_``. A detector that was fitted with ``calibration=None`` has no threshold. It
            returns ``score_samples(X)``, which ranks images for ``scoring="roc_auc"``; the value 0 has no meaning then.

        Raises
        ------
        ImageError
            As `score_samples`.
        ValueError
            If the detector has no threshold although `calibration` asks for one: there were too few training images.
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
            As of `score_samples`. An image that can't be judged is anomalous, -1: never normal.

        Returns
        -------
        array of shape (n_images,), int
            +1 where `decision_function` is at least 0, else -1.

        Raises
        ------
        ImageError
            As `score_samples`.
        ValueError
            If the detector has no threshold: ``calibration=None``, or too few training images.
        """
        self._require_threshold()
        # NaN compares False, so an image without a score is labelled -1
        return np.where(self.decision_function(X, on_error=on_error) >= 0, 1, -1)

    def p_values(self, X: Any, *, adjust: str | None = None) -> np.ndarray:
        """Return conformal p-values of images, **small = anomalous**: how usual so low a score is among good images.

        Parameters
        ----------
        X : as for `fit`
            The images.
        adjust : {"bh", "by"} or None, default=None
            For a batch in which anomalous images are to be picked out: adjusted p-values, so that among the images with
            values up to `q` a share of at most `q` is expected to be good. ``"bh"`` as Benjamini and Hochberg,
            ``"by"`` as Benjamini and Yekutieli, which presumes nothing of how the p-values depend on one another.

        Returns
        -------
        array of shape (n_images,), float64
            ``(1 + number of calibration scores that are at most the image's) / (n_calibration + 1)``. Without `adjust`,
            ``predict`` says -1 where it is at most `contamination`, if that is a share that can be promised.

        Raises
        ------
        ImageError, ValueError
            As `predict`.

        Notes
        -----
        A good image that is exchangeable with the calibration images gets a value of at most `p` with a probability of
        at most `p`: exactly so with images held out (``calibration=0.2``, or `recalibrate`), approximately with
        ``"leave-one-out"`` and folds, whose scores come from banks other than the final one, and with groups, whose
        images are not exchangeable with those of a new group: what counts is nearer to the number of groups.

        No value is below ``1 / (n_calibration + 1)``. Few calibration images therefore leave adjusted values of a
        large batch little room.

        References
        ----------
        Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51,
        2023. They show that Benjamini and Hochberg's way holds for such p-values.
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
            In units of the scores, upsampled and smoothed; a list of arrays (height, width) where sizes differ. Pixels
            outside the extractor's crop, which the network does not see, repeat the nearest pixel inside.
            Precomputed features have no image: their maps are the patch scores themselves, of shape (grid_height,
            grid_width).

        Raises
        ------
        ImageError
            As `score_samples`.
        """
        return self.score_and_segment(X)[1]

    def score_and_segment(self, X: Any, *, on_error: str = "raise") -> tuple[np.ndarray, np.ndarray | list[Any]]:
        """Return what `score_samples` and `segment` return, from one run of the network.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As of `score_samples`: NaN, and None in a list of maps, where an image can't be judged.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous.

        Raises
        ------
        ImageError
            As `score_samples`.
        """
        scores, maps = self._scored(X, np.asarray, on_error)
        return turned(scores), as_stack(maps)

    def iter_results(
        self, X: Any, *, with_maps: bool = True, on_error: str = "raise", chunk_size: int = 64
    ) -> Iterator[ImageResult]:
        """Score any number of images in bounded memory: yield the result of one after the other.

        Parameters
        ----------
        X : as for `fit`, or an iterable of images
            The images. A generator may be endless, such as the images of a camera.
        with_maps : bool, default=True
            If False, no anomaly maps are made, which may be faster.
        on_error : {"raise", "flag"}, default="raise"
            As of `score_samples`. A flagged image has its ``error`` in its result; there is no warning.
        chunk_size : int, default=64
            Images that are taken from a generator before the first of them is scored. Use 1 for a camera.

        Yields
        ------
        ImageResult
            Score, decision, label, p-value, anomaly map and error of an image, in the order of `X`.

        Raises
        ------
        ImageError
            As `score_samples`, after the results of all images before it.

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
        """Return which pixels are anomalous, **True = anomalous**, at each image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.

        Returns
        -------
        array of shape (n_images, height, width), bool
            Where maps are above ``pixel_offset_``: of good images, a share of at most `contamination` has any such
            pixel, if that can be promised. A list of arrays (height, width) where sizes differ.

        Raises
        ------
        ImageError, ValueError
            As `predict`.
        """
        self._require_threshold()
        return as_stack(self._scored(X, lambda anomaly_map: anomaly_map > self.pixel_offset_)[1])

    def regions(self, X: Any, *, min_area: int = 1) -> pd.DataFrame:
        """Return the connected regions of anomalous pixels: where to look, and how unusual it is there.

        Parameters
        ----------
        X : as for `fit`
            The images.
        min_area : int, default=1
            Regions of fewer pixels are left out.

        Returns
        -------
        DataFrame
            One row a region, in the order of the images, the highest peak first: ``image`` (index in `X`), ``top``,
            ``left``, ``bottom``, ``right`` (pixels of the image; bottom and right are the first ones outside, as in
            slices), ``area`` (pixels), ``peak`` (the map's largest value in it, bigger = more anomalous),
            ``peak_row``, ``peak_column`` and ``p_value``: how usual it is that the whole map of a good image reaches
            that peak, small = anomalous. No rows where nothing is anomalous.

        Raises
        ------
        ImageError, ValueError
            As `predict`.
        """
        if min_area < 1:
            raise ValueError(f"min_area={min_area}: expected at least 1 pixel.")
        self._require_threshold()
        tables = self._scored(X, lambda anomaly_map: regions_of_map(anomaly_map, self.pixel_offset_, min_area))[1]
        found: pd.DataFrame = pd.concat(tables, keys=range(len(tables)), names=["image", None])
        found = found.reset_index(level="image").reset_index(drop=True).astype({"image": np.int64})
        return found.assign(p_value=upper_tail_p_values(self.calibration_peaks_, found["peak"].to_numpy()))

    def recalibrate(self, X: Any = None, *, contamination: float | str | None = None) -> Any:
        """Set the thresholds anew without learning anew: on fresh good images, or for another share of false alarms.

        Parameters
        ----------
        X : as for `fit`, or None, default=None
            Good images that the detector has not learnt from, such as the last day's. None keeps the calibration scores
            that there are.
        contamination : float in (0, 0.5], "auto" or None, default=None
            Accepted share of good images flagged; None takes the detector's own. The parameter stays as it is; so a new
            `fit` goes back to it.

        Returns
        -------
        detector
            Itself, with other ``offset_`` and ``pixel_offset_``. With `X`, also ``calibration_scores_`` and
            ``calibration_peaks_`` are those of these images, ``calibration_image_indices_`` count in this `X`, and
            ``appearance_range_`` is extended to these images.

        Raises
        ------
        ImageError
            As `score_samples`.
        ValueError
            If `contamination` is out of its range, or if neither images nor calibration scores are there.

        Warns
        -----
        UserWarning
            If there are too few images to promise so small a share.

        Notes
        -----
        With `X` the promise is exact for images that are exchangeable with these.
        """
        check_is_fitted(self, "offset_")
        contamination = self.contamination if contamination is None else contamination
        if contamination != "auto" and (isinstance(contamination, str) or not 0 < contamination <= 0.5):
            raise ValueError(f"contamination={contamination!r}: expected a share in (0, 0.5] or 'auto'.")
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
        """Return the anomaly scores of all images and what is kept of their maps; warn of flagged images."""
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
        if get_tags(self).input_tags.string:  # otherwise `X` does not hold images
            X = as_image_sequence(X)
        return score_or_flag(X, lambda images: self._iter_scores(images, of_map))

    def _set_thresholds(
        self, scores: np.ndarray, peaks: np.ndarray, images: np.ndarray, contamination: float | str
    ) -> None:
        """Set thresholds from anomaly scores, and maxima of anomaly maps, of good images; bigger = more anomalous."""
        threshold = conformal_threshold(scores, contamination)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the line above has said it
            pixel_offset = conformal_threshold(peaks, contamination)
        self.calibration_scores_, self.calibration_peaks_ = turned(scores), peaks
        self.calibration_image_indices_ = images
        self.offset_, self.pixel_offset_ = turned(threshold), pixel_offset

    def _require_scores_of_training_images(self) -> None:
        """Raise a ValueError if it is known before a fit that not all training images will have calibration scores."""

    def _warn_of_thresholds(self, params: dict[str, Any]) -> None:
        """Warn if a parameter that `fit` makes thresholds from is set on a fitted detector."""
        if hasattr(self, "offset_") and params.get("contamination", self.contamination) != self.contamination:
            warn_user(
                "contamination has no effect on the thresholds of a fitted detector: they stay as they are until fit. "
                "recalibrate(contamination=...) sets them without training."
            )

    def _only_ranks(self) -> bool:
        """Return whether there is no threshold because the user asked for none: ``calibration=None``."""
        return math.isnan(self.offset_) and getattr(self, "calibration", "leave-one-out") is None

    def _require_threshold(self) -> None:
        check_is_fitted(self, "offset_")
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold: it was fitted with calibration=None or on too few images to leave "
                "one out. score_samples and segment work without a threshold. For predict, fit with calibration and on "
                "more images, or give other good images to recalibrate."
            )


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "flag"):
        raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'flag'.")
