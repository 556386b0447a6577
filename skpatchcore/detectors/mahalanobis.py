"""MahalanobisDetector: a Gaussian of each level of a network, fitted on good images as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.covariance import ledoit_wolf

from skpatchcore._utils.progress import phase
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._whole_image import WholeImageDetector, descriptors_of, mean_patches, no_patch_scores
from skpatchcore.patches.model import PatchModel, check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource
from skpatchcore.protocols import layer_channels_of

# Number of folds for calibration="auto". A Gaussian is fitted for each fold.
_N_FOLDS = 20
# A shrinkage below this number is 0 but for rounding.
_NO_SHRINKAGE = 1e-10


@dataclass(frozen=True)
class LevelGaussians:
    """The model: a Gaussian of the image vectors of each level of the network.

    Attributes
    ----------
    means : array of shape (n_channels,)
        Mean vector of the training images, with the channels of all levels.
    whitening : list of arrays of shape (n_level_channels, n_level_channels)
        Inverse Cholesky factor of the covariance of each level: ``norm(whitening @ (x - mean))`` is the Mahalanobis
        distance.
    descriptors : array of shape (n_images, n_channels) or None
        Vectors of the training images, from which `without` fits again. None in a fitted detector.
    """

    means: np.ndarray
    whitening: list[np.ndarray]
    descriptors: np.ndarray | None = None

    @classmethod
    def of(cls, descriptors: np.ndarray, n_channels: Sequence[int]) -> LevelGaussians:
        """Return the Gaussians of image vectors, where `n_channels` are the channels of each level."""
        means, whitening = descriptors.mean(axis=0), []
        for level in _levels(descriptors - means, n_channels):
            covariance = _covariance(level)
            whitening.append(np.linalg.inv(np.linalg.cholesky(_regular(covariance))))
        return cls(means, whitening, descriptors)

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores, **bigger = more anomalous**: sums of the Mahalanobis distances of the levels."""
        check_channels(patches, len(self.means))
        centred = mean_patches(patches.rows, patches.starts) - self.means
        scores = np.zeros(len(centred))
        for level, factor in zip(_levels(centred, [len(f) for f in self.whitening]), self.whitening, strict=True):
            scores += np.linalg.norm(level @ factor.T, axis=1)
        return scores, no_patch_scores(patches, with_patch_scores)

    def without(self, images: np.ndarray) -> LevelGaussians | None:
        """Return the Gaussians without the given images; None if fewer than two images are left."""
        assert self.descriptors is not None
        others = np.delete(self.descriptors, images, axis=0)
        return LevelGaussians.of(others, [len(factor) for factor in self.whitening]) if len(others) > 1 else None


class MahalanobisDetector(WholeImageDetector):
    r"""Detect anomalous images with Gaussians of the features of whole images, one for each level of a network.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. **There are no anomaly maps**: `segment` raises an error.
    :class:`~skpatchcore.PaDiMDetector` does the same for each position of the image, and has anomaly maps.

    The mean of the patch features of each level is a vector of the image. A multivariate Gaussian is fitted on these
    vectors of the training images, separately for each level, with the shrinkage covariance of Ledoit and Wolf. The
    anomaly score is the sum over the levels of the Mahalanobis distances
    :math:`\sqrt{(x - \mu)^\top \Sigma^{-1} (x - \mu)}`.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        The extractor turns images into grids of patch features. Its ``layers`` are the levels. The paper uses all
        levels of an EfficientNet, without averages over neighbourhoods (``patch_size=1``). None uses
        ``TorchFeatureExtractor()``, whose layers are those of PatchCore. With ``"precomputed"``, or if the extractor
        does not state the channels of its layers, all channels are one level.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate, as for :class:`~skpatchcore.PatchCoreDetector`.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        Method that scores good images in order to set the threshold, as for :class:`~skpatchcore.PatchCoreDetector`.
        ``"auto"`` uses 20 folds, or one fold for each group if there are fewer groups. ``"leave-one-out"`` fits the
        Gaussians once for each image.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest, as for :class:`~skpatchcore.PatchCoreDetector`. The means are those of the patches inside.
    max_memory : int, str or None, default="auto"
        Maximum memory (RAM) that `fit` may use, in bytes or as a string, as for
        :class:`~skpatchcore.PatchCoreDetector`.
    device : str, default="auto"
        Device of an extractor with ``device="auto"``. ``"auto"`` uses CUDA if available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed for the draws of held-out images and folds, and for an extractor with ``random_state=None``.
    verbose : int, default=0
        If 1, progress bars are shown for extraction, calibration and scoring.

    Attributes
    ----------
    extractor_ : estimator
        The fitted extractor. None with precomputed features.
    model_ : LevelGaussians
        Mean and inverse Cholesky factor of the covariance of each level.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the calibration images, bigger = more normal.
    calibration_image_indices_ : array of shape (n_calibration,), int64
        Index in `X` of each calibration image.
    calibration_peaks_, calibration_sketches_, pixel_offset_, min_area_
        NaN, because there are no anomaly maps.
    offset_ : float
        Image threshold: ``predict`` returns -1 if the image score is below `offset_`. NaN if there is no calibration
        score.
    promised_rate_, calibration_plan_, appearance_range_, roi_, inspection_, training_paths_, embeddings_, appearances_
        As in :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Number and names of the columns of `X`. Set only if `X` is a 2-D array or table of precomputed features.

    See Also
    --------
    PaDiMDetector : Gaussians of each position of the patch grid.
    PatchWhitening : Whitened patch features for PatchCore, i.e. Mahalanobis distances between patches.

    Notes
    -----
    With fewer images than channels, the sample covariance is singular. The shrinkage covariance is not, unless all
    training images are equal. Its distances depend on the shrinkage then. Of two images, only the mean variance of the
    channels is used. One image has no variance, so that it is an error if a fold of the calibration leaves one image.

    References
    ----------
    Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
    Detection", ICPR 2020. Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import MahalanobisDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (24, 64, 64, 3)).clip(0, 1)
    >>> bad = 1 - good[:1] ** 2
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, patch_size=1)
    >>> MahalanobisDetector(extractor).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {**WholeImageDetector._parameter_constraints}

    def __init__(
        self,
        extractor: Any = None,
        *,
        contamination: float | str = "auto",
        calibration: Any = "auto",
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.contamination = contamination
        self.calibration = calibration
        self.roi = roi
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> LevelGaussians:
        descriptors = descriptors_of(patches)
        n_channels = layer_channels_of(stages["extractor"])
        if n_channels is None:
            n_channels = (descriptors.shape[1],)
            if stages["extractor"] is not None:
                warn_user(
                    "MahalanobisDetector: the extractor does not state which channels come from which layer, so all "
                    "channels are one level."
                )
        with phase("learning"):
            return LevelGaussians.of(descriptors, n_channels)

    def _learn_folds(
        self,
        patches: PatchSource,
        stages: dict[str, Any],
        budget: Budget,
        seed: int,
        left_out: Sequence[np.ndarray],
        held: Callable[[PatchSource], tuple[PatchSource, Budget]],
    ) -> tuple[PatchModel, Iterable[Sequence[PatchModel]]]:
        if any(len(patches) - len(images) < 2 for images in left_out):
            raise ValueError(
                f"MahalanobisDetector: a fold of the calibration leaves one of {len(patches)} training images, which "
                "has no covariance. Pass more images (or groups), or set calibration=None."
            )
        return super()._learn_folds(patches, stages, budget, seed, left_out, held)

    def _n_folds(self, patches: PatchSource, budget: Budget, stages: dict[str, Any]) -> int:
        return _N_FOLDS

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        needs = super()._memory_needs(n_patches, first, stages)
        assert needs.learning is not None
        # The covariance, its factor and the inverse, if all channels are one level.
        return replace(needs, learning=needs.learning + 4 * 8 * first.n_channels**2, model=8 * first.n_channels**2)

    def _keep(self, model: LevelGaussians, numbers: np.ndarray) -> None:
        self.model_ = replace(model, descriptors=None)


def _levels(descriptors: np.ndarray, n_channels: Sequence[int]) -> list[np.ndarray]:
    """Return the columns of each level."""
    return np.split(descriptors, np.cumsum(n_channels)[:-1], axis=1)


def _covariance(level: np.ndarray) -> np.ndarray:
    """Return the shrinkage covariance of centred image vectors of a level.

    If all image vectors have the same distance to their mean on one line, as two images have, the method of Ledoit and
    Wolf does not shrink. A singular covariance is then replaced by the mean variance in all directions.
    """
    n_channels = level.shape[1]
    if len(level) < 2:
        return np.zeros((n_channels, n_channels))
    covariance, shrinkage = ledoit_wolf(level, assume_centered=True)
    if shrinkage < _NO_SHRINKAGE and np.linalg.matrix_rank(level) < n_channels:
        covariance = np.eye(n_channels) * (np.trace(covariance) / n_channels)
    return np.asarray(covariance)


def _regular(covariance: np.ndarray) -> np.ndarray:
    """Return a covariance that is positive definite: equal training images have a covariance of zeros."""
    least = np.finfo(float).eps * (float(np.trace(covariance)) or 1.0)
    regular: np.ndarray = covariance + least * np.eye(len(covariance))
    return regular
