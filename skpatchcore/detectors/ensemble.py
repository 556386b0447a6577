"""PatchCoreEnsemble: a detector that averages the scores and maps of several detectors (Table 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import DocumentationLinkMixin, diagram_of
from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, StrOptions, fit_context
from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.detectors._results import turned
from skpatchcore.detectors._thresholds import older_thresholds, restored_on_failure
from skpatchcore.images.containers import as_image_sequence, listed, with_regions
from skpatchcore.patches.stream import n_images_of


class PatchCoreEnsemble(DocumentationLinkMixin, OlderStatesMixin, ImageDetector, BaseEstimator):
    """Average the standardised scores and maps of several detectors.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    The scores of each detector are standardised with the mean and the standard deviation of the detector's calibration
    scores. The maps of each detector are standardised with the mean and the standard deviation of the detector's
    calibration peaks. All means and standard deviations are computed from good images only, never from the images that
    are scored. A standardised score has no unit. Scores can be positive.

    Parameters
    ----------
    estimators : list of (str, detector)
        Names and detectors, e.g. one :class:`PatchCoreDetector` per backbone. All detectors must be calibrated on the
        same images. Therefore pass the same `calibration` to all of them. Instead of a float, pass a splitter with a
        fixed seed, e.g. ``ShuffleSplit(1, test_size=0.2, random_state=0)``.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate: fraction of good images for which `predict` may return -1 (anomalous). ``"auto"``
        accepts 1 %, or ``1 / (n_calibration + 1)`` if this is larger. The `contamination` of the single detectors is
        not used.
    pixel_contamination : float in (0, 0.5] or None, default=None
        Accepted fraction of the *pixels* of good images above the pixel threshold. None derives the pixel threshold
        from `contamination` instead. The value of the single detectors is not used.

    Attributes
    ----------
    estimators_ : list of detectors
        The fitted detectors, in the order of `estimators`.
    calibration_scores_ : array of shape (n_calibration,), float64
        Averaged standardised scores of the calibration images, bigger = more normal.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Averaged standardised maxima of the maps of the calibration images, bigger = more anomalous. The maximum of an
        averaged map is at most the average of the maxima. Therefore the pixel threshold is conservative: at most the
        accepted fraction of good images, and usually fewer, is expected to have anomalous pixels.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Averages of the detectors' sketches. The values are standardised. The exact sketches of the averaged maps are
        not known, because the maps are not stored.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image.
    promised_rate_ : float
        False-positive rate that the image threshold promises.
    offset_ : float
        Image threshold: ``predict`` returns -1 if the score is below `offset_`.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above `pixel_offset_` are anomalous.
    calibration_plan_ : str
        How the calibration images were scored, e.g. ``"40 folds"``.
    min_area_ : float
        Area for ``min_area="auto"``, as a fraction of an image's pixels; see `predict_mask`.

    References
    ----------
    Roth et al., CVPR 2022, Table 4: an ensemble of DenseNet-201, ResNeXt-101 and WideResNet-101.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> members = [
    ...     (name, PatchCoreDetector(TorchFeatureExtractor(name, weights=None, image_size=None, crop_size=None)))
    ...     for name in ("resnet18", "mobilenet_v2")
    ... ]
    >>> ensemble = PatchCoreEnsemble(members).set_params(resnet18__random_state=0, mobilenet_v2__random_state=0)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0
    >>> ensemble.fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        "estimators": [list],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "pixel_contamination": [Interval(Real, 0, 0.5, closed="right"), None],
    }

    def __init__(
        self, estimators: Any, *, contamination: float | str = "auto", pixel_contamination: float | None = None
    ):
        self.estimators = estimators
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of the ensemble and of its detectors.

        Parameters
        ----------
        deep : bool, default=True
            If True, the detectors are included under their names, and their parameters as ``name__parameter``.

        Returns
        -------
        dict
            Parameter names and values.
        """
        params: dict[str, Any] = super().get_params(deep=False)
        for name, detector in self._pairs() if deep else ():
            params[name] = detector
            params |= {f"{name}__{key}": value for key, value in detector.get_params().items()}
        return params

    def set_params(self, **params: Any) -> PatchCoreEnsemble:
        """Set parameters of the ensemble and of its detectors.

        Parameters
        ----------
        **params : dict
            Parameter names and values. ``name=detector`` replaces the detector with this name, and
            ``name__parameter=value`` sets a parameter of this detector.

        Returns
        -------
        PatchCoreEnsemble
            The ensemble itself.
        """
        if "estimators" in params:
            self.estimators = params.pop("estimators")
        names = {name for name, _ in self._pairs()}
        replaced = {key: params.pop(key) for key in list(params) if key in names}
        if replaced:
            self.estimators = [(name, replaced.get(name, detector)) for name, detector in self.estimators]
        self._warn_of_thresholds(params)
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, roi: Any = None) -> PatchCoreEnsemble:
        """Fit all detectors, and calibrate their average.

        Parameters
        ----------
        X, y, groups, roi : as for `PatchCoreDetector.fit`
            Images of good parts, their labels, their groups and their regions of interest.

        Returns
        -------
        PatchCoreEnsemble
            The fitted ensemble itself.

        Raises
        ------
        ImageError, ValueError, WeightsError
            As in the `fit` of the detectors. In addition, a ValueError if there are no detectors, if names are not
            valid or not unique, if two detectors are calibrated on different images, or if a detector has fewer than
            two calibration scores.
        """
        with restored_on_failure(self):
            return self._fit(with_regions(listed(X), roi), y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> PatchCoreEnsemble:
        names = [name for name, _ in self._pairs()]
        taken = {*names} & {"estimators", "contamination", "pixel_contamination"}
        if not names or len(set(names)) < len(names) or taken or any("__" in name for name in names):
            raise ValueError(
                f"estimators has invalid names {names}: give at least one (name, detector) pair. Names must be unique, "
                "must not contain '__', and must not be 'estimators', 'contamination' or 'pixel_contamination'."
            )
        fitted = [clone(detector).fit(X, y, groups=groups) for _, detector in self.estimators]
        images = fitted[0].calibration_image_indices_
        for name, detector in zip(names, fitted, strict=True):
            if np.count_nonzero(~np.isnan(detector.calibration_scores_)) < 2:
                raise ValueError(
                    f"{name!r} has too few calibration scores for the standardisation, from n_samples="
                    f"{n_images_of(X)}: at least 2 are needed. Set its calibration, or fit on more images."
                )
            if not np.array_equal(detector.calibration_image_indices_, images):
                raise ValueError(
                    f"{name!r} calibrates on other images than {names[0]!r}: pass the same calibration to all "
                    "detectors. Instead of a float, pass a splitter with a fixed random_state."
                )
        self.estimators_ = fitted
        for learnt in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted[0], learnt):
                setattr(self, learnt, getattr(fitted[0], learnt))
            elif hasattr(self, learnt):  # an earlier fit on a table has set the attribute
                delattr(self, learnt)
        scores = np.mean([_standardised(turned(d.calibration_scores_), d) for d in fitted], axis=0)
        peaks = np.mean([_standardised_map(d.calibration_peaks_, d) for d in fitted], axis=0)
        sketches = np.mean([d.calibration_sketches_ for d in fitted], axis=0)
        sketches[:, 0] = np.mean([_standardised_map(d.calibration_sketches_[:, 0], d) for d in fitted], axis=0)
        # The mean is NaN for a calibration image that any of the detectors could not score.
        self.calibration_plan_ = fitted[0].calibration_plan_
        self._set_thresholds(scores, peaks, sketches, images, self.contamination, self.pixel_contamination)
        return self

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        check_is_fitted(self, "estimators_")
        if get_tags(self.estimators_[0]).input_tags.string:
            X = as_image_sequence(X)
        whole_map = None if of_map is None else np.asarray
        for results in zip(*(_one_by_one(d._iter_scores(X, whole_map, adapt)) for d in self.estimators_), strict=True):
            pairs = list(zip(results, self.estimators_, strict=True))
            scores = np.mean([_standardised(score, d) for (score, _), d in pairs], axis=0)
            if of_map is None:
                yield scores, []
                continue
            maps = [_standardised_map(anomaly_map, d) for (_, anomaly_map), d in pairs]
            yield scores, [of_map(np.asarray(np.mean(maps, axis=0, dtype=np.float32)))]

    def _pairs(self) -> list[tuple[str, Any]]:
        """Return names and detectors, or an empty list if `estimators` is not valid, because only `fit` validates."""
        given = self.estimators if isinstance(self.estimators, list) else []
        return given if all(isinstance(pair, tuple) and len(pair) == 2 for pair in given) else []

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**older_thresholds(state), **state} if "offset_" in state else state)

    def _sk_visual_block_(self) -> Any:
        names, detectors = zip(*self.estimators, strict=True)
        return diagram_of("parallel", list(detectors), list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        for _, detector in self._pairs()[:1]:
            tags.input_tags = get_tags(detector).input_tags
        return tags


def _one_by_one(batches: Iterator[tuple[np.ndarray, list[Any]]]) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield per image the score, as an array with one item, and the map, or None if there are no maps."""
    for scores, maps in batches:
        for i in range(len(scores)):
            yield scores[i : i + 1], maps[i] if maps else None


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
