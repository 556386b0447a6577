"""PatchCoreEnsemble: several detectors that look at the same images, as one (Table 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.sklearn import Interval, OlderStatesMixin, StrOptions, fit_context, visual_block
from skpatchcore.detectors._image_detector import ImageDetector, restored_on_failure
from skpatchcore.detectors._results import turned
from skpatchcore.images.containers import as_image_sequence, listed
from skpatchcore.patches.stream import n_images_of


class PatchCoreEnsemble(OlderStatesMixin, ImageDetector, BaseEstimator):
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
        self._warn_of_thresholds(params)
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
            return self._fit(listed(X), y, groups)

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
        scores = np.mean([_standardised(turned(d.calibration_scores_), d) for d in fitted], axis=0)
        peaks = np.mean([_standardised_map(d.calibration_peaks_, d) for d in fitted], axis=0)
        # What one of them could not score, none of their average can.
        self._set_thresholds(scores, peaks, images, self.contamination)
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
        """Return names and detectors; none where the parameter is something else, which only `fit` complains of."""
        given = self.estimators if isinstance(self.estimators, list) else []
        return given if all(isinstance(pair, tuple) and len(pair) == 2 for pair in given) else []

    def _sk_visual_block_(self) -> Any:
        names, detectors = zip(*self.estimators, strict=True)
        return visual_block("parallel", list(detectors), list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        for _, detector in self._pairs()[:1]:
            tags.input_tags = get_tags(detector).input_tags
        return tags


def _one_by_one(batches: Iterator[tuple[np.ndarray, list[Any]]]) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield the score, as an array of one item, and the map of each image; None without maps."""
    for scores, maps in batches:
        for i in range(len(scores)):
            yield scores[i : i + 1], maps[i] if maps else None


def _standardised(anomaly_scores: np.ndarray, detector: Any) -> np.ndarray:
    known = turned(detector.calibration_scores_)
    standardised: np.ndarray = (anomaly_scores - np.nanmean(known)) / _spread(known)
    return standardised


def _standardised_map(anomaly_map: np.ndarray, detector: Any) -> np.ndarray:
    known = detector.calibration_peaks_
    standardised: np.ndarray = (anomaly_map - np.nanmean(known)) / _spread(known)
    return standardised


def _spread(known: np.ndarray) -> float:
    return float(np.nanstd(known)) or 1.0
