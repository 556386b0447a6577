"""SPADEDetector: the SPADE baseline, which compares an image with its nearest good images and their patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin_min

from skpatchcore._utils.progress import phase
from skpatchcore._utils.sklearn import Interval
from skpatchcore.bank.budget import Budget, MemoryNeeds
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.patches.model import check_channels
from skpatchcore.patches.patches import Patches
from skpatchcore.patches.stream import PatchSource


@dataclass(frozen=True)
class Gallery:
    """The model of SPADE: all patch features of the good images.

    Attributes
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features, image after image.
    starts : array of shape (n_images + 1,)
        Index in `rows` of the first patch of each image, followed by the number of patches.
    images : array of int
        Indices of the images that are used. `without` removes images from this array only.
    descriptors : array of shape (n_images, n_channels)
        Mean patch feature of each image.
    n_neighbors : int
        Number of good images with which a new image is compared.
    """

    rows: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    descriptors: np.ndarray
    n_neighbors: int

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return image scores and grids of patch scores, **bigger = more anomalous**.

        The image score is the mean distance to the nearest images. The patch score is the distance to the nearest
        patch in these images.
        """
        check_channels(patches, self.rows.shape[1])
        to_images = pairwise_distances(mean_patches(patches.rows, patches.starts), self.descriptors[self.images])
        k = min(self.n_neighbors, len(self.images))
        nearest = np.argsort(to_images, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(to_images, nearest, axis=1).mean(axis=1)
        if not with_patch_scores:
            return scores, []
        distances = np.empty(len(patches.rows))
        for (start, stop), images in zip(pairwise(patches.starts), self.images[nearest], strict=True):
            rows = np.concatenate([self.rows[self.starts[i] : self.starts[i + 1]] for i in images])
            distances[start:stop] = pairwise_distances_argmin_min(patches.rows[start:stop], rows)[1]
        return scores, patches.as_grids(distances)

    def without(self, images: np.ndarray) -> Gallery | None:
        """Return the gallery without the given images; None if no image is left."""
        others = np.setdiff1d(self.images, images)
        return replace(self, images=others) if len(others) else None


class SPADEDetector(PatchDetector):
    """Detect anomalous images and pixels with SPADE, a baseline of the PatchCore paper.

    ``score_samples`` and ``decision_function`` return scores, bigger = more normal. ``predict`` returns +1 for normal
    and -1 for anomalous images. ``segment`` returns anomaly maps, **bigger = more anomalous**.

    SPADE compares an image with its nearest good images. The distance between two images is the distance between the
    means of their patch features. The image score is the mean distance to the nearest good images. The patch score is
    the distance to the nearest patch in these good images, at any position in the grid.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        As in :class:`~skpatchcore.PatchCoreDetector`. To compare the detectors on the same features, pass the same
        extractor to both.
    n_neighbors : int, default=50
        Number *K* of nearest good images with which a new image is compared. If there are fewer good images, all of
        them are used.
    contamination, calibration, smoothing, max_memory, device, random_state, verbose
        As in :class:`~skpatchcore.PatchCoreDetector`.

    Attributes
    ----------
    extractor_ : estimator
        The fitted extractor. None with precomputed features.
    model_ : Gallery
        All patch features of the good images.
    calibration_scores_, calibration_peaks_, calibration_image_indices_, offset_, pixel_offset_, appearance_range_
        As in :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Number and names of the columns of `X`. Set only if `X` is a 2-D array or table of precomputed features.

    Notes
    -----
    The detector keeps all patch features of all training images, and compares each patch with the patches of *K*
    images. Therefore its files are large and its predictions are slow.

    This implementation differs from the SPADE paper in two points. First, it compares images by the mean of their patch
    features, because an extractor of patch features does not return the network's last pooling layer, which the paper
    uses. Second, distances are not squared.

    References
    ----------
    Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import SPADEDetector, TorchFeatureExtractor
    >>> good = np.random.default_rng(0).normal(0.5, 0.02, (12, 64, 64, 3)).clip(0, 1)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    >>> bad = good[:1].copy()
    >>> bad[0, 20:40, 20:40] = 0
    >>> SPADEDetector(extractor).fit(good).predict(bad)
    array([-1])
    """

    _parameter_constraints: dict[str, Any] = {
        **PatchDetector._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_neighbors: int = 50,
        contamination: float | str = "auto",
        calibration: Any = "leave-one-out",
        smoothing: float = 4.0,
        max_memory: int | str | None = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.calibration = calibration
        self.smoothing = smoothing
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _learn(self, patches: PatchSource, stages: dict[str, Any], budget: Budget, seed: int) -> Gallery:
        held = patches if isinstance(patches, Patches) else Patches.gather(patches, budget.n_patches)
        with phase("learning"):
            descriptors = mean_patches(held.rows, held.starts)
        return Gallery(held.rows, held.starts, np.arange(len(held)), descriptors, self.n_neighbors)

    def _memory_needs(self, n_patches: int, first: Patches, stages: dict[str, Any]) -> MemoryNeeds:
        # All patch features are held in memory. Scoring copies the patch features of the nearest images.
        per_image = first.rows.nbytes // len(first)
        n_images = max(1, n_patches * first.rows.shape[1] * first.rows.itemsize // per_image)
        return MemoryNeeds(learning=None, model=min(self.n_neighbors, n_images) * per_image)


def mean_patches(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean patch feature of each image: array of shape (n_images, n_channels), float64.

    Parameters
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features, image after image.
    starts : array of shape (n_images + 1,)
        Index in `rows` of the first patch of each image, followed by the number of patches.
    """
    return np.stack([rows[start:stop].mean(axis=0, dtype=np.float64) for start, stop in pairwise(starts)])
