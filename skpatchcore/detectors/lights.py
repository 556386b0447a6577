"""MultiLightDetector: a detector for parts that are photographed under several lights or in several channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import diagram_of
from skpatchcore._utils.sklearn import fit_context
from skpatchcore.detectors._combined import (
    COMBINED_CONSTRAINTS,
    CombinedDetector,
    require_maps,
    without_inspection_warnings,
)
from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._results import Scored
from skpatchcore.detectors._thresholds import restored_on_failure
from skpatchcore.images.containers import ImagesWithRegions, with_regions
from skpatchcore.images.errors import ImageError
from skpatchcore.images.parts import Parts, as_parts


class MultiLightDetector(CombinedDetector):
    """Detect anomalous parts that have several aligned images each, e.g. one per light.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous parts. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    A sample is a *part*: a list of images of the same size that show the same place in the same pixel, e.g. under
    several lights, in several spectral channels, or before and after a coating. All parts have the same lights in the
    same order. `fit` fits one copy of `estimator` per light, on the images of this light only.

    The scores of each light are standardised with the mean and the standard deviation of the light's calibration
    scores. The maps of each light are standardised with the mean and the standard deviation of the light's calibration
    peaks, which are the maxima of the maps of the calibration parts. The standardised scores and maps of the lights are
    combined by the maximum or by the mean. All methods return one result per part.

    Parameters
    ----------
    estimator : detector
        Detector that is copied for each light, e.g. a :class:`PatchCoreDetector`. With ``calibration=0.2`` or another
        fraction, its `random_state` must be an int, so that all lights are calibrated on the same parts.
    aggregate : {"max", "mean"}, default="max"
        How the standardised scores and maps of the lights are combined. With ``"max"``, a part is anomalous if it is
        clearly anomalous under any light. With ``"mean"``, small deviations under several lights add up.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate: fraction of good parts for which `predict` may return -1 (anomalous). ``"auto"``
        accepts 1 %, or ``1 / (n_calibration + 1)`` if this is larger. The `contamination` of `estimator` is not used.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good parts above the pixel threshold. None derives the pixel threshold from
        `contamination` instead. The value of `estimator` is not used.

    Attributes
    ----------
    estimators_ : list of detectors
        The fitted detectors, one per light.
    n_lights_ : int
        Number of images per part.
    feature_names_in_ : array of str
        Names of the columns of `X`. Set only if `X` is a table with column names. New tables must have the same columns
        in the same order.
    calibration_scores_ : array of shape (n_calibration,), float64
        Combined standardised scores of the calibration parts, bigger = more normal.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Combined standardised maxima of the maps of the calibration parts, bigger = more anomalous. With
        ``aggregate="mean"``, they are upper bounds of the maxima of the combined maps.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketch of the combined map of each calibration part: the standardised values that fixed fractions of the pixels
        exceed, and the area of the largest region above each value. They are estimated from the sketches of the lights,
        because the maps are not stored. With ``aggregate="max"``, the values are upper bounds. With ``"mean"``, values
        and areas are averages over the lights.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration part.
    inspection_ : Inspection or None
        Fraction of the training images' pixels that is inspected, as a lower bound, and the size of a patch. None if
        the extractor does not report views.
    promised_rate_ : float
        False-positive rate that the threshold of parts promises.
    offset_ : float
        Threshold of parts: ``predict`` returns -1 if the score is below `offset_`.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above `pixel_offset_` are anomalous.
    calibration_plan_ : str
        How the calibration parts were scored, e.g. ``"40 folds"``.
    min_area_ : float
        Largest area of a region that ``min_area="auto"`` removes, as a fraction of the inspected pixels of a map; see
        `predict_mask`.

    See Also
    --------
    PatchCoreEnsemble : Several detectors that see the same images.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import MultiLightDetector, PatchCoreDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 2, 64, 64, 3)).clip(0, 1)  # 12 parts, 2 lights
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> detector = MultiLightDetector(PatchCoreDetector(extractor, random_state=0)).fit(good)
    >>> bad = good[:1].copy()
    >>> bad[0, 1, 20:40, 20:40] = 0  # a defect that only the second light shows
    >>> detector.predict(bad)
    array([-1])
    >>> detector.segment(bad).shape
    (1, 64, 64)
    """

    _parameter_constraints: dict[str, Any] = {"estimator": [ImageDetector], **COMBINED_CONSTRAINTS}

    def __init__(
        self,
        estimator: Any,
        *,
        aggregate: str = "max",
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
    ):
        self.estimator = estimator
        self.aggregate = aggregate
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    def set_params(self, **params: Any) -> MultiLightDetector:
        """Set parameters of the detector and of `estimator`.

        Parameters
        ----------
        **params : dict
            Parameter names and values. ``estimator__parameter=value`` sets a parameter of `estimator`.

        Returns
        -------
        MultiLightDetector
            The detector itself.
        """
        self._warn_of_thresholds(params)
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> MultiLightDetector:
        """Fit one detector per light on good parts, and calibrate their combination.

        Parameters
        ----------
        X : list of lists of images, or array of shape (n_parts, n_lights, height, width, n_channels)
            Good parts. Each part is a list of images (paths, arrays or PIL images), one per light, in the same order
            for all parts. The images of a part must have the same height and width. `X` can also be a table with one
            row per part and one column of paths per light.
        y : array of shape (n_parts,) or None, default=None
            Labels of the parts, as for `PatchCoreDetector.fit`.
        groups : array of shape (n_parts,) or None, default=None
            Groups of the parts, as for `PatchCoreDetector.fit`.
        roi : sequence of shape (n_parts,) or None, default=None
            Region of interest of each part, as for `PatchCoreDetector.fit`. It applies to all lights.

        Returns
        -------
        MultiLightDetector
            The fitted detector itself.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image, if parts differ in their number of images, or if the images
            of a part differ in size. The error names the index of the part, the light and the path.
        ValueError, WeightsError
            As in the `fit` of `estimator`. In addition, a ValueError if `X` is not a collection of parts, or if the
            lights are calibrated on different parts.
        """
        with restored_on_failure(self):
            self._fit(with_regions(X, roi), y, groups)
            columns = _columns_of(X)
            if columns is not None:
                self.feature_names_in_ = columns
            return self

    def _fit(self, X: Any, y: Any, groups: Any) -> MultiLightDetector:
        parts, of_light = _lights_of(X)
        n_lights = len(parts.images_of(0))
        if not n_lights:
            raise ImageError("the part has no images.", 0)
        parts.check_numbers(n_lights, "in the first part")
        for index in range(len(parts)):
            parts.check_aligned(index)
        require_maps({"estimator": self.estimator}, self)
        fitted = {}
        for light in range(n_lights):
            try:
                with without_inspection_warnings():
                    fitted[f"light {light}"] = clone(self.estimator).fit(of_light(light), y, groups=groups)
            except ImageError as error:
                raise self._error_of(error, light) from error
        self.n_lights_ = n_lights
        advice = "use an estimator with an int as random_state, or with folds as calibration."
        return self._combine(fitted, parts, advice)

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        check_is_fitted(self, "estimators_")
        self._check_columns(X)
        parts, of_light = _lights_of(X)
        parts.check_numbers(self.n_lights_, "in fit")
        images = [of_light(light) for light in range(self.n_lights_)]
        yield from self._iter_combined(images, of_map, adapt, parts.check_aligned)

    def _iter_or_flag(self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str) -> Iterator[Scored]:
        self._check_columns(X)
        parts = X.with_images(as_parts(X.images)) if isinstance(X, ImagesWithRegions) else as_parts(X)
        return super()._iter_or_flag(parts, of_map, on_error)

    def _check_columns(self, X: Any) -> None:
        """Raise a ValueError if `X` is a table with other columns, or another order of columns, than in `fit`."""
        columns, known = _columns_of(X), getattr(self, "feature_names_in_", None)
        if columns is not None and known is not None and list(columns) != list(known):
            raise ValueError(
                f"X has the columns {list(columns)}, but fit had {list(known)}: pass the lights in the same order."
            )

    def _error_of(self, error: ImageError, member: int) -> ImageError:
        return ImageError(f"light {member} of the part: {error.message}", error.index, error.path)

    def _sk_visual_block_(self) -> Any:
        fitted = getattr(self, "estimators_", None)
        if fitted is None:
            return diagram_of("serial", [self.estimator], ["estimator, one per light"])
        return diagram_of("parallel", fitted, [f"light {light}" for light in range(len(fitted))])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags


def _columns_of(X: Any) -> np.ndarray | None:
    """Return the names of the columns of a table of parts; None if there are none."""
    table = X.images if isinstance(X, ImagesWithRegions) else X
    if not isinstance(table, pd.DataFrame) or not all(isinstance(name, str) for name in table.columns):
        return None
    return np.asarray(table.columns, dtype=object)


def _lights_of(X: Any) -> tuple[Parts, Callable[[int], Any]]:
    """Return the parts, and a function that returns the images of a light, with the regions of the parts if any."""
    if not isinstance(X, ImagesWithRegions):
        parts = as_parts(X)
        return parts, parts.light
    parts = as_parts(X.images)
    return parts, lambda light: X.with_images(parts.light(light))
