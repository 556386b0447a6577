"""PatchCoreEnsemble: several detectors that look at the same images, as one (Table 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import Interval, StrOptions, fit_context, safe_indexing, visual_block
from skpatchcore.detectors._image_detector import ImageOutlierMixin, restored_on_failure
from skpatchcore.images.reading import ImageError, as_image_sequence
from skpatchcore.patches.stream import n_images_of

# Images whose maps are held at once, of all detectors.
_CHUNK = 16


class PatchCoreEnsemble(ImageOutlierMixin, BaseEstimator):
    """Average the scores and maps of several detectors, each on a scale of its own good images.

    ``score_samples`` and ``decision_function``: bigger = more normal. ``predict``: +1 normal, -1 anomalous.
    ``segment``: maps, **bigger = more anomalous**.

    Each detector's scores are standardised by mean and standard deviation of its calibration scores, and its maps by
    those of its calibration peaks: from good images alone, never from the images that are judged.

    Parameters
    ----------
    estimators : list of (str, detector)
        Names and detectors, such as one :class:`PatchCoreDetector` for each of several backbones. All must calibrate
        on the same images: give all the same `calibration`; instead of a share, a splitter with a seed of its own, such
        as ``ShuffleSplit(1, test_size=0.2, random_state=0)``.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted share of good images that `predict` calls anomalous; the detectors' own is not used.

    Attributes
    ----------
    estimators_ : list of detectors
        As fitted, in the order given.
    calibration_scores_ : array of shape (n_calibration,), float64
        Averaged standardised scores of the good images that calibrate, bigger = more normal.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Averages of the standardised maxima of their maps. The maximum of averaged maps is at most that: thresholds on
        maps keep their promise, and flag rather too little.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Which images of `X` these are.
    offset_, pixel_offset_ : float
        Thresholds, as of :class:`PatchCoreDetector`.

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
    }

    def __init__(self, estimators: Any, *, contamination: float | str = "auto"):
        self.estimators = estimators
        self.contamination = contamination

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return parameters, with `deep` also the detectors by their names and their parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to look into the detectors.

        Returns
        -------
        dict
            Names and values.
        """
        params: dict[str, Any] = super().get_params(deep=False)
        for name, detector in self._pairs() if deep else ():
            params[name] = detector
            params |= {f"{name}__{key}": value for key, value in detector.get_params().items()}
        return params

    def set_params(self, **params: Any) -> PatchCoreEnsemble:
        """Set parameters; a detector by its name, and its parameters as ``name__parameter``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        PatchCoreEnsemble
            Itself.
        """
        if "estimators" in params:
            self.estimators = params.pop("estimators")
        names = {name for name, _ in self._pairs()}
        replaced = {key: params.pop(key) for key in list(params) if key in names}
        if replaced:
            self.estimators = [(name, replaced.get(name, detector)) for name, detector in self.estimators]
        super().set_params(**params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> PatchCoreEnsemble:
        """Fit every detector, and calibrate their average.

        Parameters
        ----------
        X, y, groups : as for `PatchCoreDetector.fit`
            Images of good parts.

        Returns
        -------
        PatchCoreEnsemble
            Itself.

        Raises
        ------
        ImageError, ValueError, WeightsError
            As the detectors' `fit`; also if there are no detectors, names are taken twice, or they calibrate on
            different images or not at all.
        """
        with restored_on_failure(self):
            return self._fit(X, y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> PatchCoreEnsemble:
        names = [name for name, _ in self._pairs()]
        taken = {*names} & {"estimators", "contamination"}
        if not names or len(set(names)) < len(names) or taken or any("__" in name for name in names):
            raise ValueError(
                "estimators: expected at least one, with names of their own that hold no '__' and are no parameter's, "
                f"got {names}."
            )
        fitted = [clone(detector).fit(X, y, groups=groups) for _, detector in self.estimators]
        images = fitted[0].calibration_image_indices_
        for name, detector in zip(names, fitted, strict=True):
            if np.count_nonzero(~np.isnan(detector.calibration_scores_)) < 2:
                raise ValueError(
                    f"{name!r} has too few calibration scores to be standardised by, of n_samples={n_images_of(X)}."
                )
            if not np.array_equal(detector.calibration_image_indices_, images):
                raise ValueError(
                    f"{name!r} calibrates on other images than {names[0]!r}: give all detectors the same calibration; "
                    "instead of a share, a splitter with a seed of its own."
                )
        self.estimators_ = fitted
        for learnt in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted[0], learnt):
                setattr(self, learnt, getattr(fitted[0], learnt))
            elif hasattr(self, learnt):  # by an earlier fit, on a table
                delattr(self, learnt)
        scores = np.mean([self._standardised(d, d.calibration_scores_) for d in fitted], axis=0)
        peaks = np.mean([self._standardised_map(d, d.calibration_peaks_) for d in fitted], axis=0)
        # What one of them could not score, none of their average can.
        self._set_thresholds(scores, peaks, images, self.contamination)
        return self

    def _score(self, X: Any, of_map: Callable[[np.ndarray], Any] | None) -> tuple[np.ndarray, list[Any]]:
        check_is_fitted(self, "estimators_")
        if of_map is None:
            return np.mean([self._standardised(d, d.score_samples(X)) for d in self.estimators_], axis=0), []
        if get_tags(self.estimators_[0]).input_tags.string:
            X = as_image_sequence(X)
        scores, kept = [], []
        for start in range(0, n_images_of(X), _CHUNK):
            some = safe_indexing(X, slice(start, start + _CHUNK))
            try:
                found = [detector.score_and_segment(some) for detector in self.estimators_]
            except ImageError as error:
                raise ImageError(error.message, start + error.index, error.path) from error
            pairs = list(zip(self.estimators_, found, strict=True))
            scores.append(np.mean([self._standardised(d, own) for d, (own, _) in pairs], axis=0))
            for i in range(len(scores[-1])):
                maps = [self._standardised_map(d, maps[i]) for d, (_, maps) in pairs]
                kept.append(of_map(np.asarray(np.mean(maps, axis=0, dtype=np.float32))))
        return np.concatenate(scores), kept

    def _pairs(self) -> list[tuple[str, Any]]:
        """Return names and detectors; none where the parameter is something else, which only `fit` complains of."""
        given = self.estimators if isinstance(self.estimators, list) else []
        return given if all(isinstance(pair, tuple) and len(pair) == 2 for pair in given) else []

    @staticmethod
    def _standardised(detector: Any, scores: np.ndarray) -> np.ndarray:
        known = detector.calibration_scores_
        standardised: np.ndarray = (scores - np.nanmean(known)) / _spread(known)
        return standardised

    @staticmethod
    def _standardised_map(detector: Any, anomaly_map: np.ndarray) -> np.ndarray:
        known = detector.calibration_peaks_
        standardised: np.ndarray = (anomaly_map - np.nanmean(known)) / _spread(known)
        return standardised

    def _sk_visual_block_(self) -> Any:
        names, detectors = zip(*self.estimators, strict=True)
        return visual_block("parallel", list(detectors), list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        for _, detector in self._pairs()[:1]:
            tags.input_tags = get_tags(detector).input_tags
        return tags


def _spread(known: np.ndarray) -> float:
    return float(np.nanstd(known)) or 1.0
