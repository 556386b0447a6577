"""PatchCoreEnsemble: a detector that combines the scores and maps of several detectors (Table 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.diagrams import diagram_of
from skpatchcore._utils.sklearn import fit_context
from skpatchcore.detectors._combined import (
    COMBINED_CONSTRAINTS,
    CombinedDetector,
    require_maps,
    without_inspection_warnings,
)
from skpatchcore.detectors._thresholds import restored_on_failure
from skpatchcore.images.containers import as_image_sequence, listed, with_regions


class PatchCoreEnsemble(CombinedDetector):
    """Combine the standardised scores and maps of several detectors by their mean or their maximum.

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
    aggregate : {"mean", "max"}, default="mean"
        How the standardised scores and maps are combined: by their mean, or by their maximum. With ``"max"``, an image
        is anomalous if it is clearly anomalous for any detector, e.g. if each resolution finds other defects. Pixels
        that a detector does not inspect are combined over the other detectors.
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
        Combined standardised scores of the calibration images, bigger = more normal.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Combined standardised maxima of the maps of the calibration images, bigger = more anomalous. The maximum of an
        averaged map is at most the average of the maxima. Therefore, with ``aggregate="mean"``, the pixel threshold is
        conservative: at most the accepted fraction of good images, and usually fewer, is expected to have anomalous
        pixels. With ``aggregate="max"``, the maxima are exact. If the detectors inspect different pixels, the
        largest of the detectors' maxima is used with ``aggregate="mean"``, too.
    calibration_sketches_ : array of shape (n_calibration, 2, n_levels), float32
        Sketch of the combined map of each calibration image: the standardised values that fixed fractions of the pixels
        exceed, and the area of the largest region above each value. They are estimated from the detectors' sketches,
        because the maps are not stored. With ``aggregate="mean"``, values and areas are averages over the detectors.
        With ``"max"``, the values are upper bounds.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image.
    inspection_ : Inspection or None
        Fraction of the training images' pixels that is inspected, as a lower bound, and the size of the smallest patch.
        None if an extractor does not report views.
    promised_rate_ : float
        False-positive rate that the image threshold promises.
    offset_ : float
        Image threshold: ``predict`` returns -1 if the score is below `offset_`.
    pixel_offset_ : float
        Pixel threshold: pixels with an anomaly map value above `pixel_offset_` are anomalous.
    calibration_plan_ : str
        How the calibration images were scored, e.g. ``"40 folds"``.
    min_area_ : float
        Largest area of a region that ``min_area="auto"`` removes, as a fraction of the inspected pixels; see
        `predict_mask`.

    References
    ----------
    Roth et al., CVPR 2022, Table 4: an ensemble of DenseNet-201, ResNeXt-101 and WideResNet-101.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> members = [
    ...     (name, PatchCoreDetector(TorchFeatureExtractor(name, weights=None, image_size=None)))
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
        **COMBINED_CONSTRAINTS,
    }

    def __init__(
        self,
        estimators: Any,
        *,
        aggregate: str = "mean",
        contamination: float | str = "auto",
        pixel_contamination: float | None = None,
    ):
        self.estimators = estimators
        self.aggregate = aggregate
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    @classmethod
    def at_image_sizes(cls, detector: Any, image_sizes: Sequence[Any], **params: Any) -> PatchCoreEnsemble:
        """Return an ensemble of copies of one detector that resize images to different sizes.

        A large `image_size` shows small defects, and a small one shows defects that are large compared to a patch.

        Parameters
        ----------
        detector : detector
            Detector whose extractor has the parameter `image_size`, e.g. a :class:`PatchCoreDetector`. It is copied.
        image_sizes : sequence of int, (int, int) or None
            Values of ``extractor__image_size``, one per member. The names of the members are e.g. ``"size_256"``,
            ``"size_256x384"`` and ``"size_own"`` for None.
        **params : dict
            Parameters of the ensemble. The defaults of `contamination` and `pixel_contamination` are those of
            `detector`.

        Returns
        -------
        PatchCoreEnsemble
            The ensemble, not fitted.

        Raises
        ------
        ValueError
            If `image_sizes` is empty or has a size twice, or if the extractor has no parameter `image_size`.

        Examples
        --------
        >>> from skpatchcore import PatchCoreDetector, PatchCoreEnsemble, TorchFeatureExtractor
        >>> detector = PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite2"), random_state=0)
        >>> ensemble = PatchCoreEnsemble.at_image_sizes(detector, [256, 512], aggregate="max")
        >>> [(name, member.extractor.image_size) for name, member in ensemble.estimators]
        [('size_256', 256), ('size_512', 512)]
        """
        if not isinstance(image_sizes, Sequence | np.ndarray) or isinstance(image_sizes, str):
            raise ValueError(f"image_sizes={image_sizes!r}: expected a list of image sizes, e.g. [256, 512].")
        names = [f"size_{_size_name(size)}" for size in image_sizes]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"image_sizes={image_sizes!r}: expected at least one size, and each size once.")
        extractor = getattr(detector, "extractor", "precomputed")
        if not (extractor is None or hasattr(extractor, "image_size")):  # None is the default extractor
            raise ValueError(
                f"the extractor {extractor!r} has no parameter image_size: pass a detector with a "
                "TorchFeatureExtractor."
            )
        members = [
            (name, clone(detector).set_params(extractor__image_size=size))
            for name, size in zip(names, image_sizes, strict=True)
        ]
        defaults = {name: getattr(detector, name) for name in ("contamination", "pixel_contamination")}
        return cls(members, **{**defaults, **params})

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
        """Fit all detectors, and calibrate their combination.

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
        taken = {*names} & self.get_params(deep=False).keys()
        if not names or len(set(names)) < len(names) or taken or any("__" in name for name in names):
            raise ValueError(
                f"estimators has invalid names {names}: give at least one (name, detector) pair. Names must be unique, "
                "must not contain '__', and must not be 'estimators', 'aggregate', 'contamination' or "
                "'pixel_contamination'."
            )
        require_maps(dict(self.estimators), self)
        with without_inspection_warnings():
            fitted = {name: clone(detector).fit(X, y, groups=groups) for name, detector in self.estimators}
        advice = (
            "pass the same calibration to all detectors. Instead of a float, pass a splitter with a fixed random_state."
        )
        return self._combine(fitted, X, advice)

    def _iter_scores(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, adapt: bool = False
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        check_is_fitted(self, "estimators_")
        if get_tags(self.estimators_[0]).input_tags.string:
            X = as_image_sequence(X)
        return self._iter_combined([X] * len(self.estimators_), of_map, adapt)

    def _pairs(self) -> list[tuple[str, Any]]:
        """Return names and detectors, or an empty list if `estimators` is not valid, because only `fit` validates."""
        given = self.estimators if isinstance(self.estimators, list) else []
        return given if all(isinstance(pair, tuple) and len(pair) == 2 for pair in given) else []

    def _sk_visual_block_(self) -> Any:
        names, detectors = zip(*self.estimators, strict=True)
        return diagram_of("parallel", list(detectors), list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        for _, detector in self._pairs()[:1]:
            tags.input_tags = get_tags(detector).input_tags
        return tags


def _size_name(size: Any) -> str:
    """Return an image size as a part of a name, e.g. "256", "256x384" or "own"."""
    if size is None:
        return "own"
    return "x".join(str(int(side)) for side in np.ravel(size))
