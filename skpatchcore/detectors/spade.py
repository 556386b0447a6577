"""SPADE: nearest images first, then the nearest patches in them."""

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
    """What SPADE learns: good images, as they are.

    Attributes
    ----------
    rows : array of shape (n_patches, n_channels)
        Patch features, image after image.
    starts : array of shape (n_images + 1,)
        Where each image's begin.
    images : array of int
        Those of them that count.
    descriptors : array of shape (n_images, n_channels)
        Each image's mean patch feature.
    n_neighbors : int
        How many images a new one is compared with.
    """

    rows: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    descriptors: np.ndarray
    n_neighbors: int

    def score(self, patches: Patches, with_patch_scores: bool = True) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the mean distance to the nearest images, and each patch's distance to the nearest patch in them.

        **Bigger = more anomalous**.
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
        """Return the gallery in which some images do not count; None if none is left."""
        others = np.setdiff1d(self.images, images)
        return replace(self, images=others) if len(others) else None


class SPADEDetector(PatchDetector):
    """Find images unlike their nearest good ones, and places in them: SPADE, a baseline of the paper.

    ``score_samples`` and ``decision_function``: bigger = more normal. ``predict``: +1 normal, -1 anomalous.
    ``segment``: maps, **bigger = more anomalous**.

    An image's score is its mean distance to the good images nearest to it, by the means of their patch features; a
    patch's is its distance to the nearest patch of these images, wherever in them it lies.

    Parameters
    ----------
    extractor : estimator, "precomputed" or None, default=None
        As of :class:`~skpatchcore.PatchCoreDetector`: the same features for a comparison side by side.
    n_neighbors : int, default=50
        *K*, the good images that a new one is compared with; all, if there are not more.
    contamination, calibration, smoothing, max_memory, device, random_state, verbose
        As of :class:`~skpatchcore.PatchCoreDetector`.

    Attributes
    ----------
    extractor_ : estimator
        As fitted; None with precomputed features.
    model_ : Gallery
        All patch features of the good images.
    calibration_scores_, calibration_peaks_, calibration_image_indices_, offset_, pixel_offset_, appearance_range_
        As of :class:`~skpatchcore.PatchCoreDetector`.
    n_features_in_, feature_names_in_
        Of a 2-D precomputed `X`.

    Notes
    -----
    It keeps all patch features of all training images, and compares each patch with those of *K* of them: large files
    and slow predictions are the method's.

    Two things are not as in the SPADE paper: images are compared by the mean of the patch features, where the paper
    takes the network's last pooling, which an extractor of patch features does not give; and distances are not squared.

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
        # All patch features are held; a query copies those of its nearest images.
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
        Where each image's begin.
    """
    return np.stack([rows[start:stop].mean(axis=0, dtype=np.float64) for start, stop in pairwise(starts)])
