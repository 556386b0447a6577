"""DN2Detector: the DN2 baseline, which compares an image as a whole with its nearest good images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from skpatchcore._utils.sklearn import Interval
from skpatchcore.bank.budget import Budget
from skpatchcore.detectors._whole_image import WholeImageDetector, descriptors_of, mean_patches, no_patch_scores
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource


@dataclass(frozen=True)
class ImageGallery:
    """The model of DN2: one vector of each good image.

    Attributes
    ----------
    descriptors : array of shape (n_images, n_channels)
        Mean patch feature of each image.
    images : array of int
        Indices of the images that are used. `without` removes images from this array only.
    n_neighbors : int
        Number of good images with which a new image is compared.
    """

    descriptors: np.ndarray
    images: np.ndarray
    n_neighbors: int

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores, **bigger = more anomalous**: mean distances to the nearest images of the gallery."""
        check_channels(patches, self.descriptors.shape[1])
        distances = cdist(mean_patches(patches.rows, patches.starts), self.descriptors[self.images])
        k = min(self.n_neighbors, len(self.images))
        scores = np.partition(distances, k - 1, axis=1)[:, :k].mean(axis=1)
        return scores, no_patch_scores(patches, with_patch_scores)

    def without(self, images: np.ndarray) -> ImageGallery | None:
        """Return the gallery without the given images; None if no image is left."""
        others = np.setdiff1d(self.images, images)
        return replace(self, images=others) if len(others) else None


class DN2Detector(WholeImageDetector):
    """Detect anomalous images with DN2, an earlier method: the distance to the nearest good images as a whole.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. **There are no anomaly maps**: `segment` raises an error.

    DN2 (Deep Nearest Neighbours) represents an image by one vector, which a pretrained network computes. The score is
    the mean distance to the *k* nearest vectors of the training images, with a negative sign. Small defects change this
    vector little, so that PatchCore finds more of them.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        The extractor turns images into grids of patch features. The vector of an image is the mean of its patch
        features. The DN2 paper uses the last layer of a ResNet:
        ``TorchFeatureExtractor("wide_resnet50_2", layers=("layer4",), patch_size=1)``. None uses
        ``TorchFeatureExtractor()``, whose layers are those of PatchCore.
    n_neighbors : int, default=2
        Number *k* of nearest training images, as in the DN2 paper. If there are fewer training images, all are used.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Accepted false-positive rate, as for :class:`~skpatchcore.PatchCoreDetector`.
    calibration : "auto", "leave-one-out", float, int, splitter or None, default="auto"
        Method that scores good images in order to set the threshold, as for :class:`~skpatchcore.SPADEDetector`.
        ``"auto"`` and ``"leave-one-out"`` compare each training image with the training images of all other groups.
    roi : mask, path, box, polygon, list, callable or None, default=None
        Region of interest, as for :class:`~skpatchcore.PatchCoreDetector`. The mean is that of the patches inside.
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
    model_ : ImageGallery
        The vector of each training image.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of the calibration images, bigger = more normal. NaN for an image that leave-one-out cannot score.
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
    SPADEDetector : Finds the nearest images in the same way, and compares their patches.

    References
    ----------
    Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import DN2Detector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> bad = 1 - good[:1] ** 2
    >>> DN2Detector(TorchFeatureExtractor("resnet18", weights=None, image_size=None)).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **WholeImageDetector._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_neighbors: int = 2,
        contamination: float | str = "auto",
        calibration: Any = "auto",
        roi: Any = None,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.calibration = calibration
        self.roi = roi
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> ImageGallery:
        descriptors = descriptors_of(patches)
        return ImageGallery(descriptors, np.arange(len(descriptors)), self.n_neighbors)
