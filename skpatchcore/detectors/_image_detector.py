"""ImageDetector: the base class that turns anomaly scores and maps into decisions, p-values, masks and regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from skpatchcore.calibration.conformal import adjusted_p_values, check_adjust, upper_tail_p_values
from skpatchcore.calibration.sketches import smallest_area
from skpatchcore.detectors._regions import area_rule, joined_regions
from skpatchcore.detectors._results import (
    ImageResult,
    Scored,
    as_stack,
    check_on_error,
    gathered,
    results_of,
    score_or_flag,
    turned,
)
from skpatchcore.detectors._thresholds import CalibratedDetector, check_pixel_contamination
from skpatchcore.images.containers import as_image_sequence, with_regions
from skpatchcore.maps import regions_of_map, without_small_regions


class ImageDetector(CalibratedDetector):
    """Base class of all detectors, which turns anomaly scores and maps into decisions.

    A subclass must have the members that :class:`CalibratedDetector` requires.
    """

    # Searches and pipelines do not route on_error as metadata.
    __metadata_request__predict = {"on_error": UNUSED}
    __metadata_request__decision_function = {"on_error": UNUSED}

    def score_samples(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return image scores of shape (n_images,), **bigger = more normal**: minus the anomaly scores.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            Action for an image that cannot be scored. ``"raise"`` raises an ImageError. ``"flag"`` returns NaN as the
            score of this image, scores all other images, and issues an :class:`~skpatchcore.ImageWarning`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        array of shape (n_images,), float64
            At most 0, except for PatchCoreEnsemble and MultiLightDetector, whose scores are standardised and can be
            positive. By default, PatchCoreDetector uses Equations 6 and 7 of the PatchCore paper; its parameter
            `image_score` offers other scores. The score is 0 if all patches of the image are in the memory bank. Scores
            are in units of feature distance. Those of PaDiMDetector have no unit.

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
        return np.asarray(turned(self._scored(with_regions(X, roi), None, on_error)[0]))

    def decision_function(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns NaN for an image that cannot be scored.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

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
            return self.score_samples(X, on_error=on_error, roi=roi)
        self._require_threshold()
        return self.score_samples(X, on_error=on_error, roi=roi) - self.offset_

    def predict(self, X: Any, *, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns -1 (anomalous) for an image that cannot be scored.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

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
        return np.where(self.decision_function(X, on_error=on_error, roi=roi) >= 0, 1, -1)  # NaN >= 0 is False: -1

    def p_values(self, X: Any, *, adjust: str | None = None, roi: Any = None) -> np.ndarray:
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
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

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
        approximate with folds (the default) and with ``"leave-one-out"``, because the final model does not score
        the calibration images. The guarantee is also approximate with groups, because images of a new group are not
        exchangeable with the calibration images: it is about as good as with one calibration image per group. The
        smallest possible p-value is ``1 / (n_calibration + 1)``. ``"bh"`` multiplies p-values by up to the number of
        images in `X`, and ``"by"`` by even more. Therefore adjusted p-values of a large batch are rarely small.

        References
        ----------
        Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51,
        2023. They show that the method of Benjamini and Hochberg is valid for conformal p-values.
        """
        check_adjust(adjust)
        self._require_threshold()
        values = upper_tail_p_values(turned(self.calibration_scores_), self._scored(with_regions(X, roi), None)[0])
        return adjusted_p_values(values, adjust)

    def segment(self, X: Any, *, roi: Any = None) -> np.ndarray | list[np.ndarray]:
        """Return anomaly maps, **bigger = more anomalous**, each at its image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        array of shape (n_images, height, width), float32
            Upsampled and smoothed patch scores, in the unit of `score_samples`. A list of arrays of shape (height,
            width) if the images differ in size. **NaN marks pixels that are not inspected**: pixels outside the
            extractor's crop, and the cells of patches outside the region of interest. Use functions such as
            ``np.nanmax``. With precomputed features, the maps are the patch scores, of shape (grid_height, grid_width).

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        """
        return self.score_and_segment(X, roi=roi)[1]

    def score_and_segment(
        self, X: Any, *, on_error: str = "raise", roi: Any = None
    ) -> tuple[np.ndarray, np.ndarray | list[Any]]:
        """Return the results of `score_samples` and `segment` from one run of the network.

        Parameters
        ----------
        X : as for `fit`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`. ``"flag"`` returns the score NaN and the map None for an image that cannot be scored.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous. NaN for pixels that are not inspected, as in `segment`.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image, and ``on_error="raise"``.
        """
        scores, maps = self._scored(with_regions(X, roi), np.asarray, on_error)
        return turned(scores), as_stack(maps)

    def iter_results(
        self, X: Any, *, with_maps: bool = True, on_error: str = "raise", chunk_size: int = 64, roi: Any = None
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
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`. `X` must then be a list.

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
        check_on_error(on_error)
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected at least 1.")

        def scored(images: Any) -> Iterator[Scored]:
            for part in self._iter_or_flag(images, np.asarray if with_maps else None, "flag"):
                if part.error is not None and on_error == "raise":
                    raise part.error
                yield part

        return results_of(with_regions(X, roi), scored, self.calibration_scores_, self.offset_, chunk_size)

    def predict_mask(
        self, X: Any, *, pixel_contamination: float | None = None, min_area: int | str = 1, roi: Any = None
    ) -> np.ndarray | list[np.ndarray]:
        """Return masks of the anomalous pixels, **True = anomalous**, at each image's own height and width.

        Parameters
        ----------
        X : as for `fit`
            The images.
        pixel_contamination : float in (0, 0.5] or None, default=None
            Accepted fraction of the *pixels* of good images that are True. None uses ``pixel_offset_``.
        min_area : int or "auto", default=1
            Minimum area of a region in pixels. Pixels of smaller regions are False. ``"auto"`` uses the smallest area
            with which at most the fraction ``promised_rate_`` of good images is expected to have True pixels.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        array of shape (n_images, height, width), bool
            True if the anomaly map is above the pixel threshold. **False also for pixels that are not inspected**: the
            anomaly map of `segment` is NaN there. A list of arrays of shape (height, width) if the
            images differ in size. With the detector's parameter ``pixel_contamination=None``, at most the fraction
            ``promised_rate_`` of good *images* is expected to have True pixels.

        Raises
        ------
        ImageError, ValueError
            As in `predict`. In addition, a ValueError if `pixel_contamination` or `min_area` is out of its range.
        """
        self._require_threshold()
        check_pixel_contamination(pixel_contamination)
        threshold, area = self.pixel_offset_, self.min_area_
        if pixel_contamination is not None:
            threshold = self._pixel_threshold(self.calibration_sketches_, pixel_contamination)
            area = smallest_area(self.calibration_sketches_, threshold, self.promised_rate_)
        least = area_rule(min_area, area)

        def mask_of(anomaly_map: np.ndarray) -> np.ndarray:
            return without_small_regions(anomaly_map > threshold, least(anomaly_map))

        return as_stack(self._scored(with_regions(X, roi), mask_of)[1])

    def regions(self, X: Any, *, min_area: int | str = 1, roi: Any = None) -> pd.DataFrame:
        """Return a table of the connected regions of anomalous pixels, with a p-value for each region.

        Parameters
        ----------
        X : as for `fit`
            The images.
        min_area : int or "auto", default=1
            Minimum area of a region in pixels. Smaller regions are left out. ``"auto"`` as in `predict_mask`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

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
        self._require_threshold()
        least = area_rule(min_area, self.min_area_)

        def table_of(anomaly_map: np.ndarray) -> pd.DataFrame:
            return regions_of_map(anomaly_map, self.pixel_offset_, least(anomaly_map))

        return joined_regions(self._scored(with_regions(X, roi), table_of)[1], self.calibration_peaks_)

    def _scored(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str = "raise"
    ) -> tuple[np.ndarray, list[Any]]:
        """Return the anomaly scores of all images and the values of `of_map`. Warn if images cannot be scored."""
        check_on_error(on_error)
        return gathered(self._iter_or_flag(X, of_map, on_error))

    def _iter_or_flag(self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str) -> Iterator[Scored]:
        if on_error == "raise":
            return (Scored(scores, kept) for scores, kept in self._iter_scores(X, of_map))
        check_is_fitted(self, "offset_")
        if get_tags(self).input_tags.string:  # otherwise `X` contains features, not images
            X = as_image_sequence(X)
        return score_or_flag(X, lambda images: self._iter_scores(images, of_map))
